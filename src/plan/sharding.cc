#include "plan/sharding.h"

namespace tidepool::plan {

using profile::CollectiveKind;

Sharding ShardingOf(const Layout& layout, int32_t tensor_parallel, int32_t data_parallel) {
  const auto parts = [&](Split split) {
    return split == Split::kTensor ? tensor_parallel : split == Split::kData ? data_parallel : 1;
  };
  return {parts(layout.replicas), 1, {parts(layout.dims[0]), parts(layout.dims[1]), parts(layout.dims[2])}};
}

Reshard PlanReshard(const Sharding& from, const Sharding& to) {
  if (from == to) return {};
  bool grows = false;
  int32_t shrink = 1;  // by how much the first dimension that shrinks does
  for (int i = 2; i >= 0; --i) {
    if (to.dims[i] > from.dims[i]) grows = true;
    if (to.dims[i] < from.dims[i]) shrink = from.dims[i] / to.dims[i];
  }
  if (to.replicas < from.replicas && grows) return {std::nullopt, CollectiveKind::kAllGather, from.replicas / to.replicas};
  if (to.partial_sums < from.partial_sums) {
    const int32_t ranks = from.partial_sums / to.partial_sums;
    if (to.replicas > from.replicas) return {CollectiveKind::kAllReduce, std::nullopt, ranks};
    if (grows) return {CollectiveKind::kReduceScatter, CollectiveKind::kAllGather, ranks};
  }
  if (shrink > 1 && to.replicas > from.replicas) return {CollectiveKind::kAllGather, std::nullopt, shrink};
  if (shrink > 1 && grows) return {CollectiveKind::kAllToAll, CollectiveKind::kAllToAll, shrink};
  return {};
}

}  // namespace tidepool::plan
