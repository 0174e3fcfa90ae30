#include "report/canvas.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/json.h"
#include "report/html.h"

namespace tidepool::report::internal {
namespace {

constexpr double kLeft = 58, kRight = 14, kTop = 12, kBottom = 42;
constexpr int kXTicks = 7, kYTicks = 5;

std::string AxisLabel(const Axis& axis, const Scale& scale) {
  if (scale.suffix.empty()) return axis.label;
  return axis.label.empty() ? scale.suffix : fmt::format("{} ({})", axis.label, scale.suffix);
}

// JSON has no NaN: a gap is null. Six digits are more than a screen shows.
nlohmann::json Numbers(const std::vector<double>& values) {
  nlohmann::json list = nlohmann::json::array();
  for (const double value : values) {
    if (std::isfinite(value)) {
      list.push_back(std::stod(fmt::format("{:.6g}", value)));
    } else {
      list.push_back(nullptr);
    }
  }
  return list;
}

}  // namespace

void Range::Add(double value) {
  if (!std::isfinite(value)) return;
  low = empty ? value : std::min(low, value);
  high = empty ? value : std::max(high, value);
  empty = false;
}

double Canvas::Line::At(double value) const { return ((log ? std::log10(value) : value) - low) / (high - low); }

Canvas::Line Canvas::Resolve(const Axis& axis, Range range, bool zero_based) {
  Line line{.log = axis.log};
  if (range.empty) range = {.low = axis.log ? 1.0 : 0.0, .high = axis.log ? 10.0 : 1.0, .empty = false};
  if (std::isfinite(axis.min)) range.low = axis.min;
  if (std::isfinite(axis.max)) range.high = axis.max;
  if (axis.log) {
    range.high = range.high > 0 ? range.high : 1;
    range.low = range.low > 0 ? range.low : range.high / 1000;
    line.low = std::log10(range.low);
    line.high = std::log10(range.high);
    if (line.high - line.low < 0.3) {
      line.low -= 0.2;
      line.high += 0.2;
    }
    return line;
  }
  if (zero_based) {
    if (!std::isfinite(axis.min)) range.low = std::min(range.low, 0.0);
    if (!std::isfinite(axis.max)) range.high = std::max(range.high, 0.0);
  }
  if (range.high <= range.low) {
    const double pad = range.low == 0 ? 1 : std::fabs(range.low) * 0.1;
    range.high = range.low + pad;
    if (range.low != 0 && !zero_based) range.low -= pad;
  }
  line.low = range.low;
  line.high = range.high;
  return line;
}

Canvas::Canvas(const PlotOptions& options, Range x, Range y, bool zero_based)
    : options_(options),
      left_(options.width > 800 ? kLeft + 12 : kLeft),
      right_(options.width - kRight),
      top_(kTop),
      bottom_(options.height - kBottom) {
  for (const Mark& mark : options.marks) y.Add(mark.value);
  // Head room, so that a curve does not stick to the frame; not where the caller fixed the end.
  if (!options.y.log && !y.empty && y.high > 0) y.high *= 1.04;
  x_ = Resolve(options.x, x, false);
  y_ = Resolve(options.y, y, zero_based);
  x_scale_ = ScaleFor(options.x.log ? std::pow(10, (x_.low + x_.high) / 2) : std::max(std::fabs(x_.low), std::fabs(x_.high)),
                      options.x.unit);
  y_scale_ = ScaleFor(options.y.log ? std::pow(10, (y_.low + y_.high) / 2) : std::max(std::fabs(y_.low), std::fabs(y_.high)),
                      options.y.unit);
}

double Canvas::X(double value) const { return left_ + x_.At(value) * (right_ - left_); }

double Canvas::Y(double value) const {
  // Values outside a fixed range stay inside the frame.
  return bottom_ - std::clamp(y_.At(value), 0.0, 1.0) * (bottom_ - top_);
}

bool Canvas::Drawable(double x, double y) const {
  return std::isfinite(x) && std::isfinite(y) && (!x_.log || x > 0) && (!y_.log || y > 0);
}

void Canvas::AddLegend(const std::string& name, int color) {
  legend_ += fmt::format("<span><i class=\"c{}\"></i>{}</span>", color, EscapeHtml(name));
}

void Canvas::SetHover(const std::vector<Series>& series, bool skip_zeros) {
  const auto axis = [](const Line& line, const Scale& scale, const std::string& label) {
    return nlohmann::json{{"a", line.low},      {"b", line.high},    {"g", line.log},
                          {"d", scale.divisor}, {"u", scale.suffix}, {"n", label}};
  };
  nlohmann::json data = {{"w", options_.width},
                         {"l", left_},
                         {"r", right_},
                         {"x", axis(x_, x_scale_, options_.x.label)},
                         {"y", axis(y_, y_scale_, "")},
                         {"k", skip_zeros},
                         {"s", nlohmann::json::array()}};
  for (const Series& one : series) {
    data["s"].push_back({{"n", one.name}, {"c", one.color}, {"x", Numbers(one.x)}, {"y", Numbers(one.y)}});
  }
  hover_ = data.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string Canvas::DrawAxes() const {
  std::string svg;
  const auto y_ticks =
      y_.log ? LogTicks(std::pow(10, y_.low), std::pow(10, y_.high), kYTicks + 2)
             : LinearTicks(y_.low / (options_.y.unit == Unit::kBytes ? 1 : y_scale_.divisor),
                           y_.high / (options_.y.unit == Unit::kBytes ? 1 : y_scale_.divisor), kYTicks, options_.y.unit);
  for (const double tick : y_ticks) {
    const double value = y_.log || options_.y.unit == Unit::kBytes ? tick : tick * y_scale_.divisor;
    const double y = Y(value);
    svg += fmt::format(
        "<path class=\"g\" d=\"M{:.1f} {:.1f}H{:.1f}\"/><text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", left_, y,
        right_, left_ - 6, y + 4, EscapeHtml(FormatNumber(value / y_scale_.divisor)));
  }
  if (categories_.empty()) {
    const auto x_ticks = x_.log ? LogTicks(std::pow(10, x_.low), std::pow(10, x_.high), kXTicks)
                                : LinearTicks(x_.low / x_scale_.divisor, x_.high / x_scale_.divisor, kXTicks, Unit::kNumber);
    for (const double tick : x_ticks) {
      const double value = x_.log ? tick : tick * x_scale_.divisor;
      svg += fmt::format(
          "<path class=\"ax\" d=\"M{0:.1f} {1:.1f}v4\"/><text x=\"{0:.1f}\" y=\"{2:.1f}\" text-anchor=\"middle\">{3}</text>",
          X(value), bottom_, bottom_ + 17, EscapeHtml(FormatNumber(value / x_scale_.divisor)));
    }
  } else {
    // A label needs about 11 units per letter on a phone.
    size_t longest = 1;
    for (const std::string& name : categories_) longest = std::max(longest, name.size());
    const double width = (right_ - left_) / static_cast<double>(categories_.size());
    const size_t every = std::max<size_t>(1, static_cast<size_t>(std::ceil(static_cast<double>(longest + 1) * 11.0 / width)));
    for (size_t i = 0; i < categories_.size(); i += every) {
      svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                         left_ + (static_cast<double>(i) + 0.5) * width, bottom_ + 17, EscapeHtml(categories_[i]));
    }
  }
  svg += fmt::format("<path class=\"ax\" d=\"M{:.1f} {:.1f}H{:.1f}\"/>", left_, bottom_, right_);
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>", (left_ + right_) / 2, options_.height - 6,
                     EscapeHtml(AxisLabel(options_.x, x_scale_)));
  svg += fmt::format("<text transform=\"translate(13 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
                     (top_ + bottom_) / 2, EscapeHtml(AxisLabel(options_.y, y_scale_)));
  return svg;
}

