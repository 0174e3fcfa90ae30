#include "profile/check.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "base/text.h"
#include "base/units.h"
#include "profile/builtin.h"
#include "profile/networks.h"

namespace tidepool::profile {
namespace {

// Rates may pass what is stated by so much: clocks and rounding.
constexpr double kRateSlack = 1.02;
// Rows of fewer repeats say nothing about their spread.
constexpr int32_t kFewestRepeats = 10;
// Half the spread that is assumed for a row that recorded none.
constexpr double kAssumedSpread = 0.08;
// A larger batch may be faster by so much beyond the spread: another algorithm was chosen for it.
constexpr double kMonotoneSlack = 0.10;
// The time per sample of a whole network may grow by so much from one batch to the next.
constexpr double kLargestGrowth = 2;
// The best large network at a batch of at least 32 reaches more than this share of the peak, or the times are in another unit.
constexpr double kSmallestShare = 1e-3;
constexpr double kLargeNetworkFlops = 1e9;
constexpr int64_t kLargeBatch = 32;
// So many impossible rows are no slips: the hardware is another one.
constexpr double kMislabelledShare = 0.25;
constexpr double kOutlierShare = 0.1;

constexpr char kWhole[] = "bundle";  // where a finding is that is not of one row

double RateOf(const std::map<LinkKind, double>& rates, LinkKind kind) {
  const auto found = rates.find(kind);
  return found == rates.end() ? 0 : found->second;
}

std::string Tera(double flops) { return fmt::format("{:.3g} TFLOP/s", flops / 1e12); }
std::string GigaBytes(double rate) { return fmt::format("{:.3g} GB/s", rate / 1e9); }

class Checker {
 public:
  explicit Checker(const Bundle& bundle) : bundle_(bundle), hardware_(bundle.manifest.hardware) {}

  std::vector<Finding> Run() {
    CheckManifest();
    for (const OpRow& row : bundle_.ops) CheckOp(row);
    SummariseFlops();
    CheckCurves();
    CheckLinks();
    CheckCollectives();
    CheckDuplicates();
    std::stable_partition(findings_.begin(), findings_.end(), [](const Finding& finding) { return finding.where == kWhole; });
    return std::move(findings_);
  }

 private:
  void Fault(std::string_view check, std::string where, std::string text) {
    findings_.push_back({Finding::Level::kFault, std::string(check), std::move(where), std::move(text)});
  }
  void Note(std::string_view check, std::string where, std::string text) {
    findings_.push_back({Finding::Level::kNote, std::string(check), std::move(where), std::move(text)});
  }

  void CheckManifest() {
    const Manifest& manifest = bundle_.manifest;
    if (manifest.measured && manifest.source.empty()) Fault("source", kWhole, "measured times name no source; allowed: a text");
    const std::string& date = manifest.date;
    bool good = date.empty() || (date.size() == 10 && date[4] == '-' && date[7] == '-');
    for (size_t i = 0; i < date.size() && good; ++i) good = i == 4 || i == 7 || (date[i] >= '0' && date[i] <= '9');
    if (!good) Fault("date", kWhole, fmt::format("date is '{}'; allowed: YYYY-MM-DD", date));
    if (manifest.measured && date.empty()) Note("date", kWhole, "the date of the measurement is not given");
    if (hardware_.peak_flops.empty()) Note("flops", kWhole, "no peak rate is given: FLOP rates are not checked");
    if (hardware_.memory_bytes == 0) Note("memory", kWhole, "memory_bytes is 0: sizes are not checked");
    int64_t unstated = 0;
    for (const OpRow& row : bundle_.ops) unstated += row.repeats == 0;
    if (unstated > 0) Note("repeats", kWhole, fmt::format("{} rows do not say how often they were measured", unstated));
  }

  // 0: not stated.
  static double PeakOf(const Hardware& hardware, DType dtype) {
    const auto found = hardware.peak_flops.find(dtype);
    const double peak = found == hardware.peak_flops.end() ? 0 : found->second;
    return dtype == DType::kF32 ? std::max(peak, hardware.tf32_flops) : peak;
  }

  void CheckOp(const OpRow& row) {
    const std::string where = ToText(row.key);
    if (row.repeats > 0 && row.repeats < kFewestRepeats)
      Fault("repeats", where, fmt::format("was measured {} times; allowed: {} or more", row.repeats, kFewestRepeats));
    if ((row.p10_us > 0 && row.p10_us > row.median_us) || (row.p90_us > 0 && row.p90_us < row.median_us)) {
      Fault("spread", where,
            fmt::format("p10 {} us, median {} us, p90 {} us; allowed: in this order", row.p10_us, row.median_us, row.p90_us));
    }
    const OpMemory& memory = row.memory;
    const double held = std::max(memory.peak_bytes, memory.weight_bytes + std::max(memory.activation_bytes, memory.output_bytes));
    if (hardware_.memory_bytes > 0 && held > hardware_.memory_bytes) {
      Fault("memory", where,
            fmt::format("holds {}; the device has {}", FormatBytes(static_cast<int64_t>(held)),
                        FormatBytes(static_cast<int64_t>(hardware_.memory_bytes))));
    }
    CheckFlops(row, where);
  }

