// tidepool bench serve: the load generator on the command line.
#include <cstdio>
#include <memory>

#include "api/load/load.h"
#include "base/fd.h"
#include "base/text.h"
#include "base/units.h"
#include "cli/verb.h"

namespace tidepool::cli {
namespace {

std::string ProgressLine(const api::LoadProgress& progress) {
  if (progress.measuring) return fmt::format("measuring {} alone", progress.model);
  const int64_t answered = progress.succeeded + progress.errors + progress.dropped;
  return fmt::format(
      "{:5.1f}/{:.0f} s  {}/{} answered  {:.0f}/s  {} open  {} failed  p50 {:.1f} ms  p99 {:.1f} ms  in SLO {:.1f}%",
      absl::ToDoubleSeconds(progress.elapsed), absl::ToDoubleSeconds(progress.length), answered, progress.planned_total,
      progress.last_rate, progress.outstanding, progress.errors + progress.dropped, absl::ToDoubleMilliseconds(progress.last_p50),
      absl::ToDoubleMilliseconds(progress.last_p99),
      answered == 0 ? 100.0 : 100.0 * static_cast<double>(progress.within_slo) / static_cast<double>(answered));
}

class BenchServeVerb : public Verb {
 public:
  std::string path() const override { return "bench serve"; }
  std::string summary() const override { return "Put an inference server under load and measure it"; }
  std::string details() const override {
    return "Sends requests at planned times whether or not earlier ones were answered, and counts each latency from its planned "
           "time.\n\n"
           "  tidepool bench serve --models all --arrivals bursty --rate 10 --burst-rate 80 --seconds 30s\n"
           "  tidepool bench serve --models resnet18-a --rate 50 --slo 40ms --json load.json\n"
           "  tidepool bench serve --arrivals trace --trace requests.csv      (rows of seconds,model)\n";
  }
  void Register(OptionTable* table) override {
    options_.Register(table);
    table->Add({.key = "load.json", .help = "Also write the result as JSON to this file", .metavar = "FILE"}, &json_file_);
    table->Add({.key = "load.samples", .help = "Put every single request into the JSON", .advanced = true}, &samples_);
  }
  bool reads_config() const override { return true; }

  Status Run(const VerbContext& context) override {
    bool line_open = false;
    const auto show = [&](const api::LoadProgress& progress) {
      if (!context.progress) return;
      std::fprintf(stderr, "\r\033[K%s", ProgressLine(progress).c_str());
      line_open = true;
    };
    const StatusOr<api::LoadResult> result = api::RunLoad(options_, show, context.stopped);
    if (line_open) std::fputs("\r\033[K", stderr);
    TIDEPOOL_RETURN_IF_ERROR(result.status());
    const std::string json = api::ToJson(options_, *result, samples_);
    if (!json_file_.empty()) TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(json_file_, json + "\n"));
    const std::string& text = context.output == OutputFormat::kJson ? json : api::ToText(*result);
    std::printf("%s\n", text.c_str());
    if (result->overall.planned > 0 && result->overall.succeeded == 0) {
      return Unavailable("none of {} requests was answered; see the errors above", result->overall.planned);
    }
    return absl::OkStatus();
  }

 private:
  api::LoadOptions options_;
  std::string json_file_;
  bool samples_ = false;
};

}  // namespace

void AddBenchVerbs(VerbList* verbs) { verbs->push_back(std::make_unique<BenchServeVerb>()); }

}  // namespace tidepool::cli
