#include "cli/plan_cost_options.h"

#include <fmt/format.h>

#include <vector>

#include "base/text.h"

namespace tidepool::cli {
namespace {

using plan::CalibratedOptions;
using plan::PipelineSchedule;

struct NumberFlag {
  const char* key;
  double CalibratedOptions::*member;
  const char* help;
  const char* text;  // for people, before the value
};
constexpr NumberFlag kNumbers[] = {
    {"transfer_overlap", &CalibratedOptions::transfer_overlap,
     "Share of transfers between stages that runs beside the passes; 0 to 1", "transfer overlap"},
    {"sync_overlap", &CalibratedOptions::sync_overlap,
     "Share of the gradients' all-reduce that runs beside the last backward pass", "sync overlap"},
    {"memory_margin", &CalibratedOptions::memory_margin, "Memory kept free, as a share of activations and workspace",
     "memory margin"},
    {"noise_factor", &CalibratedOptions::noise_factor, "More of it: times how far the profile's measurements lie apart",
     "noise factor"},
    {"context_mib", &CalibratedOptions::context_mib, "MiB of every device that driver and libraries take", "context MiB"},
    {"memory_bytes_per_s", &CalibratedOptions::memory_bytes_per_s,
     "Memory rate of a device, for the optimizer step; 0: the profile's", "memory bytes/s"}};

struct SwitchFlag {
  const char* key;
  bool CalibratedOptions::*member;
  const char* help;
  const char* text;
};
constexpr SwitchFlag kSwitches[] = {
    {"zero1", &CalibratedOptions::zero1, "Replicas share the optimizer's state (ZeRO-1)", "ZeRO-1"},
    {"sequence_parallel", &CalibratedOptions::sequence_parallel,
     "Tensor-parallel devices share what all of them would hold (sequence parallelism)", "sequence parallel"}};

std::string FlagOf(std::string key) {
  for (char& c : key) c = c == '_' ? '-' : c;
  return "--" + key;
}

}  // namespace

void PlanCostFlags::Register(OptionTable* table) {
  table->Add({.key = "plan.cost", .help = "Cost model: calibrated, or parity (the published planner's)"}, &name);
  table->Add({.key = "plan.schedule", .help = "Pipeline schedule: 1f1b, interleaved, zero-bubble"}, &schedule);
  table->Add({.key = "plan.chunks", .help = "Parts of the network per stage, with --schedule interleaved; 2 if not said"},
             &values.chunks);
  for (const SwitchFlag& flag : kSwitches)
    table->Add({.key = std::string("plan.") + flag.key, .help = flag.help}, &(values.*flag.member));
  for (const NumberFlag& flag : kNumbers) {
    table->Add({.key = std::string("plan.") + flag.key, .help = flag.help, .advanced = true}, &(values.*flag.member));
  }
}

void PlanCostFlags::Note(const OptionTable& table) {
  std::vector<std::string> keys = {"schedule", "chunks"};
  for (const SwitchFlag& flag : kSwitches) keys.emplace_back(flag.key);
  for (const NumberFlag& flag : kNumbers) keys.emplace_back(flag.key);
  for (const std::string& key : keys) {
    const OptionTable::Entry* entry = table.FindKey("plan." + key);
    if (entry != nullptr && entry->source != OptionTable::Source::kDefault) given.insert(key);
  }
}

StatusOr<PlanCostModel> PlanCostFlags::Over(const CalibratedOptions& base) const {
  if (name != "parity" && name != "calibrated") {
    return InvalidArgument("--cost: '{}' is no cost model; allowed: calibrated, parity", name);
  }
  PlanCostModel cost{.name = name};
  if (name == "parity") {
    if (given.empty()) return cost;
    std::vector<std::string> flags;
    for (const std::string& key : given) flags.push_back(FlagOf(key));
    return InvalidArgument("{} with --cost parity; allowed: with --cost calibrated", JoinText(flags, ", "));
  }
  cost.options = base;
  CalibratedOptions& options = cost.options;
  if (given.contains("schedule")) {
    const auto parsed = plan::PipelineScheduleFrom(schedule);
    if (!parsed.ok()) return Annotate(parsed.status(), "--schedule");
    if (*parsed != options.schedule) options.chunks = *parsed == PipelineSchedule::kInterleaved ? 2 : 1;
    options.schedule = *parsed;
  }
  if (given.contains("chunks")) {
    if (options.schedule != PipelineSchedule::kInterleaved && values.chunks != 1) {
      return InvalidArgument("--chunks is {} with the schedule {}; allowed: 1, or --schedule interleaved", values.chunks,
                             plan::NameOf(options.schedule));
    }
    options.chunks = values.chunks;
  }
  for (const SwitchFlag& flag : kSwitches) {
    if (given.contains(flag.key)) options.*flag.member = values.*flag.member;
  }
  for (const NumberFlag& flag : kNumbers) {
    if (given.contains(flag.key)) options.*flag.member = values.*flag.member;
  }
  TIDEPOOL_RETURN_IF_ERROR(plan::Validate(options));
  return cost;
}

std::string CostOptionsText(const CalibratedOptions& options) {
  const CalibratedOptions defaults;
  std::vector<std::string> parts;
  if (options.schedule != defaults.schedule) {
    parts.emplace_back(plan::NameOf(options.schedule));
    if (options.schedule == PipelineSchedule::kInterleaved) parts.back() += fmt::format(" with {} chunks", options.chunks);
  }
  for (const SwitchFlag& flag : kSwitches) {
    if (options.*flag.member != defaults.*flag.member) parts.emplace_back(flag.text);
  }
  for (const NumberFlag& flag : kNumbers) {
    if (options.*flag.member != defaults.*flag.member) parts.push_back(fmt::format("{} {:g}", flag.text, options.*flag.member));
  }
  return JoinText(parts, ", ");
}

}  // namespace tidepool::cli
