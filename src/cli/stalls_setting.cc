#include "cli/stalls_setting.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/fd.h"
#include "base/units.h"
#include "device/emulated/spec.h"
#include "profile/open.h"

namespace tidepool::cli {
namespace {

using data::stalls::PipelineSpec;

constexpr int64_t kMostSizesFile = int64_t{256} << 20;

Status SetStep(const StallsOptions& options, StallsSetting* setting) {
  PipelineSpec& spec = setting->spec;
  spec.host_seconds = absl::ToDoubleSeconds(options.host_time);
  if (options.step_time > absl::ZeroDuration()) {
    spec.compute_seconds = absl::ToDoubleSeconds(options.step_time);
    spec.copy_seconds = absl::ToDoubleSeconds(options.copy_time);
    setting->facts.push_back("step time given by hand");
    return {};
  }
  std::string bundle = options.device;
  if (bundle.starts_with(device::emulated::kPrefix)) {
    TIDEPOOL_ASSIGN_OR_RETURN(const device::emulated::Spec emulated, device::emulated::ParseSpec(bundle));
    bundle = emulated.bundle;
    setting->devices = emulated.count;
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const auto opened, profile::OpenBundle(bundle, options.profiles));
  TIDEPOOL_ASSIGN_OR_RETURN(const DType dtype, DTypeFromSafetensors(options.dtype));
  const profile::Lookup lookup(opened);
  TIDEPOOL_ASSIGN_OR_RETURN(const data::stalls::StepTimes times,
                            data::stalls::FindStepTimes(lookup, {.model = options.model,
                                                                 .dtype = dtype,
                                                                 .batch = options.batch,
                                                                 .devices = setting->devices,
                                                                 .sample_bytes = static_cast<double>(options.tensor_bytes)}));
  spec.compute_seconds = times.compute_seconds;
  spec.copy_seconds = options.copy_time > absl::ZeroDuration() ? absl::ToDoubleSeconds(options.copy_time) : times.copy_seconds;
  setting->estimated = times.estimated;
  setting->facts.push_back(fmt::format("{}: {} a step, {} to copy its input", times.source,
                                       tidepool::FormatDuration(absl::Seconds(spec.compute_seconds)),
                                       tidepool::FormatDuration(absl::Seconds(spec.copy_seconds))));
  return {};
}

Status SetSizes(const StallsOptions& options, int64_t samples, StallsSetting* setting) {
  if (samples < 1 || options.sample_bytes < 1) {
    return InvalidArgument("{} samples of {} bytes; needed: at least 1 of each", samples, options.sample_bytes);
  }
  if (!(options.variation >= 0 && options.variation <= 10))
    return InvalidArgument("--variation {}; allowed: 0 to 10", options.variation);
  if (options.sizes.empty()) {
    setting->spec.sizes = data::stalls::LogNormalSizes(samples, options.sample_bytes, options.variation, options.seed);
    return {};
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.sizes, kMostSizesFile));
  auto sizes = data::stalls::DrawSizes(text, samples, options.seed);
  if (!sizes.ok()) return Annotate(sizes.status(), options.sizes);
  setting->spec.sizes = *std::move(sizes);
  return {};
}

// "35%" or "40GiB", of the data set as it is.
StatusOr<double> CachedShareOf(const std::string& text, double total_bytes) {
  if (text.ends_with('%')) {
    char* end = nullptr;
    const double percent = std::strtod(text.c_str(), &end);
    if (end + 1 != text.c_str() + text.size() || !(percent >= 0 && percent <= 100)) {
      return InvalidArgument("--cache-size '{}'; allowed: 0% to 100%, or a size such as 64GiB", text);
    }
    return percent / 100;
  }
  const auto bytes = ParseBytes(text);
  if (!bytes.ok()) return Annotate(bytes.status(), "--cache-size");
  return std::min(1.0, static_cast<double>(*bytes) / total_bytes);
}

Status SetLoader(const StallsOptions& options, PipelineSpec* spec) {
  spec->cores = options.cores;
  spec->batches_ahead = options.batches_ahead;
  spec->read_ahead = options.read_ahead;
  if (options.loader == "tidepool") return {};
  if (options.loader != "pytorch") return InvalidArgument("--loader '{}'; allowed: tidepool, pytorch", options.loader);
  // DataLoader with its default prefetch factor: each worker reads and prepares whole batches, two of them ahead.
  spec->assignment = data::stalls::Assignment::kBatch;
  spec->read_ahead = 0;
  spec->batches_ahead = 2 * std::max(1, options.cores);
  spec->restart_each_epoch = true;
  return {};
}

}  // namespace

