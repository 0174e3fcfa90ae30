// Plots as inline SVG, made without any script or outside resource. Each function returns one <figure> that html.h puts on a
// page; colours come from the page's style sheet (classes c0 ... c9), so that one plot serves light and dark.
//
// Values that are not finite are gaps. All text is escaped. Long series are thinned to what the width can show, keeping extremes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tidepool::report {

// How the numbers of an axis are written. Values are always in the base unit.
enum class Unit : uint8_t {
  kNumber,
  kBytes,    // ticks at powers of two, "MiB"
  kSeconds,  // "s", "ms" or "us", whichever suits the axis
  kPercent,  // 1.0 is 100 %
};

struct Axis {
  std::string label;
  Unit unit = Unit::kNumber;
  bool log = false;  // base 10; values <= 0 are gaps
  // NaN: from the data. Linear axes of areas and bars always include 0.
  double min = kAuto, max = kAuto;
  static constexpr double kAuto = __builtin_nan("");
};

struct Series {
  std::string name;
  std::vector<double> x, y;  // equally long; x ascending
  int color = -1;            // class c<color>; -1: by position
  bool step = false;         // holds its value until the next point
  bool dots = false;         // points instead of a line
  bool dashed = false;
};

// A horizontal line with its name, for example an SLO or a capacity.
struct Mark {
  std::string name;
  double value = 0;
};

struct PlotOptions {
  std::string title;
  std::string note;  // one line below the title
  Axis x, y;
  std::vector<Mark> marks;
  int width = 640, height = 260;  // of the view box; the figure scales with the page
};

std::string LinePlot(const std::vector<Series>& series, const PlotOptions& options);

// Series share one ascending x; each lies on the ones before it. Negative values count as 0.
std::string StackedAreaPlot(const std::vector<double>& x, const std::vector<Series>& series, const PlotOptions& options);

struct BarPart {
  std::string name;
  std::vector<double> values;  // one per bar
  int color = -1;
};
// One bar per category, its parts on each other. Labels of bars are thinned where they would overlap.
std::string StackedBarPlot(const std::vector<std::string>& categories, const std::vector<BarPart>& parts,
                           const PlotOptions& options);

// Counts of `values` in `bins` equal (log axis: equally ratioed) intervals of options.x.
std::string Histogram(const std::vector<double>& values, int bins, const PlotOptions& options);

// Ticks of a linear axis over [low, high]: steps of 1, 2 or 5 times a power of ten (powers of two for bytes), at most `most` + 1
// of them.
std::vector<double> LinearTicks(double low, double high, int most, Unit unit);
// Powers of ten, and 2 and 5 times them while there are at most `most`.
std::vector<double> LogTicks(double low, double high, int most);

// How an axis from `low` to `high` writes its numbers: value / divisor, then `suffix` once in the axis label.
struct Scale {
  double divisor = 1;
  std::string suffix;  // "MiB", "ms", "%", ""
};
Scale ScaleFor(double magnitude, Unit unit);
// A number with at most `digits` significant digits and no trailing zeros: "0.25", "1.5", "12000".
std::string FormatNumber(double value, int digits = 4);
// A value with its unit: "1.25 ms", "64 MiB", "99.5 %".
std::string FormatValue(double value, Unit unit);

}  // namespace tidepool::report
