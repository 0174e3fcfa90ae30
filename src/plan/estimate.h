// A profile for an op list that nobody measured: roofline times from a hardware description, sizes from shapes. Every number is
// an estimate and the bundle says so (Manifest::measured is false).
//
// An op takes the longer of its arithmetic at `compute_efficiency` of the peak and its traffic at `memory_efficiency` of the
// memory's bandwidth, plus a launch; the backward pass twice that. Splits divide arithmetic, weights and what the layout cuts. A
// column or row split pays one all-reduce over the peer links, backward or forward, inside of the op, as profiles of real ops
// include it. Collectives are ring algorithms on the peer links.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "plan/op_list.h"
#include "profile/bundle.h"

namespace tidepool::plan {

struct EstimateOptions {
  std::vector<int32_t> batches = {1, 2, 4, 8};
  std::vector<int32_t> widths = {1, 2, 4, 8};
  double compute_efficiency = 0.5;
  double memory_efficiency = 0.7;
  double link_efficiency = 0.8;
  double link_latency_us = 10;
};

// INVALID_ARGUMENT: a description without peak_flops of the list's dtype, memory bandwidth or (for widths above 1) peer
// bandwidth; batches, widths or efficiencies out of range.
StatusOr<profile::Bundle> EstimateBundle(const OpList& list, const profile::Hardware& hardware,
                                         const EstimateOptions& options = {});

}  // namespace tidepool::plan