  void CheckFlops(const OpRow& row, const std::string& where) {
    const double peak = PeakOf(hardware_, row.key.dtype);
    const KnownNetwork* network = row.key.op.empty() ? FindNetwork(row.key.model) : nullptr;
    if (peak == 0 || network == nullptr || row.key.phase == Phase::kOptimizer) return;
    const double samples_per_s = static_cast<double>(row.key.batch) / row.key.tensor_parallel / row.median_us * 1e6;
    const double least = LeastFlopsPerSample(*network, row.key.phase) * samples_per_s;
    rates_.emplace_back(row.key.dtype, least);
    if (least > peak * kRateSlack) {
      ++impossible_;
      Fault("flops", where,
            fmt::format("{} us imply at least {}; the peak of '{}' for {} is {}", row.median_us, Tera(least), hardware_.name,
                        SafetensorsName(row.key.dtype), Tera(peak)));
    }
    if (network->forward_flops >= kLargeNetworkFlops && row.key.batch >= kLargeBatch) {
      best_share_ = std::max(best_share_, FlopsPerSample(*network, row.key.phase) * samples_per_s / peak);
    }
  }

  void SummariseFlops() {
    if (impossible_ > 0 && static_cast<double>(impossible_) >= kMislabelledShare * static_cast<double>(rates_.size())) {
      // Cards on which nearly all of the rows could have been.
      std::vector<std::string> others;
      for (const Bundle& builtin : BuiltinBundles()) {
        const Hardware& card = builtin.manifest.hardware;
        const auto too_fast = [&](const auto& row) { return row.second > PeakOf(card, row.first) * kRateSlack; };
        const auto left = static_cast<double>(std::count_if(rates_.begin(), rates_.end(), too_fast));
        if (left <= kOutlierShare * static_cast<double>(rates_.size())) others.push_back(builtin.manifest.name);
      }
      Fault("device", kWhole,
            fmt::format("{} of the {} rows whose FLOPs are known are faster than '{}' can be: the rows are of another device{}",
                        impossible_, rates_.size(), hardware_.name,
                        others.empty() ? "" : ", for example one like " + JoinText(others, ", ")));
    }
    if (best_share_ > 0 && best_share_ < kSmallestShare) {
      Fault("units", kWhole,
            fmt::format("the best row of a large network reaches {:.3g} % of the peak; allowed: {} % or more. Are the times in "
                        "microseconds?",
                        100 * best_share_, 100 * kSmallestShare));
    }
  }

  // Order in the batch, over all rows of one op.
  void CheckCurves() {
    std::map<std::tuple<std::string, std::string, Phase, DType, int32_t, int32_t>, std::vector<const OpRow*>> curves;
    for (const OpRow& row : bundle_.ops) {
      const OpKey& key = row.key;
      curves[{key.model, key.op, key.phase, key.dtype, key.tensor_parallel, key.algorithm}].push_back(&row);
    }
    for (auto& [id, rows] : curves) {
      std::stable_sort(rows.begin(), rows.end(), [](const OpRow* a, const OpRow* b) { return a->key.batch < b->key.batch; });
      const OpRow* slowest = nullptr;  // by its lower bound, so far
      for (size_t i = 0; i < rows.size(); ++i) {
        const OpRow& row = *rows[i];
        if (slowest != nullptr && High(row) < Low(*slowest) * (1 - kMonotoneSlack)) {
          Fault("monotone", ToText(row.key),
                fmt::format("takes {} us, less than the {} us of batch {} even with the spread of both", row.median_us,
                            slowest->median_us, slowest->key.batch));
        }
        if (slowest == nullptr || Low(row) > Low(*slowest)) slowest = &row;
        if (i > 0) CheckGrowth(*rows[i - 1], row);
      }
    }
  }

  static double Low(const OpRow& row) { return row.p10_us > 0 ? row.p10_us : row.median_us * (1 - kAssumedSpread); }
  static double High(const OpRow& row) { return row.p90_us > 0 ? row.p90_us : row.median_us * (1 + kAssumedSpread); }

