// experiment: runs published experiments by name.
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "base/fd.h"
#include "base/text.h"
#include "cli/experiment.h"
#include "cli/print.h"
#include "cli/status_line.h"
#include "cli/verb.h"
#include "report/standalone.h"

namespace tidepool::cli {
namespace {

using Json = nlohmann::ordered_json;

// The flag, else the variable, else the place beside a checkout that one stands in.
std::string FindReference(const std::string& flag) {
  if (!flag.empty()) return flag;
  const char* const variable = std::getenv("TIDEPOOL_REFERENCE_DIR");
  if (variable != nullptr && *variable != '\0') return variable;
  std::error_code ignored;
  return std::filesystem::is_directory("../shared/reference", ignored) ? "../shared/reference" : "";
}

void PrintReport(const ExperimentReport& report) {
  for (size_t i = 0; i < report.tables.size(); ++i) {
    const report::Table& table = report.tables[i];
    if (i > 0) fmt::print("\n");
    if (!table.caption.empty()) fmt::print("{}\n", table.caption);
    std::vector<std::vector<std::string>> rows = {table.columns};
    std::string right(table.columns.size(), 'l');
    for (const std::vector<report::Cell>& row : table.rows) {
      std::vector<std::string> texts;
      for (size_t c = 0; c < row.size(); ++c) {
        texts.push_back(row[c].text);
        if (c < right.size() && row[c].number) right[c] = 'r';
      }
      rows.push_back(std::move(texts));
    }
    PrintTable(rows, right);
  }
  if (!report.notes.empty()) fmt::print("\n");
  for (const std::string& note : report.notes) fmt::print("{}\n", note);
}

class ExperimentVerb : public Verb {
 public:
  std::string path() const override { return "experiment"; }
  std::string summary() const override { return "Repeat a published experiment; without a name, list them"; }
  std::string details() const override {
    return "Experiments that set published numbers beside ours read the reference data, and say so when it is not there.\n"
           "Most run in virtual time. --mode real-time runs those of data stalls on the real clock, scaled down to about a "
           "minute, "
           "beside\nwhat virtual time predicts for the same.\n\n"
           "  tidepool experiment planning/prices --html prices.html\n"
           "  tidepool experiment stalls/figure-3 --mode real-time";
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "experiment.json", .help = "Also write the result as JSON to this file", .metavar = "FILE"}, &json_file_);
    table->Add({.key = "experiment.svg", .help = "Write the plots to this SVG file", .metavar = "FILE"}, &svg_file_);
    table->Add({.key = "experiment.html", .help = "Write tables and plots as one page", .metavar = "FILE"}, &html_file_);
    table->Add({.key = "experiment.reference",
                .help = "Folder of the reference data; default: TIDEPOOL_REFERENCE_DIR, else ../shared/reference",
                .metavar = "DIR"},
               &reference_);
    table->Add({.key = "experiment.quick", .help = "A smaller run, to see that it works"}, &quick_);
    table->Add({.key = "experiment.mode", .help = "virtual, or real-time: on the real clock", .metavar = "MODE"}, &mode_);
    table->Add({.key = "experiment.threads", .help = "Threads of what can use them; 0: one per core"}, &threads_);
  }
  std::vector<Positional> positionals() override {
    return {{.name = "NAME", .help = "An experiment, GROUP/NAME; none: list them", .values = &names_, .min = 0, .max = 1}};
  }
  Status Run(const VerbContext& context) override {
    const std::vector<Experiment> experiments = AllExperiments();
    if (names_.empty()) return List(context, experiments);
    std::vector<std::string> known;
    for (const Experiment& experiment : experiments) {
      if (experiment.name == names_[0]) return RunOne(context, experiment);
      known.push_back(experiment.name);
    }
    const std::string nearest = NearestName(names_[0], known);
    return InvalidArgument("'{}' is no experiment; {}", names_[0],
                           nearest.empty() ? "there are: " + JoinText(known, ", ") : fmt::format("did you mean '{}'?", nearest));
  }

 private:
  static Status List(const VerbContext& context, const std::vector<Experiment>& experiments) {
    Json json = Json::array();
    std::vector<std::vector<std::string>> rows = {{"NAME", "WHAT IT SHOWS"}};
    for (const Experiment& experiment : experiments) {
      json.push_back({{"name", experiment.name}, {"summary", experiment.summary}});
      rows.push_back({experiment.name, experiment.summary});
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson(json);
    } else {
      PrintTable(rows, "ll");
    }
    return {};
  }

  Status RunOne(const VerbContext& context, const Experiment& experiment) {
    if (mode_ != "virtual" && mode_ != "real-time") {
      return InvalidArgument("--mode '{}'; allowed: virtual, real-time", mode_);
    }
    if (mode_ == "real-time" && !experiment.on_real_clock) {
      return InvalidArgument("--mode real-time: '{}' has none; allowed: virtual", experiment.name);
    }
    ExperimentReport report;
    {
      StatusLine line(context.progress);
      ExperimentContext inner{
          .reference = FindReference(reference_), .quick = quick_, .real_time = mode_ == "real-time", .threads = threads_};
      inner.stopped = context.stopped;
      inner.show_progress = [&](const std::string& text) { line.Show(text); };
      TIDEPOOL_ASSIGN_OR_RETURN(report, experiment.run(inner));
    }
    Json json = {{"experiment", experiment.name}};
    json.update(report.json);
    json["notes"] = report.notes;
    if (!json_file_.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(json_file_, json.dump(2) + "\n"));
    if (!svg_file_.empty()) {
      if (report.plots.empty()) return InvalidArgument("--svg: '{}' has no plots", experiment.name);
      TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(svg_file_, report::StandaloneSvg(report.plots)));
    }
    if (!html_file_.empty()) TIDEPOOL_RETURN_IF_ERROR(WritePage(experiment, report));
    if (context.output == OutputFormat::kJson) {
      PrintJson(json);
    } else {
      PrintReport(report);
    }
    return {};
  }

  Status WritePage(const Experiment& experiment, const ExperimentReport& report) const {
    report::Page page(experiment.name, experiment.summary);
    for (const std::string& plot : report.plots) page.AddPlot(plot);
    for (const report::Table& table : report.tables) page.AddTable(table);
    for (const std::string& note : report.notes) page.AddParagraph(note);
    return page.Write(html_file_);
  }

  std::string json_file_, svg_file_, html_file_, reference_, mode_ = "virtual";
  bool quick_ = false;
  int threads_ = 0;
  std::vector<std::string> names_;
};

}  // namespace

StatusOr<std::string> ReferenceFolder(const ExperimentContext& context, const std::string& folder) {
  const std::string path = context.reference.empty() ? "" : context.reference + "/" + folder;
  std::error_code ignored;
  if (!path.empty() && std::filesystem::is_directory(path, ignored)) return path;
  return NotFound("the reference data '{}' is not there{}; give its folder with --reference or TIDEPOOL_REFERENCE_DIR", folder,
                  path.empty() ? std::string() : fmt::format(" ({})", path));
}

std::vector<Experiment> AllExperiments() {
  std::vector<Experiment> experiments;
  AddPlanningExperiments(&experiments);
  AddPlanningFigures(&experiments);
  AddStallExperiments(&experiments);
  return experiments;
}

void AddExperimentVerbs(VerbList* verbs) { verbs->push_back(std::make_unique<ExperimentVerb>()); }

}  // namespace tidepool::cli