void RegisterStallsOptions(OptionTable* table, StallsOptions* options) {
  table->Add({.key = "stalls.device", .help = "Profile bundle, or emulated:BUNDLExN for N devices", .metavar = "NAME"},
             &options->device);
  table->Add({.key = "stalls.profiles", .help = "Directory of profile bundles", .metavar = "DIR", .advanced = true},
             &options->profiles);
  table->Add({.key = "stalls.model", .help = "Network of the bundle, or one that is known by name"}, &options->model);
  table->Add({.key = "stalls.dtype", .help = "F32, F16 or BF16", .advanced = true}, &options->dtype);
  table->Add(
      {.key = "stalls.workload", .help = "MLPerf-Storage-like step and records, e.g. resnet50-h100; instead of device and model"},
      &options->workload);
  table->Add({.key = "stalls.batch", .help = "Samples in a step, of all devices together"}, &options->batch);
  table->Add({.key = "stalls.step_time", .help = "Time of a step, instead of a profile's"}, &options->step_time);
  table->Add({.key = "stalls.copy_time", .help = "Time to copy a step's input to the device", .advanced = true},
             &options->copy_time);
  table->Add({.key = "stalls.host_time", .help = "Time of the training loop's own code between steps", .advanced = true},
             &options->host_time);
  table->Add({.key = "stalls.samples", .help = "Samples of the data set"}, &options->samples);
  table->Add({.key = "stalls.sample_bytes", .help = "Mean size of a sample in storage"}, BytesField{&options->sample_bytes});
  table->Add({.key = "stalls.variation", .help = "Standard deviation of the sizes, relative to the mean", .advanced = true},
             &options->variation);
  table->Add({.key = "stalls.sizes",
              .help = "Draw sizes from this file, one number of bytes a line",
              .metavar = "FILE",
              .advanced = true},
             &options->sizes);
  table->Add({.key = "stalls.tensor_bytes", .help = "Size of a sample as it is copied to the device", .advanced = true},
             BytesField{&options->tensor_bytes});
  table->Add({.key = "stalls.seed", .help = "Seed of sizes and orders", .advanced = true}, &options->seed);
  table->Add(
      {.key = "stalls.disk", .help = "Storage: hdd, sata-ssd, nvme, aws-gp3, ..., with changes: sata-ssd,rate=300MB,iops=5000"},
      &options->disk);
  table->Add({.key = "stalls.cache", .help = "none, page-cache, minio, lru, fifo or two-list"}, &options->cache);
  table->Add({.key = "stalls.cache_size", .help = "Memory of the cache: a size, or a share of the data set such as 35%"},
             &options->cache_size);
  table->Add({.key = "stalls.cores", .help = "Cores that prepare samples"}, &options->cores);
  table->Add({.key = "stalls.prep_rate", .help = "Samples of mean size that one core prepares a second; 0: free"},
             &options->prep_rate);
  table->Add({.key = "stalls.loader",
              .help = "tidepool (reads ahead, cores share a batch) or pytorch (workers read and prepare batches)"},
             &options->loader);
  table->Add({.key = "stalls.read_ahead", .help = "Samples read ahead; 0: each core reads its own"}, &options->read_ahead);
  table->Add({.key = "stalls.batches_ahead", .help = "Batches prepared ahead", .advanced = true}, &options->batches_ahead);
  table->Add({.key = "stalls.simulated_samples",
              .help = "Simulate at most so many samples; a larger data set is scaled down",
              .advanced = true},
             &options->simulated_samples);
  table->Add({.key = "stalls.epochs", .help = "Epochs; the last one is measured", .advanced = true}, &options->epochs);
  table->Add({.key = "stalls.threads", .help = "With --data: threads of the loader; 0: one per core", .advanced = true},
             &options->threads);
  table->Add({.key = "stalls.image_size", .help = "With --data: side of the samples in pixels", .advanced = true},
             &options->image_size);
  table->Add({.key = "stalls.phase", .help = "With --data: time of each measurement", .advanced = true}, &options->phase);
}

StatusOr<StallsSetting> MakeStallsSetting(const StallsOptions& given) {
  StallsOptions options = given;
  StallsSetting setting;
  if (!options.workload.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(const data::stalls::Workload workload, data::stalls::FindWorkload(options.workload));
    options.batch = workload.batch;
    options.step_time = absl::Seconds(workload.step_seconds);
    options.sample_bytes = workload.record_bytes;
    options.variation = workload.record_variation;
    setting.least_utilisation = workload.least_utilisation;
    setting.facts.push_back(fmt::format("workload {}: {} a step of {} samples", workload.name,
                                        tidepool::FormatDuration(options.step_time), workload.batch));
  }
  PipelineSpec& spec = setting.spec;
  spec.batch = options.batch;
  spec.seed = options.seed;
  spec.epochs = options.epochs;
  TIDEPOOL_RETURN_IF_ERROR(SetStep(options, &setting));
  const int64_t least = std::max<int64_t>(1, options.batch);
  const int64_t simulated = std::min(options.samples, std::max(options.simulated_samples, least));
  TIDEPOOL_RETURN_IF_ERROR(SetSizes(options, simulated, &setting));
  setting.samples = options.samples;
  setting.scale = static_cast<double>(simulated) / static_cast<double>(options.samples);
  if (setting.scale < 1) {
    setting.facts.push_back(fmt::format("simulated: {} of {} samples, and the cache in proportion", simulated, options.samples));
  }
  const auto total = static_cast<double>(data::stalls::TotalBytes(spec.sizes));
  TIDEPOOL_ASSIGN_OR_RETURN(spec.storage, data::ParseStorageSpec(options.disk));
  TIDEPOOL_ASSIGN_OR_RETURN(spec.cache, data::ParseCacheKind(options.cache));
  TIDEPOOL_ASSIGN_OR_RETURN(setting.cached_share, CachedShareOf(options.cache_size, total / setting.scale));
  if (spec.cache == data::CacheKind::kNone) setting.cached_share = 0;
  spec.cache_bytes = static_cast<int64_t>(setting.cached_share * total);
  if (!(options.prep_rate >= 0) || !std::isfinite(options.prep_rate)) {
    return InvalidArgument("--prep-rate {}; allowed: 0 (free) or more", options.prep_rate);
  }
  // Decoding goes with the bytes.
  const double mean = total / static_cast<double>(simulated);
  if (options.prep_rate > 0) spec.prep_seconds_per_byte = 1 / (options.prep_rate * mean);
  TIDEPOOL_RETURN_IF_ERROR(SetLoader(options, &spec));
  TIDEPOOL_RETURN_IF_ERROR(spec.Validate());
  return setting;
}

}  // namespace tidepool::cli
