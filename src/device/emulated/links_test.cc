#include "device/emulated/links.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace tidepool::device::emulated {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kMs = 1'000'000;

class LinksTest : public ::testing::Test, public TransferSink {
 protected:
  void TransferEnded(uint64_t tag, int64_t end_ns) override {
    if (ends_.size() <= tag) ends_.resize(tag + 1, -1);
    ends_[tag] = end_ns;
  }
  void StartAt(int64_t at_ns, std::vector<LinkId> path, double bytes, uint64_t tag, double limit = 0) {
    simulation_.Schedule(at_ns, actor_, [this, at_ns, path, bytes, tag, limit] {
      network_.Start({.path = path, .bytes = bytes, .limit_bytes_per_s = limit, .ready_ns = at_ns, .sink = this, .tag = tag});
    });
  }

  Simulation simulation_;
  Simulation::ActorId actor_ = simulation_.AddActor("links");
  LinkNetwork network_{&simulation_, actor_};
  std::vector<int64_t> ends_;
};

TEST_F(LinksTest, TransferAloneTakesItsBytesOverTheSlowestLink) {
  const LinkId fast = network_.AddLink("fast", 4e9), slow = network_.AddLink("slow", 1e9);
  StartAt(0, {fast, slow}, 1e6, 0);
  StartAt(5 * kMs, {fast}, 1, 1);
  StartAt(6 * kMs, {fast}, 0, 2);
  StartAt(7 * kMs, {fast}, 1e6, 3, 0.5e9);
  simulation_.Run();
  EXPECT_THAT(ends_, ElementsAre(kMs, 5 * kMs + 1, 6 * kMs, 9 * kMs));
  EXPECT_DOUBLE_EQ(network_.BytesOver(slow), 1e6);
}

TEST_F(LinksTest, EqualTransfersShareALinkInEqualParts) {
  const LinkId link = network_.AddLink("link", 1e9);
  for (uint64_t i = 0; i < 4; ++i) StartAt(0, {link}, 1e6, i);
  simulation_.Run();
  EXPECT_THAT(ends_, ElementsAre(4 * kMs, 4 * kMs, 4 * kMs, 4 * kMs));
}

TEST_F(LinksTest, RatesChangeWhenTransfersComeAndGo) {
  const LinkId link = network_.AddLink("link", 1e9);
  StartAt(0, {link}, 3e6, 0);        // alone for 1 ms, shares until 3 ms, when it has sent 2e6
  StartAt(1 * kMs, {link}, 1e6, 1);  // shares: 2 ms
  simulation_.Run();
  EXPECT_THAT(ends_, ElementsAre(4 * kMs, 3 * kMs));
}

// The textbook case: what a limited transfer leaves is for the others.
TEST_F(LinksTest, FairnessIsMaxMin) {
  const LinkId narrow = network_.AddLink("narrow", 1e9), wide = network_.AddLink("wide", 4e9);
  StartAt(0, {narrow, wide}, 0.5e6, 0);  // narrow is shared by two: 0.5e9 each
  StartAt(0, {narrow}, 0.5e6, 1);
  StartAt(0, {wide}, 3.5e6, 2);  // wide has 3.5e9 left
  simulation_.Run();
  EXPECT_THAT(ends_, ElementsAre(kMs, kMs, kMs));
}

TEST_F(LinksTest, OwnLimitLeavesTheRestToOthers) {
  const LinkId link = network_.AddLink("link", 1e9);
  StartAt(0, {link}, 0.1e6, 0, 0.1e9);
  StartAt(0, {link}, 0.9e6, 1);
  simulation_.Run();
  EXPECT_THAT(ends_, ElementsAre(kMs, kMs));
}

TEST_F(LinksTest, TransferThatWasNoticedLateCountsFromWhenItWasReady) {
  const LinkId link = network_.AddLink("link", 1e9);
  simulation_.Schedule(10 * kMs, actor_, [&] {
    const LinkId path[] = {link};
    network_.Start({.path = path, .bytes = 2e6, .ready_ns = 9 * kMs, .sink = this, .tag = 0});
  });
  StartAt(20 * kMs, {link}, 1e6, 1);
  simulation_.Schedule(25 * kMs, actor_, [&] {  // ready while the link was in use: from when it became free
    const LinkId path[] = {link};
    network_.Start({.path = path, .bytes = 1e6, .ready_ns = 20 * kMs, .sink = this, .tag = 2});
  });
  simulation_.Run();
  EXPECT_THAT(ends_, ElementsAre(11 * kMs, 21 * kMs, 22 * kMs));
}

TEST_F(LinksTest, NoLinkCarriesMoreThanItCanAndAllBytesArrive) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    Simulation simulation;
    const auto actor = simulation.AddActor("links");
    LinkNetwork network(&simulation, actor);
    std::vector<LinkId> links;
    std::vector<double> rates, planned(6, 0);
    for (int i = 0; i < 6; ++i) {
      rates.push_back(1e8 * (1 + random() % 20));
      links.push_back(network.AddLink("l", rates.back()));
    }
    struct Count : TransferSink {
      int ended = 0;
      int64_t last = 0;
      void TransferEnded(uint64_t, int64_t end_ns) override { ++ended, last = std::max(last, end_ns); }
    } count;
    for (int i = 0; i < 300; ++i) {
      const auto a = random() % 6, b = (a + 1 + random() % 5) % 6;
      const double bytes = 1 + random() % 1'000'000;
      planned[a] += bytes;
      planned[b] += bytes;
      simulation.Schedule(random() % 100'000'000, actor, [&, a, b, bytes] {
        const LinkId path[] = {links[a], links[b]};
        network.Start({.path = path, .bytes = bytes, .ready_ns = simulation.now_ns(), .sink = &count});
      });
    }
    simulation.Run();
    EXPECT_EQ(count.ended, 300);
    EXPECT_EQ(network.transfers(), 0);
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_DOUBLE_EQ(network.BytesOver(links[i]), planned[i]);
      EXPECT_GE(static_cast<double>(count.last), planned[i] / rates[i] * 1e9 * 0.999999);
    }
  }
}

}  // namespace
}  // namespace tidepool::device::emulated
