// plan: finds a plan.

#include "base/fd.h"
#include "base/json.h"
#include "cli/plan_explain.h"
#include "cli/plan_search.h"
#include "cli/plan_verbs.h"
#include "cli/plan_what_if.h"
#include "cli/print.h"
#include "plan/op_list_json.h"
#include "report/standalone.h"

namespace tidepool::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostAlternatives = 12;

class PlanVerb : public Verb {
 public:
  std::string path() const override { return "plan"; }
  std::string summary() const override { return "Find how to train a network on many devices"; }
  std::string details() const override {
    return "Searches cuts into stages, devices per stage, tensor and data parallel widths, micro-batch and recomputation; says "
           "how far\n"
           "from the best possible its plan is at most (with --search auto). Ctrl-C ends with the best plan so far.\n"
           "  tidepool plan --model gpt:1.3b --global-batch 512 --gpus-per-node 4 --gpu-memory-mib 12000\n"
           "  tidepool plan --model gpt:1.3b --global-batch 512 --profiles profiled-time-miniset --gpus-per-node 4 \\\n"
           "      --gpu-memory-mib 12000 --baselines --explain --out plan.json";
  }
  void Register(OptionTable* table) override {
    search_.Register(table);
    setting_.Register(table);
    table->Add({.key = "plan.baselines", .help = "Also run grid, random and inter-intra, and compare"}, &baselines_);
    table->Add({.key = "plan.explain", .help = "Also show the bottleneck, and what small changes of the plan would cost"},
               &explain_);
    table->Add({.key = "plan.out", .help = "Write the plan to this file", .metavar = "FILE"}, &out_);
    table->Add(
        {.key = "plan.what_if", .help = "Sweep clusters: gpus=4,8,16 memory=8000,16000 links=x0.5,x1,x2", .metavar = "AXIS=..."},
        &what_if_);
    table->Add({.key = "plan.target_throughput", .help = "With --what-if: find the smallest cluster with so many samples/s"},
               &target_);
    table->Add({.key = "plan.svg", .help = "With --what-if: write the plot to this file", .metavar = "FILE"}, &svg_);
    table->Add({.key = "plan.json", .help = "Also write the result as JSON to this file", .metavar = "FILE"}, &json_);
  }
  Status Run(const VerbContext& context) override;

 private:
  Json ToJson(const PricedPlan& best, plan::SearchKind kind, const plan::SearchResult& result,
              const std::vector<Baseline>& baselines, const std::vector<Alternative>& alternatives) const;
  Status RunWhatIf(const VerbContext& context) const;
  plan::PlanFile FileOf(const PlanSetting& setting, const plan::SearchResult& result) const;

  PlanSearchOptions search_;
  PlanSettingOptions setting_;
  bool baselines_ = false, explain_ = false;
  double target_ = 0;
  std::vector<std::string> what_if_;
  std::string out_, json_, svg_;
};

Status PlanVerb::RunWhatIf(const VerbContext& context) const {
  if (!out_.empty() || explain_ || baselines_) {
    return InvalidArgument("--what-if does not go with --out, --explain or --baselines; allowed: one search for these");
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const Sweep sweep, ParseSweep(what_if_));
  TIDEPOOL_ASSIGN_OR_RETURN(const PlanCostModel cost, setting_.cost.Over({}));
  TIDEPOOL_ASSIGN_OR_RETURN(const SweepResult result, RunSweep(sweep, search_, setting_, cost, target_, context));
  const Json json = SweepJson(result, target_);
  if (!json_.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(json_, json.dump(2) + "\n"));
  if (!svg_.empty()) {
    const std::string title = fmt::format("{}, {} samples per iteration", search_.model, search_.global_batch);
    TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(svg_, report::StandaloneSvg({SweepPlot(sweep, result, target_, title)})));
  }
  if (context.output == OutputFormat::kJson) {
    PrintJson(json);
  } else {
    PrintSweep(result, target_);
  }
  return {};
}

plan::PlanFile PlanVerb::FileOf(const PlanSetting& setting, const plan::SearchResult& result) const {
  plan::PlanFile file;
  file.plan = result.plans.front().plan;
  file.model = search_.model;
  file.cost_model = setting.model->name();
  file.cost_options = setting.cost_options;
  if (setting.memory_from == MemoryLimitFrom::kFlag) file.gpu_memory_mib = setting.cluster.memory_limit_mib;
  file.database_hash = setting.table->hash();
  file.upper_bound_seconds = result.best_ms() / 1000;
  if (result.lower_bound_ms > 0) file.lower_bound_seconds = result.lower_bound_ms / 1000;
  return file;
}

Json PlanVerb::ToJson(const PricedPlan& best, plan::SearchKind kind, const plan::SearchResult& result,
                      const std::vector<Baseline>& baselines, const std::vector<Alternative>& alternatives) const {
  Json json = ResultJson(kind, result);
  json["setting"] = SettingJson(*best.setting);
  json["baselines"] = BaselinesJson(baselines, result.best_ms());
  json["top"] = Json::array();
  for (const plan::RankedPlan& ranked : result.plans) {
    json["top"].push_back({{"stages", ranked.plan.stages.size()},
                           {"micro_batch", ranked.plan.micro_batch},
                           {"iteration_seconds", ranked.cost.iteration_ms / 1000},
                           {"memory_mib", MemoryJson(ranked.cost)}});
  }
  if (explain_) json["alternatives"] = AlternativesJson(alternatives);
  json["cost"] = PricedJson(best);
  json["plan"] = Json::parse(plan::FormatPlan(FileOf(*best.setting, result), best.setting->ops), nullptr, false);
  return json;
}

