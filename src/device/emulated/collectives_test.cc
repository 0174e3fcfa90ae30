#include "device/emulated/collectives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "device/emulated/testing.h"

namespace tidepool::device::emulated {
namespace {

using profile::CollectiveKind;

constexpr double kBytesPerS = 10e9;

struct Rig {
  Rig(int32_t nodes, int32_t devices, int64_t latency_ns) {
    costs.links[{profile::LinkKind::kPeer, true}].latency_ns = latency_ns;
    network = std::make_unique<LinkNetwork>(&simulation, simulation.AddActor("links"));
    topology = Topology::Build({.nodes = nodes, .devices_per_node = devices}, costs, network.get()).value();
    all.resize(static_cast<size_t>(nodes * devices));
    std::iota(all.begin(), all.end(), 0);
  }
  int64_t Nanos(CollectiveKind kind, double bytes, CollectiveAlgorithm algorithm) const {
    return NanosAlone(PlanCollective(kind, bytes, all, algorithm, topology), topology);
  }
  testing::PlantedCosts costs;
  Simulation simulation;
  std::unique_ptr<LinkNetwork> network;
  Topology topology;
  std::vector<int32_t> all;
};

TEST(Collectives, RingTakesItsClosedForm) {
  constexpr int64_t kLatency = 3000;
  for (const int32_t n : {2, 3, 4, 8, 64}) {
    const Rig rig(1, n, kLatency);
    for (const double bytes : {8.0, 1e6, 1e9}) {
      const double shard_ns = bytes / n / kBytesPerS * 1e9;
      EXPECT_NEAR(static_cast<double>(rig.Nanos(CollectiveKind::kAllReduce, bytes, CollectiveAlgorithm::kRing)),
                  2 * (n - 1) * (shard_ns + kLatency), 1);
      for (const CollectiveKind kind : {CollectiveKind::kAllGather, CollectiveKind::kReduceScatter}) {
        EXPECT_NEAR(static_cast<double>(rig.Nanos(kind, bytes, CollectiveAlgorithm::kRing)), (n - 1) * (shard_ns + kLatency), 1);
      }
    }
  }
}

TEST(Collectives, TreeTakesItsClosedForm) {
  constexpr int64_t kLatency = 3000;
  for (const int32_t n : {2, 3, 5, 8, 16}) {
    const Rig rig(1, n, kLatency);
    const double depth = std::ceil(std::log2(n));
    EXPECT_NEAR(static_cast<double>(rig.Nanos(CollectiveKind::kAllReduce, 1e6, CollectiveAlgorithm::kTree)),
                2 * depth * (1e6 / kBytesPerS * 1e9 + kLatency), 1)
        << n;
  }
}

TEST(Collectives, AutoTakesTheFasterOfTheTwo) {
  const Rig rig(1, 8, 3000);
  for (const double bytes : {8.0, 1e3, 1e4, 1e5, 1e6, 1e9}) {
    EXPECT_EQ(rig.Nanos(CollectiveKind::kAllReduce, bytes, CollectiveAlgorithm::kAuto),
              std::min(rig.Nanos(CollectiveKind::kAllReduce, bytes, CollectiveAlgorithm::kRing),
                       rig.Nanos(CollectiveKind::kAllReduce, bytes, CollectiveAlgorithm::kTree)));
  }
  EXPECT_LT(rig.Nanos(CollectiveKind::kAllReduce, 8, CollectiveAlgorithm::kTree),
            rig.Nanos(CollectiveKind::kAllReduce, 8, CollectiveAlgorithm::kRing));
  EXPECT_GT(rig.Nanos(CollectiveKind::kAllReduce, 1e9, CollectiveAlgorithm::kTree),
            rig.Nanos(CollectiveKind::kAllReduce, 1e9, CollectiveAlgorithm::kRing));
}

TEST(Collectives, OfOneDeviceTakeNoTime) {
  const Rig rig(1, 1, 3000);
  EXPECT_EQ(rig.Nanos(CollectiveKind::kAllReduce, 1e9, CollectiveAlgorithm::kAuto), 0);
}

TEST(Topology, PathsGoOverWhatLiesBetween) {
  testing::PlantedCosts costs;
  Simulation simulation;
  LinkNetwork network(&simulation, simulation.AddActor("links"));
  const Topology topology =
      Topology::Build({.nodes = 2, .devices_per_node = 4, .devices_per_switch = 2}, costs, &network).value();
  EXPECT_EQ(topology.devices(), 8);
  EXPECT_EQ(topology.node_of(3), 0);
  EXPECT_EQ(topology.node_of(4), 1);
  const auto names = [&](const Topology::Path& path) {
    std::string text;
    for (const LinkId link : path.links) text += (text.empty() ? "" : " ") + network.NameOf(link);
    return text;
  };
  EXPECT_EQ(names(topology.ToDevice(3)), "node0.switch1.down device3.pcie.down");
  EXPECT_EQ(names(topology.FromDevice(0)), "device0.pcie.up node0.switch0.up");
  EXPECT_EQ(names(topology.Between(0, 3)), "device0.peer.out device3.peer.in");
  EXPECT_EQ(names(topology.Between(0, 5)),
            "device0.pcie.up node0.switch0.up node0.net.out node1.net.in node1.switch0.down device5.pcie.down");
  EXPECT_EQ(topology.Between(0, 5).bytes_per_s, 1e9);
  costs.links.erase({profile::LinkKind::kPeer, true});
  const Topology without = Topology::Build({.devices_per_node = 2}, costs, &network).value();
  EXPECT_EQ(names(without.Between(1, 0)), "device1.pcie.up device0.pcie.down");
}

TEST(Topology, RefusesSizesOutOfRangeAndDevicesWithoutALink) {
  testing::PlantedCosts costs;
  Simulation simulation;
  LinkNetwork network(&simulation, simulation.AddActor("links"));
  EXPECT_THAT(MessageOf(Topology::Build({.devices_per_node = 0}, costs, &network).status()),
              ::testing::HasSubstr("allowed: 1 to 4096 devices"));
  EXPECT_FALSE(Topology::Build({.nodes = 5000}, costs, &network).ok());
  costs.links.clear();
  EXPECT_EQ(Topology::Build({}, costs, &network).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace tidepool::device::emulated
