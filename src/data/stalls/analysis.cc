#include "data/stalls/analysis.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "data/order.h"

namespace tidepool::data::stalls {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

double MeanBytes(const PipelineSpec& spec) {
  return static_cast<double>(TotalBytes(spec.sizes)) / static_cast<double>(spec.samples());
}

double CachedShare(const PipelineSpec& spec) {
  return std::min(1.0, static_cast<double>(spec.cache_bytes) / static_cast<double>(TotalBytes(spec.sizes)));
}

// Reads under way at once.
double Readers(const PipelineSpec& spec) { return static_cast<double>(spec.read_ahead + spec.cores); }

// One read alone.
double ReadSeconds(const StorageSpec& storage, double bytes) {
  return absl::ToDoubleSeconds(storage.random_latency) + bytes / storage.bytes_per_s;
}

// Samples per second that the storage delivers at its best to this many readers; storage_model.h has the closed form.
double StorageRate(const StorageSpec& storage, double bytes, double readers) {
  const double latency = absl::ToDoubleSeconds(storage.random_latency);
  double rate = storage.bytes_per_s / bytes;
  if (storage.depth == 1) rate = 1 / (latency + bytes / storage.bytes_per_s);
  if (latency > 0) rate = std::min(rate, storage.depth / latency);
  if (storage.ops_per_s > 0) rate = std::min(rate, storage.ops_per_s);
  return std::min(rate, readers / ReadSeconds(storage, bytes));
}

PipelineSpec Without(PipelineSpec spec, bool fetch, bool prep, bool device) {
  spec.with_fetch = fetch;
  spec.with_prep = prep;
  spec.with_device = device;
  return spec;
}

StatusOr<double> Speed(const PipelineSpec& spec) {
  TIDEPOOL_ASSIGN_OR_RETURN(const PipelineRun run, RunPipeline(spec));
  return run.seconds > 0 ? run.samples_per_s : kInfinite;
}

}  // namespace

std::string_view NameOf(Bottleneck bottleneck) {
  switch (bottleneck) {
    case Bottleneck::kIngestion: return "ingestion";
    case Bottleneck::kPreparation: return "preparation";
    case Bottleneck::kFetch: return "fetch";
  }
  return "?";
}

double Point::error() const { return predicted.samples_per_s / simulated_samples_per_s - 1; }

std::vector<double> MissShares(CacheKind kind, double cached_share, int epochs, uint64_t seed) {
  constexpr int64_t kItems = 8192, kItemBytes = 4096;  // whole pages
  std::vector<double> shares(kMissParts, 1.0);
  const auto budget = static_cast<int64_t>(std::clamp(cached_share, 0.0, 1.0) * kItems) * kItemBytes;
  const auto policy = CachePolicy::Create({.kind = kind, .budget_bytes = budget, .items = kItems});
  if (!policy.ok() || budget == 0) return shares;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    shares.assign(kMissParts, 0);
    const std::vector<int64_t> order = EpochOrder(kItems, seed, epoch);
    for (int64_t i = 0; i < kItems; ++i) {
      if (!(*policy)->Access(order[i], kItemBytes).hit) shares[i * kMissParts / kItems] += double{kMissParts} / kItems;
    }
  }
  return shares;
}

double MissShare(CacheKind kind, double cached_share, int epochs, uint64_t seed) {
  const std::vector<double> shares = MissShares(kind, cached_share, epochs, seed);
  return std::accumulate(shares.begin(), shares.end(), 0.0) / kMissParts;
}

namespace {

// Only misses are under way, so the more hits the fewer: a window of `readers` samples is passed in no less than one read.
double FetchRate(const PipelineSpec& spec, const Rates& rates, double miss_share) {
  if (miss_share <= 0) return kInfinite;
  const double rate = rates.fetch_cold / miss_share;
  return spec.read_ahead > 0 && rates.read_seconds > 0 ? std::min(rate, Readers(spec) / rates.read_seconds) : rate;
}

// What fetch and preparation deliver together; the header has the formulas.
double LoaderRate(const PipelineSpec& spec, const Rates& rates, double miss_share) {
  const double loader = std::min(FetchRate(spec, rates, miss_share), rates.preparation);
  if (spec.read_ahead > 0) return loader;
  const double busy_seconds = miss_share * rates.read_seconds + spec.cores / rates.preparation;
  return busy_seconds > 0 ? std::min(loader, spec.cores / busy_seconds) : loader;
}

Bottleneck SlowestOf(double ingestion, double preparation, double fetch, double loader) {
  if (ingestion <= loader) return Bottleneck::kIngestion;
  return fetch < preparation ? Bottleneck::kFetch : Bottleneck::kPreparation;
}

}  // namespace