  void CheckGrowth(const OpRow& before, const OpRow& row) {
    // Single ops may fall out of a cache; whole networks do not, unless the runs were of different machines.
    if (!row.key.op.empty()) return;
    const double per_sample = row.median_us / static_cast<double>(row.key.batch);
    const double per_sample_before = before.median_us / static_cast<double>(before.key.batch);
    if (per_sample <= kLargestGrowth * per_sample_before) return;
    Fault("growth", ToText(row.key),
          fmt::format("takes {:.4g} us per sample, {:.3g} times as much as batch {}; allowed: {} times", per_sample,
                      per_sample / per_sample_before, before.key.batch, kLargestGrowth));
  }

  void CheckLinks() {
    std::set<LinkKind> unknown;
    for (const LinkRow& row : bundle_.links) {
      const double stated = RateOf(hardware_.link_bytes_per_s, row.kind);
      const double rate = row.bytes / row.median_us * 1e6;
      if (stated == 0 && unknown.insert(row.kind).second) {
        Note("link", std::string(NameOf(row.kind)), "the hardware states no rate of this link: transfers are not checked");
      } else if (stated > 0 && rate > stated * kRateSlack) {
        Fault("link", fmt::format("{} {} bytes", NameOf(row.kind), row.bytes),
              fmt::format("{} us imply {}; the link of '{}' has {}", row.median_us, GigaBytes(rate), hardware_.name,
                          GigaBytes(stated)));
      }
    }
  }

  void CheckCollectives() {
    const double stated =
        std::max(RateOf(hardware_.link_bytes_per_s, LinkKind::kPeer), RateOf(hardware_.link_bytes_per_s, LinkKind::kNetwork));
    if (stated == 0) {
      if (!bundle_.collectives.empty())
        Note("collective", "collectives", "the hardware states no peer or network link: collectives are not checked");
      return;
    }
    for (const CollectiveRow& row : bundle_.collectives) {
      // Whatever the algorithm, each rank has to send what the others need of its share.
      const double moved = row.bytes * (row.ranks - 1) / row.ranks;
      const double rate = moved / row.median_us * 1e6;
      if (rate <= stated * kRateSlack) continue;
      Fault("collective", fmt::format("{} of {} ranks, {} bytes", NameOf(row.kind), row.ranks, row.bytes),
            fmt::format("{} us imply {}; the fastest link of '{}' has {}", row.median_us, GigaBytes(rate), hardware_.name,
                        GigaBytes(stated)));
    }
  }

  void CheckDuplicates() {
    std::set<OpKey> ops;
    for (const OpRow& row : bundle_.ops) {
      if (!ops.insert(row.key).second) Fault("duplicate", ToText(row.key), "stands twice; allowed: each key once");
    }
    std::set<std::tuple<LinkKind, bool, double>> links;
    for (const LinkRow& row : bundle_.links) {
      if (!links.emplace(row.kind, row.pinned, row.bytes).second)
        Fault("duplicate", fmt::format("{} {} bytes", NameOf(row.kind), row.bytes), "stands twice; allowed: each key once");
    }
    std::set<std::tuple<std::string, CollectiveKind, int32_t, double>> collectives;
    for (const CollectiveRow& row : bundle_.collectives) {
      if (!collectives.emplace(row.model, row.kind, row.ranks, row.bytes).second) {
        Fault("duplicate", fmt::format("{} of {} ranks, {} bytes", NameOf(row.kind), row.ranks, row.bytes),
              "stands twice; allowed: each key once");
      }
    }
  }

  const Bundle& bundle_;
  const Hardware& hardware_;
  std::vector<Finding> findings_;
  std::vector<std::pair<DType, double>> rates_;  // least FLOP/s of each row whose FLOPs are known
  size_t impossible_ = 0;
  double best_share_ = 0;
};

}  // namespace

std::vector<Finding> Check(const Bundle& bundle) { return Checker(bundle).Run(); }

int64_t FaultsIn(const std::vector<Finding>& findings) {
  return std::count_if(findings.begin(), findings.end(), [](const Finding& f) { return f.level == Finding::Level::kFault; });
}

Status ToStatus(const std::vector<Finding>& findings, const std::string& bundle_name, int64_t shown) {
  int64_t faults = 0;
  std::string text;
  for (const Finding& finding : findings) {
    if (finding.level != Finding::Level::kFault) continue;
    if (++faults <= shown) text += fmt::format("\n{}: {}: {}", finding.check, finding.where, finding.text);
  }
  if (faults == 0) return {};
  if (faults > shown) text += fmt::format("\nand {} more; 'tidepool profile check' lists all", faults - shown);
  return FailedPrecondition("profile '{}' has {} fault{}:{}", bundle_name, faults, faults == 1 ? "" : "s", text);
}

}  // namespace tidepool::profile
