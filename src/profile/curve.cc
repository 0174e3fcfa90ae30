#include "profile/curve.h"

#include <algorithm>
#include <cmath>

namespace tidepool::profile {

AffineFit FitAffine(const std::vector<Curve::Point>& points, double smallest_x) {
  AffineFit fit;
  double largest_x = 0;
  for (const Curve::Point& point : points) largest_x = std::max(largest_x, point.x);
  // Scaled by the largest x, so that the squares of sizes stay near one.
  const auto weight = [largest_x](const Curve::Point& point) {
    const double share = point.x / largest_x / point.y;
    return std::max(1.0, point.repeats) * share * share;
  };
  double sum = 0, mean_x = 0, mean_y = 0;
  for (const Curve::Point& point : points) {
    if (point.x < smallest_x) continue;
    ++fit.points;
    const double w = weight(point);
    sum += w;
    mean_x += w * point.x;
    mean_y += w * point.y;
  }
  if (fit.points < 2) return fit;
  mean_x /= sum;
  mean_y /= sum;
  double xx = 0, xy = 0;
  for (const Curve::Point& point : points) {
    if (point.x < smallest_x) continue;
    const double w = weight(point), dx = (point.x - mean_x) / largest_x;
    xx += w * dx * dx;
    xy += w * dx * (point.y - mean_y);
  }
  fit.slope = xx > 0 ? std::max(0.0, xy / xx / largest_x) : 0;
  fit.intercept = mean_y - fit.slope * mean_x;
  for (const Curve::Point& point : points) {
    if (point.x < smallest_x) continue;
    const double error = std::abs(fit.At(point.x) - point.y) / point.y;
    fit.mean_error += error / fit.points;
    fit.max_error = std::max(fit.max_error, error);
  }
  return fit;
}

Curve::Curve(std::vector<Point> points) : points_(std::move(points)) {
  std::stable_sort(points_.begin(), points_.end(), [](const Point& a, const Point& b) { return a.x < b.x; });
  points_.erase(std::unique(points_.begin(), points_.end(), [](const Point& a, const Point& b) { return a.x == b.x; }),
                points_.end());
  fit_ = FitAffine(points_);
}

Curve::Answer Curve::At(double x) const {
  const auto at =
      std::lower_bound(points_.begin(), points_.end(), x, [](const Point& point, double value) { return point.x < value; });
  const auto index = static_cast<int32_t>(at - points_.begin());
  if (at != points_.end() && at->x == x) return {.y = at->y, .method = Method::kExact, .left = index};
  if (points_.size() == 1) return {.y = points_[0].y, .method = Method::kOnePoint, .left = 0};
  if (at == points_.begin()) {
    const double line = at->y - fit_.slope * (at->x - x);
    return {.y = std::clamp(line, at->y * x / at->x, at->y), .method = Method::kAffine, .left = 0};
  }
  if (at == points_.end()) {
    const Point& last = points_.back();
    return {.y = last.y + fit_.slope * (x - last.x), .method = Method::kAffine, .left = index - 1};
  }
  const Point& before = *(at - 1);
  const double share = (x - before.x) / (at->x - before.x);
  return {.y = before.y + share * (at->y - before.y), .method = Method::kNeighbours, .left = index - 1, .share = share};
}

}  // namespace tidepool::profile
