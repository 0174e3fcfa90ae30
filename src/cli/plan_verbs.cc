// Verbs of plan files: plan predict, show, compare, verify.
#include "cli/plan_verbs.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "cli/plan_output.h"
#include "cli/plan_timeline.h"
#include "cli/print.h"

namespace tidepool::cli {
namespace {

using Json = nlohmann::ordered_json;

// A plan file with what it is priced with.
struct OpenedPlan {
  plan::PlanFile file;
  std::unique_ptr<PlanSetting> setting;
};

class PlanFileVerb : public Verb {
 public:
  void Register(OptionTable* table) override {
    options_.Register(table);
    table->Add({.key = "plan.allow_idle_gpus", .help = "A plan may leave devices of the cluster idle"}, &rules_.allow_idle_gpus);
    table->Add({.key = "plan.allow_dropped_samples", .help = "The micro-batch need not divide the global batch"},
               &rules_.allow_dropped_samples);
    table->Add({.key = "plan.check_skips", .help = "A skip tensor may cross one edge between stages only"}, &rules_.check_skips);
  }
  std::vector<Positional> positionals() override {
    return {
        {.name = "PLAN", .help = "Plan files (JSON), ours or the published planner's", .values = &paths_, .min = 1, .max = -1}};
  }

 protected:
  // Which flags were given; before Open.
  void Note(const VerbContext& context) { options_.Note(*context.options); }
  StatusOr<OpenedPlan> Open(const std::string& path) const {
    OpenedPlan opened;
    TIDEPOOL_ASSIGN_OR_RETURN(opened.file, plan::ReadPlan(path));
    TIDEPOOL_ASSIGN_OR_RETURN(opened.setting, SettingOfPlan(options_, opened.file, path));
    return opened;
  }

  PlanSettingOptions options_;
  plan::VerifyOptions rules_;
  std::vector<std::string> paths_;
};

// What the file itself says of its quality.
void AddBounds(const plan::PlanFile& file, Json* json) {
  if (file.upper_bound_seconds) (*json)["stored_iteration_seconds"] = *file.upper_bound_seconds;
  if (file.lower_bound_seconds) (*json)["stored_lower_bound_seconds"] = *file.lower_bound_seconds;
  if (file.gap()) (*json)["stored_gap"] = *file.gap();
}

void PrintBounds(const plan::PlanFile& file) {
  if (!file.lower_bound_seconds || !file.gap()) return;
  fmt::print("certificate  when it was found, no plan was faster than {:.3f} s ({} model): gap {:.2f} %\n",
             *file.lower_bound_seconds, file.cost_model.empty() ? "unknown" : file.cost_model, 100 * *file.gap());
}

// Verbs that also show how the stages of a plan work together over one iteration.
class TimelineVerb : public PlanFileVerb {
 public:
  void Register(OptionTable* table) override {
    PlanFileVerb::Register(table);
    files_.Register(table);
  }

 protected:
  Status CheckFiles() const {
    if (!files_.any() || paths_.size() == 1) return {};
    return InvalidArgument("--timeline-svg and --trace with {} plans; allowed: one", paths_.size());
  }
  // With null for the timeline of a plan that cannot be played.
  static void AddTimeline(const PricedPlan& priced, Json* json) {
    const auto timeline = TimelineOf(priced);
    (*json)["timeline"] = timeline.ok() ? TimelineJson(*timeline) : Json(nullptr);
  }

  static void PrintSchedule(const StatusOr<PlanTimeline>& timeline) {
    fmt::print("schedule     {}\n",
               timeline.ok() ? ScheduleText(*timeline) : "cannot be played: " + MessageOf(timeline.status()));
  }

