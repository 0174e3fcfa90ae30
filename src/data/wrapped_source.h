// A container and what stands before it on request: a storage model that makes it slower, and a cache before that.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/options.h"
#include "base/status.h"
#include "data/cache.h"
#include "data/record_source.h"
#include "data/storage_model_source.h"

namespace tidepool::data {

struct WrapOptions {
  std::string cache = "none";  // a policy of cache_policy.h
  int64_t cache_bytes = 0;
  std::string storage;  // as ParseStorageSpec reads it; empty: the disk as it is
  Clock* clock = Clock::Real();
  std::string metrics_label;  // of the cache; empty: none

  Status Validate() const;
  bool wraps() const { return cache != "none" || !storage.empty(); }
};

// Adds --cache, --cache-bytes and --storage, with keys of `section`.
void AddWrapOptions(const std::string& section, OptionTable* table, WrapOptions* options);

// Thread-safe.
class WrappedSource : public RecordSourceWrapper {
 public:
  static StatusOr<std::unique_ptr<WrappedSource>> Create(std::shared_ptr<const RecordSource> base, const WrapOptions& options);

  const PacedSource* paced() const { return paced_.get(); }  // null: no storage model
  const Cache* cache() const { return cache_.get(); }        // null: no cache

 private:
  WrappedSource(std::shared_ptr<const RecordSource> container, std::unique_ptr<PacedSource> paced, std::unique_ptr<Cache> cache,
                const RecordSource* top)
      : RecordSourceWrapper(top), container_(std::move(container)), paced_(std::move(paced)), cache_(std::move(cache)) {}

  // Each before what stands before it.
  const std::shared_ptr<const RecordSource> container_;
  const std::unique_ptr<PacedSource> paced_;
  const std::unique_ptr<Cache> cache_;
};

}  // namespace tidepool::data
