// A baseline that chooses stages apart from splits, in the manner of Alpa (Zheng et al., Alpa: Automating Inter- and
// Intra-Operator Parallelism for Distributed Deep Learning, OSDI 2022), over our cost models and profiles.
//
// As Alpa: ops are clustered into layers, and only layers move between stages. Each stretch of layers on each number of devices
// is split for least time, resharding included, by itself: the split does not look at memory, nor at what the pipeline needs
// (intra-operator pass). Every layer is recomputed, or none. An outer dynamic programme then picks stretches and devices for the
// least sum of stage times below a bound on the slowest one, for many bounds; it ignores transfers between stages, and leaves out
// stretches that would not fit with the activations of the micro-batches in flight (inter-operator pass).
// Not as Alpa: the split is a Viterbi over the op list's profiled splits instead of an integer programme over HLO, exact for a
// chain; only tunable ops may split otherwise than the op before; bounds on the slowest stage are tried on a grid that gets finer
// around the best, not all; both all and none recomputed are tried, and all micro-batches; nodes are not permuted.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "plan/search_run.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int32_t kMostLayers = 48;  // after clustering
constexpr int32_t kMostStages = 64;
constexpr int kBounds = 48, kFinerBounds = 16, kRefinements = 2;

// Where layers begin, and the end of the last one. Lists with too many layers have neighbours joined.
std::vector<int32_t> LayerEdges(const OpList& ops) {
  std::vector<int32_t> all = {0};
  const auto layers = static_cast<int32_t>(ops.layer_starts.size());
  for (int32_t i = 1; i < layers; ++i) all.push_back(ops.layer_starts[i]);
  if (layers < 2) {
    for (int32_t i = 1; i < ops.size(); ++i) all.push_back(i);
  }
  std::vector<int32_t> edges;
  const auto count = static_cast<int32_t>(all.size()), groups = std::min(count, kMostLayers);
  for (int32_t i = 0; i < groups; ++i) edges.push_back(all[static_cast<int64_t>(i) * count / groups]);
  edges.push_back(ops.size());
  return edges;
}

// A stretch of layers on some devices.
struct Segment {
  StagePtr stage;
  StageTotals totals;
  double time_us = kInfinity;
};

// All stretches for one micro-batch and one choice of recomputation.
class Segments {
 public:
  Segments(const CostModel& model, std::vector<int32_t> edges, std::vector<int32_t> sizes, int32_t micro_batch, bool recompute,
           SearchRun* run)
      : model_(model),
        edges_(std::move(edges)),
        sizes_(std::move(sizes)),
        micro_batch_(micro_batch),
        recompute_(recompute),
        layers_(static_cast<int32_t>(edges_.size()) - 1),
        segments_(sizes_.size() * layers_ * layers_) {
    for (size_t size = 0; size < sizes_.size(); ++size) {
      for (int32_t first = 0; first < layers_ && !run->Expired(); ++first) Split(size, first, run);
    }
  }

  int32_t layers() const { return layers_; }
  const std::vector<int32_t>& sizes() const { return sizes_; }
  const Segment& At(size_t size, int32_t first, int32_t last) const {
    return segments_[(size * layers_ + first) * layers_ + last];
  }

 private:
  // The fastest splits of layers first .. last, for every last: one Viterbi from the first op to the end of the list.
  void Split(size_t size, int32_t first, SearchRun* run) {
    const std::vector<OpChoice> splits = model_.SplitsOf(sizes_[size], micro_batch_);
    const size_t n = splits.size();
    const int32_t begin = edges_[first], end = edges_.back();
    std::vector<double> cost(n, 0), next(n);
    std::vector<uint8_t> from(static_cast<size_t>(end - begin) * n);
    int32_t layer = first;
    for (int32_t op = begin; op < end; ++op) {
      for (size_t to = 0; to < n; ++to) {
        size_t best = to;
        double least = op == begin ? 0 : cost[to] + Between(op, splits[to], splits[to]);
        for (size_t before = 0; op > begin && model_.ops().at(op).tunable && before < n; ++before) {
          const double other = cost[before] + Between(op, splits[before], splits[to]);
          if (other < least) {
            least = other;
            best = before;
          }
        }
        next[to] = least + TimeOf(op, splits[to]);
        from[static_cast<size_t>(op - begin) * n + to] = static_cast<uint8_t>(best);
      }
      std::swap(cost, next);
      if (op + 1 < edges_[layer + 1]) continue;
      Keep(size, first, layer, splits, cost, from);
      run->CountEvaluations(1);
      ++layer;
    }
  }

