#include "data/cache_policy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "base/text.h"
#include "base/units.h"
#include "data/augment.h"

namespace tidepool::data {
namespace {

constexpr int64_t kLinuxPageBytes = 4096;
constexpr int64_t kMostItems = std::numeric_limits<int32_t>::max() - 1;
constexpr uint64_t kAdmissionStream = 0x6d696e696f;  // keeps the hash apart from other uses of the seed

constexpr std::array<std::pair<CacheKind, std::string_view>, 6> kKinds = {{{CacheKind::kNone, "none"},
                                                                           {CacheKind::kPageCache, "page-cache"},
                                                                           {CacheKind::kMinio, "minio"},
                                                                           {CacheKind::kLru, "lru"},
                                                                           {CacheKind::kFifo, "fifo"},
                                                                           {CacheKind::kTwoList, "two-list"}}};

class NonePolicy : public CachePolicy {
 public:
  explicit NonePolicy(const CachePolicyOptions& options) : CachePolicy(options) {}
  bool WouldAdmit(int64_t, int64_t) const override { return false; }
};

class FifoPolicy : public CachePolicy {
 public:
  explicit FifoPolicy(const CachePolicyOptions& options) : CachePolicy(options) {}
};

class LruPolicy : public CachePolicy {
 public:
  explicit LruPolicy(const CachePolicyOptions& options) : CachePolicy(options) {}
  bool hits_matter() const override { return true; }

 protected:
  void OnHit(int64_t id) override {
    Unlink(&inactive_, id);
    Link(&inactive_, id, List::kInactive);
  }
};

class TwoListPolicy : public CachePolicy {
 public:
  explicit TwoListPolicy(const CachePolicyOptions& options) : CachePolicy(options) {}
  bool hits_matter() const override { return true; }

 protected:
  void OnHit(int64_t id) override {
    Unlink(nodes_[id].list == List::kActive ? &active_ : &inactive_, id);
    Link(&active_, id, List::kActive);
    // The newest stays active even if it alone is above the half.
    while (active_.bytes > budget_bytes() / 2 && active_.oldest != active_.newest) Demote();
  }
  void MakeRoom(int64_t bytes) override {
    while (used_bytes() + bytes > budget_bytes()) {
      if (inactive_.oldest < 0) Demote();
      Evict(&inactive_);
    }
  }

 private:
  void Demote() {
    const int32_t id = active_.oldest;
    Unlink(&active_, id);
    Link(&inactive_, id, List::kInactive);
  }
};

class MinioPolicy : public CachePolicy {
 public:
  explicit MinioPolicy(const CachePolicyOptions& options)
      : CachePolicy(options),
        hashed_(options.admission == MinioAdmission::kSeededHash),
        seed_(options.seed),
        share_(hashed_ ? static_cast<double>(options.budget_bytes) / static_cast<double>(options.total_bytes) : 1) {}
  bool WouldAdmit(int64_t id, int64_t bytes) const override {
    return CachePolicy::WouldAdmit(id, bytes) && used_bytes() + Charge(bytes) <= budget_bytes() &&
           (!hashed_ || InSeededShare(seed_, id, share_));
  }

 private:
  const bool hashed_;
  const uint64_t seed_;
  const double share_;
};

}  // namespace

std::string_view CacheKindName(CacheKind kind) {
  for (const auto& [each, name] : kKinds) {
    if (each == kind) return name;
  }
  return "unknown";
}

StatusOr<CacheKind> ParseCacheKind(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& [each, each_name] : kKinds) {
    if (each_name == name) return each;
    names.emplace_back(each_name);
  }
  const std::string near = NearestName(name, names);
  return InvalidArgument("cache policy '{}'; allowed: {}{}", name, JoinText(names, ", "),
                         near.empty() ? "" : fmt::format(". Did you mean '{}'?", near));
}

bool InSeededShare(uint64_t seed, int64_t id, double share) {
  return RandomUnit(seed, static_cast<uint64_t>(id), kAdmissionStream) < share;
}

