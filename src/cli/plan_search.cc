#include "cli/plan_search.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "cli/print.h"
#include "cli/status_line.h"

namespace tidepool::cli {
namespace {

using plan::SearchKind;
using plan::SearchResult;
using Json = nlohmann::ordered_json;

constexpr int32_t kUsualGpusPerNode = 8;
constexpr SearchKind kBaselines[] = {SearchKind::kGrid, SearchKind::kRandom, SearchKind::kInterIntra};

std::string CountText(int64_t count) {
  if (count >= 10'000'000) return fmt::format("{:.1f} M", static_cast<double>(count) / 1e6);
  if (count >= 10'000) return fmt::format("{:.1f} k", static_cast<double>(count) / 1e3);
  return fmt::format("{}", count);
}

double Throughput(const plan::RankedPlan& ranked) {
  return static_cast<double>(ranked.plan.micro_batches()) * ranked.plan.micro_batch / ranked.cost.iteration_ms * 1000;
}

// How much memory a stage needs depends on the number of stages, unless the schedule is 1F1B. The stage programme does not know
// it.
bool KnowsSchedule(SearchKind kind, plan::PipelineSchedule schedule) {
  if (schedule == plan::PipelineSchedule::kOneForwardOneBackward) return true;
  return kind == SearchKind::kAceso || kind == SearchKind::kGrid || kind == SearchKind::kRandom;
}

std::string GpusText(const plan::Plan& plan) {
  std::string text;
  for (const plan::StagePtr& stage : plan.stages) text += fmt::format("{}{}", text.empty() ? "" : ",", stage->gpus());
  return text;
}

}  // namespace

void PlanSearchOptions::Register(OptionTable* table) {
  table->Add({.key = "plan.model",
              .help = "gpt:1.3b, t5:3b, wresnet:1b, ..., a spec of a family, or an op list file",
              .metavar = "MODEL"},
             &model);
  table->Add({.key = "plan.global_batch", .help = "Samples of one iteration"}, &global_batch);
  table->Add({.key = "plan.micro_batch", .help = "Micro-batches to choose from", .metavar = "N,..."}, &micro_batches);
  table->Add({.key = "plan.search", .help = "auto, op-dp, exact, aceso, or a baseline: grid, random, inter-intra"}, &search);
  table->Add({.key = "plan.budget", .help = "Stages that may be priced; 0: the search's own limit"}, &budget);
  table->Add({.key = "plan.threads", .help = "Threads; 0: one per core. The plan does not depend on it"}, &threads);
  table->Add({.key = "plan.top", .help = "Plans to keep, each with another number of stages"}, &top);
  table->Add({.key = "plan.min_stages", .help = "Least pipeline stages", .advanced = true}, &min_stages);
  table->Add({.key = "plan.max_stages", .help = "Most pipeline stages; 0: no limit", .advanced = true}, &max_stages);
  table->Add({.key = "plan.seed", .help = "Seed of searches that draw", .advanced = true}, &seed);
  table->Add({.key = "plan.wall_limit", .help = "A search that takes longer is cut short, and says so", .advanced = true},
             &wall_limit);
}

StatusOr<std::vector<int32_t>> ParseIntegers(const std::vector<std::string>& words, const std::string& flag, int32_t min,
                                             int32_t max) {
  std::vector<int32_t> numbers;
  for (const std::string& word : words) {
    int32_t number = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
    if (error != std::errc() || end != word.data() + word.size() || number < min || number > max) {
      return InvalidArgument("{}: '{}'; allowed: integers from {} to {}", flag, word, min, max);
    }
    numbers.push_back(number);
  }
  return numbers;
}

StatusOr<std::vector<int32_t>> PlanSearchOptions::MicroBatches() const {
  return ParseIntegers(micro_batches, "--micro-batch", 1, 1 << 24);
}

StatusOr<SearchKind> PlanSearchOptions::Kind(plan::PipelineSchedule schedule) const {
  TIDEPOOL_ASSIGN_OR_RETURN(const SearchKind kind, plan::SearchKindFrom(search));
  if (KnowsSchedule(kind, schedule)) return kind;
  if (kind == SearchKind::kAuto) return SearchKind::kAceso;
  return InvalidArgument("--search {} with the schedule {}; allowed: auto, aceso, grid, random, or --schedule 1f1b", search,
                         plan::NameOf(schedule));
}

StatusOr<plan::SearchRequest> PlanSearchOptions::Request() const {
  if (global_batch < 1) return InvalidArgument("--global-batch is {}; allowed: 1 or more samples", global_batch);
  plan::SearchRequest request;
  request.global_batch = global_batch;
  TIDEPOOL_ASSIGN_OR_RETURN(request.micro_batches, MicroBatches());
  request.threads = threads;
  request.top_k = top;
  request.min_stages = min_stages;
  request.max_stages = max_stages;
  request.seed = seed;
  request.budget = budget;
  request.wall_limit = wall_limit;
  return request;
}

plan::Cluster ClusterOf(const PlanSettingOptions& options) {
  return {.nodes = options.nodes == 0 ? 1 : options.nodes,
          .gpus_per_node = options.gpus_per_node == 0 ? kUsualGpusPerNode : options.gpus_per_node,
          .memory_limit_mib = options.memory_mib};
}

std::string ProgressText(const plan::SearchProgress& progress) {
  std::string text = fmt::format("{:.1f} s, {} stages", progress.seconds, CountText(progress.evaluations));
  if (!std::isfinite(progress.best_ms) || progress.best_ms <= 0) return text + ", no plan yet";
  text += fmt::format(", best {:.3f} s", progress.best_ms / 1000);
  if (progress.lower_bound_ms > 0) {
    text += fmt::format(", bound {:.3f} s, gap {:.2f} %", progress.lower_bound_ms / 1000,
                        100 * (progress.best_ms / progress.lower_bound_ms - 1));
  }
  return text;
}

StatusOr<SearchResult> RunSearch(SearchKind kind, const PlanSetting& setting, plan::SearchRequest request,
                                 const VerbContext& context) {
  StatusLine line(context.progress);
  request.on_progress = [&](const plan::SearchProgress& progress) {
    line.Show(fmt::format("{}: {}", NameOf(kind), ProgressText(progress)));
  };
  request.stopped = context.stopped;
  auto result = plan::Search(kind, *setting.model, request);
  const bool too_soon = result.status().code() == StatusCode::kDeadlineExceeded && context.stopped && context.stopped();
  if (too_soon) return Cancelled("interrupted before a plan was found");
  return result;
}

std::vector<Baseline> RunBaselines(SearchKind chosen, const PlanSetting& setting, const plan::SearchRequest& request,
                                   const VerbContext& context) {
  std::vector<Baseline> baselines;
  for (const SearchKind kind : kBaselines) {
    if (kind == chosen || context.stopped() || !KnowsSchedule(kind, setting.model->pipeline().schedule)) continue;
    auto result = RunSearch(kind, setting, request, context);
    Baseline& baseline = baselines.emplace_back();
    baseline.kind = kind;
    baseline.status = result.status();
    if (result.ok()) baseline.result = *std::move(result);
  }
  return baselines;
}

double GapOf(const SearchResult& result) {
  return result.lower_bound_ms > 0 ? (result.best_ms() - result.lower_bound_ms) / result.lower_bound_ms : -1;
}

Json ResultJson(SearchKind kind, const SearchResult& result) {
  const plan::RankedPlan& best = result.plans.front();
  const bool bound = result.lower_bound_ms > 0;
  return {{"search", plan::NameOf(kind)},
          {"search_seconds", result.seconds},
          {"evaluations", result.evaluations},
          {"iteration_seconds", best.cost.iteration_ms / 1000},
          {"throughput_samples_per_s", Throughput(best)},
          {"memory_mib", MemoryJson(best.cost)},
          {"lower_bound_seconds", bound ? Json(result.lower_bound_ms / 1000) : Json(nullptr)},
          {"gap", bound ? Json(GapOf(result)) : Json(nullptr)},
          {"hit_wall_limit", result.hit_wall_limit},
          {"hit_budget", result.hit_budget},
          {"search_notes", result.notes}};
}

Json BaselinesJson(const std::vector<Baseline>& baselines, double best_ms) {
  Json json = Json::object();
  for (const Baseline& baseline : baselines) {
    const std::string name(plan::NameOf(baseline.kind));
    if (!baseline.status.ok()) {
      json[name] = {{"error", ToString(baseline.status)}};
      continue;
    }
    json[name] = {{"iteration_seconds", baseline.result.best_ms() / 1000},
                  {"search_seconds", baseline.result.seconds},
                  {"evaluations", baseline.result.evaluations},
                  {"relative", baseline.result.best_ms() / best_ms}};
  }
  return json;
}

void PrintResult(SearchKind kind, const SearchResult& result) {
  fmt::print("search       {}: {:.2f} s, {} stages priced\n", plan::NameOf(kind), result.seconds, CountText(result.evaluations));
  if (result.lower_bound_ms > 0) {
    fmt::print("certificate  no plan is faster than {:.3f} s: gap {:.2f} %\n", result.lower_bound_ms / 1000, 100 * GapOf(result));
  }
  if (result.hit_budget) fmt::print("note         the search ended with its budget\n");
  for (const std::string& note : result.notes) fmt::print("note         {}\n", note);
}

void PrintBaselines(const std::vector<Baseline>& baselines, SearchKind kind, const SearchResult& best) {
  std::vector<std::vector<std::string>> rows = {{"SEARCH", "ITERATION", "SAMPLES/S", "AGAINST THE PLAN", "SEARCHED"}};
  rows.push_back({std::string(plan::NameOf(kind)), PlanTimeText(best.best_ms() * 1000),
                  fmt::format("{:.2f}", Throughput(best.plans[0])), "", fmt::format("{:.2f} s", best.seconds)});
  for (const Baseline& baseline : baselines) {
    const std::string name(plan::NameOf(baseline.kind));
    if (!baseline.status.ok()) {
      rows.push_back({name, MessageOf(baseline.status).substr(0, 80)});
      continue;
    }
    const double ms = baseline.result.best_ms();
    rows.push_back({name, PlanTimeText(ms * 1000), fmt::format("{:.2f}", Throughput(baseline.result.plans[0])),
                    fmt::format("{:+.2f} %", 100 * (ms / best.best_ms() - 1)), fmt::format("{:.2f} s", baseline.result.seconds)});
  }
  PrintTable(rows, "lrrrr");
}

void PrintTop(const SearchResult& result) {
  std::vector<std::vector<std::string>> rows = {
      {"RANK", "STAGES", "DEVICES", "MICRO-BATCH", "ITERATION", "AGAINST THE BEST", "MEMORY"}};
  for (size_t i = 0; i < result.plans.size(); ++i) {
    const plan::RankedPlan& ranked = result.plans[i];
    rows.push_back({fmt::format("{}", i + 1), fmt::format("{}", ranked.plan.stages.size()), GpusText(ranked.plan),
                    fmt::format("{}", ranked.plan.micro_batch), PlanTimeText(ranked.cost.iteration_ms * 1000),
                    fmt::format("{:+.2f} %", 100 * (ranked.cost.iteration_ms / result.best_ms() - 1)),
                    fmt::format("{:.0f} MiB", ranked.cost.max_memory_mib)});
  }
  PrintTable(rows, "rrlrrrr");
}

}  // namespace tidepool::cli
