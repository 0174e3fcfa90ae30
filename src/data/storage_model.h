// When a disk would have finished: a storage device as arithmetic on times. No threads, no I/O, no clock.
//
// An operation is one read of a run of bytes. It waits for one of `depth` slots, takes its latency there (random, or sequential
// if it follows the operation before it), and then its bytes pass the device's link one operation after the other. Two token
// buckets can hold it back further: operations per second, and sustained bytes per second with credits for bursts (cloud
// volumes).
//
//   start = when a slot is free and the operations bucket lets it pass
//   done  = when `bytes` have passed the link and the credits after start + latency
//
// So in closed form, for n random operations of b bytes:  depth 1: n (latency + b / rate);  many at once: max of
// n b / rate, n / iops and n latency / depth, plus what it takes to fill and drain the slots.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidepool::data {

// Thread-compatible.
class TokenBucket {
 public:
  // `rate` tokens per second; it holds up to `burst` of them and starts full. With a burst of 0 it is a link: amounts pass one
  // after the other at the rate.
  TokenBucket(double rate, double burst) : rate_(rate), burst_(burst) {}
  // When `amount` has passed that asks at `now`. Calls come in the order in which amounts pass; a `now` before that of the last
  // call counts as that.
  absl::Time Take(absl::Time now, double amount);

 private:
  double rate_, burst_;
  absl::Time last_ = absl::InfinitePast();
  absl::Time full_at_ = absl::InfinitePast();  // when it is full again if nobody asks
};

struct StorageSpec {
  std::string name;
  double bytes_per_s = 0;         // of the link
  absl::Duration random_latency;  // before the first byte
  absl::Duration sequential_latency;
  int depth = 1;                     // operations in their latency at once
  double ops_per_s = 0;              // 0: no limit
  double sustained_bytes_per_s = 0;  // 0: as the link
  double burst_bytes = 0;            // credits above the sustained rate
  std::string origin;                // where the figures come from
  bool estimated = false;            // some of them are not of the vendor or measured

  Status Validate() const;
};

// "hdd", "sata-ssd", "nvme", "coordl-ssd", "aws-gp3", "aws-io2", "aws-st1-1tib", "gcp-pd-balanced-1tib", "gcp-pd-ssd-1tib",
// "azure-p30".
const std::vector<StorageSpec>& StoragePresets();

// A preset's name, and after it changes: "sata-ssd,rate=300MB,latency=1ms,depth=4,iops=5000,sustained=40MB,burst=1GiB". `latency`
// sets that of random reads, `sequential` that of sequential ones. "custom,rate=..." starts from nothing. INVALID_ARGUMENT names
// the part that is wrong.
StatusOr<StorageSpec> ParseStorageSpec(std::string_view text);

struct StorageCounts {
  int64_t ops = 0, sequential_ops = 0;
  int64_t bytes = 0;
};

// Thread-compatible.
class StorageModel {
 public:
  // `spec` is valid.
  explicit StorageModel(const StorageSpec& spec);
  // When an operation that is submitted at `now` is done. `now` does not run backwards; a `now` before that of the last call
  // counts as that.
  absl::Time Submit(absl::Time now, int64_t bytes, bool sequential);

  const StorageSpec& spec() const { return spec_; }
  const StorageCounts& counts() const { return counts_; }

 private:
  const StorageSpec spec_;
  absl::Time last_ = absl::InfinitePast();
  std::vector<absl::Time> slots_;  // when each is free; a heap with the earliest in front
  TokenBucket ops_, link_, credits_;
  StorageCounts counts_;
};

// Tells whether reads of numbered units follow each other. Thread-compatible.
class SequenceDetector {
 public:
  // Whether the read of [first, last) begins where the one before ended.
  bool Follows(int64_t first, int64_t last) {
    const bool follows = first == end_;
    end_ = last;
    return follows;
  }

 private:
  int64_t end_ = -1;
};

}  // namespace tidepool::data