Status CachePolicyOptions::Validate() const {
  if (budget_bytes < 0) return InvalidArgument("cache budget of {} bytes; allowed: 0 or more", budget_bytes);
  if (items < 1 || items > kMostItems) return InvalidArgument("cache of {} items; allowed: 1 to {}", items, kMostItems);
  if (kind == CacheKind::kPageCache && page_cache_list != CacheKind::kFifo && page_cache_list != CacheKind::kLru &&
      page_cache_list != CacheKind::kTwoList) {
    return InvalidArgument("page-cache model '{}'; allowed: fifo, lru, two-list", CacheKindName(page_cache_list));
  }
  if (kind == CacheKind::kMinio && admission == MinioAdmission::kSeededHash && total_bytes < 1) {
    return InvalidArgument("MinIO admission by seeded hash with total_bytes {}; needed: the bytes of all items", total_bytes);
  }
  return {};
}

StatusOr<std::unique_ptr<CachePolicy>> CachePolicy::Create(const CachePolicyOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  std::unique_ptr<CachePolicy> policy;
  switch (options.kind == CacheKind::kPageCache ? options.page_cache_list : options.kind) {
    case CacheKind::kNone: policy = std::make_unique<NonePolicy>(options); break;
    case CacheKind::kMinio: policy = std::make_unique<MinioPolicy>(options); break;
    case CacheKind::kLru: policy = std::make_unique<LruPolicy>(options); break;
    case CacheKind::kTwoList: policy = std::make_unique<TwoListPolicy>(options); break;
    case CacheKind::kFifo:
    case CacheKind::kPageCache: policy = std::make_unique<FifoPolicy>(options); break;
  }
  return policy;
}

CachePolicy::CachePolicy(const CachePolicyOptions& options)
    : nodes_(options.items),
      kind_(options.kind),
      budget_bytes_(options.budget_bytes),
      page_bytes_(options.kind == CacheKind::kPageCache ? kLinuxPageBytes : 1) {
  evicted_.reserve(64);
}

int64_t CachePolicy::Charge(int64_t bytes) const { return page_bytes_ == 1 ? bytes : RoundUp(bytes, page_bytes_); }

CacheAccess CachePolicy::Insert(int64_t id, int64_t bytes) {
  evicted_.clear();
  if (!WouldAdmit(id, bytes)) {
    ++counts_.refused;
    return {};
  }
  const int64_t charge = Charge(bytes);
  MakeRoom(charge);
  nodes_[id].bytes = charge;
  Link(&inactive_, id, List::kInactive);
  used_bytes_ += charge;
  ++used_items_;
  ++counts_.admitted;
  return {.hit = false, .admitted = true, .evicted = evicted_};
}

void CachePolicy::MakeRoom(int64_t bytes) {
  while (used_bytes_ + bytes > budget_bytes_) Evict(&inactive_);
}

void CachePolicy::Link(Chain* chain, int64_t id, List list) {
  Node& node = nodes_[id];
  node.list = list;
  node.newer = -1;
  node.older = chain->newest;
  (chain->newest < 0 ? chain->oldest : nodes_[chain->newest].newer) = static_cast<int32_t>(id);
  chain->newest = static_cast<int32_t>(id);
  chain->bytes += node.bytes;
}

void CachePolicy::Unlink(Chain* chain, int64_t id) {
  Node& node = nodes_[id];
  (node.newer < 0 ? chain->newest : nodes_[node.newer].older) = node.older;
  (node.older < 0 ? chain->oldest : nodes_[node.older].newer) = node.newer;
  chain->bytes -= node.bytes;
  node.list = List::kAbsent;
}

void CachePolicy::Evict(Chain* chain) {
  const int32_t id = chain->oldest;
  Unlink(chain, id);
  used_bytes_ -= nodes_[id].bytes;
  --used_items_;
  ++counts_.evicted;
  evicted_.push_back(id);
}

void CachePolicy::Clear() {
  for (Node& node : nodes_) node = {};
  inactive_ = active_ = {};
  used_bytes_ = used_items_ = 0;
}

}  // namespace tidepool::data
