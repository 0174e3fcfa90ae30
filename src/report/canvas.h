// The frame that every plot shares: margins, axes, grid, marks, legend and the data for the pointer. Internal to report/.
#pragma once

#include <string>
#include <vector>

#include "report/plot.h"

namespace tidepool::report::internal {

struct Range {
  double low = 0, high = 0;
  bool empty = true;
  void Add(double value);  // ignores what is not finite
};

// Maps data to the view box of one plot and collects its SVG. Thread-compatible.
class Canvas {
 public:
  // `x` and `y` are the data's ranges; options and marks may widen or fix them.
  Canvas(const PlotOptions& options, Range x, Range y, bool zero_based);

  double X(double value) const;
  double Y(double value) const;
  // Whether a point can be drawn at all: finite, and above zero on a log axis.
  bool Drawable(double x, double y) const;
  double left() const { return left_; }
  double right() const { return right_; }
  double top() const { return top_; }
  double bottom() const { return bottom_; }
  const Scale& x_scale() const { return x_scale_; }
  const Scale& y_scale() const { return y_scale_; }

  // Bars: names under the axis instead of numbers.
  void SetCategories(std::vector<std::string> names) { categories_ = std::move(names); }
  void Add(const std::string& svg) { content_ += svg; }
  void AddLegend(const std::string& name, int color);
  void SetHover(const std::vector<Series>& series, bool skip_zeros);
  // The finished <figure>.
  std::string Finish() const;

 private:
  struct Line {
    double low = 0, high = 1;  // in the axis's own measure: log10 for log axes
    bool log = false;
    double At(double value) const;
  };
  static Line Resolve(const Axis& axis, Range range, bool zero_based);
  std::string DrawAxes() const;
  std::string DrawMarks() const;

  const PlotOptions& options_;
  Line x_, y_;
  Scale x_scale_, y_scale_;
  double left_, right_, top_, bottom_;
  std::vector<std::string> categories_;
  std::string content_, legend_, hover_;
};

// Indices of at most about `most` points that keep first, last and the extremes of y within equal runs.
std::vector<size_t> Thin(const std::vector<double>& y, size_t most);

}  // namespace tidepool::report::internal