Prediction Predict(const PipelineSpec& spec, const Rates& rates) {
  Prediction result{.miss_share = 0};
  double seconds = 0;  // of a sample
  for (const double misses : MissShares(spec.cache, CachedShare(spec), spec.epochs, spec.seed)) {
    result.miss_share += misses / kMissParts;
    seconds += 1 / std::min(rates.ingestion, LoaderRate(spec, rates, misses)) / kMissParts;
  }
  result.fetch = FetchRate(spec, rates, result.miss_share);
  result.samples_per_s = 1 / seconds;
  result.bottleneck = SlowestOf(rates.ingestion, rates.preparation, result.fetch, LoaderRate(spec, rates, result.miss_share));
  return result;
}

Bottleneck BottleneckOf(const PipelineSpec& spec, const Rates& rates, double miss_share) {
  const double loader = std::min(rates.fetch, LoaderRate(spec, rates, miss_share));
  return SlowestOf(rates.ingestion, rates.preparation, rates.fetch, loader);
}

Rates Rescale(const Rates& rates, const PipelineSpec& from, const PipelineSpec& to) {
  Rates scaled = rates;
  const double bytes = MeanBytes(from);
  scaled.preparation *= static_cast<double>(to.cores) / from.cores;
  scaled.fetch_cold *= StorageRate(to.storage, bytes, Readers(to)) / StorageRate(from.storage, bytes, Readers(from));
  scaled.read_seconds = ReadSeconds(to.storage, bytes);
  const auto step = [](const PipelineSpec& spec) {
    const double other = spec.copy_seconds + spec.host_seconds;
    return spec.overlap_copy ? std::max(spec.compute_seconds, other) : spec.compute_seconds + other;
  };
  if (step(to) > 0 && step(from) > 0) scaled.ingestion *= step(from) / step(to);
  return scaled;
}

StatusOr<Rates> MeasureRates(const PipelineSpec& spec) {
  Rates rates;
  TIDEPOOL_ASSIGN_OR_RETURN(rates.ingestion, Speed(Without(spec, false, false, true)));
  TIDEPOOL_ASSIGN_OR_RETURN(rates.preparation, Speed(Without(spec, false, true, false)));
  PipelineSpec fetching = Without(spec, true, false, false);
  TIDEPOOL_ASSIGN_OR_RETURN(rates.fetch, Speed(fetching));
  fetching.cache_bytes = 0;
  TIDEPOOL_ASSIGN_OR_RETURN(rates.fetch_cold, Speed(fetching));
  // One reader, nothing ahead: the time of a read alone.
  fetching.read_ahead = 0;
  fetching.cores = 1;
  TIDEPOOL_ASSIGN_OR_RETURN(const double alone, Speed(fetching));
  rates.read_seconds = 1 / alone;
  return rates;
}

namespace {

// Adds points that differ from `spec` in one thing each.
class Analyzer {
 public:
  Analyzer(const PipelineSpec& spec, const AnalysisOptions& options) : spec_(spec), options_(options) {}

  StatusOr<Analysis> Run() {
    TIDEPOOL_ASSIGN_OR_RETURN(result_.rates, MeasureRates(spec_));
    TIDEPOOL_RETURN_IF_ERROR(MeasureStalls());
    result_.predicted = Predict(spec_, result_.rates);
    result_.bottleneck = BottleneckOf(spec_, result_.rates, result_.full.miss_share());
    Needs();
    for (const double share : options_.cache_shares) {
      PipelineSpec changed = spec_;
      changed.cache_bytes = static_cast<int64_t>(std::clamp(share, 0.0, 1.0) * static_cast<double>(TotalBytes(spec_.sizes)));
      TIDEPOOL_RETURN_IF_ERROR(Add(fmt::format("{:.0f} % cached", 100 * share), share, changed, &result_.by_cache));
    }
    for (const int cores : options_.cores) {
      PipelineSpec changed = spec_;
      changed.cores = cores;
      TIDEPOOL_RETURN_IF_ERROR(Add(fmt::format("{} cores", cores), cores, changed, &result_.by_cores));
    }
    for (const StorageSpec& disk : options_.disks) {
      PipelineSpec changed = spec_;
      changed.storage = disk;
      TIDEPOOL_RETURN_IF_ERROR(Add(disk.name, 0, changed, &result_.by_disk));
    }
    if (options_.changes) TIDEPOOL_RETURN_IF_ERROR(TryChanges());
    return std::move(result_);
  }

 private:
  Status MeasureStalls() {
    TIDEPOOL_ASSIGN_OR_RETURN(result_.synthetic_samples_per_s, Speed(Without(spec_, false, false, true)));
    TIDEPOOL_ASSIGN_OR_RETURN(result_.cached_samples_per_s, Speed(Without(spec_, false, true, true)));
    PipelineSpec cold = spec_;
    cold.cache_bytes = 0;
    TIDEPOOL_ASSIGN_OR_RETURN(result_.cold_samples_per_s, Speed(cold));
    TIDEPOOL_ASSIGN_OR_RETURN(result_.full, RunPipeline(spec_));
    // Times of a sample, relative to that of everything.
    const double full = result_.full.samples_per_s;
    result_.prep_stall = full / result_.cached_samples_per_s - full / result_.synthetic_samples_per_s;
    result_.fetch_stall = 1 - full / result_.cached_samples_per_s;
    return {};
  }

