// In which order an epoch goes through the samples. The same arguments give the same order on every machine; journals,
// checkpoints and resume tokens rely on it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tidepool::data {

class Dataset;

// Every sample anywhere: entry i is the sample at offset i of the epoch.
std::vector<int64_t> EpochOrder(int64_t size, uint64_t seed, int64_t epoch);

// For data of which one disk read brings in a group of neighbouring samples. The groups are shuffled; then the samples of
// `window` groups at a time (the first `window` of the shuffled groups, the next, ...) are shuffled among themselves. So a reader
// holds at most two windows of groups and reads each group once. `groups` is the first sample of each group, then the number of
// samples.
std::vector<int64_t> GroupedEpochOrder(std::span<const int64_t> groups, int64_t window, uint64_t seed, int64_t epoch);

// The groups of a data set in that form; empty if each sample is a group of its own.
std::vector<int64_t> GroupsOf(const Dataset& dataset);

uint64_t AugmentKey(uint64_t seed, int64_t epoch);

}  // namespace tidepool::data
