#include "report/standalone.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

namespace tidepool::report {
namespace {

// Viewers of SVG files rarely know variables, so every colour stands where it is used.
constexpr std::string_view kColors[] = {"#1f77b4", "#e8833a", "#2a9d76", "#c94f7c", "#7b62b8",
                                        "#b08f26", "#4aa3c7", "#8a5a44", "#7d8b33", "#9aa3a8"};
constexpr double kTitle = 18, kLine = 16, kGap = 14;
constexpr double kLetter = 6.4;  // a wide guess at 11.5 units a line

// What stands between two marks; empty if one is missing.
std::string_view Between(std::string_view text, std::string_view begin, std::string_view end) {
  const size_t from = text.find(begin);
  if (from == std::string_view::npos) return {};
  const size_t to = text.find(end, from + begin.size());
  return to == std::string_view::npos ? std::string_view() : text.substr(from + begin.size(), to - from - begin.size());
}

// (class, escaped name) of each thing in the legend.
std::vector<std::pair<std::string, std::string>> LegendOf(std::string_view figure) {
  constexpr std::string_view kItem = "<span><i class=\"";
  std::vector<std::pair<std::string, std::string>> items;
  std::string_view rest = Between(figure, "<div class=\"legend\">", "</div>");
  for (size_t at = rest.find(kItem); at != std::string_view::npos; at = rest.find(kItem)) {
    rest.remove_prefix(at);
    items.emplace_back(Between(rest, kItem, "\""), Between(rest, "</i>", "</span>"));
    rest.remove_prefix(kItem.size());
  }
  return items;
}

std::string Text(double x, double y, std::string_view style, std::string_view escaped) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\"{}>{}</text>", x, y, style, escaped);
}

struct Part {
  std::string svg;
  double width = 0, height = 0;
};

// `figure` is what Canvas::Finish gives.
Part PartOf(std::string_view figure, double top) {
  Part part;
  const std::string_view box = Between(figure, "viewBox=\"0 0 ", "\"");
  const size_t space = box.find(' ');
  double width = 640, height = 260;
  if (space != std::string_view::npos) {
    std::from_chars(box.data(), box.data() + space, width);
    std::from_chars(box.data() + space + 1, box.data() + box.size(), height);
  }
  double y = top + kTitle;
  part.svg += Text(6, y, " class=\"t\"", Between(figure, "<figcaption><b>", "</b>"));
  const std::string_view note = Between(figure, "<span class=\"note\">", "</span>");
  if (!note.empty()) part.svg += Text(6, y += kLine, "", note);
  double x = 6;
  const auto legend = LegendOf(figure);
  if (!legend.empty()) y += kLine;
  for (const auto& [color, name] : legend) {
    const double needed = 22 + kLetter * static_cast<double>(name.size());
    if (x > 6 && x + needed > width) {
      x = 6;
      y += kLine;
    }
    part.svg += fmt::format("<rect class=\"f{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"11\" height=\"11\" rx=\"3\"/>",
                            color.empty() ? "0" : color.substr(1), x, y - 10);
    part.svg += Text(x + 16, y, "", name);
    x += needed;
  }
  const size_t open = figure.find("<svg ");
  const size_t body = open == std::string_view::npos ? open : figure.find('>', open);
  const size_t end = figure.rfind("</svg>");
  if (body != std::string_view::npos && end != std::string_view::npos && end > body) {
    part.svg += fmt::format("<svg x=\"0\" y=\"{0:.1f}\" width=\"{1:g}\" height=\"{2:g}\" viewBox=\"0 0 {1:g} {2:g}\">{3}</svg>",
                            y + 4, width, height, figure.substr(body + 1, end - body - 1));
  }
  part.width = width;
  part.height = y + 4 + height - top;
  return part;
}

}  // namespace

std::string StandaloneStyle() {
  std::string style =
      "text{font:11.5px system-ui,\"DejaVu Sans\",sans-serif;fill:#667078}text.t{font-size:13px;font-weight:600;fill:#1d2125}"
      "text.i{fill:#fff}.bg{fill:#fff}.g{stroke:#e9ebec}.ax{stroke:#667078}.l{fill:none;stroke-width:1.8;stroke-linejoin:round}"
      ".a{fill-opacity:.82}.d{fill-opacity:.5}.dash{stroke-dasharray:5 4}.m{stroke:#c0341d;stroke-width:1.4;stroke-dasharray:6 "
      "4;fill:none}"
      "text.mt{fill:#c0341d}.cur{visibility:hidden}";
  for (size_t i = 0; i < std::size(kColors); ++i) {
    style += fmt::format(".f{0},.a.c{0},.d.c{0}{{fill:{1}}}.l.c{0}{{stroke:{1}}}", i, kColors[i]);
  }
  return "<style>" + style + "</style>";
}

std::string StandaloneSvg(const std::vector<std::string>& plots) {
  std::string content;
  double width = 0, height = 0;
  for (const std::string& plot : plots) {
    const Part part = PartOf(plot, height);
    content += part.svg;
    width = std::max(width, part.width);
    height += part.height + kGap;
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} {1:g}\">{2}"
      "<rect class=\"bg\" width=\"{0:g}\" height=\"{1:g}\"/>{3}</svg>\n",
      width, height, StandaloneStyle(), content);
}

}  // namespace tidepool::report
