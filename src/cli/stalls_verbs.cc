// stalls: where an input pipeline loses time, and what one would buy.
#include <algorithm>
#include <set>

#include "base/fd.h"
#include "cli/print.h"
#include "cli/stalls_hybrid.h"
#include "cli/stalls_output.h"
#include "cli/stalls_setting.h"
#include "cli/status_line.h"
#include "cli/verb.h"
#include "report/standalone.h"

namespace tidepool::cli {
namespace {

class StallsVerb : public Verb {
 public:
  std::string path() const override { return "stalls"; }
  std::string summary() const override { return "Find where an input pipeline stalls, and the best next purchase"; }
  std::string details() const override {
    return "Measures what the accelerator takes (G), what the cores prepare (P) and what storage and cache deliver (F), each "
           "without\n"
           "the others, then everything together, in virtual time; then over cache sizes, cores and disks, predicted beside "
           "simulated.\n\n"
           "  tidepool stalls --device emulated:p100x8 --model resnet18 --batch 256 --cores 8\n"
           "  tidepool stalls --workload unet3d-h100 --samples 3500 --prep-rate 0 --disk nvme --cache-size 20%\n"
           "  tidepool stalls --loader pytorch --cache minio --html stalls.html\n\n"
           "With --data the real loader reads and decodes real files on this machine, in real time, beside an emulated "
           "accelerator;\n"
           "--disk is then a storage model over the files, or 'real' for the disk as it is.\n\n"
           "  tidepool stalls --data imagefolder:pictures --step-time 100ms --batch 64 --disk hdd --cache minio --cache-size 50%";
  }
  void Register(OptionTable* table) override {
    RegisterStallsOptions(table, &options_);
    table->Add(
        {.key = "stalls.data", .help = "Measure on this machine with these pictures, e.g. imagefolder:PATH", .metavar = "DATA"},
        &data_);
    table->Add({.key = "stalls.json", .help = "Also write the result as JSON to this file", .metavar = "FILE"}, &json_file_);
    table->Add({.key = "stalls.html", .help = "Write a page with tables and plots", .metavar = "FILE"}, &html_file_);
    table->Add({.key = "stalls.svg", .help = "Write the plots to this SVG file", .metavar = "FILE"}, &svg_file_);
    table->Add({.key = "stalls.sweeps", .help = "Vary cache sizes, cores and disks"}, &sweeps_);
  }
  Status Run(const VerbContext& context) override {
    if (!data_.empty()) return RunHybrid(context);
    if (options_.disk == kRealDisk) return InvalidArgument("--disk {} needs --data: there is no disk in virtual time", kRealDisk);
    TIDEPOOL_ASSIGN_OR_RETURN(const StallsSetting setting, MakeStallsSetting(options_));
    data::stalls::AnalysisOptions analysis_options{.stopped = context.stopped};
    if (sweeps_) AddSweeps(setting, &analysis_options);
    TIDEPOOL_ASSIGN_OR_RETURN(const data::stalls::Analysis analysis, Analyze(setting.spec, analysis_options));
    const nlohmann::ordered_json json = StallsJson(setting, analysis);
    if (!json_file_.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(json_file_, json.dump(2) + "\n"));
    if (!html_file_.empty()) TIDEPOOL_RETURN_IF_ERROR(StallsPage(setting, analysis).Write(html_file_));
    if (!svg_file_.empty()) {
      if (!sweeps_) return InvalidArgument("--svg needs --sweeps: there is nothing else to plot");
      TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(svg_file_, report::StandaloneSvg(StallsPlots(analysis))));
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson(json);
    } else {
      PrintStalls(setting, analysis);
    }
    return {};
  }

 private:
  static void AddSweeps(const StallsSetting& setting, data::stalls::AnalysisOptions* options) {
    if (setting.spec.cache != data::CacheKind::kNone) {
      std::set<double> shares = {setting.cached_share};
      for (int tenth = 0; tenth <= 10; ++tenth) shares.insert(tenth / 10.0);
      options->cache_shares.assign(shares.begin(), shares.end());
    }
    std::set<int> cores = {setting.spec.cores};
    for (int count = 1; count <= 64; count *= 2) cores.insert(count);
    options->cores.assign(cores.begin(), cores.end());
    for (const char* name : {"hdd", "aws-gp3", "sata-ssd", "nvme"}) options->disks.push_back(*data::ParseStorageSpec(name));
  }

  Status RunHybrid(const VerbContext& context) {
    if (!html_file_.empty() || !svg_file_.empty()) return InvalidArgument("--html and --svg show virtual time; not with --data");
    TIDEPOOL_ASSIGN_OR_RETURN(HybridSetting setting, MakeHybridSetting(options_, data_));
    data::stalls::HybridAnalysis analysis;
    {
      StatusLine line(context.progress);
      setting.options.stopped = context.stopped;
      setting.options.note = [&](const std::string& text) { line.Show(text); };
      TIDEPOOL_ASSIGN_OR_RETURN(analysis, AnalyzeHybrid(setting.options));
    }
    const nlohmann::ordered_json json = HybridJson(setting, analysis);
    if (!json_file_.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(json_file_, json.dump(2) + "\n"));
    if (context.output == OutputFormat::kJson) {
      PrintJson(json);
    } else {
      PrintHybrid(setting, analysis);
    }
    return {};
  }

  StallsOptions options_;
  std::string data_;
  std::string json_file_, html_file_, svg_file_;
  bool sweeps_ = true;
};

}  // namespace

void AddStallVerbs(VerbList* verbs) { verbs->push_back(std::make_unique<StallsVerb>()); }

}  // namespace tidepool::cli
