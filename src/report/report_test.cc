#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <string>

#include "base/fd.h"
#include "report/canvas.h"
#include "report/html.h"
#include "report/plot.h"
#include "report/standalone.h"

namespace tidepool::report {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

TEST(Ticks, StepByOneTwoOrFiveTimesAPowerOfTen) {
  EXPECT_THAT(LinearTicks(0, 10, 5, Unit::kNumber), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(LinearTicks(0, 0.3, 3, Unit::kNumber), ElementsAre(0, 0.1, 0.2, ::testing::DoubleNear(0.3, 1e-12)));
  EXPECT_THAT(LinearTicks(-5, 5, 4, Unit::kNumber), ElementsAre(-5, 0, 5));
  EXPECT_THAT(LinearTicks(93, 1234, 5, Unit::kNumber), ElementsAre(500, 1000));
}

TEST(Ticks, StepByPowersOfTwoForBytes) {
  const double mib = 1024.0 * 1024;
  EXPECT_THAT(LinearTicks(0, 512 * mib, 4, Unit::kBytes), ElementsAre(0, 128 * mib, 256 * mib, 384 * mib, 512 * mib));
}

TEST(Ticks, AreFewAndFiniteWhateverTheRange) {
  EXPECT_THAT(LinearTicks(3, 3, 5, Unit::kNumber), ElementsAre(3));
  EXPECT_TRUE(LinearTicks(0, kNan, 5, Unit::kNumber).empty());
  for (const double high : {1e-9, 0.7, 3.0, 99.0, 1e6, 7.3e12}) {
    const auto ticks = LinearTicks(0, high, 5, Unit::kNumber);
    EXPECT_GE(ticks.size(), 2u) << high;
    EXPECT_LE(ticks.size(), 6u) << high;
    EXPECT_LE(ticks.back(), high * (1 + 1e-9));
  }
}

TEST(Ticks, OnALogAxisArePowersOfTenAndTheirMultiplesWhileThereIsRoom) {
  EXPECT_THAT(LogTicks(1, 10, 6), ElementsAre(1, 2, 5, 10));
  const auto many = LogTicks(1e-6, 1e2, 5);
  EXPECT_LE(many.size(), 5u);
  EXPECT_GE(many.size(), 3u);
  EXPECT_TRUE(LogTicks(0, 10, 5).empty());
}

TEST(Numbers, AreWrittenShortAndWithTheirUnit) {
  EXPECT_EQ(FormatNumber(0.25), "0.25");
  EXPECT_EQ(FormatNumber(12000), "12000");
  EXPECT_EQ(FormatNumber(1.0 / 3), "0.3333");
  EXPECT_EQ(FormatNumber(kNan), "-");
  EXPECT_EQ(FormatValue(0.00125, Unit::kSeconds), "1.25 ms");
  EXPECT_EQ(FormatValue(3, Unit::kSeconds), "3 s");
  EXPECT_EQ(FormatValue(64 << 20, Unit::kBytes), "64 MiB");
  EXPECT_EQ(FormatValue(0.995, Unit::kPercent), "99.5 %");
  EXPECT_EQ(FormatValue(17, Unit::kNumber), "17");
}

TEST(Escape, LeavesNoMarkupAndNoBrokenText) {
  EXPECT_EQ(EscapeHtml("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
  EXPECT_EQ(EscapeHtml("gr\xC3\xBC\xC3\x9F"), "gr\xC3\xBC\xC3\x9F");
  EXPECT_EQ(EscapeHtml("\xFF|\xC3"), "\xEF\xBF\xBD|\xEF\xBF\xBD");
  EXPECT_EQ(EscapeHtml("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(EscapeHtml(std::string_view("a\0b\x1b", 4)), "a b ");
}

TEST(LinePlot, DrawsOnePathPerSeriesWithLegendAxesAndMarks) {
  const std::string plot = LinePlot(
      {{.name = "p50", .x = {0, 1, 2}, .y = {0.001, 0.002, 0.003}}, {.name = "p99", .x = {0, 1, 2}, .y = {0.01, 0.02, 0.03}}},
      {.title = "Latency",
       .x = {.label = "time", .unit = Unit::kSeconds},
       .y = {.label = "latency", .unit = Unit::kSeconds},
       .marks = {{"SLO", 0.025}}});
  EXPECT_EQ(Count(plot, "<path class=\"l c"), 2u);
  EXPECT_THAT(plot, HasSubstr("latency (ms)"));
  EXPECT_THAT(plot, HasSubstr("time (s)"));
  EXPECT_THAT(plot, HasSubstr(">SLO</text>"));
  EXPECT_THAT(plot, HasSubstr("p99</span>"));
}

TEST(LinePlot, LeavesAGapWhereAValueIsNotFinite) {
  const std::string plot = LinePlot({{.name = "loss", .x = {0, 1, 2, 3}, .y = {1, kNan, 3, 4}}}, {.title = "Loss"});
  const size_t begin = plot.find("<path class=\"l c0\"");
  ASSERT_NE(begin, std::string::npos);
  EXPECT_EQ(Count(plot.substr(begin, plot.find("/>", begin) - begin), "M"), 2u);
  EXPECT_THAT(plot, Not(HasSubstr("nan")));
}

TEST(LinePlot, EscapesTitlesNamesAndHoverData) {
  const std::string evil = "</svg><script>alert(\"1\")</script>";
  const std::string plot =
      LinePlot({{.name = evil, .x = {0, 1}, .y = {0, 1}}},
               {.title = evil, .note = evil, .x = {.label = evil}, .y = {.label = evil}, .marks = {{evil, 1}}});
  EXPECT_THAT(plot, Not(HasSubstr("<script")));
  EXPECT_EQ(Count(plot, "</svg>"), 1u);
}

TEST(Plots, StandEmptyInput) {
  for (const std::string& plot :
       {LinePlot({}, {.title = "t"}), LinePlot({{.name = "a"}}, {.title = "t", .y = {.log = true}}),
        StackedAreaPlot({}, {}, {.title = "t"}), StackedBarPlot({}, {}, {.title = "t"}), Histogram({}, 10, {.title = "t"}),
        Histogram({kNan, -1, 0}, 10, {.title = "t", .x = {.log = true}})}) {
    EXPECT_THAT(plot, HasSubstr("</svg></figure>"));
    EXPECT_THAT(plot, Not(HasSubstr("nan")));
    EXPECT_THAT(plot, Not(HasSubstr("inf")));
  }
}

TEST(StackedAreaPlot, PutsEachSeriesOnTheOnesBefore) {
  const PlotOptions options{.title = "Memory", .y = {.max = 4}, .width = 640, .height = 254};
  // The frame is 200 units high: 12 to 212. Base 1 of 4 is at 162, 1 + 2 of 4 at 62.
  const std::string plot = StackedAreaPlot({0, 1}, {{.name = "a", .y = {1, 1}}, {.name = "b", .y = {2, 2}}}, options);
  EXPECT_THAT(plot, HasSubstr("class=\"a c0\" d=\"M58.0 162.0L626.0 162.0L626.0 212.0L58.0 212.0Z\""));
  EXPECT_THAT(plot, HasSubstr("class=\"a c1\" d=\"M58.0 62.0L626.0 62.0L626.0 162.0L58.0 162.0Z\""));
}

TEST(StackedBarPlot, ShowsTheLongestOfEachRunWhenThereAreTooManyBars) {
  std::vector<std::string> names;
  BarPart part{.name = "wait"};
  for (int i = 0; i < 1000; ++i) {
    names.push_back(std::to_string(i));
    part.values.push_back(i == 777 ? 50 : 1);
  }
  const std::string plot = StackedBarPlot(names, {part}, {.title = "Handovers"});
  EXPECT_LE(Count(plot, "<rect"), 260u);
  EXPECT_THAT(plot, HasSubstr("<title>777\nwait 50</title>"));
  EXPECT_THAT(plot, HasSubstr("260 of 1000 shown"));
}

TEST(Histogram, CountsEveryDrawableValueOnce) {
  const std::string plot = Histogram({1, 1, 2, 3, 10, kNan}, 3, {.title = "h"});
  EXPECT_THAT(plot, HasSubstr("1 to 4: 4</title>"));
  EXPECT_THAT(plot, HasSubstr("7 to 10: 1</title>"));
}

TEST(Thin, KeepsEndsExtremesAndGaps) {
  std::vector<double> y(10000, 1.0);
  y[4321] = 9;
  y[7000] = -9;
  y[8000] = kNan;
  const auto kept = internal::Thin(y, 100);
  EXPECT_LE(kept.size(), 102u);
  EXPECT_EQ(kept.front(), 0u);
  EXPECT_EQ(kept.back(), 9999u);
  for (const size_t index : {4321u, 7000u, 8000u}) EXPECT_THAT(kept, ::testing::Contains(index));
  EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
}

TEST(Page, HoldsEverythingInOneFileWithoutOutsideResources) {
  Page page("Demo <1>", "a & b");
  page.AddFigures({{.value = "99 %", .label = "SLO"}});
  page.AddHeading("Memory");
  page.AddPlot(LinePlot({{.name = "x", .x = {0, 1}, .y = {0, 1}}}, {.title = "t"}));
  page.AddTable({.columns = {"mode", "samples/s"},
                 .rows = {{{.text = "<b>"}, {.text = "12", .number = true, .strong = true}}, {{.text = "short"}}}});
  page.AddDetails("Options", "a <= b");
  const std::string html = page.Render();
  EXPECT_THAT(html, HasSubstr("<title>Demo &lt;1&gt;</title>"));
  EXPECT_THAT(html, HasSubstr("<td class=\"n s\">12</td>"));
  EXPECT_THAT(html, HasSubstr("a &lt;= b"));
  for (const char* outside : {"http://", "https://", "src=", "@import", "url("}) EXPECT_THAT(html, Not(HasSubstr(outside)));
  EXPECT_EQ(Count(html, "<div"), Count(html, "</div>"));
  EXPECT_EQ(Count(html, "<td"), Count(html, "</td>"));
}

TEST(Page, NamesThePathItCannotWrite) {
  const Status status = Page("t", "s").Write("/nonexistent-folder/report.html");
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(MessageOf(status), HasSubstr("/nonexistent-folder/report.html"));
}

TEST(Standalone, HoldsEachPlotWithItsTitleAndLegend) {
  const std::vector<Series> series = {{.name = "a<b", .x = {0, 1}, .y = {1, 2}}, {.name = "other", .x = {0, 1}, .y = {2, 1}}};
  const std::string svg =
      StandaloneSvg({LinePlot(series, {.title = "one & two", .note = "below"}), LinePlot(series, {.title = "second"})});
  EXPECT_THAT(svg, ::testing::StartsWith("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  for (const char* part : {"one &amp; two", ">below<", ">second<", ">a&lt;b<", ">other<", "class=\"f1\"", "class=\"l c1\""}) {
    EXPECT_THAT(svg, HasSubstr(part)) << part;
  }
  EXPECT_EQ(Count(svg, "<svg "), 3u);
  EXPECT_EQ(Count(svg, "</svg>"), 3u);
  EXPECT_THAT(svg, Not(HasSubstr("var(")));
  EXPECT_THAT(StandaloneSvg({"not a plot"}), HasSubstr("</svg>"));
}

}  // namespace
}  // namespace tidepool::report
