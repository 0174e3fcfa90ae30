#include "plan/search.h"

#include <algorithm>
#include <set>

#include "base/text.h"

namespace tidepool::plan {
namespace {

constexpr int32_t kMaxThreads = 1024;
constexpr int32_t kMaxTopK = 64;

struct KindEntry {
  SearchKind kind;
  std::string_view name;
  StatusOr<SearchResult> (*search)(const CostModel&, const SearchRequest&);  // null: this build does not have it
};
constexpr KindEntry kKinds[] = {
    {SearchKind::kAuto, "auto", &SearchAuto},
    {SearchKind::kOpDp, "op-dp", &SearchOpDp},
    {SearchKind::kExact, "exact", &SearchExact},
    {SearchKind::kAceso, "aceso", &SearchAceso},
    {SearchKind::kGrid, "grid", &SearchGrid},
    {SearchKind::kRandom, "random", &SearchRandom},
    {SearchKind::kInterIntra, "inter-intra", &SearchInterIntra},
};

const KindEntry& EntryOf(SearchKind kind) { return kKinds[static_cast<size_t>(kind)]; }

}  // namespace

std::string_view NameOf(SearchKind kind) { return EntryOf(kind).name; }

StatusOr<SearchKind> SearchKindFrom(std::string_view name) {
  std::vector<std::string> names;
  for (const KindEntry& entry : kKinds) {
    if (entry.name == name) return entry.kind;
    names.emplace_back(entry.name);
  }
  return InvalidArgument("search '{}'; allowed: {}", name, JoinText(names, ", "));
}

Status Validate(const SearchRequest& request, const CostModel& model) {
  std::vector<std::string> faults;
  const auto require = [&](bool good, std::string text) {
    if (!good) faults.push_back(std::move(text));
  };
  require(request.global_batch >= 1, fmt::format("global_batch is {}; allowed: 1 or more", request.global_batch));
  require(!request.micro_batches.empty(), "micro_batches is empty; allowed: at least one");
  std::set<int32_t> seen;
  for (const int32_t micro_batch : request.micro_batches) {
    require(seen.insert(micro_batch).second, fmt::format("micro_batches has {} twice; allowed: each once", micro_batch));
    require(micro_batch >= 1 && (request.global_batch < 1 || request.global_batch % micro_batch == 0),
            fmt::format("micro_batches has {}; allowed: divisors of global_batch, {}", micro_batch, request.global_batch));
  }
  require(request.threads >= 0 && request.threads <= kMaxThreads,
          fmt::format("threads is {}; allowed: 0 to {}", request.threads, kMaxThreads));
  require(request.top_k >= 1 && request.top_k <= kMaxTopK, fmt::format("top_k is {}; allowed: 1 to {}", request.top_k, kMaxTopK));
  const int32_t most = std::min(model.cluster().gpus(), model.ops().size());
  require(request.min_stages >= 1 && request.min_stages <= most,
          fmt::format("min_stages is {}; allowed: 1 to {}, the smaller of devices and ops", request.min_stages, most));
  require(request.max_stages == 0 || request.max_stages >= request.min_stages,
          fmt::format("max_stages is {}; allowed: 0, or min_stages ({}) and more", request.max_stages, request.min_stages));
  require(request.budget >= 0, fmt::format("budget is {}; allowed: 0 or more", request.budget));
  require(request.wall_limit > absl::ZeroDuration(),
          fmt::format("wall_limit is {} s; allowed: above 0", absl::ToDoubleSeconds(request.wall_limit)));
  if (request.start) {
    const Status shape = model.CheckShape(*request.start);
    require(shape.ok(), fmt::format("start: {}", MessageOf(shape)));
  }
  return faults.empty() ? Status() : InvalidArgument("{}", JoinText(faults, "; "));
}

StatusOr<SearchResult> Search(SearchKind kind, const CostModel& model, const SearchRequest& request) {
  TIDEPOOL_RETURN_IF_ERROR(Validate(request, model));
  const KindEntry& entry = EntryOf(kind);
  if (entry.search == nullptr) return Unimplemented("search '{}' is not in this build", entry.name);
  return entry.search(model, request);
}

}  // namespace tidepool::plan
