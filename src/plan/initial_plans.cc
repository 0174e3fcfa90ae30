#include "plan/initial_plans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "plan/search_run.h"

namespace tidepool::plan {
namespace {

constexpr int32_t kDivisions = 24;  // of the devices, per micro-batch

// The profile row whose times say best how much work an op is: the whole micro-batch on one device, or the nearest to it.
int32_t WorkRow(const CostModel& model, int32_t micro_batch) {
  const int32_t alone = model.RowOf({}, micro_batch);
  if (alone >= 0) return alone;
  for (int32_t gpus = 1; gpus <= model.cluster().gpus(); ++gpus) {
    const std::vector<OpChoice> splits = model.SplitsOf(gpus, micro_batch);
    if (!splits.empty()) return model.RowOf(splits.front(), micro_batch);
  }
  return -1;
}

// Where the work up to there is the wanted share of all, for each share but the last.
std::vector<double> CutsByWork(const CostModel& model, int32_t micro_batch, const std::vector<int32_t>& devices) {
  const int32_t row = WorkRow(model, micro_batch), ops = model.ops().size();
  const auto work = [&](int32_t end) {
    const RangeSums sums = model.ranges().Sums(row, 0, end);
    return sums.forward_us + sums.backward_us;
  };
  const double all_devices = std::accumulate(devices.begin(), devices.end(), 0.0), all_work = work(ops);
  std::vector<double> cuts;
  double before = 0;
  for (size_t i = 0; i + 1 < devices.size(); ++i) {
    before += devices[i];
    int32_t low = 0, high = ops;
    while (high - low > 1) {
      const int32_t middle = low + (high - low) / 2;
      (work(middle) <= all_work * before / all_devices ? low : high) = middle;
    }
    cuts.push_back(low);
  }
  cuts.push_back(ops);
  return cuts;
}

std::vector<double> CutsByCount(int32_t ops, int32_t stages) {
  std::vector<double> cuts;
  for (int32_t i = 1; i < stages; ++i) cuts.push_back(static_cast<double>(ops / stages * i));
  cuts.push_back(ops);
  return cuts;
}

// Half of the ops in the first stage, the rest equally.
std::vector<double> UnequalCuts(int32_t ops, int32_t stages) {
  std::vector<double> cuts;
  for (int32_t i = 1; i < stages; ++i) {
    cuts.push_back(ops / 2.0 + (stages > 1 ? ops / 2.0 * (i - 1) / (stages - 1) : 0));
  }
  cuts.push_back(ops);
  return cuts;
}

// The split with the largest width.
OpChoice WidestSplit(const CostModel& model, int32_t gpus, int32_t micro_batch) {
  OpChoice widest;
  widest.tensor_parallel = 0;
  for (const OpChoice& split : model.SplitsOf(gpus, micro_batch)) {
    if (split.tensor_parallel > widest.tensor_parallel) widest = split;
  }
  return widest;
}

// Whether no stage lies over a node's edge.
bool IsDivision(const Cluster& cluster, const std::vector<int32_t>& devices) {
  int32_t used = 0;
  for (const int32_t count : devices) {
    if (!cluster.IsStageRange(used, count)) return false;
    used += count;
  }
  return true;
}

// Ways to divide the devices over the stages, drawn at random but always the same; each once, at most `most`.
std::vector<std::vector<int32_t>> SampleDivisions(const Cluster& cluster, const std::vector<int32_t>& sizes, int32_t stages,
                                                  int32_t most) {
  const int32_t gpus = cluster.gpus();
  const size_t width = static_cast<size_t>(gpus) + 1;
  // Whether the last stages can have what is left after the first `used` devices.
  std::vector<uint8_t> possible((stages + 1) * width, 0);
  possible[gpus] = 1;
  for (int32_t left = 1; left <= stages; ++left) {
    for (int32_t used = 0; used < gpus; ++used) {
      for (const int32_t size : sizes) {
        if (used + size > gpus) break;
        if (possible[(left - 1) * width + used + size] == 0 || !cluster.IsStageRange(used, size)) continue;
        possible[left * width + used] = 1;
        break;
      }
    }
  }
  std::vector<std::vector<int32_t>> found;
  if (possible[stages * width] == 0) return found;
  std::mt19937_64 random(static_cast<uint64_t>(stages));
  for (int32_t attempt = 0; attempt < 4 * most && static_cast<int32_t>(found.size()) < most; ++attempt) {
    std::vector<int32_t> devices;
    int32_t used = 0;
    for (int32_t left = stages; left > 0; --left) {
      std::vector<int32_t> choices;
      for (const int32_t size : sizes) {
        if (used + size > gpus) break;
        if (possible[(left - 1) * width + used + size] != 0 && cluster.IsStageRange(used, size)) choices.push_back(size);
      }
      devices.push_back(choices[random() % choices.size()]);
      used += devices.back();
    }
    // As drawn, and in both orders: networks often need more devices towards one end.
    std::vector<int32_t> ascending = devices;
    std::sort(ascending.begin(), ascending.end());
    std::vector<int32_t> descending(ascending.rbegin(), ascending.rend());
    for (std::vector<int32_t>* order : {&devices, &ascending, &descending}) {
      if (static_cast<int32_t>(found.size()) == most || !IsDivision(cluster, *order)) continue;
      if (std::find(found.begin(), found.end(), *order) == found.end()) found.push_back(std::move(*order));
    }
  }
  return found;
}

class Starts {
 public:
  Starts(PlanEditor* editor, int64_t global_batch) : editor_(editor), model_(editor->model()), global_batch_(global_batch) {}

