// A container and what stands before it on request: a storage model that makes it slower, and a cache before that.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/options.h"
#include "base/status.h"
#include "data/cache.h"
#include "data/partition.h"
#include "data/record_source.h"
#include "data/storage_model_source.h"

namespace tidepool::data {

// One cache over the memory of several nodes (partition.h). Policy and size are those of WrapOptions, of this node's part.
struct PartitionOfCache {
  std::vector<std::string> peers;  // where each node listens, by number; "-": a node that is not there. Empty: no other nodes
  int64_t node = 0;                // this one; it listens at its own entry
  uint64_t seed = 1;               // of who owns what: the same for all nodes
  absl::Duration request_limit = absl::Milliseconds(500);
  std::string key_file;  // a key that all nodes have; empty: none, and only loopback addresses are listened at unless `open`
  bool open = false;

  bool partitioned() const { return !peers.empty(); }
};

struct WrapOptions {
  std::string cache = "none";  // a policy of cache_policy.h
  int64_t cache_bytes = 0;
  std::string storage;  // as ParseStorageSpec reads it; empty: the disk as it is
  Clock* clock = Clock::Real();
  std::string metrics_label;  // of the cache; empty: none
  PartitionOfCache partition;

  Status Validate() const;
  bool wraps() const { return cache != "none" || !storage.empty(); }
};

// Adds --cache, --cache-bytes and --storage, with keys of `section`.
void AddWrapOptions(const std::string& section, OptionTable* table, WrapOptions* options);

// Adds --peers, --node, --cache-seed, --peer-limit, --peer-key and --open-peers, with keys of `section`.
// `advanced`: where they are not what the verb is for.
void AddPartitionOptions(const std::string& section, OptionTable* table, PartitionOfCache* options, bool advanced = false);

// Thread-safe.
class WrappedSource : public RecordSourceWrapper {
 public:
  static StatusOr<std::unique_ptr<WrappedSource>> Create(std::shared_ptr<const RecordSource> base, const WrapOptions& options);

  const PacedSource* paced() const { return paced_.get(); }               // null: no storage model
  const Cache* cache() const { return cache_.get(); }                     // null: no cache, or a partitioned one
  const PartitionedCache* partition() const { return partition_.get(); }  // null: not partitioned

 private:
  WrappedSource(std::shared_ptr<const RecordSource> container, std::unique_ptr<PacedSource> paced, std::unique_ptr<Cache> cache,
                std::unique_ptr<PartitionedCache> partition, const RecordSource* top)
      : RecordSourceWrapper(top),
        container_(std::move(container)),
        paced_(std::move(paced)),
        cache_(std::move(cache)),
        partition_(std::move(partition)) {}

  // Each before what stands before it.
  const std::shared_ptr<const RecordSource> container_;
  const std::unique_ptr<PacedSource> paced_;
  const std::unique_ptr<Cache> cache_;
  const std::unique_ptr<PartitionedCache> partition_;
};

}  // namespace tidepool::data
