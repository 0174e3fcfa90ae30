#include "cli/stalls_hybrid.h"

#include <cmath>

#include "base/units.h"
#include "cli/print.h"

namespace tidepool::cli {
namespace {

using data::stalls::HybridAnalysis;
using data::stalls::HybridPhase;
using Json = nlohmann::ordered_json;

Json PhaseJson(const HybridPhase& phase) {
  return {{"samples", phase.samples}, {"seconds", phase.seconds}, {"samples_per_s", phase.samples_per_s()}};
}
std::string RateText(double rate) { return std::isfinite(rate) ? fmt::format("{:.0f}", rate) : "no limit"; }
std::string PercentText(double share) { return fmt::format("{:.1f} %", 100 * share); }

}  // namespace

StatusOr<HybridSetting> MakeHybridSetting(const StallsOptions& given, const std::string& data) {
  StallsOptions options = given;
  const bool real = options.disk == kRealDisk;
  if (real) options.disk = StallsOptions().disk;
  if (!options.cache_size.ends_with('%')) {
    return InvalidArgument("--cache-size '{}' with --data; allowed: a share of the data set such as 35%", options.cache_size);
  }
  // The data set is what it is; the virtual pipeline only carries step, storage and cache.
  options.samples = options.simulated_samples = std::max<int64_t>(options.batch, 1);
  TIDEPOOL_ASSIGN_OR_RETURN(const StallsSetting pipeline, MakeStallsSetting(options));
  HybridSetting setting{
      .estimated = pipeline.estimated, .least_utilisation = pipeline.least_utilisation, .facts = pipeline.facts};
  setting.options.data = data;
  if (!real) setting.options.storage = pipeline.spec.storage;
  setting.options.cache = pipeline.spec.cache;
  setting.options.cached_share = pipeline.cached_share;
  setting.options.threads = given.threads;
  setting.options.batch = pipeline.spec.batch;
  setting.options.read_ahead = given.read_ahead;
  setting.options.image_size = given.image_size;
  setting.options.copy_seconds = pipeline.spec.copy_seconds;
  setting.options.compute_seconds = pipeline.spec.compute_seconds;
  setting.options.seed = given.seed;
  setting.options.phase = given.phase;
  setting.facts.push_back(real ? "storage: the disk as it is, with what the page cache holds"
                               : fmt::format("storage: the model '{}' over the files", pipeline.spec.storage.name));
  return setting;
}

Json HybridJson(const HybridSetting& setting, const HybridAnalysis& analysis) {
  const auto rate = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  return {{"mode", "real"},
          {"facts", setting.facts},
          {"estimated", setting.estimated},
          {"data", setting.options.data},
          {"samples", analysis.samples},
          {"bytes", analysis.bytes},
          {"threads", analysis.threads},
          {"step",
           {{"compute_s", setting.options.compute_seconds},
            {"copy_s", setting.options.copy_seconds},
            {"batch", setting.options.batch}}},
          {"storage", setting.options.storage.has_value() ? Json(setting.options.storage->name) : Json(kRealDisk)},
          {"cache", {{"kind", CacheKindName(setting.options.cache)}, {"share", setting.options.cached_share}}},
          {"rates",
           {{"ingestion", rate(analysis.rates.ingestion)},
            {"preparation", analysis.rates.preparation},
            {"fetch_cold", analysis.rates.fetch_cold},
            {"fetch", analysis.rates.fetch}}},
          {"phases",
           {{"ingestion", PhaseJson(analysis.ingestion)},
            {"preparation", PhaseJson(analysis.preparation)},
            {"fetch_cold", PhaseJson(analysis.fetch_cold)},
            {"fetch", PhaseJson(analysis.fetch)},
            {"cached", PhaseJson(analysis.cached)},
            {"full", PhaseJson(analysis.full)}}},
          {"samples_per_s",
           {{"measured", analysis.full.samples_per_s()},
            {"predicted", analysis.predicted_samples_per_s},
            {"cached", analysis.cached.samples_per_s()}}},
          {"stalls", {{"preparation", analysis.prep_stall}, {"fetch", analysis.fetch_stall}}},
          {"utilisation", analysis.utilisation},
          {"least_utilisation", setting.least_utilisation},
          {"host_idle_share", analysis.host_idle_share},
          {"miss_share", analysis.miss_share},
          {"bottleneck", NameOf(analysis.bottleneck)},
          {"lateness_p99_s", analysis.lateness_p99_seconds},
          {"host_limited", analysis.host_limited},
          {"host_limited_reason", analysis.host_limited_reason}};
}

void PrintHybrid(const HybridSetting& setting, const HybridAnalysis& analysis) {
  for (const std::string& fact : setting.facts) fmt::print("{}\n", fact);
  fmt::print("{}: {} samples, {}\n\n", setting.options.data, analysis.samples, FormatBytes(analysis.bytes));
  const auto row = [](const std::string& name, double rate, const HybridPhase& phase, const std::string& how) {
    return std::vector<std::string>{name, RateText(rate), fmt::format("{}", phase.samples), fmt::format("{:.2f}", phase.seconds),
                                    how};
  };
  const data::stalls::Rates& rates = analysis.rates;
  PrintTable({{"RATE", "samples/s", "SAMPLES", "SECONDS", "MEASURED BY"},
              row("ingestion G", rates.ingestion, analysis.ingestion, "synthetic batches on the emulated accelerator"),
              row("preparation P", rates.preparation, analysis.preparation,
                  fmt::format("{} threads, every sample in memory", analysis.threads)),
              row("fetch F", rates.fetch, analysis.fetch, "read through the cache, not decoded"),
              row("fetch F, cold", rates.fetch_cold, analysis.fetch_cold, "read without a cache"),
              row("in memory", analysis.cached.samples_per_s(), analysis.cached, "preparation and accelerator"),
              row("everything", analysis.full.samples_per_s(), analysis.full, "")},
             "lrrr");
  fmt::print("\n{:.0f} samples/s, predicted {:.0f} ({:+.1f} %). Limited by {}.\n", analysis.full.samples_per_s(),
             analysis.predicted_samples_per_s, 100 * (analysis.predicted_samples_per_s / analysis.full.samples_per_s() - 1),
             NameOf(analysis.bottleneck));
  fmt::print("Of the time: fetch stall {}, preparation stall {}. {} of the reads missed the cache.\n",
             PercentText(analysis.fetch_stall), PercentText(analysis.prep_stall), PercentText(analysis.miss_share));
  fmt::print("Accelerator used {}; host overhead, not charged to the storage, {} of the time.{}\n",
             PercentText(analysis.utilisation), PercentText(analysis.host_idle_share),
             setting.least_utilisation == 0
                 ? std::string()
                 : fmt::format(" The workload asks for {}: {}.", PercentText(setting.least_utilisation),
                               analysis.utilisation >= setting.least_utilisation ? "passed" : "failed"));
  if (setting.estimated) fmt::print("The step time is estimated from the hardware's description.\n");
  if (analysis.host_limited) fmt::print("host-limited: {}\n", analysis.host_limited_reason);
}

}  // namespace tidepool::cli