std::string Canvas::DrawMarks() const {
  std::string svg;
  for (const Mark& mark : options_.marks) {
    if (!std::isfinite(mark.value) || (y_.log && mark.value <= 0)) continue;
    const double y = Y(mark.value);
    svg += fmt::format(
        "<path class=\"m\" d=\"M{:.1f} {:.1f}H{:.1f}\"/><text class=\"mt\" x=\"{:.1f}\" y=\"{:.1f}\" "
        "text-anchor=\"end\">{}</text>",
        left_, y, right_, right_ - 2, y < top_ + 16 ? y + 14 : y - 5, EscapeHtml(mark.name));
  }
  return svg;
}

std::string Canvas::Finish() const {
  std::string caption = fmt::format("<figcaption><b>{}</b>", EscapeHtml(options_.title));
  if (!options_.note.empty()) caption += fmt::format("<span class=\"note\">{}</span>", EscapeHtml(options_.note));
  caption += "</figcaption>";
  if (!legend_.empty()) caption += fmt::format("<div class=\"legend\">{}</div>", legend_);
  return fmt::format(
      "<figure class=\"plot\">{}<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\"{}>{}{}{}"
      "<path class=\"ax\" d=\"M{:.1f} {:.1f}H{:.1f}\"/><line class=\"cur\" x1=\"0\" x2=\"0\" y1=\"{:.1f}\" "
      "y2=\"{:.1f}\"/></svg></figure>",
      caption, options_.width, options_.height, EscapeHtml(options_.title),
      hover_.empty() ? "" : fmt::format(" data-hover=\"{}\"", EscapeHtml(hover_)), DrawAxes(), content_, DrawMarks(), left_,
      bottom_, right_, top_, bottom_);
}

std::vector<size_t> Thin(const std::vector<double>& y, size_t most) {
  std::vector<size_t> kept;
  const size_t count = y.size();
  if (count <= most || most < 4) {
    for (size_t i = 0; i < count; ++i) kept.push_back(i);
    return kept;
  }
  const size_t runs = most / 2;
  kept.push_back(0);
  for (size_t run = 0; run < runs; ++run) {
    const size_t begin = run * count / runs, end = (run + 1) * count / runs;
    size_t low = begin, high = begin;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(y[i])) {
        // A gap must stay a gap.
        low = high = i;
        break;
      }
      if (y[i] < y[low]) low = i;
      if (y[i] > y[high]) high = i;
    }
    for (const size_t i : {std::min(low, high), std::max(low, high)}) {
      if (i > kept.back()) kept.push_back(i);
    }
  }
  if (kept.back() != count - 1) kept.push_back(count - 1);
  return kept;
}

}  // namespace tidepool::report::internal
