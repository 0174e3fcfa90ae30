#include "serve/placement.h"

#include <gtest/gtest.h>

#include <random>

namespace tidepool::serve {
namespace {

using View = Placement::View;
using State = ModelState;

constexpr int64_t kWeights = 100;
const Placement::Model kModel{
    .key = "m", .weight_bytes = kWeights, .solo_latency = absl::Milliseconds(5), .slo = absl::Milliseconds(20)};

Placement::Model Named(const std::string& key) {
  Placement::Model model = kModel;
  model.key = key;
  return model;
}

TEST(Placement, PrefersTheReadyDeviceWithTheFewestRequests) {
  Placement placement(3);
  const std::vector<View> views = {
      {.state = State::kReady}, {.state = State::kAbsent, .free_bytes = 1000}, {.state = State::kReady}};
  EXPECT_FALSE(placement.WantsMemory(kModel, views));
  EXPECT_EQ(placement.Begin(kModel, views).device, 0);
  EXPECT_EQ(placement.Begin(kModel, views).device, 2);
  EXPECT_EQ(placement.Begin(kModel, views).device, 0);
  const auto last = placement.Begin(kModel, views);
  EXPECT_EQ(last.device, 2);
  placement.End(last);
  EXPECT_EQ(placement.Begin(kModel, views).device, 2);
}

TEST(Placement, FollowsAModelThatIsOnItsWay) {
  Placement placement(3);
  std::vector<View> views(3, View{.free_bytes = 1000});
  views[2].state = State::kLoading;
  EXPECT_EQ(placement.Begin(kModel, views).device, 2);
  // Another model, whose load has not begun: only the group knows where its first request went.
  views[2].state = State::kAbsent;
  const auto first = placement.Begin(Named("other"), views);
  EXPECT_EQ(first.device, 0);
  EXPECT_EQ(placement.Begin(Named("other"), views).device, 0);
}

TEST(Placement, FindsAPlaceByRequestsThenRoomThenTrainingThenMemory) {
  std::vector<View> views = {{.free_bytes = 500}, {.free_bytes = 200}, {.free_bytes = 300}};
  Placement placement(3, /*train_device=*/0);
  EXPECT_TRUE(placement.WantsMemory(kModel, views));
  EXPECT_EQ(placement.Begin(Named("a"), views).device, 2) << "the most memory of those that do not train";
  EXPECT_EQ(placement.Begin(Named("b"), views).device, 1);
  EXPECT_EQ(placement.Begin(Named("c"), views).device, 0) << "the others have work";
  Placement full(3, /*train_device=*/0);
  views[1].free_bytes = views[2].free_bytes = kWeights - 1;
  EXPECT_EQ(full.Begin(kModel, views).device, 0) << "there nothing must go for it";
}

TEST(Placement, DevicesThatAreFullTakeTurns) {
  Placement placement(3);
  const std::vector<View> views(3, View{.free_bytes = kWeights - 1});
  std::vector<int> chosen;
  for (const char* name : {"a", "b", "c", "d", "e", "f"}) {
    const auto ticket = placement.Begin(Named(name), views);
    chosen.push_back(ticket.device);
    placement.End(ticket);
  }
  EXPECT_EQ(chosen, (std::vector<int>{0, 1, 2, 0, 1, 2}));
}

TEST(Placement, AModelWhoseQueueIsTooLongGetsAReplicaOnAnIdleDevice) {
  Placement placement(2);
  std::vector<View> views = {{.state = State::kReady}, {.free_bytes = 1000}};
  EXPECT_EQ(placement.Begin(kModel, views).device, 0);
  EXPECT_EQ(placement.Begin(kModel, views).device, 0);
  EXPECT_EQ(placement.Begin(kModel, views).device, 0) << "the wait is half of the objective, not more";
  EXPECT_TRUE(placement.WantsMemory(kModel, views));
  EXPECT_EQ(placement.Begin(kModel, views).device, 1);
  EXPECT_EQ(placement.Begin(kModel, views).device, 0) << "the other one is not idle any more";
  views[1].state = State::kReady;
  EXPECT_EQ(placement.Begin(kModel, views).device, 1);
}

TEST(Placement, WorkOfOtherModelsCountsInTheWait) {
  Placement placement(2);
  const std::vector<View> views = {{.state = State::kReady}, {.free_bytes = 1000}};
  Placement::Model slow = Named("slow");
  slow.solo_latency = absl::Milliseconds(50);
  slow.slo = absl::Milliseconds(200);
  EXPECT_EQ(placement.Begin(slow, views).device, 0);
  EXPECT_EQ(placement.Begin(kModel, views).device, 1);
}

TEST(Placement, WithoutFiguresThreeRequestsAreALongQueue) {
  Placement placement(2);
  const std::vector<View> views = {{.state = State::kReady}, {.free_bytes = 1000}};
  const Placement::Model unknown{.key = "m", .weight_bytes = kWeights};
  for (int i = 0; i < 3; ++i) EXPECT_EQ(placement.Begin(unknown, views).device, 0);
  EXPECT_EQ(placement.Begin(unknown, views).device, 1);
}

TEST(Placement, ADeviceWhoseWorkerIsGoneGetsNothingUnlessAllAre) {
  Placement placement(2);
  std::vector<View> views = {{.takes_requests = false, .state = State::kReady}, {.free_bytes = 0}};
  EXPECT_EQ(placement.Begin(kModel, views).device, 1);
  views[1].takes_requests = false;
  EXPECT_EQ(placement.Begin(kModel, views).device, 0);
}

// Whatever comes in whatever order: each request is counted on one device and counted out once.
TEST(Placement, CountsEveryRequestOutExactlyOnce) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    std::mt19937_64 random(seed);
    const int devices = 1 + static_cast<int>(random() % 16);
    Placement placement(devices, static_cast<int>(random() % static_cast<uint64_t>(devices + 1)) - 1);
    std::vector<Placement::Ticket> open;
    std::vector<int> counted(static_cast<size_t>(devices), 0);
    for (int step = 0; step < 300; ++step) {
      if (!open.empty() && random() % 2 == 0) {
        const size_t ended = random() % open.size();
        placement.End(open[ended]);
        --counted[static_cast<size_t>(open[ended].device)];
        open.erase(open.begin() + static_cast<ptrdiff_t>(ended));
      } else {
        std::vector<View> views(static_cast<size_t>(devices));
        for (View& view : views) {
          view = {.takes_requests = random() % 4 != 0,
                  .state = static_cast<State>(random() % 4),
                  .free_bytes = static_cast<int64_t>(random() % 300)};
        }
        Placement::Model model = Named("m" + std::to_string(random() % 5));
        if (random() % 5 == 0) model.solo_latency = model.slo = absl::ZeroDuration();
        open.push_back(placement.Begin(model, views));
        const int chosen = open.back().device;
        ASSERT_TRUE(chosen >= 0 && chosen < devices) << "seed " << seed;
        bool any = false;
        for (const View& view : views) any = any || view.takes_requests;
        EXPECT_TRUE(!any || views[static_cast<size_t>(chosen)].takes_requests) << "seed " << seed;
        ++counted[static_cast<size_t>(chosen)];
      }
      for (int i = 0; i < devices; ++i) ASSERT_EQ(placement.outstanding(i), counted[static_cast<size_t>(i)]) << "seed " << seed;
    }
    for (const Placement::Ticket& ticket : open) placement.End(ticket);
    EXPECT_EQ(placement.outstanding(), 0) << "seed " << seed;
  }
}

}  // namespace
}  // namespace tidepool::serve