  void Needs() {
    const Rates& rates = result_.rates;
    if (std::isfinite(rates.preparation)) {
      result_.needed_cores = static_cast<int>(std::ceil(rates.ingestion / (rates.preparation / spec_.cores) - 1e-6));
    }
    const double wanted = std::min(rates.ingestion, rates.preparation) * (1 - 1e-6);
    for (int percent = 0; percent <= 100; ++percent) {
      const double share = percent / 100.0;
      const double misses = MissShare(spec_.cache, share, spec_.epochs, spec_.seed);
      if (rates.fetch_cold < wanted * misses) continue;
      result_.needed_cache_share = share;
      break;
    }
  }

  Status Add(std::string name, double x, const PipelineSpec& changed, std::vector<Point>* points) {
    if (options_.stopped != nullptr && options_.stopped()) return Cancelled("stopped before '{}'", name);
    Point point{.name = std::move(name), .x = x, .predicted = Predict(changed, Rescale(result_.rates, spec_, changed))};
    TIDEPOOL_ASSIGN_OR_RETURN(point.simulated_samples_per_s, Speed(changed));
    points->push_back(std::move(point));
    return {};
  }

  Status TryChange(std::string name, bool purchase, const PipelineSpec& changed) {
    std::vector<Point> points;
    TIDEPOOL_RETURN_IF_ERROR(Add(std::move(name), 0, changed, &points));
    const double gain = points[0].simulated_samples_per_s / result_.full.samples_per_s - 1;
    result_.changes.push_back({.point = std::move(points[0]), .purchase = purchase, .gain = gain});
    return {};
  }

  Status TryChanges() {
    const int64_t total = TotalBytes(spec_.sizes);
    PipelineSpec changed = spec_;
    changed.cores = 2 * spec_.cores;
    TIDEPOOL_RETURN_IF_ERROR(TryChange(fmt::format("{} cores instead of {}", changed.cores, spec_.cores), true, changed));
    if (spec_.cache_bytes < total) {
      changed = spec_;
      if (changed.cache == CacheKind::kNone) changed.cache = CacheKind::kMinio;
      changed.cache_bytes = std::min(total, std::max(2 * spec_.cache_bytes, total / 4));
      // Shares, because a large data set was scaled down.
      TIDEPOOL_RETURN_IF_ERROR(TryChange(fmt::format("a cache of {:.0f} % of the data set instead of {:.0f} %",
                                                     100 * CachedShare(changed), 100 * CachedShare(spec_)),
                                         true, changed));
    }
    changed = spec_;
    changed.storage = Doubled(spec_.storage);
    TIDEPOOL_RETURN_IF_ERROR(TryChange(fmt::format("two '{}' instead of one", spec_.storage.name), true, changed));
    changed = spec_;
    changed.compute_seconds /= 2;
    changed.copy_seconds /= 2;
    TIDEPOOL_RETURN_IF_ERROR(TryChange("twice the accelerators", true, changed));
    if (spec_.cache != CacheKind::kMinio && spec_.cache_bytes > 0 && spec_.cache_bytes < total) {
      changed = spec_;
      changed.cache = CacheKind::kMinio;
      TIDEPOOL_RETURN_IF_ERROR(TryChange("a MinIO cache", false, changed));
    }
    if (spec_.read_ahead == 0) {
      changed = spec_;
      changed.assignment = Assignment::kSample;
      changed.read_ahead = 256;
      TIDEPOOL_RETURN_IF_ERROR(TryChange("reading ahead", false, changed));
    }
    std::stable_sort(result_.changes.begin(), result_.changes.end(),
                     [](const Change& a, const Change& b) { return a.gain > b.gain; });
    for (int i = 0; i < std::ssize(result_.changes); ++i) {
      if (!result_.changes[i].purchase || result_.changes[i].gain < kLeastGain) continue;
      result_.best_purchase = i;
      break;
    }
    return {};
  }

  // Two of them with the data striped.
  static StorageSpec Doubled(StorageSpec storage) {
    storage.bytes_per_s *= 2;
    storage.ops_per_s *= 2;
    storage.sustained_bytes_per_s *= 2;
    storage.burst_bytes *= 2;
    storage.depth = std::min(65536, 2 * storage.depth);
    return storage;
  }

  const PipelineSpec& spec_;
  const AnalysisOptions& options_;
  Analysis result_;
};

}  // namespace

StatusOr<Analysis> Analyze(const PipelineSpec& spec, const AnalysisOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(spec.Validate());
  return Analyzer(spec, options).Run();
}

}  // namespace tidepool::data::stalls
