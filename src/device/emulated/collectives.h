// Collectives as rounds of transfers between devices.
//
// Ring (Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, 2009), S bytes on n devices over links of B bytes/s and
// latency a:
//   all-reduce       2 (n-1) (S / (n B) + a)
//   all-gather, reduce-scatter   (n-1) (S / (n B) + a)
// Tree (binomial; Thakur, Rabenseifner, Gropp, Optimization of collective communication operations in MPICH, 2005):
//   all-reduce       2 ceil(log2 n) (S / B + a)
// All-to-all: every device sends S / n to each other one, (n-1) S / (n B) + a over its port.
//
// S is the whole, unsharded buffer: what each device holds before an all-reduce or reduce-scatter, and after an all-gather.
// A ring's steps are all alike, so they are one round here: each device sends what it sends in all steps to its neighbour.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/emulated/topology.h"

namespace tidepool::device::emulated {

enum class CollectiveAlgorithm : uint8_t { kAuto, kRing, kTree };

struct CollectiveRound {
  struct Send {
    int32_t from = 0, to = 0;
    double bytes = 0;
  };
  std::vector<Send> sends;  // all at once
  int64_t latency_ns = 0;   // after the last of them
};

// The rounds of one collective among `devices` (each once). Tree is for all-reduce only; others are a ring whatever is asked.
// Auto takes what is faster when nothing else uses the links.
std::vector<CollectiveRound> PlanCollective(profile::CollectiveKind kind, double bytes, std::span<const int32_t> devices,
                                            CollectiveAlgorithm algorithm, const Topology& topology);

// The time of the rounds when nothing else uses the links, where no two sends of a round share a link.
int64_t NanosAlone(const std::vector<CollectiveRound>& rounds, const Topology& topology);

}  // namespace tidepool::device::emulated
