// Why no plan fits, and what would.
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "plan/programme_search.h"
#include "plan/recompute_rule.h"

namespace tidepool::plan {
namespace {

constexpr int32_t kAllCuts = 300;     // lists up to this long are cut anywhere
constexpr int32_t kMostDevices = 64;  // above: the smallest memory is not computed

// The least memory of stages between given cuts.
class MemoryTable {
 public:
  MemoryTable(const CostModel& model, int32_t micro_batch) : model_(model) {
    const OpList& ops = model.ops();
    if (ops.size() <= kAllCuts || ops.layer_starts.empty()) {
      const int32_t step = 1 + ops.size() / kAllCuts;
      for (int32_t i = 0; i < ops.size(); i += step) cuts_.push_back(i);
    } else {
      cuts_ = {0};
      const size_t step = 1 + ops.layer_starts.size() / kAllCuts;
      for (size_t i = 0; i < ops.layer_starts.size(); i += step) {
        if (ops.layer_starts[i] > 0) cuts_.push_back(ops.layer_starts[i]);
      }
    }
    cuts_.push_back(ops.size());
    sizes_ = model.StageSizes(micro_batch);
    const size_t n = cuts_.size();
    totals_.resize(sizes_.size() * n * n);
    for (size_t z = 0; z < sizes_.size(); ++z) {
      const std::vector<OpChoice> splits = model.SplitsOf(sizes_[z], micro_batch);
      for (size_t a = 0; a + 1 < n; ++a) {
        for (size_t b = a + 1; b < n; ++b) {
          if (!ops.SkipsAllowStage(cuts_[a], cuts_[b] - cuts_[a])) continue;
          for (const OpChoice& split : splits) {
            const RecomputeResult all =
                ChooseRecomputeUniform(model, cuts_[a], cuts_[b] - cuts_[a], split, micro_batch, {}, -1e15);
            if (all.totals.priced()) totals_[(z * n + a) * n + b].push_back(all.totals);
          }
        }
      }
    }
  }

  int32_t points() const { return static_cast<int32_t>(cuts_.size()); }
  const std::vector<int32_t>& sizes() const { return sizes_; }
  double Mib(size_t z, int32_t a, int32_t b, int32_t stages_behind) const {
    double least = kNever;
    const size_t n = cuts_.size();
    for (const StageTotals& totals : totals_[(z * n + a) * n + b]) {
      least = std::min(least, model_.MemoryAt(totals, {.stages_behind = stages_behind}));
    }
    return least;
  }

 private:
  const CostModel& model_;
  std::vector<int32_t> cuts_, sizes_;
  std::vector<std::vector<StageTotals>> totals_;  // [size][from][to], of each split
};

// The least over plans of what their largest stage needs.
double LeastMemory(const CostModel& model, const MemoryTable& table, int32_t min_stages, int32_t max_stages) {
  const int32_t gpus = model.cluster().gpus(), points = table.points();
  const auto at = [&](int32_t devices, int32_t point) { return static_cast<size_t>(devices) * points + point; };
  std::vector<double> last(static_cast<size_t>(gpus + 1) * points, kNever);
  last[at(0, points - 1)] = 0;
  double least = kNever;
  for (int32_t stages = 1; stages <= max_stages; ++stages) {
    std::vector<double> next(last.size(), kNever);
    for (int32_t a = 0; a + 1 < points; ++a) {
      for (int32_t b = a + 1; b < points; ++b) {
        for (size_t z = 0; z < table.sizes().size(); ++z) {
          const int32_t size = table.sizes()[z];
          const double mib = table.Mib(z, a, b, stages - 1);
          for (int32_t devices = size; mib < kNever && devices <= gpus; ++devices) {
            if (!model.cluster().IsStageRange(gpus - devices, size)) continue;
            next[at(devices, a)] = std::min(next[at(devices, a)], std::max(mib, last[at(devices - size, b)]));
          }
        }
      }
    }
    last = std::move(next);
    if (stages >= min_stages) least = std::min(least, last[at(gpus, 0)]);
  }
  return least;
}

// The fewest devices with the cluster's memory; 0: no number was found.
int32_t FewestDevices(const CostModel& model, const MemoryTable& table) {
  const int32_t points = table.points();
  std::vector<double> last(points, kNever);
  last[points - 1] = 0;
  double fewest = kNever;
  for (int32_t stages = 1; stages < points && stages <= 512; ++stages) {
    std::vector<double> next(points, kNever);
    for (int32_t a = 0; a + 1 < points; ++a) {
      for (int32_t b = a + 1; b < points; ++b) {
        for (size_t z = 0; last[b] < kNever && z < table.sizes().size(); ++z) {
          if (table.Mib(z, a, b, stages - 1) > model.cluster().memory_limit_mib) continue;
          next[a] = std::min(next[a], last[b] + table.sizes()[z]);
        }
      }
    }
    if (std::all_of(next.begin(), next.end(), [](double value) { return value == kNever; })) break;
    last = std::move(next);
    fewest = std::min(fewest, last[0]);
  }
  return fewest < kNever ? static_cast<int32_t>(fewest) : 0;
}

}  // namespace

Status NothingFits(const CostModel& model, const SearchRequest& request) {
  const int32_t gpus = model.cluster().gpus();
  double memory = kNever;
  int32_t devices = 0;
  bool any_size = false;
  for (const int32_t micro_batch : request.micro_batches) {
    const MemoryTable table(model, micro_batch);
    any_size = any_size || !table.sizes().empty();
    const int32_t most = std::min(gpus, table.points() - 1);
    const int32_t stages = request.max_stages == 0 ? most : std::min(most, request.max_stages);
    if (gpus <= kMostDevices) memory = std::min(memory, LeastMemory(model, table, request.min_stages, stages));
    if (const int32_t fewest = FewestDevices(model, table); fewest > 0 && (devices == 0 || fewest < devices)) devices = fewest;
  }
  const int32_t per_node = model.cluster().gpus_per_node;
  if (devices > per_node) devices = (devices + per_node - 1) / per_node * per_node;
  std::string nearest;
  if (memory < kNever && memory > model.cluster().memory_limit_mib) {
    nearest = fmt::format("{:.0f} MiB per device would do", std::ceil(memory));
  }
  if (devices > gpus) {
    nearest += fmt::format("{}{} devices with this memory would do", nearest.empty() ? "" : ", or ", devices);
  }
  if (nearest.empty()) {
    nearest = any_size ? "no cut into stages of profiled sizes uses all devices within the stages allowed"
                       : "no split of any number of devices was profiled for these micro-batches";
  }
  return ResourceExhausted("no plan of {} fits into {} devices with {:.0f} MiB each, at micro-batches {}: {}", model.ops().name,
                           gpus, model.cluster().memory_limit_mib, fmt::join(request.micro_batches, ", "), nearest);
}

}  // namespace tidepool::plan
