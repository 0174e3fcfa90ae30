// A measured quantity over batch or bytes: exact values, straight lines between neighbours, and an affine law y = a + b x beyond.
//
// The law is fitted by weighted least squares. The weight of a point is (x / y)^2 times its repeats: relative errors count, and
// large x count more, because small batches are bound by launches and do not lie on the line (docs/profile.md has the comparison
// of weights on measured tables). Thread-compatible; immutable after construction. Internal to profile, but for AffineFit.
#pragma once

#include <cstdint>
#include <vector>

namespace tidepool::profile {

// y = intercept + slope * x over `points` points; slope is never negative. Errors are relative: |fit - y| / y.
struct AffineFit {
  double intercept = 0;
  double slope = 0;
  double mean_error = 0;
  double max_error = 0;
  int32_t points = 0;
  double At(double x) const { return intercept + slope * x; }
};

class Curve {
 public:
  struct Point {
    double x = 0;  // above zero
    double y = 0;  // above zero
    double repeats = 1;
  };
  enum class Method : uint8_t {
    kExact,
    kNeighbours,  // between two points
    kAffine,      // beyond the points: through the last one with the slope of the fit
    kOnePoint,    // there is only one point, and x is another: y is its value, unscaled
  };
  struct Answer {
    double y = 0;
    Method method = Method::kExact;
    // y lies between points `left` and `left + 1`, at `share` of the way; share is 0 beyond the ends, where `left` is the end.
    int32_t left = 0;
    double share = 0;
  };

  Curve() = default;
  explicit Curve(std::vector<Point> points);  // any order; of equal x the first one counts

  bool empty() const { return points_.empty(); }
  const std::vector<Point>& points() const { return points_; }
  // Meaningful with two points or more.
  const AffineFit& fit() const { return fit_; }
  // Not to be called on an empty curve. Below the first point the answer lies between y0 * x / x0 and y0: it never takes longer
  // than more work does, and never less time per unit.
  Answer At(double x) const;

 private:
  std::vector<Point> points_;
  AffineFit fit_;
};

// The fit over points with x >= smallest_x. fewer than two points: `points` says so and the rest is zero.
AffineFit FitAffine(const std::vector<Curve::Point>& points, double smallest_x = 0);

}  // namespace tidepool::profile
