// How a tensor lies on the devices of a stage, and what it costs in collectives to bring it into another layout.
//
// A layout is written (R, V, dims): R devices hold the same data, V hold partial sums of it, and each of three dimensions is cut
// into dims[i] parts; R * V * dims[0] * dims[1] * dims[2] is the number of devices. What the three dimensions are is the business
// of the op list: transformers of the published lists have [time, batch, hidden], images and graphs [batch, -, channel]. Source:
// Lin et al., Aceso: Efficient Parallel DNN Training through Iterative Bottleneck Alleviation, EuroSys 2024.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "profile/bundle.h"

namespace tidepool::plan {

// A layout as a function of the op's tensor-parallel and data-parallel width.
enum class Split : uint8_t { kNone, kTensor, kData };
struct Layout {
  Split replicas = Split::kTensor;
  std::array<Split, 3> dims = {Split::kData, Split::kNone, Split::kNone};
  friend bool operator==(const Layout&, const Layout&) = default;
};

struct Sharding {
  int32_t replicas = 1;
  int32_t partial_sums = 1;
  std::array<int32_t, 3> dims = {1, 1, 1};
  friend bool operator==(const Sharding&, const Sharding&) = default;
};
Sharding ShardingOf(const Layout& layout, int32_t tensor_parallel, int32_t data_parallel);

// The collective of the forward pass and the one of the backward pass, in groups of `ranks`. Neither: the change is free (equal
// layouts, or each device already has what it needs).
struct Reshard {
  std::optional<profile::CollectiveKind> forward, backward;
  int32_t ranks = 1;
};
// Both layouts must be of the same number of devices. The first rule that matches:
//   R shrinks, a dimension grows:   split, all-gather
//   V shrinks, R grows:             all-reduce, nothing
//   V shrinks, a dimension grows:   reduce-scatter, all-gather
//   a dimension shrinks, R grows:   all-gather, split
//   a dimension shrinks, another grows: all-to-all both ways
Reshard PlanReshard(const Sharding& from, const Sharding& to);

}  // namespace tidepool::plan
