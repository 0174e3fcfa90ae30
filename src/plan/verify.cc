#include "plan/verify.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "base/text.h"

namespace tidepool::plan {
namespace {

using Kind = PlanFault::Kind;

class Verifier {
 public:
  Verifier(const CostModel& model, const Plan& plan, const VerifyOptions& options)
      : model_(model), plan_(plan), options_(options) {}

  std::vector<PlanFault> Run() {
    CheckBatch();
    CheckOps();
    if (faults_.empty()) {
      int32_t gpu = 0;
      for (size_t i = 0; i < plan_.stages.size(); ++i) {
        CheckSplits(static_cast<int32_t>(i));
        CheckDevices(static_cast<int32_t>(i), gpu);
        CheckSkips(static_cast<int32_t>(i));
        gpu += plan_.stages[i]->gpus();
      }
      const int32_t gpus = model_.cluster().gpus();
      if (gpu > gpus || (gpu < gpus && !options_.allow_idle_gpus)) {
        Report(Kind::kGpus, -1, -1, "the stages have {} devices; allowed: {}", gpu, gpus);
      }
    }
    if (faults_.empty() && options_.check_memory) CheckMemory();
    return std::move(faults_);
  }

 private:
  template <typename... Args>
  void Report(Kind kind, int32_t stage, int32_t op, fmt::format_string<Args...> format, Args&&... args) {
    if (!reported_.insert({stage, kind}).second) return;
    std::string text = stage >= 0 ? fmt::format("stage {}", stage) : "";
    if (op >= 0) text += fmt::format(", op {} ({})", op, model_.ops().at(op).name);
    if (!text.empty()) text += ": ";
    faults_.push_back({kind, stage, op, text + fmt::format(format, std::forward<Args>(args)...)});
  }

  void CheckBatch() {
    if (plan_.micro_batch < 1 || plan_.global_batch < plan_.micro_batch) {
      Report(Kind::kBatch, -1, -1, "the micro-batch is {}; allowed: 1 to the global batch, {}", plan_.micro_batch,
             plan_.global_batch);
    } else if (plan_.global_batch % plan_.micro_batch != 0 && !options_.allow_dropped_samples) {
      Report(Kind::kBatch, -1, -1,
             "the micro-batch is {}; allowed: a divisor of the global batch, {} ({} samples would be dropped)", plan_.micro_batch,
             plan_.global_batch, plan_.global_batch % plan_.micro_batch);
    } else if (const auto stages = std::ssize(plan_.stages); model_.pipeline().schedule == PipelineSchedule::kInterleaved &&
                                                             stages > 0 && plan_.micro_batches() % stages != 0) {
      Report(Kind::kBatch, -1, -1, "{} micro-batches in an interleaved pipeline; allowed: a multiple of its {} stages",
             plan_.micro_batches(), stages);
    }
  }

  void CheckOps() {
    const int32_t size = model_.ops().size();
    if (plan_.stages.empty()) return Report(Kind::kOps, -1, -1, "the plan has no stages; allowed: at least one");
    int32_t next = 0;
    for (size_t i = 0; i < plan_.stages.size(); ++i) {
      const auto stage = static_cast<int32_t>(i);
      const Stage& s = *plan_.stages[i];
      if (s.first() != next)
        Report(Kind::kOps, stage, -1, "begins with op {}; allowed: {}, where the one before ends", s.first(), next);
      if (s.first() < 0 || s.end() > size) {
        Report(Kind::kOps, stage, -1, "has ops {} to {}; {} has {}", s.first(), s.end() - 1, model_.ops().name, size);
      }
      next = s.end();
    }
    if (next != size)
      Report(Kind::kOps, -1, -1, "the stages end with op {}; allowed: {}, the last of {}", next - 1, size - 1, model_.ops().name);
  }