  void Add(int32_t micro_batch, const std::vector<int32_t>& devices, const std::vector<double>& wanted, bool widest) {
    if (devices.empty()) return;
    const std::vector<int32_t> ends = NearestCuts(model_.ops(), wanted);
    if (ends.empty()) return;
    std::vector<StagePtr> stages;
    int32_t first = 0;
    StagePlace place{.stages_behind = static_cast<int32_t>(ends.size()) - 1};
    for (size_t i = 0; i < ends.size(); ++i) {
      place.in_link = model_.cluster().LinkAt(place.first_gpu);
      place.out_link = model_.cluster().LinkAt(place.first_gpu + devices[i]);
      OpChoice split = WidestSplit(model_, devices[i], micro_batch);
      if (!widest) split = FastestSplit(first, ends[i] - first, devices[i], micro_batch, place, split);
      stages.push_back(Stage::MakeUniform(first, ends[i] - first, split));
      first = ends[i];
      place.first_gpu += devices[i];
      --place.stages_behind;
    }
    std::optional<RankedPlan> plan = editor_->MakeNew(global_batch_, micro_batch, std::move(stages));
    if (!plan) return;
    const Key128 key = plan->plan.Key();
    const bool seen = std::any_of(plans_.begin(), plans_.end(), [&](const RankedPlan& p) { return p.plan.Key() == key; });
    if (!seen) plans_.push_back(*std::move(plan));
  }

  bool empty() const { return plans_.empty(); }
  std::vector<RankedPlan> Take() {
    std::sort(plans_.begin(), plans_.end(), IsBetter);
    return std::move(plans_);
  }

 private:
  OpChoice FastestSplit(int32_t first, int32_t count, int32_t gpus, int32_t micro_batch, const StagePlace& place,
                        OpChoice fallback) {
    double best = std::numeric_limits<double>::infinity();
    for (const OpChoice& split : model_.SplitsOf(gpus, micro_batch)) {
      const PlacedStage placed = editor_->Place(Stage::MakeUniform(first, count, split), micro_batch, place);
      const double score = placed.priced ? placed.cost.time_us * (placed.fits ? 1 : 10) : best;
      if (score >= best) continue;
      best = score;
      fallback = split;
    }
    return fallback;
  }