  double TimeOf(int32_t op, const OpChoice& split) const {
    const RangeSums sums = model_.ranges().Sums(model_.RowOf(split, micro_batch_), op, op + 1);
    return sums.backward_us + sums.forward_us * (recompute_ ? 2 : 1);
  }
  double Between(int32_t op, const OpChoice& before, const OpChoice& after) const {
    const ReshardCost cost = model_.ReshardBetween(op, before, after, micro_batch_);
    return cost.forward_us + cost.backward_us;
  }

  void Keep(size_t size, int32_t first, int32_t last, const std::vector<OpChoice>& splits, const std::vector<double>& cost,
            const std::vector<uint8_t>& from) {
    const size_t n = splits.size();
    const int32_t begin = edges_[first], end = edges_[last + 1];
    size_t at = std::min_element(cost.begin(), cost.end()) - cost.begin();
    std::vector<OpChoice> choices(end - begin);
    for (int32_t op = end - 1; op >= begin; --op) {
      choices[op - begin] = splits[at];
      choices[op - begin].recompute = recompute_;
      at = from[static_cast<size_t>(op - begin) * n + at];
    }
    Segment& segment = segments_[(size * layers_ + first) * layers_ + last];
    segment.stage = Stage::Make(begin, choices);
    segment.totals = model_.TotalsOf(*segment.stage, micro_batch_);
    const StageTotals& t = segment.totals;
    segment.time_us = t.forward_us + t.backward_us + t.recompute_us + t.reshard_forward_us + t.reshard_backward_us;
  }

  const CostModel& model_;
  std::vector<int32_t> edges_, sizes_;
  int32_t micro_batch_;
  bool recompute_;
  int32_t layers_;
  std::vector<Segment> segments_;  // [size][first][last]
};

// The outer programme: suffixes of the layers on the last devices.
class Pipeline {
 public:
  Pipeline(const CostModel& model, const Segments& segments, int32_t most_stages)
      : model_(model), segments_(segments), gpus_(model.cluster().gpus()), most_stages_(most_stages) {}

  void IgnoreMemory() { checks_memory_ = false; }

  // The stages with the least sum of times, none above the bound, for every number of stages; empty where there are none.
  std::vector<std::vector<StagePtr>> Solve(double bound_us) {
    const int32_t layers = segments_.layers();
    const size_t plane = static_cast<size_t>(layers + 1) * (gpus_ + 1);
    least_.assign(plane * (most_stages_ + 1), kInfinity);
    choice_.assign(least_.size(), {});
    least_[Index(0, layers, 0)] = 0;
    std::vector<std::vector<StagePtr>> found(most_stages_ + 1);
    for (int32_t stages = 1; stages <= most_stages_; ++stages) {
      for (int32_t first = layers - 1; first >= 0; --first) {
        for (int32_t devices = 1; devices <= gpus_; ++devices) Extend(stages, first, devices, bound_us);
      }
      if (least_[Index(stages, 0, gpus_)] < kInfinity) found[stages] = Path(stages);
    }
    return found;
  }

 private:
  struct Choice {
    int32_t size = -1, last = -1;
  };
  size_t Index(int32_t stages, int32_t first, int32_t devices) const {
    return (static_cast<size_t>(stages) * (segments_.layers() + 1) + first) * (gpus_ + 1) + devices;
  }

  // The last `stages` stages: layers from `first` on, the last `devices` devices.
  void Extend(int32_t stages, int32_t first, int32_t devices, double bound_us) {
    const size_t to = Index(stages, first, devices);
    const int32_t gpu = gpus_ - devices;
    for (size_t size = 0; size < segments_.sizes().size(); ++size) {
      const int32_t count = segments_.sizes()[size];
      if (count > devices || !model_.cluster().IsStageRange(gpu, count)) continue;
      const double limit = model_.cluster().MemoryLimitOf(gpu, count);
      for (int32_t last = first; last < segments_.layers(); ++last) {
        const Segment& segment = segments_.At(size, first, last);
        if (!(segment.time_us <= bound_us)) break;
        const double rest = least_[Index(stages - 1, last + 1, devices - count)];
        if (rest + segment.time_us >= least_[to]) continue;
        const StagePlace place{.stages_behind = stages - 1, .first_gpu = gpu};
        if (checks_memory_ && model_.MemoryAt(segment.totals, place) > limit) continue;
        least_[to] = rest + segment.time_us;
        choice_[to] = {static_cast<int32_t>(size), last};
      }
    }
  }