  TimelineFiles files_;
};

class PredictVerb : public TimelineVerb {
 public:
  std::string path() const override { return "plan predict"; }
  std::string summary() const override { return "Price plans: time of an iteration, and time and memory of each stage"; }
  std::string details() const override {
    return "BUSY is the share of the iteration in which the stage works, SLACK how much longer its iteration may get until it is "
           "the\n"
           "slowest, * marks the bottleneck. Faults are listed, and do not keep a plan from being priced. 'plan show' draws the\n"
           "pipeline, --timeline-svg and --trace write it to files.\n"
           "Example: tidepool plan predict plan.json --profiles profiled-time-miniset --gpu-memory-mib 12000";
  }
  Status Run(const VerbContext& context) override {
    Note(context);
    TIDEPOOL_RETURN_IF_ERROR(CheckFiles());
    Json json = Json::array();
    for (size_t i = 0; i < paths_.size(); ++i) {
      TIDEPOOL_ASSIGN_OR_RETURN(const OpenedPlan opened, Open(paths_[i]));
      TIDEPOOL_ASSIGN_OR_RETURN(const PricedPlan priced, PriceOf(paths_[i], opened.file.plan, *opened.setting, rules_));
      TIDEPOOL_RETURN_IF_ERROR(WriteTimelineFiles(priced, files_));
      if (context.output == OutputFormat::kJson) {
        Json entry = {{"setting", SettingJson(*opened.setting)}};
        entry.update(PricedJson(priced));
        AddBounds(opened.file, &entry);
        AddTimeline(priced, &entry);
        json.push_back(std::move(entry));
        continue;
      }
      if (i > 0) fmt::print("\n");
      PrintSetting(*opened.setting);
      PrintPriced(priced);
      PrintBounds(opened.file);
      PrintSchedule(TimelineOf(priced));
      fmt::print("\n");
      PrintStages(priced);
    }
    if (context.output == OutputFormat::kJson) PrintJson(json);
    return {};
  }
};

class ShowVerb : public TimelineVerb {
 public:
  std::string path() const override { return "plan show"; }
  std::string summary() const override { return "Show a plan: its stages, its pipeline over time, its memory, its ops"; }
  std::string details() const override {
    return "The timeline has a line per stage: F forward, B backward, . a bubble. The middle of long runs is left out.\n"
           "Example: tidepool plan show plan.json --profiles h100 --timeline-svg plan.svg --trace plan.trace.json";
  }
  Status Run(const VerbContext& context) override {
    Note(context);
    TIDEPOOL_RETURN_IF_ERROR(CheckFiles());
    Json json = Json::array();
    for (size_t i = 0; i < paths_.size(); ++i) {
      TIDEPOOL_ASSIGN_OR_RETURN(const OpenedPlan opened, Open(paths_[i]));
      TIDEPOOL_ASSIGN_OR_RETURN(const PricedPlan priced, PriceOf(paths_[i], opened.file.plan, *opened.setting, rules_));
      TIDEPOOL_RETURN_IF_ERROR(WriteTimelineFiles(priced, files_));
      if (context.output == OutputFormat::kJson) {
        Json entry = {{"setting", SettingJson(*opened.setting)}};
        entry.update(PricedJson(priced));
        AddBounds(opened.file, &entry);
        AddTimeline(priced, &entry);
        json.push_back(std::move(entry));
        continue;
      }
      if (i > 0) fmt::print("\n");
      PrintSetting(*opened.setting);
      PrintPriced(priced);
      PrintBounds(opened.file);
      const auto timeline = TimelineOf(priced);
      PrintSchedule(timeline);
      fmt::print("\n");
      PrintStages(priced);
      if (timeline.ok()) {
        fmt::print("\n{}\n", TimelineText(priced, *timeline));
        PrintPhases(*timeline);
      }
      fmt::print("\n");
      PrintMemory(priced);
      fmt::print("\n");
      PrintOps(priced);
    }
    if (context.output == OutputFormat::kJson) PrintJson(json);
    return {};
  }
};

class CompareVerb : public PlanFileVerb {
 public:
  std::string path() const override { return "plan compare"; }
  std::string summary() const override { return "Price plans side by side, with what each does differently"; }
  std::string details() const override {
    return "All plans are priced anew, with the same profile and cost model; each with the memory limit and the options of\n"
           "the cost model that it was made with (the schedule, ZeRO-1, ...), but for those that are given. RELATIVE is the\n"
           "iteration over that of the first plan.\n"
           "Example: tidepool plan compare ours.json theirs.json --profiles profiled-time-eurosys --gpu-memory-mib 28000";
  }
  Status Run(const VerbContext& context) override {
    Note(context);
    std::vector<OpenedPlan> opened;
    std::vector<PricedPlan> plans;
    for (const std::string& path : paths_) {
      TIDEPOOL_ASSIGN_OR_RETURN(opened.emplace_back(), Open(path));
      if (opened.back().setting->ops.hash != opened.front().setting->ops.hash) {
        return InvalidArgument("{} is a plan for {}; allowed: {}, as {}", path, opened.back().setting->ops.name,
                               opened.front().setting->ops.name, paths_[0]);
      }
    }
    // Settings do not move any more.
    for (const OpenedPlan& one : opened) {
      TIDEPOOL_ASSIGN_OR_RETURN(plans.emplace_back(), PriceOf(paths_[plans.size()], one.file.plan, *one.setting, rules_));
    }
    if (context.output == OutputFormat::kJson) {
      Json json = {{"setting", SettingJson(*opened[0].setting)}, {"plans", Json::array()}};
      for (size_t i = 0; i < plans.size(); ++i) {
        Json entry = PricedJson(plans[i]);
        entry["relative"] = plans[i].cost.iteration_ms / plans[0].cost.iteration_ms;
        const Json setting = SettingJson(*opened[i].setting);
        entry["cost_options"] = setting["cost_options"];
        for (const char* key : {"gpu_memory_mib", "gpu_memory_from"}) entry[key] = setting["cluster"][key];
        AddBounds(opened[i].file, &entry);
        json["plans"].push_back(std::move(entry));
      }
      PrintJson(json);
      return {};
    }
    PrintSetting(*opened[0].setting);
    const std::vector<std::string>& shown = opened[0].setting->notes;
    for (size_t i = 1; i < opened.size(); ++i) {
      for (const std::string& note : opened[i].setting->notes) {
        if (std::find(shown.begin(), shown.end(), note) == shown.end()) fmt::print("note         {}\n", note);
      }
    }
    fmt::print("\n");
    PrintSummary(plans);
    for (const PricedPlan& priced : plans) {
      fmt::print("\n{}\n", priced.name);
      const std::string options = priced.setting->cost_options ? CostOptionsText(*priced.setting->cost_options) : "";
      if (!options.empty()) fmt::print("options: {}\n", options);
      fmt::print("devices of {}\n", MemoryLimitText(*priced.setting));
      PrintStages(priced);
      for (const plan::PlanFault& fault : priced.faults) fmt::print("fault  {}\n", fault.text);
    }
    return {};
  }