  void CheckSplits(int32_t index) {
    const Stage& stage = *plan_.stages[index];
    int32_t op = stage.first();
    for (const ChoiceRun& run : stage.runs()) {
      const OpChoice& choice = run.choice;
      if (choice.tensor_parallel < 1 || choice.data_parallel < 1) {
        Report(Kind::kSplit, index, op, "{} x {} devices; allowed: 1 or more each", choice.tensor_parallel, choice.data_parallel);
      } else if (choice.gpus() != stage.gpus()) {
        Report(Kind::kSplit, index, op, "tensor-parallel {} x data-parallel {} are {} devices; the stage has {}",
               choice.tensor_parallel, choice.data_parallel, choice.gpus(), stage.gpus());
      } else if (plan_.micro_batch % choice.data_parallel != 0) {
        Report(Kind::kSplit, index, op, "{} replicas; allowed: a divisor of the micro-batch, {}", choice.data_parallel,
               plan_.micro_batch);
      } else if (model_.RowOf(choice, plan_.micro_batch) < 0) {
        const ProfileTable& table = model_.table();
        Report(Kind::kProfile, index, op,
               "batch {} at width {}, algorithm {} was not profiled; profiled: batches {}, widths {}, algorithms 0 to {}",
               plan_.micro_batch / choice.data_parallel, choice.tensor_parallel, choice.algorithm,
               fmt::join(table.batches(), ", "), fmt::join(table.widths(), ", "), table.algorithms() - 1);
      }
      op += run.count;
    }
  }

  void CheckDevices(int32_t index, int32_t first_gpu) {
    const int32_t count = plan_.stages[index]->gpus();
    const Cluster& cluster = model_.cluster();
    if (first_gpu + count > cluster.gpus() || cluster.IsStageRange(first_gpu, count)) return;
    Report(Kind::kNode, index, -1, "devices {} to {} lie on more than one node of {}; allowed: within one node, or whole nodes",
           first_gpu, first_gpu + count - 1, cluster.gpus_per_node);
  }

  void CheckSkips(int32_t index) {
    const Stage& stage = *plan_.stages[index];
    if (!options_.check_skips || model_.ops().SkipsAllowStage(stage.first(), stage.count())) return;
    for (const SkipTensor& skip : model_.ops().skips) {
      if (skip.producer >= stage.first() || skip.consumer < stage.end()) continue;
      Report(Kind::kSkip, index, -1,
             "the tensor from op {} ({}) to op {} ({}) would cross more than one edge; the stage must have more ops",
             skip.producer, model_.ops().at(skip.producer).name, skip.consumer, model_.ops().at(skip.consumer).name);
      return;
    }
  }

  void CheckMemory() {
    const StatusOr<PlanCost> cost = model_.Price(plan_);
    if (!cost.ok()) return Report(Kind::kOps, -1, -1, "{}", MessageOf(cost.status()));
    const std::vector<StagePlace> places = model_.PlacesOf(plan_);
    for (size_t i = 0; i < places.size(); ++i) {
      const double limit = model_.cluster().MemoryLimitOf(places[i].first_gpu, plan_.stages[i]->gpus());
      const double needed = cost->stages[i].memory_mib;
      if (needed <= limit) continue;
      Report(Kind::kMemory, static_cast<int32_t>(i), -1, "needs {:.2f} MiB on each device; allowed: {:.2f}", needed, limit);
    }
  }

  const CostModel& model_;
  const Plan& plan_;
  const VerifyOptions& options_;
  std::vector<PlanFault> faults_;
  std::set<std::pair<int32_t, Kind>> reported_;
};

}  // namespace

std::vector<PlanFault> FindFaults(const CostModel& model, const Plan& plan, const VerifyOptions& options) {
  return Verifier(model, plan, options).Run();
}

Status Verify(const CostModel& model, const Plan& plan, const VerifyOptions& options) {
  const std::vector<PlanFault> faults = FindFaults(model, plan, options);
  if (faults.empty()) return {};
  std::vector<std::string> texts;
  bool memory_only = true;
  for (const PlanFault& fault : faults) {
    texts.push_back(fault.text);
    memory_only = memory_only && fault.kind == Kind::kMemory;
  }
  const std::string text = JoinText(texts, "; ");
  return memory_only ? ResourceExhausted("{}", text) : InvalidArgument("{}", text);
}

}  // namespace tidepool::plan