  PlanEditor* editor_;
  const CostModel& model_;
  int64_t global_batch_;
  std::vector<RankedPlan> plans_;
};

}  // namespace

std::vector<int32_t> DivideDevices(const Cluster& cluster, const std::vector<int32_t>& sizes, int32_t stages, bool equal) {
  const int32_t gpus = cluster.gpus();
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  // By stages so far and their devices: the best sum of squares, and the last stage's size that gives it.
  const size_t width = static_cast<size_t>(gpus) + 1;
  std::vector<int64_t> sum((stages + 1) * width, kNever);
  std::vector<int32_t> last((stages + 1) * width, 0);
  sum[0] = 0;
  for (int32_t stage = 0; stage < stages; ++stage) {
    for (int32_t used = 0; used < gpus; ++used) {
      const int64_t so_far = sum[stage * width + used];
      if (so_far == kNever) continue;
      for (const int32_t size : sizes) {
        if (used + size > gpus) break;
        if (!cluster.IsStageRange(used, size)) continue;
        const size_t to = (stage + 1) * width + used + size;
        const int64_t square = static_cast<int64_t>(size) * size, now = so_far + (equal ? square : -square);
        if (sum[to] != kNever && sum[to] <= now) continue;
        sum[to] = now;
        last[to] = size;
      }
    }
  }
  std::vector<int32_t> devices;
  if (sum[stages * width + gpus] == kNever) return devices;
  for (int32_t stage = stages, used = gpus; stage > 0; --stage) {
    devices.push_back(last[stage * width + used]);
    used -= devices.back();
  }
  std::reverse(devices.begin(), devices.end());
  return devices;
}

std::vector<int32_t> NearestCuts(const OpList& ops, const std::vector<double>& wanted) {
  constexpr int32_t kFurthest = 256;
  const auto stages = static_cast<int32_t>(wanted.size());
  std::vector<int32_t> ends;
  int32_t first = 0;
  for (int32_t i = 0; i + 1 < stages; ++i) {
    const auto middle = static_cast<int32_t>(std::lround(wanted[i]));
    int32_t end = -1;
    for (int32_t distance = 0; distance < kFurthest && end < 0; ++distance) {
      for (const int32_t candidate : {middle + distance, middle - distance}) {
        if (candidate <= first || candidate > ops.size() - (stages - 1 - i)) continue;
        if (!ops.SkipsAllowStage(first, candidate - first)) continue;
        end = candidate;
        break;
      }
    }
    if (end < 0) return {};
    ends.push_back(end);
    first = end;
  }
  ends.push_back(ops.size());
  return ends;
}

std::vector<RankedPlan> InitialPlans(PlanEditor* editor, int64_t global_batch, int32_t stages) {
  const CostModel& model = editor->model();
  const int32_t ops = model.ops().size();
  Starts starts(editor, global_batch);
  for (const int32_t micro_batch : editor->micro_batches()) {
    const std::vector<int32_t> sizes = model.StageSizes(micro_batch);
    const std::vector<int32_t> equal = DivideDevices(model.cluster(), sizes, stages, true);
    if (equal.empty()) continue;
    if (starts.empty()) {
      starts.Add(micro_batch, equal, CutsByCount(ops, stages), true);
      starts.Add(micro_batch, equal, UnequalCuts(ops, stages), true);
      starts.Add(micro_batch, DivideDevices(model.cluster(), sizes, stages, false), CutsByCount(ops, stages), true);
    }
    starts.Add(micro_batch, equal, CutsByWork(model, micro_batch, equal), false);
    for (const std::vector<int32_t>& devices : SampleDivisions(model.cluster(), sizes, stages, kDivisions)) {
      starts.Add(micro_batch, devices, CutsByWork(model, micro_batch, devices), false);
    }
  }
  return starts.Take();
}

std::optional<RankedPlan> RandomStart(PlanEditor* editor, int64_t global_batch, int32_t stages, std::mt19937_64* random) {
  constexpr int kAttempts = 32;
  const CostModel& model = editor->model();
  const Cluster& cluster = model.cluster();
  const auto below = [&](size_t n) { return static_cast<int32_t>((*random)() % n); };
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const int32_t micro_batch = editor->micro_batches()[below(editor->micro_batches().size())];
    const std::vector<int32_t> sizes = model.StageSizes(micro_batch);
    if (sizes.empty()) continue;
    std::vector<int32_t> devices = DivideDevices(cluster, sizes, stages, attempt % 2 == 0);
    if (devices.empty()) continue;
    for (size_t i = devices.size(); i > 1; --i) std::swap(devices[i - 1], devices[below(i)]);
    std::vector<double> wanted;
    for (int32_t i = 1; i < stages; ++i) wanted.push_back(1 + below(std::max(1, model.ops().size() - 1)));
    std::sort(wanted.begin(), wanted.end());
    wanted.push_back(model.ops().size());
    const std::vector<int32_t> ends = NearestCuts(model.ops(), wanted);
    if (ends.empty()) continue;
    std::vector<StagePtr> made;
    for (int32_t i = 0, first = 0; i < stages; first = ends[i++]) {
      const std::vector<OpChoice> splits = model.SplitsOf(devices[i], micro_batch);
      made.push_back(Stage::MakeUniform(first, ends[i] - first, splits[below(splits.size())]));
    }
    if (std::optional<RankedPlan> plan = editor->MakeNew(global_batch, micro_batch, std::move(made))) return plan;
  }
  return std::nullopt;
}

}  // namespace tidepool::plan
