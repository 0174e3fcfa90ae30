#include "cli/emulation_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/fd.h"
#include "base/json.h"
#include "base/testing.h"
#include "cli/command_line.h"

namespace tidepool::cli {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  int code = 0;
  std::string out, err;
  nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, /*allow_exceptions=*/false); }
};

Outcome RunWords(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "bench");
  VerbList verbs;
  AddAllVerbs(&verbs);
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = RunCommandLine(arguments, verbs);
  outcome.out = ::testing::internal::GetCapturedStdout();
  outcome.err = ::testing::internal::GetCapturedStderr();
  return outcome;
}

TEST(BenchPacing, WritesOneRowPerStepTimeToTheFileAndToStdout) {
  const testing::TempDir root;
  const std::string file = root.path() + "/pacing.json";
  const Outcome outcome =
      RunWords({"pacing", "--steps", "20", "--naive-steps", "2", "--fed-steps", "10", "--json", file, "-o", "json"});
  ASSERT_EQ(outcome.code, kExitDone) << outcome.err;
  const nlohmann::json result = outcome.json();
  EXPECT_EQ(nlohmann::json::parse(ReadFile(file, 1 << 20).value()), result);
  EXPECT_GE(result["decode_threads"].get<int>(), 1);
  std::vector<double> targets;
  for (const auto& row : result["steps"]) {
    targets.push_back(row["target_ms"]);
    for (const char* key : {"error", "total_error", "timeline_error", "naive_error"}) {
      ASSERT_TRUE(row[key].is_number()) << key;
      EXPECT_GE(row[key].get<double>(), 0) << key;
    }
    EXPECT_GT(row["utilisation"].get<double>(), 0);
    EXPECT_LE(row["utilisation"].get<double>(), 1);
    EXPECT_LE(row["busy_share"].get<double>(), row["utilisation"].get<double>() + 1e-9) << "host time is not charged to storage";
    EXPECT_LE(row["lateness_us"]["p50"].get<double>(), row["lateness_us"]["max"].get<double>());
  }
  EXPECT_THAT(targets, ::testing::ElementsAre(0.3, 1, 3.5, 20));
  std::vector<int64_t> ahead;
  for (const auto& row : result["steps"]) ahead.push_back(row["in_flight"]);
  EXPECT_THAT(ahead, ::testing::ElementsAre(167, 50, 15, 3));
}

TEST(BenchPacing, LaunchesAboutFiftyMillisecondsAheadWithinTheQueueOfAStream) {
  EXPECT_EQ(StepsInFlight(1e-3), 256);
  EXPECT_EQ(StepsInFlight(0.3), 167);
  EXPECT_EQ(StepsInFlight(20), 3);
  EXPECT_EQ(StepsInFlight(1e6), 2);
  const auto result = RunPacingBench(
      {.targets_ms = {0.01}, .steps = 600, .naive_steps = 0, .fed_steps = 0, .in_flight = 256, .decode_threads = -1},
      [](const std::string&) {}, [] { return false; });
  ASSERT_TRUE(result.ok()) << ToString(result.status());
  EXPECT_EQ(result->rows[0].in_flight, 256);
}

TEST(BenchPacing, LeavesOutWhatIsNotWanted) {
  const Outcome outcome =
      RunWords({"pacing", "--steps", "2", "--naive-steps", "0", "--fed-steps", "0", "--threads", "-1", "-o", "json"});
  ASSERT_EQ(outcome.code, kExitDone) << outcome.err;
  EXPECT_EQ(outcome.json()["decode_threads"], 0);
  EXPECT_TRUE(outcome.json()["steps"][0]["naive_error"].is_null());
  EXPECT_TRUE(outcome.json()["steps"][0]["utilisation"].is_null());
}

TEST(BenchPacing, OptionsOutOfRangeAreRefused) {
  EXPECT_THAT(RunWords({"pacing", "--steps", "0"}).err, HasSubstr("--steps is 0; allowed: 1 to 1000000"));
  EXPECT_THAT(RunWords({"pacing", "--threads", "257"}).err, HasSubstr("--threads is 257; allowed: -1 (none) to 256"));
  EXPECT_THAT(RunWords({"pacing", "--naive-steps", "-1"}).err, HasSubstr("--naive-steps is -1; allowed: 0 to 1000000"));
  EXPECT_THAT(RunWords({"pacing", "--in-flight", "257"}).err, HasSubstr("--in-flight is 257; allowed: 1 to 256"));
  EXPECT_THAT(RunWords({"pacing", "--fed-steps", "-1"}).err, HasSubstr("--fed-steps is -1; allowed: 0 or more"));
}

TEST(BenchVirtualTime, RepeatsItselfByTheSeed) {
  const auto run = [](const std::string& seed) {
    const Outcome outcome = RunWords({"virtual-time", "--events", "20000", "--devices", "4", "--seed", seed, "-o", "json"});
    EXPECT_EQ(outcome.code, kExitDone) << outcome.err;
    return outcome.json();
  };
  const nlohmann::json one = run("1"), again = run("1"), two = run("2");
  EXPECT_EQ(one["hash_a"], one["hash_b"]);
  EXPECT_EQ(one["hash_a"], again["hash_a"]);
  EXPECT_NE(one["hash_a"], one["hash_other_seed"]);
  EXPECT_EQ(one["hash_other_seed"], two["hash_a"]) << "the other seed is the next one";
  EXPECT_EQ(one["events"], 20000);
  EXPECT_GT(one["events_per_s"].get<double>(), 0);
  EXPECT_GT(one["commands"].get<int64_t>(), 0);
  EXPECT_EQ(one["simulated_s"], again["simulated_s"]);
}

TEST(BenchVirtualTime, WritesItsFileAndRefusesOptionsOutOfRange) {
  const testing::TempDir root;
  const std::string file = root.path() + "/virtual.json";
  const Outcome outcome = RunWords({"virtual-time", "--events", "1000", "--json", file});
  ASSERT_EQ(outcome.code, kExitDone) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("events per second"));
  const nlohmann::json written = nlohmann::json::parse(ReadFile(file, 1 << 20).value());
  EXPECT_EQ(written["hash_a"], written["hash_b"]);
  EXPECT_THAT(RunWords({"virtual-time", "--events", "10"}).err, HasSubstr("--events is 10; allowed: 1000 to"));
  EXPECT_THAT(RunWords({"virtual-time", "--devices", "1"}).err, HasSubstr("--devices is 1; allowed: 2 to 1024"));
  EXPECT_NE(RunWords({"virtual-time", "--json", "/nonexistent/x"}).code, kExitDone);
}

}  // namespace
}  // namespace tidepool::cli