 private:
  static void PrintSummary(const std::vector<PricedPlan>& plans) {
    std::vector<std::vector<std::string>> rows = {
        {"PLAN", "DEVICES", "STAGES", "MICRO-BATCH", "ITERATION", "SAMPLES/S", "RELATIVE", "MEMORY", "STATUS"}};
    for (const PricedPlan& priced : plans) {
      rows.push_back({priced.name, fmt::format("{}", priced.plan.gpus()), fmt::format("{}", priced.plan.stages.size()),
                      fmt::format("{}", priced.plan.micro_batch), PlanTimeText(priced.cost.iteration_ms * 1000),
                      fmt::format("{:.2f}", priced.throughput()),
                      fmt::format("{:.4f}", priced.cost.iteration_ms / plans[0].cost.iteration_ms),
                      fmt::format("{:.0f} MiB", priced.cost.max_memory_mib),
                      priced.faults.empty() ? "ok" : fmt::format("{} faults", priced.faults.size())});
    }
    PrintTable(rows, "lrrrrrrrl");
  }
};

class VerifyVerb : public PlanFileVerb {
 public:
  std::string path() const override { return "plan verify"; }
  std::string summary() const override { return "Check whether plans can run, and list every reason why not"; }
  std::string details() const override {
    return "Checks batch, ops, devices, splits, profiled rows, node boundaries, skip tensors and memory. Exits with 1 if a plan "
           "has a\n"
           "fault.\n"
           "Example: tidepool plan verify plan.json --profiles h100 --nodes 2 --gpus-per-node 8";
  }
  void Register(OptionTable* table) override {
    PlanFileVerb::Register(table);
    table->Add({.key = "plan.check_memory", .help = "The plan must fit into the devices' memory"}, &rules_.check_memory);
  }
  Status Run(const VerbContext& context) override {
    Note(context);
    Json json = Json::array();
    size_t bad = 0;
    for (const std::string& path : paths_) {
      TIDEPOOL_ASSIGN_OR_RETURN(const OpenedPlan opened, Open(path));
      const std::vector<plan::PlanFault> faults = plan::FindFaults(*opened.setting->model, opened.file.plan, rules_);
      bad += faults.empty() ? 0 : 1;
      json.push_back(
          {{"plan", path}, {"valid", faults.empty()}, {"faults", FaultsJson(faults)}, {"setting", SettingJson(*opened.setting)}});
      if (context.output == OutputFormat::kJson) continue;
      fmt::print("{}: {}, devices of {}\n", path, faults.empty() ? "ok" : fmt::format("{} faults", faults.size()),
                 MemoryLimitText(*opened.setting));
      for (const plan::PlanFault& fault : faults) fmt::print("  {}\n", fault.text);
      for (const std::string& note : opened.setting->notes) fmt::print("  note: {}\n", note);
    }
    if (context.output == OutputFormat::kJson) PrintJson(json);
    if (bad > 0) return FailedPrecondition("{} of {} plans cannot run", bad, paths_.size());
    return {};
  }
};

}  // namespace

void AddPlanVerbs(VerbList* verbs) {
  AddPlanSearchVerbs(verbs);
  verbs->push_back(std::make_unique<PredictVerb>());
  verbs->push_back(std::make_unique<ShowVerb>());
  verbs->push_back(std::make_unique<CompareVerb>());
  verbs->push_back(std::make_unique<VerifyVerb>());
}

}  // namespace tidepool::cli
