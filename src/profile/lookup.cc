#include "profile/lookup.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/text.h"
#include "profile/networks.h"

namespace tidepool::profile {
namespace {

// Repeats of one run on one machine differ by about this much; nothing is stated to be better.
constexpr double kRepeatError = 0.01;
// A transfer from pageable memory is copied once more by the host, at about the rate of the link.
constexpr double kPageableFactor = 2;

constexpr size_t kMemoryFieldCount = 6;
constexpr std::array<double OpMemory::*, kMemoryFieldCount> kMemoryFields = {
    &OpMemory::input_bytes,      &OpMemory::output_bytes,   &OpMemory::weight_bytes,
    &OpMemory::activation_bytes, &OpMemory::reserved_bytes, &OpMemory::peak_bytes};

double Blend(const std::vector<double>& values, const Curve::Answer& answer) {
  const auto left = static_cast<size_t>(answer.left);
  if (answer.share == 0) return values[left];
  return values[left] + answer.share * (values[left + 1] - values[left]);
}

Method MethodOf(Curve::Method method) {
  switch (method) {
    case Curve::Method::kExact: return Method::kRow;
    case Curve::Method::kNeighbours: return Method::kNeighbours;
    case Curve::Method::kAffine: return Method::kAffine;
    case Curve::Method::kOnePoint: return Method::kScaledRow;
  }
  return Method::kRoofline;
}

double ErrorOf(Method method, const AffineFit& fit, double spread) {
  switch (method) {
    case Method::kRow: return std::max(kRepeatError, spread);
    case Method::kNeighbours:
    case Method::kAffine: return std::max({kRepeatError, spread, fit.mean_error});
    default: return kPriorError;
  }
}

Origin OriginOf(Method method, bool measured) {
  if (!measured || method == Method::kScaledRow || method == Method::kRoofline) return Origin::kEstimated;
  return method == Method::kRow ? Origin::kMeasured : Origin::kFitted;
}

// The rate of `values`, or 0.
template <typename Kind>
double RateOf(const std::map<Kind, double>& values, Kind kind) {
  const auto found = values.find(kind);
  return found == values.end() ? 0 : found->second;
}

std::string Nearest(const std::string& model, const std::vector<OpRow>& rows) {
  std::vector<std::string> names;
  for (const OpRow& row : rows) {
    if (names.empty() || names.back() != row.key.model) names.push_back(row.key.model);
  }
  return NearestName(model, names);
}

}  // namespace

namespace internal {
struct OpCurves {
  Curve time;
  // Per point of `time`.
  std::vector<double> low, high;  // p10 and p90 as shares of the median
  std::vector<double> warmup_us;  // what the first run took longer
  std::vector<bool> measured;
  bool all_measured = true;
  std::array<Curve, kMemoryFieldCount> memory;
};
}  // namespace internal

std::string_view NameOf(Method method) {
  switch (method) {
    case Method::kRow: return "row";
    case Method::kNeighbours: return "neighbours";
    case Method::kAffine: return "affine";
    case Method::kScaledRow: return "scaled-row";
    case Method::kRoofline: return "roofline";
  }
  return "?";
}

double JitterSigma(const TimeEstimate& estimate) {
  if (estimate.p10_us <= 0 || estimate.p90_us <= estimate.p10_us) return 0;
  constexpr double kNormal90 = 1.2815515655446004;  // the 90th percentile of a standard normal distribution
  return std::log(estimate.p90_us / estimate.p10_us) / (2 * kNormal90);
}

double OpTimes::PriorUs(double batch) const {
  const double bytes = cost_.fixed_bytes + cost_.bytes_per_sample * batch;
  return cost_.launches * launch_us_ + std::max(cost_.flops_per_sample * batch * us_per_flop_, bytes * us_per_byte_);
}

TimeEstimate OpTimes::At(int64_t batch) const {
  const auto x = static_cast<double>(std::max<int64_t>(1, batch));
  if (curves_ == nullptr) {
    const double us = PriorUs(x);
    return {.median_us = us,
            .p10_us = us,
            .p90_us = us,
            .first_us = us,
            .origin = Origin::kEstimated,
            .method = Method::kRoofline,
            .error = kPriorError};
  }
  const Curve::Answer answer = curves_->time.At(x);
  TimeEstimate estimate;
  estimate.method = MethodOf(answer.method);
  estimate.median_us = answer.y;
  if (answer.method == Curve::Method::kOnePoint) {
    const double x0 = curves_->time.points()[0].x;
    estimate.median_us *= has_prior_ ? PriorUs(x) / PriorUs(x0) : x / x0;
  }
  const double low = Blend(curves_->low, answer), high = Blend(curves_->high, answer);
  estimate.p10_us = low * estimate.median_us;
  estimate.p90_us = high * estimate.median_us;
  estimate.first_us = estimate.median_us + Blend(curves_->warmup_us, answer);
  const auto left = static_cast<size_t>(answer.left);
  const bool measured = estimate.method == Method::kRow          ? curves_->measured[left]
                        : estimate.method == Method::kNeighbours ? curves_->measured[left] && curves_->measured[left + 1]
                                                                 : curves_->all_measured;
  estimate.origin = OriginOf(estimate.method, measured);
  estimate.error = measured ? ErrorOf(estimate.method, curves_->time.fit(), (high - low) / 2) : kPriorError;
  return estimate;
}

MemoryEstimate OpTimes::MemoryAt(int64_t batch) const {
  const auto x = static_cast<double>(std::max<int64_t>(1, batch));
  MemoryEstimate estimate;
  Method worst = Method::kRow;
  for (size_t i = 0; i < kMemoryFieldCount; ++i) {
    double OpMemory::*field = kMemoryFields[i];
    const double fixed = cost_.fixed_memory.*field, per_sample = cost_.memory_per_sample.*field;
    double value = fixed + per_sample * x;
    Method method = Method::kRoofline;
    if (curves_ != nullptr && !curves_->memory[i].empty()) {
      const Curve& curve = curves_->memory[i];
      const Curve::Answer answer = curve.At(x);
      method = MethodOf(answer.method);
      if (answer.method == Curve::Method::kOnePoint) {
        const double x0 = curve.points()[0].x;
        const double prior = fixed + per_sample * x0;
        // Without a cost: never less than what was seen, and weights do not grow with the batch.
        const double scale = prior > 0 ? value / prior : field == &OpMemory::weight_bytes ? 1 : std::max(1.0, x / x0);
        value = answer.y * scale;
      } else {
        value = answer.y;
      }
    } else if (value == 0) {
      continue;
    }
    estimate.memory.*field = value;
    estimate.known = true;
    worst = std::max(worst, method);
  }
  estimate.origin = OriginOf(worst, estimate.known && (curves_ == nullptr || curves_->all_measured));
  return estimate;
}

const AffineFit* OpTimes::fit() const {
  return curves_ != nullptr && curves_->time.points().size() >= 2 ? &curves_->time.fit() : nullptr;
}

TimeEstimate SizeTimes::At(double bytes) const {
  TimeEstimate estimate;
  if (curve_ == nullptr) {
    estimate.method = Method::kRoofline;
    estimate.median_us = prior_latency_us_ + bytes * prior_us_per_byte_;
  } else {
    const Curve::Answer answer = curve_->At(std::max(bytes, 1e-6));
    estimate.method = MethodOf(answer.method);
    estimate.median_us = answer.y;
    if (answer.method == Curve::Method::kOnePoint) {
      const double bytes0 = curve_->points()[0].x;
      estimate.median_us *= prior_us_per_byte_ > 0 ? (prior_latency_us_ + bytes * prior_us_per_byte_) /
                                                         (prior_latency_us_ + bytes0 * prior_us_per_byte_)
                                                   : bytes / bytes0;
    }
    if (factor_ != 1) estimate.method = Method::kScaledRow;
  }
  estimate.median_us *= factor_;
  estimate.p10_us = estimate.p90_us = estimate.first_us = estimate.median_us;
  estimate.origin = OriginOf(estimate.method, measured_);
  estimate.error = curve_ != nullptr && measured_ ? ErrorOf(estimate.method, curve_->fit(), 0) : kPriorError;
  return estimate;
}

const AffineFit* SizeTimes::fit() const { return curve_ != nullptr && curve_->points().size() >= 2 ? &curve_->fit() : nullptr; }

Lookup::Lookup(std::shared_ptr<const Bundle> bundle) : bundle_(std::move(bundle)) {
  std::map<OpId, std::vector<const OpRow*>> groups;
  for (const OpRow& row : bundle_->ops) {
    const OpKey& key = row.key;
    groups[{key.model, key.op, key.phase, key.dtype, key.tensor_parallel, key.algorithm}].push_back(&row);
  }
  for (auto& [id, rows] : groups) {
    // The curve keeps the first of equal batches, in ascending order; so do the columns beside it.
    std::stable_sort(rows.begin(), rows.end(), [](const OpRow* a, const OpRow* b) { return a->key.batch < b->key.batch; });
    rows.erase(std::unique(rows.begin(), rows.end(), [](const OpRow* a, const OpRow* b) { return a->key.batch == b->key.batch; }),
               rows.end());
    auto curves = std::make_unique<internal::OpCurves>();
    std::vector<Curve::Point> times;
    std::array<std::vector<Curve::Point>, kMemoryFieldCount> memory;
    for (const OpRow* row : rows) {
      const auto batch = static_cast<double>(row->key.batch);
      times.push_back({batch, row->median_us, static_cast<double>(row->repeats)});
      curves->low.push_back(row->p10_us > 0 ? std::min(1.0, row->p10_us / row->median_us) : 1);
      curves->high.push_back(row->p90_us > 0 ? std::max(1.0, row->p90_us / row->median_us) : 1);
      curves->warmup_us.push_back(std::max(0.0, row->first_us - row->median_us));
      const bool measured = bundle_->manifest.measured || !row->source.empty();
      curves->measured.push_back(measured);
      curves->all_measured = curves->all_measured && measured;
      for (size_t i = 0; i < kMemoryFieldCount; ++i) {
        const double bytes = row->memory.*kMemoryFields[i];
        if (bytes > 0) memory[i].push_back({batch, bytes, 1});
      }
    }
    curves->time = Curve(std::move(times));
    for (size_t i = 0; i < kMemoryFieldCount; ++i) curves->memory[i] = Curve(std::move(memory[i]));
    ops_.emplace(id, std::move(curves));
  }
  std::map<std::pair<LinkKind, bool>, std::vector<Curve::Point>> links;
  for (const LinkRow& row : bundle_->links) links[{row.kind, row.pinned}].push_back({row.bytes, row.median_us, 1});
  for (auto& [kind, points] : links) links_.emplace(kind, Curve(std::move(points)));
  std::map<std::tuple<std::string, CollectiveKind, int32_t>, std::vector<Curve::Point>> collectives;
  for (const CollectiveRow& row : bundle_->collectives)
    collectives[{row.model, row.kind, row.ranks}].push_back({row.bytes, row.median_us, 1});
  for (auto& [kind, points] : collectives) collectives_.emplace(kind, Curve(std::move(points)));
  std::vector<Curve::Point> pins;
  for (const PinRow& row : bundle_->pins) pins.push_back({row.bytes, row.median_us, 1});
  pins_ = Curve(std::move(pins));
}

Lookup::~Lookup() = default;

StatusOr<OpTimes> Lookup::Find(const OpKey& key, const OpCost& given) const {
  const Hardware& hardware = bundle_->manifest.hardware;
  OpTimes times;
  times.cost_ = given;
  if (!given.known() && key.op.empty() && key.tensor_parallel == 1) {
    if (const KnownNetwork* network = FindNetwork(key.model); network != nullptr) {
      const OpCost cost = CostOf(*network, key.phase, key.dtype);
      times.cost_.flops_per_sample = cost.flops_per_sample;
      times.cost_.bytes_per_sample = cost.bytes_per_sample;
      times.cost_.fixed_bytes = cost.fixed_bytes;
      times.cost_.launches = cost.launches;
    }
  }
  const double peak = RateOf(hardware.peak_flops, key.dtype) * hardware.efficiency.compute;
  const double memory = hardware.memory_bytes_per_s * hardware.efficiency.memory;
  const bool rates = (peak > 0 || times.cost_.flops_per_sample == 0) && (memory > 0 || times.cost_.flops_per_sample > 0);
  times.has_prior_ = times.cost_.known() && rates;
  times.launch_us_ = hardware.launch_us;
  times.us_per_flop_ = peak > 0 ? 1e6 / peak : 0;
  times.us_per_byte_ = memory > 0 ? 1e6 / memory : 0;

  const auto found = ops_.find({key.model, key.op, key.phase, key.dtype, key.tensor_parallel, key.algorithm});
  if (found != ops_.end()) times.curves_ = found->second.get();
  if (times.curves_ != nullptr || times.has_prior_) return times;

  OpKey shown = key;
  shown.batch = 1;
  std::string why;
  if (times.cost_.known()) {
    why = fmt::format("hardware '{}' has no peak rate for {}", hardware.name, SafetensorsName(key.dtype));
  } else {
    const std::string nearest = Nearest(key.model, bundle_->ops);
    why = nearest.empty() ? "its FLOPs are not known either"
                          : fmt::format("its FLOPs are not known either; the nearest model is '{}'", nearest);
  }
  return NotFound("profile '{}' has no rows for {}, and {}", bundle_->manifest.name, ToText(shown), why);
}

StatusOr<SizeTimes> Lookup::FindLink(LinkKind kind, bool pinned) const {
  const Hardware& hardware = bundle_->manifest.hardware;
  SizeTimes times;
  times.measured_ = bundle_->manifest.measured;
  const double rate = RateOf(hardware.link_bytes_per_s, kind) * hardware.efficiency.link;
  if (rate > 0) {
    times.prior_us_per_byte_ = 1e6 / rate;
    times.prior_latency_us_ = RateOf(hardware.link_latency_us, kind);
  }
  auto rows = links_.find({kind, pinned});
  if (rows == links_.end() && !pinned) {
    times.factor_ = kPageableFactor;
    rows = links_.find({kind, true});
  }
  if (rows != links_.end()) times.curve_ = &rows->second;
  if (times.curve_ != nullptr || rate > 0) return times;
  return NotFound("profile '{}' has no rows for {} transfers, and its hardware '{}' has no such link", bundle_->manifest.name,
                  NameOf(kind), hardware.name);
}

StatusOr<SizeTimes> Lookup::FindCollective(CollectiveKind kind, int32_t ranks, const std::string& model,
                                           bool over_network) const {
  if (ranks < 2) return InvalidArgument("a collective of {} ranks; allowed: 2 or more", ranks);
  SizeTimes times;
  times.measured_ = bundle_->manifest.measured;
  const auto n = static_cast<double>(ranks);
  // Ring: each rank sends (n - 1) / n of its buffer once, or twice for an all-reduce, in n - 1 steps each.
  const double rounds = kind == CollectiveKind::kAllReduce ? 2 : 1;
  const LinkKind link = over_network ? LinkKind::kNetwork : LinkKind::kPeer;
  const Hardware& hardware = bundle_->manifest.hardware;
  const double rate = RateOf(hardware.link_bytes_per_s, link) * hardware.efficiency.link;
  if (rate > 0) {
    times.prior_us_per_byte_ = rounds * (n - 1) / n * 1e6 / rate;
    times.prior_latency_us_ = rounds * (n - 1) * RateOf(hardware.link_latency_us, link);
  }
  for (const std::string& name : {model, std::string()}) {
    const auto rows = collectives_.find({name, kind, ranks});
    if (rows != collectives_.end()) {
      times.curve_ = &rows->second;
      return times;
    }
  }
  // The nearest measured number of ranks, scaled by what a ring moves.
  double best = 0;
  for (const auto& [id, curve] : collectives_) {
    const auto& [name, other_kind, other_ranks] = id;
    if (other_kind != kind || (!name.empty() && name != model)) continue;
    const auto m = static_cast<double>(other_ranks);
    const double distance = std::abs(std::log(n / m));
    if (times.curve_ != nullptr && distance >= best) continue;
    best = distance;
    times.curve_ = &curve;
    times.factor_ = ((n - 1) / n) / ((m - 1) / m);
  }
  if (times.curve_ != nullptr || rate > 0) return times;
  return NotFound("profile '{}' has no rows for {} and its hardware '{}' has no {} link", bundle_->manifest.name, NameOf(kind),
                  hardware.name, NameOf(link));
}

StatusOr<SizeTimes> Lookup::FindPin() const {
  if (pins_.empty()) return NotFound("profile '{}' has no times of pinning host memory", bundle_->manifest.name);
  SizeTimes times;
  times.curve_ = &pins_;
  times.measured_ = bundle_->manifest.measured;
  return times;
}

}  // namespace tidepool::profile
