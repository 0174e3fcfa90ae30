// Against the published runs of the GPU emulator. Where they are not beside the project (TIDEPOOL_REFERENCE_DIR), the comparisons
// skip; the figures themselves are run all the same.
#include "data/stalls/figures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "data/stalls/published.h"
#include "profile/testing.h"

namespace tidepool::data::stalls {
namespace {

using ::testing::HasSubstr;

// Ten million events; the same code runs in the quick figures below.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kTooSlow = true;
#else
constexpr bool kTooSlow = false;
#endif

class Published : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kTooSlow) GTEST_SKIP() << "the full figures take too long under a sanitizer";
    options_.reference = testing::ReferenceFolder("emulator", TIDEPOOL_SOURCE_DIR);
    if (options_.reference.empty()) GTEST_SKIP() << "no published runs; TIDEPOOL_REFERENCE_DIR names their root";
  }
  // Rows outside of the tolerance.
  std::vector<std::string> Misses(const StatusOr<Figure>& figure) {
    EXPECT_TRUE(figure.ok()) << ToString(figure.status());
    std::vector<std::string> misses;
    if (!figure.ok()) return misses;
    for (const FigureSeries& series : figure->series) {
      for (const FigureRow& row : series.rows) {
        EXPECT_TRUE(row.compared);
        if (row.gated && !figure->Within(row)) misses.push_back(row.name);
        fmt::print("{} {}: {:.4f}, published {:.4f}\n", series.name, row.name, row.ours, row.published);
      }
    }
    return misses;
  }
  FigureOptions options_;
};

TEST_F(Published, Figure3HasTheFetchStallsOfEightModels) { EXPECT_THAT(Misses(Figure3(options_)), ::testing::IsEmpty()); }

// The last point lies half a second below what was published; docs/stalls.md says what is known of it.
TEST_F(Published, Figure4aHasTheFetchStallsOverCacheSizeButForTheLargestCache) {
  EXPECT_THAT(Misses(Figure4a(options_)), ::testing::ElementsAre("96.1 % cached"));
}

TEST_F(Published, Figure5HasThePlateausOfFourModels) { EXPECT_THAT(Misses(Figure5(options_)), ::testing::IsEmpty()); }

TEST_F(Published, Figure6HasThePreparationStallsOfFourModels) { EXPECT_THAT(Misses(Figure6(options_)), ::testing::IsEmpty()); }

TEST(Figures, RunWithoutThePublishedRunsAndSayThatNothingIsCompared) {
  const FigureOptions options{.quick = true};
  for (const auto& figure : {Figure3(options), Figure4a(options), Figure5(options), Figure6(options)}) {
    ASSERT_TRUE(figure.ok()) << ToString(figure.status());
    EXPECT_THAT(figure->notes, ::testing::Contains(HasSubstr("not compared")));
    for (const FigureSeries& series : figure->series) {
      EXPECT_GE(series.rows.size(), 4);
      for (const FigureRow& row : series.rows) EXPECT_FALSE(row.compared);
    }
  }
}

TEST(Figures, AreTheSameInEachRun) {
  const FigureOptions options{.quick = true};
  const auto a = Figure3(options), b = Figure3(options);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->hash, b->hash);
  EXPECT_EQ(a->events, b->events);
}

TEST(Figures, DamagedFilesAreNamedWithTheirLine) {
  const std::string path = ::testing::TempDir() + "/runs.txt";
  const auto error_of = [&](const std::string& text) {
    std::ofstream(path) << text;
    return MessageOf(ReadRuns(path, 2).status());
  };
  EXPECT_EQ(error_of("1 2 3\n4 5 6\n"), "");
  EXPECT_THAT(error_of("1 2 3\n4 x 6\n"), HasSubstr(path + ":2: 'x' is not a number"));
  EXPECT_THAT(error_of("1 2\n4 5 6\n"), HasSubstr(path + ":1: 2 fields; needed: 3"));
  EXPECT_THAT(error_of("1 2 3\n"), HasSubstr("1 lines; needed: 2"));
  EXPECT_THAT(error_of("1 2 3\n4 nan 6\n"), HasSubstr("'nan' is not a number"));
  EXPECT_EQ(ReadRuns(path + ".gone", 2).status().code(), StatusCode::kNotFound);
}

TEST(Figures, StopWhenTheyAreAskedTo) {
  EXPECT_EQ(Figure5({.quick = true, .stopped = [] { return true; }}).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace tidepool::data::stalls
