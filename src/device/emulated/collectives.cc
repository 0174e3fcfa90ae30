#include "device/emulated/collectives.h"

#include <algorithm>
#include <cmath>

namespace tidepool::device::emulated {
namespace {

using profile::CollectiveKind;

int64_t LatencyOf(const CollectiveRound& round, const Topology& topology) {
  int64_t latency_ns = 0;
  for (const auto& send : round.sends) latency_ns = std::max(latency_ns, topology.Between(send.from, send.to).latency_ns);
  return latency_ns;
}

std::vector<CollectiveRound> Ring(double bytes_per_step, int64_t steps, std::span<const int32_t> devices,
                                  const Topology& topology) {
  CollectiveRound round;
  for (size_t i = 0; i < devices.size(); ++i) {
    round.sends.push_back(
        {.from = devices[i], .to = devices[(i + 1) % devices.size()], .bytes = bytes_per_step * static_cast<double>(steps)});
  }
  round.latency_ns = LatencyOf(round, topology) * steps;
  return {round};
}

std::vector<CollectiveRound> Tree(double bytes, std::span<const int32_t> devices, const Topology& topology) {
  std::vector<CollectiveRound> up;
  for (size_t distance = 1; distance < devices.size(); distance *= 2) {
    CollectiveRound round;
    for (size_t i = distance; i < devices.size(); i += 2 * distance) {
      round.sends.push_back({.from = devices[i], .to = devices[i - distance], .bytes = bytes});
    }
    round.latency_ns = LatencyOf(round, topology);
    up.push_back(std::move(round));
  }
  std::vector<CollectiveRound> rounds = up;
  for (auto round = up.rbegin(); round != up.rend(); ++round) {
    for (auto& send : round->sends) std::swap(send.from, send.to);
    rounds.push_back(*round);
  }
  return rounds;
}

std::vector<CollectiveRound> AllToAll(double bytes, std::span<const int32_t> devices, const Topology& topology) {
  CollectiveRound round;
  for (const int32_t from : devices) {
    for (const int32_t to : devices) {
      if (from != to) round.sends.push_back({.from = from, .to = to, .bytes = bytes / static_cast<double>(devices.size())});
    }
  }
  round.latency_ns = LatencyOf(round, topology);
  return {round};
}

}  // namespace

std::vector<CollectiveRound> PlanCollective(CollectiveKind kind, double bytes, std::span<const int32_t> devices,
                                            CollectiveAlgorithm algorithm, const Topology& topology) {
  if (devices.size() < 2) return {};
  const auto n = static_cast<int64_t>(devices.size());
  const double shard = bytes / static_cast<double>(n);
  switch (kind) {
    case CollectiveKind::kAllGather:
    case CollectiveKind::kReduceScatter: return Ring(shard, n - 1, devices, topology);
    case CollectiveKind::kAllToAll: return AllToAll(bytes, devices, topology);
    case CollectiveKind::kAllReduce: break;
  }
  std::vector<CollectiveRound> ring = Ring(shard, 2 * (n - 1), devices, topology);
  if (algorithm == CollectiveAlgorithm::kRing) return ring;
  std::vector<CollectiveRound> tree = Tree(bytes, devices, topology);
  if (algorithm == CollectiveAlgorithm::kTree) return tree;
  return NanosAlone(tree, topology) < NanosAlone(ring, topology) ? tree : ring;
}

int64_t NanosAlone(const std::vector<CollectiveRound>& rounds, const Topology& topology) {
  int64_t sum_ns = 0;
  for (const CollectiveRound& round : rounds) {
    double slowest_ns = 0;
    for (const auto& send : round.sends) {
      slowest_ns = std::max(slowest_ns, send.bytes * 1e9 / topology.Between(send.from, send.to).bytes_per_s);
    }
    sum_ns += static_cast<int64_t>(std::ceil(slowest_ns - 1e-6)) + round.latency_ns;
  }
  return sum_ns;
}

}  // namespace tidepool::device::emulated
