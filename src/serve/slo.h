// What the server has learnt about time: how long a model computes at a batch size, how long it loads, and whether requests kept
// their objective (SLO). Pure: no clock, no threads.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/time/time.h>

#include <map>

#include "serve/types.h"

namespace tidepool::serve {

// Exponentially weighted averages of measured times. Thread-compatible.
class ComputeEstimator {
 public:
  // Weight of a new sample.
  static constexpr double kWeight = 0.2;

  void Record(ModelId model, int batch, absl::Duration compute);
  // The time to expect; zero if nothing is known of the model. Sizes that were never run are interpolated; above the largest
  // known one the time grows in proportion, below the smallest known one it is that one's.
  absl::Duration Expected(ModelId model, int batch) const;
  // The least time that can be hoped for: a request that has less left is refused early. Zero if nothing is known.
  absl::Duration Least(ModelId model, int batch) const;
  // Tells that a request was refused because of Least(). Lowers it, so that one slow sample cannot refuse for ever.
  void Doubt(ModelId model);

  void RecordLoad(ModelId model, absl::Duration load);
  absl::Duration ExpectedLoad(ModelId model) const;
  void Forget(ModelId model);

 private:
  struct Sample {
    absl::Duration mean, least;
  };
  struct Model {
    std::map<int, Sample> by_batch;
    absl::Duration load;
  };
  template <typename Pick>
  absl::Duration Lookup(ModelId model, int batch, Pick pick) const;
  absl::flat_hash_map<ModelId, Model> models_;
};

// The objective of one model and how it was kept. Thread-compatible.
class SloAccount {
 public:
  // Used for ordering while no objective is known.
  static constexpr absl::Duration kUnknown = absl::Seconds(1);

  // `given` comes from model.toml; zero: `factor` times the solo latency once that is measured.
  SloAccount() = default;
  SloAccount(absl::Duration given, double factor) : given_(given), factor_(factor) {}
  void SetSolo(absl::Duration solo) { solo_ = solo; }
  absl::Duration solo() const { return solo_; }
  // Zero while unknown.
  absl::Duration slo() const { return given_ > absl::ZeroDuration() ? given_ : solo_ * factor_; }
  // By when a request should be answered.
  absl::Time Target(absl::Time received, absl::Time deadline) const;
  // Whether an answer after `latency` keeps the objective. Without one every answer does.
  bool Within(absl::Duration latency) const { return slo() == absl::ZeroDuration() || latency <= slo(); }

 private:
  absl::Duration given_, solo_;
  double factor_ = 4;
};

}  // namespace tidepool::serve