Status PlanVerb::Run(const VerbContext& context) {
  setting_.Note(*context.options);
  if (!what_if_.empty()) return RunWhatIf(context);
  if (target_ > 0 || !svg_.empty()) return InvalidArgument("--target-throughput and --svg need --what-if");
  TIDEPOOL_ASSIGN_OR_RETURN(const PlanCostModel cost, setting_.cost.Over({}));
  TIDEPOOL_ASSIGN_OR_RETURN(const plan::SearchKind kind, search_.Kind(cost.options.schedule));
  TIDEPOOL_ASSIGN_OR_RETURN(const plan::SearchRequest request, search_.Request());
  TIDEPOOL_ASSIGN_OR_RETURN(plan::OpList ops, FindOpList(search_.model));
  const plan::Cluster cluster = ClusterOf(setting_);
  TIDEPOOL_ASSIGN_OR_RETURN(
      const PlanProfile profile,
      LoadPlanProfile(setting_.profiles, ops, {.micro_batches = request.micro_batches, .gpus = cluster.gpus()}));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto setting, MakePlanSetting(std::move(ops), profile, cluster, cost, request.micro_batches));
  TIDEPOOL_ASSIGN_OR_RETURN(plan::SearchResult result, RunSearch(kind, *setting, request, context));
  if (search_.search != plan::NameOf(kind)) {
    result.notes.push_back(fmt::format("--search {}: {} searches, because the schedule is {}", search_.search, plan::NameOf(kind),
                                       plan::NameOf(cost.options.schedule)));
  }
  if (context.stopped()) {
    result.notes.insert(result.notes.begin(), "interrupted: this is the best plan so far");
  } else if (result.hit_wall_limit) {
    result.notes.insert(result.notes.begin(), fmt::format("cut short after {}: another run may give another plan",
                                                          absl::FormatDuration(search_.wall_limit)));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const PricedPlan best,
                            PriceOf(out_.empty() ? "the best found" : out_, result.plans.front().plan, *setting));
  if (!out_.empty()) TIDEPOOL_RETURN_IF_ERROR(plan::WritePlan(FileOf(*setting, result), setting->ops, out_));
  const std::vector<Baseline> baselines = baselines_ ? RunBaselines(kind, *setting, request, context) : std::vector<Baseline>();
  const std::vector<Alternative> alternatives =
      explain_ ? AlternativesOf(best, request.micro_batches) : std::vector<Alternative>();
  const Json json = ToJson(best, kind, result, baselines, alternatives);
  if (!json_.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(json_, json.dump(2) + "\n"));
  if (context.output == OutputFormat::kJson) {
    PrintJson(json);
    return {};
  }
  PrintSetting(*setting);
  PrintResult(kind, result);
  PrintPriced(best);
  fmt::print("\n");
  PrintStages(best);
  if (result.plans.size() > 1) {
    fmt::print("\n");
    PrintTop(result);
  }
  if (!baselines.empty()) {
    fmt::print("\n");
    PrintBaselines(baselines, kind, result);
  }
  if (explain_) {
    fmt::print("\n{}\n\n", BottleneckText(best));
    PrintAlternatives(best, alternatives, kMostAlternatives);
  }
  return {};
}

// Prints an op list: what a file for --model looks like.
class OpsVerb : public Verb {
 public:
  std::string path() const override { return "plan ops"; }
  std::string summary() const override { return "Show the op list of a model; with -o json, as a file for --model"; }
  std::string details() const override { return "Example: tidepool plan ops gpt:350m -o json > mine.json"; }
  std::vector<Positional> positionals() override {
    return {{.name = "MODEL", .help = "As for --model of 'tidepool plan'", .values = &model_, .min = 1}};
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const plan::OpList ops, FindOpList(model_[0]));
    if (context.output == OutputFormat::kJson) {
      fmt::print("{}", plan::FormatOpList(ops));
      return {};
    }
    fmt::print("{}: {} ops, {} of them distinct, {}, {:.4g} G parameters\n", ops.name, ops.size(), ops.distinct.size(),
               SafetensorsName(ops.dtype), static_cast<double>(ops.parameters()) / 1e9);
    for (const plan::Segment& segment : ops.segments) {
      fmt::print("ops {} to {}: {} times {} ops\n", segment.first, segment.end() - 1, segment.repeats, segment.period);
    }
    std::vector<std::vector<std::string>> rows = {{"OP", "KIND", "TIMES", "PARAMETERS", "MFLOP", "IN", "OUT", "KEPT", "SPLITS"}};
    for (size_t i = 0; i < ops.distinct.size(); ++i) {
      const plan::DistinctOp& op = ops.distinct[i];
      const auto kib = [](int64_t bytes) { return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / 1024); };
      rows.push_back(
          {op.name, op.kind, fmt::format("{}", ops.PlacesOf(static_cast<uint16_t>(i)).size()), fmt::format("{}", op.parameters),
           fmt::format("{:.1f}", static_cast<double>(op.forward_flops_per_sample) / 1e6), kib(op.input_bytes_per_sample),
           kib(op.output_bytes_per_sample), kib(op.activation_bytes_per_sample), fmt::format("{}", op.algorithms.size())});
    }
    PrintTable(rows, "llrrrrrrr");
    return {};
  }

 private:
  std::vector<std::string> model_;
};

}  // namespace

void AddPlanSearchVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<PlanVerb>());
  verbs->push_back(std::make_unique<OpsVerb>());
}

}  // namespace tidepool::cli
