#include "cli/plan_output.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/text.h"
#include "base/units.h"
#include "cli/print.h"

namespace tidepool::cli {
namespace {

using plan::ChoiceRun;
using plan::PlanCost;
using plan::PlanFault;
using plan::Stage;
using plan::StageCost;
using Json = nlohmann::ordered_json;

constexpr int kBarWidth = 20;

std::string_view NameOf(PlanFault::Kind kind) {
  static constexpr std::string_view kNames[] = {"batch", "ops", "gpus", "split", "profile", "node", "skip", "memory"};
  return kNames[static_cast<int>(kind)];
}

int32_t RecomputedOps(const Stage& stage) {
  int32_t count = 0;
  for (const ChoiceRun& run : stage.runs()) count += run.choice.recompute ? run.count : 0;
  return count;
}

// What costs infinity is null in JSON.
Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

std::string MibText(double mib) { return std::isfinite(mib) ? fmt::format("{:.0f} MiB", mib) : "-"; }

Json SplitsJson(const Stage& stage) {
  Json runs = Json::array();
  for (const ChoiceRun& run : stage.runs()) {
    runs.push_back({{"ops", run.count},
                    {"tensor_parallel", run.choice.tensor_parallel},
                    {"data_parallel", run.choice.data_parallel},
                    {"algorithm", run.choice.algorithm},
                    {"recompute", run.choice.recompute}});
  }
  return runs;
}

Json StageJson(const PricedPlan& priced, int32_t index, const plan::StagePlace& place) {
  const Stage& stage = *priced.plan.stages[index];
  const StageCost& cost = priced.cost.stages[index];
  const plan::OpList& ops = priced.setting->ops;
  return {{"stage", index},
          {"first_op", stage.first()},
          {"ops", stage.count()},
          {"first_op_name", ops.at(stage.first()).name},
          {"last_op_name", ops.at(stage.end() - 1).name},
          {"first_gpu", place.first_gpu},
          {"gpus", stage.gpus()},
          {"splits", SplitsJson(stage)},
          {"recomputed_ops", RecomputedOps(stage)},
          {"forward_us", Number(cost.forward_us)},
          {"backward_us", Number(cost.backward_us)},
          {"recompute_us", Number(cost.recompute_us)},
          {"in_us", Number(cost.in_us)},
          {"out_us", Number(cost.out_us)},
          {"reshard_us", Number(cost.reshard_forward_us + cost.reshard_backward_us)},
          {"hidden_us", Number(cost.hidden_us)},
          {"micro_batch_us", Number(cost.time_us)},
          {"sync_us", Number(cost.sync_us)},
          {"optimizer_us", Number(cost.optimizer_us)},
          {"iteration_ms", Number(priced.cost.stage_iteration_ms[index])},
          {"share", Number(priced.share(index))},
          {"slack_ms", Number(priced.slack_ms(index))},
          {"state_mib", Number(cost.state_mib)},
          {"activation_mib", Number(cost.activation_mib)},
          {"peak_mib", Number(cost.peak_mib)},
          {"reserved_mib", Number(cost.reserved_mib)},
          {"margin_mib", Number(cost.margin_mib)},
          {"memory_mib", Number(cost.memory_mib)},
          {"limit_mib", priced.setting->cluster.MemoryLimitOf(place.first_gpu)}};
}

}  // namespace

double PricedPlan::throughput() const {
  const double samples = static_cast<double>(plan.micro_batches()) * plan.micro_batch;
  return cost.iteration_ms > 0 ? samples / cost.iteration_ms * 1000 : 0;
}
double PricedPlan::slack_ms(int32_t stage) const {
  return cost.stage_iteration_ms[static_cast<size_t>(cost.slowest)] - cost.stage_iteration_ms[stage];
}
double PricedPlan::share(int32_t stage) const {
  const StageCost& one = cost.stages[stage];
  const double busy_us = one.time_us * static_cast<double>(plan.micro_batches()) + one.sync_us + one.optimizer_us;
  return busy_us / (cost.iteration_ms * 1000);
}

StatusOr<PricedPlan> PriceOf(std::string name, plan::Plan plan, const PlanSetting& setting, const plan::VerifyOptions& options) {
  PricedPlan priced{.name = std::move(name), .plan = std::move(plan), .setting = &setting};
  priced.faults = plan::FindFaults(*setting.model, priced.plan, options);
  auto cost = setting.model->Price(priced.plan);
  if (!cost.ok()) return Annotate(cost.status(), priced.name);
  priced.cost = *std::move(cost);
  return priced;
}

std::string OpsText(const Stage& stage) { return fmt::format("{}-{} ({})", stage.first(), stage.end() - 1, stage.count()); }

std::string SplitsText(const Stage& stage) {
  std::vector<std::string> texts;
  for (const ChoiceRun& run : stage.runs()) {
    std::string text = fmt::format("{}x{}", run.choice.tensor_parallel, run.choice.data_parallel);
    if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(std::move(text));
  }
  return JoinText(texts, ", ");
}

std::string DevicesText(int32_t first, int32_t count) {
  return count == 1 ? fmt::format("{}", first) : fmt::format("{}-{}", first, first + count - 1);
}

std::string PlanTimeText(double us) {
  if (!std::isfinite(us)) return "not profiled";
  if (us >= 1e7) return fmt::format("{:.2f} s", us / 1e6);
  return fmt::format("{:.2f} ms", us / 1000);
}

std::string BarText(double share, int width) {
  if (!std::isfinite(share)) return std::string(static_cast<size_t>(width) + 2, '?');
  const int full = std::clamp(static_cast<int>(std::lround(share * width)), 0, width);
  std::string bar = "[" + std::string(static_cast<size_t>(full), '#') + std::string(static_cast<size_t>(width - full), '.') + "]";
  if (share > 1) bar += "!";
  return bar;
}

std::string MemoryLimitText(const PlanSetting& setting) {
  return fmt::format("{:.0f} MiB ({})", setting.cluster.memory_limit_mib, TextOf(setting.memory_from));
}

Json SettingJson(const PlanSetting& setting) {
  const plan::Cluster& cluster = setting.cluster;
  return {{"model", setting.ops.name},
          {"ops", setting.ops.size()},
          {"parameters", setting.ops.parameters()},
          {"cost_model", setting.model->name()},
          {"cost_options", setting.cost_options ? plan::CalibratedOptionsJson(*setting.cost_options) : Json(nullptr)},
          {"profiles", {{"source", setting.source}, {"origin", OriginOf(setting)}, {"hash", setting.table->hash()}}},
          {"cluster",
           {{"nodes", cluster.nodes},
            {"gpus_per_node", cluster.gpus_per_node},
            {"gpu_memory_mib", cluster.memory_limit_mib},
            {"gpu_memory_from", NameOf(setting.memory_from)}}},
          {"notes", setting.notes}};
}

Json FaultsJson(const std::vector<PlanFault>& faults) {
  Json json = Json::array();
  for (const PlanFault& fault : faults) {
    json.push_back({{"kind", NameOf(fault.kind)},
                    {"stage", fault.stage < 0 ? Json(nullptr) : Json(fault.stage)},
                    {"op", fault.op < 0 ? Json(nullptr) : Json(fault.op)},
                    {"text", fault.text}});
  }
  return json;
}

Json MemoryJson(const PlanCost& cost) {
  Json json = Json::array();
  for (const StageCost& stage : cost.stages) json.push_back(Number(stage.memory_mib));
  return json;
}

Json PricedJson(const PricedPlan& priced) {
  const std::vector<plan::StagePlace> places = priced.setting->model->PlacesOf(priced.plan);
  Json stages = Json::array();
  for (size_t i = 0; i < places.size(); ++i) stages.push_back(StageJson(priced, static_cast<int32_t>(i), places[i]));
  return {{"name", priced.name},
          {"global_batch", priced.plan.global_batch},
          {"micro_batch", priced.plan.micro_batch},
          {"micro_batches", priced.plan.micro_batches()},
          {"gpus", priced.plan.gpus()},
          {"iteration_seconds", Number(priced.cost.iteration_ms / 1000)},
          {"throughput_samples_per_s", Number(priced.throughput())},
          {"bottleneck", priced.cost.slowest},
          {"memory_mib", MemoryJson(priced.cost)},
          {"fits", priced.cost.fits},
          {"valid", priced.faults.empty()},
          {"faults", FaultsJson(priced.faults)},
          {"stages", std::move(stages)}};
}

void PrintSetting(const PlanSetting& setting) {
  const plan::Cluster& cluster = setting.cluster;
  fmt::print("model        {}, {} ops, {:.3g} G parameters\n", setting.ops.name, setting.ops.size(),
             static_cast<double>(setting.ops.parameters()) / 1e9);
  fmt::print("cluster      {} x {} devices of {}\n", cluster.nodes, cluster.gpus_per_node, MemoryLimitText(setting));
  fmt::print("times        {} ({}), cost model {}\n", OriginOf(setting), setting.source, setting.model->name());
  const std::string options = setting.cost_options ? CostOptionsText(*setting.cost_options) : "";
  if (!options.empty()) fmt::print("options      {}\n", options);
  for (const std::string& note : setting.notes) fmt::print("note         {}\n", note);
}

void PrintPriced(const PricedPlan& priced) {
  const plan::Plan& plan = priced.plan;
  fmt::print("plan         {}\n", priced.name);
  fmt::print("batch        {} samples = {} micro-batches of {}\n", plan.global_batch, plan.micro_batches(), plan.micro_batch);
  fmt::print("iteration    {}, {:.2f} samples/s (predicted from {} times of ops)\n",
             PlanTimeText(priced.cost.iteration_ms * 1000), priced.throughput(), OriginOf(*priced.setting));
  fmt::print("bottleneck   stage {} of {}: {} per micro-batch\n", priced.cost.slowest, plan.stages.size(),
             PlanTimeText(priced.cost.stages[priced.cost.slowest].time_us));
  fmt::print("memory       {} at most, stage {}: {}\n", MibText(priced.cost.max_memory_mib), priced.cost.largest,
             priced.cost.fits ? "fits" : "does not fit");
  for (const PlanFault& fault : priced.faults) fmt::print("fault        {}\n", fault.text);
}

void PrintStages(const PricedPlan& priced) {
  const std::vector<plan::StagePlace> places = priced.setting->model->PlacesOf(priced.plan);
  const auto any = [&](auto member) {
    return std::any_of(priced.cost.stages.begin(), priced.cost.stages.end(),
                       [&](const StageCost& cost) { return member(cost) > 0; });
  };
  const bool reshards = any([](const StageCost& cost) { return cost.reshard_forward_us + cost.reshard_backward_us; });
  const bool ends = any([](const StageCost& cost) { return cost.sync_us + cost.optimizer_us; });
  std::vector<std::string> head = {"STAGE", "OPS", "DEVICES", "TPxDP", "COMPUTE", "RECOMPUTE", "TRANSFER"};
  if (reshards) head.push_back("RESHARD");
  head.push_back("MICRO-BATCH");
  if (ends) head.insert(head.end(), {"SYNC", "OPTIMIZER"});
  head.insert(head.end(), {"BUSY", "SLACK", "MEMORY", "OF THE LIMIT"});
  std::vector<std::vector<std::string>> rows = {head};
  for (size_t i = 0; i < places.size(); ++i) {
    const auto index = static_cast<int32_t>(i);
    const Stage& stage = *priced.plan.stages[i];
    const StageCost& cost = priced.cost.stages[i];
    const double fill = cost.memory_mib / priced.setting->cluster.MemoryLimitOf(places[i].first_gpu);
    std::vector<std::string> row = {fmt::format("{}{}", i, index == priced.cost.slowest ? " *" : ""),
                                    OpsText(stage),
                                    DevicesText(places[i].first_gpu, stage.gpus()),
                                    SplitsText(stage),
                                    PlanTimeText(cost.forward_us + cost.backward_us),
                                    fmt::format("{} ({} ops)", PlanTimeText(cost.recompute_us), RecomputedOps(stage)),
                                    PlanTimeText(cost.in_us + cost.out_us)};
    if (reshards) row.push_back(PlanTimeText(cost.reshard_forward_us + cost.reshard_backward_us));
    row.push_back(PlanTimeText(cost.time_us));
    if (ends) row.insert(row.end(), {PlanTimeText(cost.sync_us), PlanTimeText(cost.optimizer_us)});
    row.insert(
        row.end(),
        {std::isfinite(priced.share(index)) ? fmt::format("{:.1f} %", 100 * priced.share(index)) : "-",
         std::isfinite(priced.slack_ms(index)) ? PlanTimeText(priced.slack_ms(index) * 1000) : "-", MibText(cost.memory_mib),
         fmt::format("{} {}", BarText(fill, kBarWidth), std::isfinite(fill) ? fmt::format("{:.1f} %", 100 * fill) : "-")});
    rows.push_back(std::move(row));
  }
  std::string right = "llllrrr";
  right += std::string(1 + (reshards ? 1 : 0) + (ends ? 2 : 0), 'r') + "rrrl";
  PrintTable(rows, right);
}

void PrintMemory(const PricedPlan& priced) {
  constexpr int kWidth = 60;
  struct Part {
    char letter;
    const char* name;
    double StageCost::*mib;
  };
  static constexpr Part kParts[] = {{'s', "weights, gradients, optimizer", &StageCost::state_mib},
                                    {'a', "activations that wait", &StageCost::activation_mib},
                                    {'p', "the running micro-batch", &StageCost::peak_mib},
                                    {'w', "workspace", &StageCost::reserved_mib},
                                    {'m', "margin", &StageCost::margin_mib}};
  const std::vector<plan::StagePlace> places = priced.setting->model->PlacesOf(priced.plan);
  std::vector<std::vector<std::string>> rows = {{"STAGE", "MEMORY", "", "OF THE LIMIT"}};
  for (size_t i = 0; i < places.size(); ++i) {
    const StageCost& cost = priced.cost.stages[i];
    const double limit = priced.setting->cluster.MemoryLimitOf(places[i].first_gpu);
    std::string bar;
    double sum = 0;
    for (const Part& part : kParts) {
      sum += cost.*part.mib;
      const double end = std::isfinite(sum) ? std::clamp(sum / limit, 0.0, 1.0) * kWidth : 0;
      bar.resize(std::max(bar.size(), static_cast<size_t>(std::lround(end))), part.letter);
    }
    bar.resize(kWidth, std::isfinite(sum) ? '.' : '?');
    const bool over = cost.memory_mib > limit;
    rows.push_back({fmt::format("{}", i), MibText(cost.memory_mib), fmt::format("[{}]{}", bar, over ? "!" : ""),
                    std::isfinite(sum) ? fmt::format("{:.1f} %", 100 * cost.memory_mib / limit) : "-"});
  }
  PrintTable(rows, "rrlr");
  std::vector<std::string> legend;
  for (const Part& part : kParts) legend.push_back(fmt::format("{} {}", part.letter, part.name));
  fmt::print("{}\n", JoinText(legend, "  "));
}

void PrintOps(const PricedPlan& priced) {
  const plan::OpList& ops = priced.setting->ops;
  std::vector<std::vector<std::string>> rows = {{"STAGE", "OPS", "FROM", "TO", "TP", "DP", "ALGORITHM", "RECOMPUTE"}};
  for (size_t i = 0; i < priced.plan.stages.size(); ++i) {
    int32_t op = priced.plan.stages[i]->first();
    for (const ChoiceRun& run : priced.plan.stages[i]->runs()) {
      rows.push_back({fmt::format("{}", i), fmt::format("{}-{}", op, op + run.count - 1), ops.at(op).name,
                      ops.at(op + run.count - 1).name, fmt::format("{}", run.choice.tensor_parallel),
                      fmt::format("{}", run.choice.data_parallel), fmt::format("{}", run.choice.algorithm),
                      run.choice.recompute ? "yes" : "-"});
      op += run.count;
    }
  }
  PrintTable(rows, "rlllrrrl");
}

}  // namespace tidepool::cli
