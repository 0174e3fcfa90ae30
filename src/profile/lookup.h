// Answers from a bundle: how long an op, a transfer or a collective takes, and what memory an op holds.
//
// An answer is the row for exactly this batch, else a straight line between the two neighbouring batches, else the affine fit
// beyond them, else the single row that there is, scaled, else a roofline from the caller's FLOPs and bytes and the hardware's
// rates. Each says which, and what error to expect of it.
//
// Finding is slow (text); do it once and keep the handle, whose At does no text work, allocates nothing and takes no lock.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "base/status.h"
#include "profile/bundle.h"
#include "profile/curve.h"

namespace tidepool::profile {

// How an answer was made, from the best to the worst.
enum class Method : uint8_t {
  kRow,         // a row for this key
  kNeighbours,  // between the rows of the two neighbouring batches
  kAffine,      // beyond the rows, by the affine fit
  kScaledRow,   // the only row, scaled by the roofline, or by the batch where no cost is known
  kRoofline,    // no row: from FLOPs, bytes and the hardware's rates
};
std::string_view NameOf(Method method);

// What the caller knows of an op, per device, for estimates where nothing was measured. For `batch` samples the op does
// flops_per_sample * batch FLOPs, moves fixed_bytes + bytes_per_sample * batch to and from device memory, and starts `launches`
// kernels. Zero: not known.
struct OpCost {
  double flops_per_sample = 0;  // of the phase that is asked for: a training step is about three times the forward pass
  double bytes_per_sample = 0;
  double fixed_bytes = 0;  // weights, whatever the batch
  double launches = 1;
  OpMemory fixed_memory;
  OpMemory memory_per_sample;
  bool known() const { return flops_per_sample > 0 || bytes_per_sample > 0 || fixed_bytes > 0; }
};

struct TimeEstimate {
  double median_us = 0;
  double p10_us = 0, p90_us = 0;  // equal to the median where no spread was recorded
  double first_us = 0;            // the first run with its warm-up; equal to the median where it was not recorded
  Origin origin = Origin::kMeasured;
  Method method = Method::kRow;
  double error = 0;  // relative error to expect: spread of the row, error of the fit, or kPriorError
};
// The error that is stated for estimates that no measurement backs.
inline constexpr double kPriorError = 0.25;
// Standard deviation of ln(time) that gives the recorded spread, for drawing times from a log-normal distribution.
double JitterSigma(const TimeEstimate& estimate);

struct MemoryEstimate {
  OpMemory memory;  // zero where neither a row nor the cost knows it
  Origin origin = Origin::kMeasured;
  bool known = false;  // some field is
};

namespace internal {
struct OpCurves;
}

// An op at any batch. Copyable and small; valid while its Lookup lives. Thread-safe.
class OpTimes {
 public:
  // batch >= 1.
  TimeEstimate At(int64_t batch) const;
  MemoryEstimate MemoryAt(int64_t batch) const;
  // Null if there are fewer than two rows.
  const AffineFit* fit() const;
  bool has_rows() const { return curves_ != nullptr; }
  bool has_prior() const { return has_prior_; }

 private:
  friend class Lookup;
  double PriorUs(double batch) const;

  const internal::OpCurves* curves_ = nullptr;
  OpCost cost_;
  bool has_prior_ = false;
  double launch_us_ = 0, us_per_flop_ = 0, us_per_byte_ = 0;
};

// A transfer or a collective of any size. As OpTimes.
class SizeTimes {
 public:
  TimeEstimate At(double bytes) const;
  const AffineFit* fit() const;

 private:
  friend class Lookup;
  const Curve* curve_ = nullptr;
  bool measured_ = true;
  double factor_ = 1;  // the rows are of something else that takes so many times less
  double prior_latency_us_ = 0, prior_us_per_byte_ = 0;
};

// Thread-safe once made.
class Lookup {
 public:
  explicit Lookup(std::shared_ptr<const Bundle> bundle);
  ~Lookup();
  Lookup(const Lookup&) = delete;

  const Bundle& bundle() const { return *bundle_; }

  // The op of `key`, whose batch is ignored. Where `cost` is not known and the key names a whole network of the table in
  // networks.h, that network's cost is used. NOT_FOUND if there are neither rows nor a cost, or no peak rate for the dtype: the
  // message names the nearest model of the bundle.
  StatusOr<OpTimes> Find(const OpKey& key, const OpCost& cost = {}) const;
  // NOT_FOUND if there are no rows and the hardware has no such link. A pageable transfer without rows is that of pinned memory,
  // and a copy of the host at half the memory rate of the link: an estimate.
  StatusOr<SizeTimes> FindLink(LinkKind kind, bool pinned = true) const;
  // `bytes` are those of one device's message. Rows of `model` are preferred to rows for any model. Without rows: a ring over the
  // peer links (docs/profile.md has the formulas), or over the network where `over_network`. NOT_FOUND as above.
  StatusOr<SizeTimes> FindCollective(CollectiveKind kind, int32_t ranks, const std::string& model = {},
                                     bool over_network = false) const;
  // Time to pin a host buffer. NOT_FOUND without rows.
  StatusOr<SizeTimes> FindPin() const;

 private:
  using OpId = std::tuple<std::string, std::string, Phase, DType, int32_t, int32_t>;
  std::shared_ptr<const Bundle> bundle_;
  std::map<OpId, std::unique_ptr<internal::OpCurves>> ops_;
  std::map<std::pair<LinkKind, bool>, Curve> links_;
  std::map<std::tuple<std::string, CollectiveKind, int32_t>, Curve> collectives_;
  Curve pins_;
};

}  // namespace tidepool::profile
