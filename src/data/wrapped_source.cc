#include "data/wrapped_source.h"

#include <utility>

#include "base/text.h"
#include "data/storage_model.h"

namespace tidepool::data {

Status WrapOptions::Validate() const {
  TIDEPOOL_ASSIGN_OR_RETURN(const CacheKind kind, ParseCacheKind(cache));
  if (cache_bytes < 0) return InvalidArgument("a cache of {} bytes; allowed: 0 or more", cache_bytes);
  if (kind != CacheKind::kNone && cache_bytes == 0) {
    return InvalidArgument("cache policy '{}' without a size; give --cache-bytes too", cache);
  }
  if (kind == CacheKind::kNone && cache_bytes > 0) {
    return InvalidArgument("a cache of {} bytes without a policy; give --cache too, for example --cache minio", cache_bytes);
  }
  return storage.empty() ? Status() : ParseStorageSpec(storage).status();
}

void AddWrapOptions(const std::string& section, OptionTable* table, WrapOptions* options) {
  table->Add({.key = section + ".cache",
              .help = "Cache of encoded samples: none, page-cache, minio, lru, fifo, two-list",
              .metavar = "POLICY"},
             &options->cache);
  table->Add({.key = section + ".cache_bytes", .help = "Size of the cache"}, BytesField{&options->cache_bytes});
  std::vector<std::string> names;
  for (const StorageSpec& preset : StoragePresets()) names.push_back(preset.name);
  table->Add({.key = section + ".storage",
              .help = fmt::format("Read as slowly as this storage: {}, or custom,rate=...; empty: the disk as it is",
                                  JoinText(names, ", ")),
              .metavar = "PRESET"},
             &options->storage);
}

StatusOr<std::unique_ptr<WrappedSource>> WrappedSource::Create(std::shared_ptr<const RecordSource> base,
                                                               const WrapOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  const RecordSource* top = base.get();
  std::unique_ptr<PacedSource> paced;
  if (!options.storage.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(const StorageSpec spec, ParseStorageSpec(options.storage));
    TIDEPOOL_ASSIGN_OR_RETURN(paced, PacedSource::Create(top, {.storage = spec, .clock = options.clock}));
    top = paced.get();
  }
  std::unique_ptr<Cache> cache;
  TIDEPOOL_ASSIGN_OR_RETURN(const CacheKind kind, ParseCacheKind(options.cache));
  if (kind != CacheKind::kNone) {
    TIDEPOOL_ASSIGN_OR_RETURN(cache, Cache::Create(top, {.kind = kind,
                                                         .budget_bytes = options.cache_bytes,
                                                         .clock = options.clock,
                                                         .metrics_label = options.metrics_label}));
    top = cache.get();
  }
  return std::unique_ptr<WrappedSource>(new WrappedSource(std::move(base), std::move(paced), std::move(cache), top));
}

}  // namespace tidepool::data
