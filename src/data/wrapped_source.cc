#include "data/wrapped_source.h"

#include <algorithm>
#include <utility>

#include "base/text.h"
#include "data/storage_model.h"

namespace tidepool::data {
namespace {

constexpr std::string_view kNoNode = "-";

}  // namespace

Status WrapOptions::Validate() const {
  TIDEPOOL_ASSIGN_OR_RETURN(const CacheKind kind, ParseCacheKind(cache));
  if (cache_bytes < 0) return InvalidArgument("a cache of {} bytes; allowed: 0 or more", cache_bytes);
  if (kind != CacheKind::kNone && cache_bytes == 0) {
    return InvalidArgument("cache policy '{}' without a size; give --cache-bytes too", cache);
  }
  if (kind == CacheKind::kNone && cache_bytes > 0) {
    return InvalidArgument("a cache of {} bytes without a policy; give --cache too, for example --cache minio", cache_bytes);
  }
  if (!storage.empty()) TIDEPOOL_RETURN_IF_ERROR(ParseStorageSpec(storage).status());
  if (!partition.partitioned()) return {};
  if (cache == "none") return InvalidArgument("--peers without a cache; give --cache and --cache-bytes, this node's part");
  const auto nodes = std::ssize(partition.peers);
  if (partition.node < 0 || partition.node >= nodes) {
    return InvalidArgument("--node is {} with {} peers; allowed: 0 to {}", partition.node, nodes, nodes - 1);
  }
  if (partition.peers[partition.node] == kNoNode) {
    return InvalidArgument("--peers has no address for node {}, which is this one", partition.node);
  }
  return {};
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

void AddPartitionOptions(const std::string& section, OptionTable* table, PartitionOfCache* options, bool advanced) {
  table->Add({.key = section + ".peers",
              .help = "One cache over several nodes: where each listens, by number; -: a node that is not there",
              .metavar = "HOST:PORT,...",
              .advanced = advanced},
             &options->peers);
  table->Add({.key = section + ".node", .help = "With --peers: the number of this node, from 0", .advanced = advanced},
             &options->node);
  table->Add({.key = section + ".cache_seed",
              .help = "With --peers: who keeps what follows from it; the same for all nodes",
              .advanced = true},
             &options->seed);
  table->Add({.key = section + ".peer_limit",
              .help = "With --peers: longest wait for an answer before storage is read",
              .advanced = true},
             &options->request_limit);
  table->Add({.key = section + ".peer_key",
              .help = "With --peers: file with the key of all nodes, for its owner only",
              .metavar = "FILE",
              .advanced = advanced},
             &options->key_file);
  table->Add({.key = section + ".open_peers",
              .help = "With --peers, without a key: answer whoever reaches the address",
              .advanced = true},
             &options->open);
}

StatusOr<std::unique_ptr<WrappedSource>> WrappedSource::Create(std::shared_ptr<const RecordSource> base,
                                                               const WrapOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  const PartitionOfCache& partition = options.partition;
  const RecordSource* top = base.get();
  std::unique_ptr<PacedSource> paced;
  if (!options.storage.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(const StorageSpec spec, ParseStorageSpec(options.storage));
    TIDEPOOL_ASSIGN_OR_RETURN(paced, PacedSource::Create(top, {.storage = spec, .clock = options.clock}));
    top = paced.get();
  }
  std::unique_ptr<Cache> cache;
  std::unique_ptr<PartitionedCache> partitioned;
  TIDEPOOL_ASSIGN_OR_RETURN(const CacheKind kind, ParseCacheKind(options.cache));
  if (partition.partitioned()) {
    std::string key;
    if (!partition.key_file.empty()) {
      TIDEPOOL_ASSIGN_OR_RETURN(key, ReadPeerKey(partition.key_file));
    }
    TIDEPOOL_ASSIGN_OR_RETURN(partitioned, PartitionedCache::Create(top, {.nodes = static_cast<uint32_t>(partition.peers.size()),
                                                                          .node = static_cast<uint32_t>(partition.node),
                                                                          .seed = partition.seed,
                                                                          .budget_bytes = options.cache_bytes,
                                                                          .kind = kind,
                                                                          .spare_kind = kind,
                                                                          .listen = partition.peers[partition.node],
                                                                          .key = key,
                                                                          .open = partition.open,
                                                                          .request_limit = partition.request_limit}));
    std::vector<std::string> addresses = partition.peers;
    std::replace(addresses.begin(), addresses.end(), std::string(kNoNode), std::string());
    TIDEPOOL_RETURN_IF_ERROR(partitioned->SetPeers(addresses));
    top = partitioned.get();
  } else if (kind != CacheKind::kNone) {
    TIDEPOOL_ASSIGN_OR_RETURN(cache, Cache::Create(top, {.kind = kind,
                                                         .budget_bytes = options.cache_bytes,
                                                         .clock = options.clock,
                                                         .metrics_label = options.metrics_label}));
    top = cache.get();
  }
  return std::unique_ptr<WrappedSource>(
      new WrappedSource(std::move(base), std::move(paced), std::move(cache), std::move(partitioned), top));
}

}  // namespace tidepool::data