  std::vector<StagePtr> Path(int32_t stages) const {
    std::vector<StagePtr> path;
    for (int32_t first = 0, devices = gpus_; stages > 0; --stages) {
      const Choice& choice = choice_[Index(stages, first, devices)];
      path.push_back(segments_.At(choice.size, first, choice.last).stage);
      devices -= segments_.sizes()[choice.size];
      first = choice.last + 1;
    }
    return path;
  }

  const CostModel& model_;
  const Segments& segments_;
  int32_t gpus_, most_stages_;
  bool checks_memory_ = true;
  std::vector<double> least_;
  std::vector<Choice> choice_;
};

// One micro-batch and one choice of recomputation.
class Setting {
 public:
  Setting(const CostModel& model, const SearchRequest& request, SearchRun* run) : model_(model), request_(request), run_(run) {}

  BestPlans Search(int32_t micro_batch, bool recompute) {
    micro_batch_ = micro_batch;
    const std::vector<int32_t> edges = LayerEdges(model_.ops()), sizes = model_.StageSizes(micro_batch);
    if (sizes.empty()) return {};
    const Segments segments(model_, edges, sizes, micro_batch, recompute, run_);
    const int32_t most = std::min({LargestStageCount(request_, model_), segments.layers(), kMostStages});
    Pipeline pipeline(model_, segments, most);
    // The slowest stage has at least the largest layer, and its share of all; at most everything.
    double low = kInfinity, high = 0;
    for (size_t size = 0; size < sizes.size(); ++size) {
      const double all = segments.At(size, 0, segments.layers() - 1).time_us;
      low = std::min(low, all * sizes[size] / model_.cluster().gpus() / 4);
      if (std::isfinite(all)) high = std::max(high, all);
    }
    if (!(low > 0) || !(high > low)) return std::move(best_);
    Sweep(&pipeline, low, high * 1.0001, kBounds);
    for (int i = 0; i < kRefinements && best_bound_ > 0; ++i)
      Sweep(&pipeline, best_bound_ / step_, best_bound_ * step_, kFinerBounds);
    if (best_.empty()) {  // for the memory that would be needed
      pipeline.IgnoreMemory();
      Sweep(&pipeline, high * 1.0001, high * 1.0001, 2);
    }
    return std::move(best_);
  }

 private:
  // Bounds from low to high, equally far apart as ratios.
  void Sweep(Pipeline* pipeline, double low, double high, int bounds) {
    const double step = std::pow(high / low, 1.0 / (bounds - 1));
    const int64_t others = request_.global_batch / micro_batch_ - 1;  // micro-batches beside the first
    const auto rest = static_cast<double>(others);
    for (int i = 0; i < bounds && !run_->Expired(); ++i) {
      const double bound = low * std::pow(step, i);
      if (rest * bound / step / 1000 > best_.best_ms()) break;  // slower than what was found, if it is not below the last bound
      std::vector<std::vector<StagePtr>> found = pipeline->Solve(bound);
      for (size_t stages = std::max(1, request_.min_stages); stages < found.size(); ++stages) {
        if (!found[stages].empty()) Offer(std::move(found[stages]), bound);
      }
    }
    step_ = step;
  }

  void Offer(std::vector<StagePtr> stages, double bound) {
    RankedPlan candidate{
        .plan = {.global_batch = request_.global_batch, .micro_batch = micro_batch_, .stages = std::move(stages)}};
    if (!FindFaults(model_, candidate.plan, {.check_memory = false}).empty()) return;
    StatusOr<PlanCost> cost = model_.Price(candidate.plan);
    if (!cost.ok()) return;
    candidate.cost = *std::move(cost);
    const double before = best_.best_ms();
    best_.Add(candidate);
    if (best_.best_ms() >= before) return;
    best_bound_ = bound;
    run_->Report(best_.best_ms());
  }

  const CostModel& model_;
  const SearchRequest& request_;
  SearchRun* run_;
  int32_t micro_batch_ = 0;
  BestPlans best_;
  double best_bound_ = 0, step_ = 1;
};

}  // namespace

StatusOr<SearchResult> SearchInterIntra(const CostModel& model, const SearchRequest& request) {
  SearchRun run(request);
  const std::vector<int32_t> micro_batches = UsableMicroBatches(request);
  const auto tasks = static_cast<int32_t>(2 * micro_batches.size());
  std::vector<BestPlans> found(tasks);
  RunTasks(tasks, request.threads,
           [&](int32_t i) { found[i] = Setting(model, request, &run).Search(micro_batches[i / 2], i % 2 != 0); });
  BestPlans best;
  for (const BestPlans& plans : found) best.Add(plans);
  return best.Take(run, request, model, "the inter-intra search");
}

}  // namespace tidepool::plan
