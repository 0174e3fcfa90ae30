#include "report/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/canvas.h"
#include "report/html.h"

namespace tidepool::report {
namespace {

using internal::Canvas;
using internal::Range;
using internal::Thin;

constexpr size_t kMaxPoints = 600;  // of a line
constexpr size_t kMaxDots = 4000;
constexpr size_t kMaxBars = 260;
constexpr int kColors = 10;

int ColorOf(int color, size_t position) { return color >= 0 ? color % kColors : static_cast<int>(position % kColors); }

Series Pick(const Series& series, const std::vector<size_t>& indices) {
  Series picked = series;
  picked.x.clear();
  picked.y.clear();
  for (const size_t i : indices) {
    picked.x.push_back(series.x[i]);
    picked.y.push_back(series.y[i]);
  }
  return picked;
}

std::string LinePath(const Canvas& canvas, const Series& series) {
  std::string path;
  bool pen_down = false;
  for (size_t i = 0; i < series.x.size(); ++i) {
    if (!canvas.Drawable(series.x[i], series.y[i])) {
      pen_down = false;
      continue;
    }
    const double x = canvas.X(series.x[i]), y = canvas.Y(series.y[i]);
    if (!pen_down) {
      path += fmt::format("M{:.1f} {:.1f}", x, y);
    } else if (series.step) {
      path += fmt::format("H{:.1f}V{:.1f}", x, y);
    } else {
      path += fmt::format("L{:.1f} {:.1f}", x, y);
    }
    pen_down = true;
  }
  return path;
}

std::string Dots(const Canvas& canvas, const Series& series) {
  std::string path;
  for (size_t i = 0; i < series.x.size(); ++i) {
    if (!canvas.Drawable(series.x[i], series.y[i])) continue;
    path += fmt::format("M{:.1f} {:.1f}m-2 0a2 2 0 1 0 4 0a2 2 0 1 0-4 0", canvas.X(series.x[i]), canvas.Y(series.y[i]));
  }
  return path;
}

}  // namespace

std::string LinePlot(const std::vector<Series>& series, const PlotOptions& options) {
  Range x, y;
  std::vector<Series> drawn;
  for (size_t i = 0; i < series.size(); ++i) {
    Series one = series[i];
    one.x.resize(std::min(one.x.size(), one.y.size()));
    one.y.resize(one.x.size());
    one.color = ColorOf(one.color, i);
    drawn.push_back(Pick(one, Thin(one.y, one.dots ? kMaxDots : kMaxPoints)));
    for (const double value : drawn.back().x) {
      if (!options.x.log || value > 0) x.Add(value);
    }
    for (const double value : drawn.back().y) {
      if (!options.y.log || value > 0) y.Add(value);
    }
  }
  Canvas canvas(options, x, y, false);
  for (const Series& one : drawn) {
    const std::string path = one.dots ? Dots(canvas, one) : LinePath(canvas, one);
    if (!path.empty()) {
      canvas.Add(
          fmt::format("<path class=\"{} c{}{}\" d=\"{}\"/>", one.dots ? "d" : "l", one.color, one.dashed ? " dash" : "", path));
    }
    if (drawn.size() > 1 || !one.name.empty()) canvas.AddLegend(one.name, one.color);
  }
  // A cloud of dots has no single value at one x.
  std::vector<Series> lines;
  std::copy_if(drawn.begin(), drawn.end(), std::back_inserter(lines), [](const Series& one) { return !one.dots; });
  if (!lines.empty()) canvas.SetHover(lines, false);
  return canvas.Finish();
}

std::string StackedAreaPlot(const std::vector<double>& x, const std::vector<Series>& series, const PlotOptions& options) {
  const auto value_at = [&](const Series& one, size_t i) {
    return i < one.y.size() && std::isfinite(one.y[i]) ? std::max(0.0, one.y[i]) : 0.0;
  };
  std::vector<double> totals(x.size(), 0.0);
  for (const Series& one : series) {
    for (size_t i = 0; i < x.size(); ++i) totals[i] += value_at(one, i);
  }
  const std::vector<size_t> indices = Thin(totals, kMaxPoints);
  Range x_range, y_range;
  y_range.Add(0);
  for (const size_t i : indices) {
    x_range.Add(x[i]);
    y_range.Add(totals[i]);
  }
  Canvas canvas(options, x_range, y_range, true);
  std::vector<double> base(indices.size(), 0.0);
  std::vector<Series> hover;
  for (size_t s = 0; s < series.size(); ++s) {
    Series one{.name = series[s].name, .color = ColorOf(series[s].color, s), .step = series[s].step};
    std::string upper, lower;
    for (size_t k = 0; k < indices.size(); ++k) {
      const double value = value_at(series[s], indices[k]);
      one.x.push_back(x[indices[k]]);
      one.y.push_back(value);
      const double px = canvas.X(x[indices[k]]);
      if (k > 0 && one.step) {
        upper += fmt::format("L{:.1f} {:.1f}", px, canvas.Y(base[k - 1] + one.y[k - 1]));
        lower = fmt::format("L{:.1f} {:.1f}", px, canvas.Y(base[k - 1])) + lower;
      }
      upper += fmt::format("{}{:.1f} {:.1f}", k == 0 ? "M" : "L", px, canvas.Y(base[k] + value));
      lower = fmt::format("L{:.1f} {:.1f}", px, canvas.Y(base[k])) + lower;
    }
    for (size_t k = 0; k < indices.size(); ++k) base[k] += one.y[k];
    if (!upper.empty()) canvas.Add(fmt::format("<path class=\"a c{}\" d=\"{}{}Z\"/>", one.color, upper, lower));
    canvas.AddLegend(one.name, one.color);
    hover.push_back(std::move(one));
  }
  canvas.SetHover(hover, true);
  return canvas.Finish();
}

std::string StackedBarPlot(const std::vector<std::string>& categories, const std::vector<BarPart>& parts,
                           const PlotOptions& options) {
  const auto value_at = [](const BarPart& part, size_t i) {
    return i < part.values.size() && std::isfinite(part.values[i]) ? std::max(0.0, part.values[i]) : 0.0;
  };
  std::vector<double> totals(categories.size(), 0.0);
  for (const BarPart& part : parts) {
    for (size_t i = 0; i < categories.size(); ++i) totals[i] += value_at(part, i);
  }
  // Too many bars for the width: the longest of each run stands for it.
  std::vector<size_t> shown;
  const size_t groups = std::min(categories.size(), kMaxBars);
  for (size_t group = 0; group < groups; ++group) {
    const size_t begin = group * categories.size() / groups, end = (group + 1) * categories.size() / groups;
    shown.push_back(static_cast<size_t>(std::max_element(totals.begin() + begin, totals.begin() + end) - totals.begin()));
  }
  PlotOptions adjusted = options;
  if (groups < categories.size()) {
    adjusted.note +=
        fmt::format("{}{} of {} shown: the longest of each run", adjusted.note.empty() ? "" : "; ", groups, categories.size());
  }
  Range y;
  y.Add(0);
  std::vector<std::string> names;
  for (const size_t i : shown) {
    y.Add(totals[i]);
    names.push_back(categories[i]);
  }
  Canvas canvas(adjusted, {}, y, true);
  const double width = (canvas.right() - canvas.left()) / static_cast<double>(std::max<size_t>(1, shown.size()));
  // Few bars do not become walls.
  const double gap = width > 48 ? width - 40 : std::min(6.0, width * 0.18);
  for (size_t k = 0; k < shown.size(); ++k) {
    const double left = canvas.left() + static_cast<double>(k) * width + gap / 2;
    double base = 0;
    std::string title = categories[shown[k]];
    for (const BarPart& part : parts) {
      if (value_at(part, shown[k]) > 0)
        title += fmt::format("\n{} {}", part.name, FormatValue(value_at(part, shown[k]), options.y.unit));
    }
    std::string bar;
    for (size_t p = 0; p < parts.size(); ++p) {
      const double value = value_at(parts[p], shown[k]);
      if (value <= 0) continue;
      const double top = canvas.Y(base + value), bottom = canvas.Y(base);
      base += value;
      bar += fmt::format("<rect class=\"a c{}\" x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\"/>",
                         ColorOf(parts[p].color, p), left, top, width - gap, std::max(0.0, bottom - top));
    }
    if (!bar.empty()) canvas.Add(fmt::format("<g><title>{}</title>{}</g>", EscapeHtml(title), bar));
  }
  for (size_t p = 0; p < parts.size(); ++p) {
    if (parts.size() > 1 || !parts[p].name.empty()) canvas.AddLegend(parts[p].name, ColorOf(parts[p].color, p));
  }
  if (names.empty()) names.push_back("");
  canvas.SetCategories(std::move(names));
  return canvas.Finish();
}

std::string Histogram(const std::vector<double>& values, int bins, const PlotOptions& options) {
  Range x;
  for (const double value : values) {
    if (!options.x.log || value > 0) x.Add(value);
  }
  bins = std::clamp(bins, 1, 200);
  const bool log = options.x.log;
  const auto measure = [log](double value) { return log ? std::log10(value) : value; };
  const double low = x.empty ? 0 : measure(x.low), high = x.empty ? 1 : measure(x.high);
  const double width = high > low ? (high - low) / bins : 1;
  std::vector<double> counts(static_cast<size_t>(bins), 0.0);
  for (const double value : values) {
    if (!std::isfinite(value) || (log && value <= 0)) continue;
    const auto bin = static_cast<size_t>(std::clamp((measure(value) - low) / width, 0.0, bins - 1.0));
    counts[bin] += 1;
  }
  Range y;
  y.Add(0);
  for (const double count : counts) y.Add(count);
  Canvas canvas(options, x, y, true);
  for (size_t bin = 0; bin < counts.size(); ++bin) {
    if (counts[bin] == 0) continue;
    const auto value_of = [&](double edge) { return log ? std::pow(10, edge) : edge; };
    const double from = value_of(low + width * static_cast<double>(bin)),
                 to = value_of(low + width * static_cast<double>(bin + 1));
    const double left = canvas.X(from), right = std::min(canvas.X(to), canvas.right()), top = canvas.Y(counts[bin]);
    canvas.Add(fmt::format(
        "<g><title>{} to {}: {}</title><rect class=\"a c0\" x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\"/></g>",
        FormatValue(from, options.x.unit), FormatValue(to, options.x.unit), counts[bin], left + 0.5, top,
        std::max(0.5, right - left - 1), canvas.bottom() - top));
  }
  return canvas.Finish();
}

}  // namespace tidepool::report
