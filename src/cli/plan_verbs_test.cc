#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/testing.h"
#include "cli/command_line.h"
#include "cli/plan_output.h"
#include "cli/plan_setting.h"
#include "profile/testing.h"

namespace tidepool::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int code = 0;
  std::string out, err;
  nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, /*allow_exceptions=*/false); }
};

Outcome RunWords(const std::vector<std::string>& arguments) {
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

std::string Reference() { return ::tidepool::testing::ReferenceFolder("aceso", TIDEPOOL_SOURCE_DIR); }

// A plan of gpt-layers:4 (55 ops) in two stages on four devices, in a file.
class PlanVerbs : public ::testing::Test {
 protected:
  plan::PlanFile File() const {
    plan::PlanFile file;
    file.plan.global_batch = 32;
    file.plan.micro_batch = 4;
    file.plan.stages = {plan::Stage::MakeUniform(0, 27, {.tensor_parallel = 2, .data_parallel = 1}),
                        plan::Stage::MakeUniform(27, 28, {.tensor_parallel = 1, .data_parallel = 2, .recompute = true})};
    return file;
  }
  std::string Written(const plan::PlanFile& file, const std::string& name) const {
    const auto ops = plan::PublishedOpList("gpt-layers:4");
    EXPECT_TRUE(plan::WritePlan(file, *ops, root_.File(name)).ok());
    return root_.File(name);
  }
  testing::TempDir root_;
};

TEST_F(PlanVerbs, PredictPricesAPlanFromEstimatesAndSaysSo) {
  const std::string path = Written(File(), "a.json");
  const Outcome text = RunWords({"plan", "predict", path});
  ASSERT_EQ(text.code, kExitDone) << text.err;
  EXPECT_THAT(text.out,
              AllOf(HasSubstr("times        estimated (h100, roofline)"), HasSubstr("no --profiles: all times are estimates"),
                    HasSubstr("bottleneck   stage "), HasSubstr("TPxDP"), HasSubstr("2x1"), HasSubstr("(28 ops)")));
  const Outcome json = RunWords({"plan", "predict", path, "-o", "json"});
  ASSERT_EQ(json.code, kExitDone) << json.err;
  const auto plan = json.json()[0];
  EXPECT_EQ(plan["setting"]["profiles"]["origin"], "estimated");
  EXPECT_EQ(plan["setting"]["cluster"]["gpus_per_node"], 4);
  EXPECT_EQ(plan["valid"], true) << plan["faults"];
  EXPECT_EQ(plan["memory_mib"].size(), 2u);
  EXPECT_EQ(plan["stages"][1]["recomputed_ops"], 28);
  EXPECT_EQ(plan["stages"][1]["first_gpu"], 2);
  const double iteration = plan["iteration_seconds"];
  EXPECT_GT(iteration, 0);
  EXPECT_NEAR(plan["throughput_samples_per_s"].get<double>(), 32 / iteration, 1e-6 * 32 / iteration);
}

TEST_F(PlanVerbs, PredictSumsUpTheTimesAndSizesOfEachStage) {
  const auto plan = RunWords({"plan", "predict", Written(File(), "a.json"), "-o", "json"}).json()[0];
  for (const auto& stage : plan["stages"]) {
    const auto value = [&](const char* key) { return stage[key].get<double>(); };
    EXPECT_NEAR(value("micro_batch_us"),
                value("forward_us") + value("backward_us") + value("recompute_us") + value("in_us") + value("out_us") +
                    value("reshard_us"),
                1e-6);
    EXPECT_NEAR(value("memory_mib"), value("state_mib") + value("activation_mib") + value("peak_mib") + value("reserved_mib"),
                1e-6);
    EXPECT_GE(value("slack_ms"), 0);
    EXPECT_GT(value("share"), 0);
  }
  EXPECT_EQ(plan["stages"][plan["bottleneck"].get<int>()]["slack_ms"], 0);
}

TEST_F(PlanVerbs, ShowNamesTheOpsOfEachRun) {
  const Outcome shown = RunWords({"plan", "show", Written(File(), "a.json"), "--profiles", "h200"});
  ASSERT_EQ(shown.code, kExitDone) << shown.err;
  EXPECT_THAT(shown.out, AllOf(HasSubstr("estimated (h200, roofline)"), HasSubstr("encoder-embedding"),
                               HasSubstr("gpt-post-process"), HasSubstr("devices of 134468 MiB")));
}

TEST_F(PlanVerbs, CompareSetsTheFirstPlanAsOne) {
  plan::PlanFile other = File();
  other.plan.stages[1] = plan::Stage::MakeUniform(27, 28, {.tensor_parallel = 1, .data_parallel = 2});
  const Outcome outcome = RunWords({"plan", "compare", Written(File(), "a.json"), Written(other, "b.json"), "-o", "json"});
  ASSERT_EQ(outcome.code, kExitDone) << outcome.err;
  const auto plans = outcome.json()["plans"];
  EXPECT_EQ(plans[0]["relative"], 1);
  EXPECT_LT(plans[1]["relative"], 1);  // it recomputes nothing
  EXPECT_GT(plans[1]["memory_mib"][1], plans[0]["memory_mib"][1]);
  EXPECT_THAT(RunWords({"plan", "compare", Written(File(), "a.json"), Written(other, "b.json")}).out,
              AllOf(HasSubstr("RELATIVE"), HasSubstr("1.0000"), HasSubstr("b.json")));
}

TEST_F(PlanVerbs, CompareRefusesPlansOfDifferentModels) {
  const auto ops = plan::PublishedOpList("gpt-layers:8");
  plan::PlanFile other = File();
  other.plan.stages = {plan::Stage::MakeUniform(0, ops->size(), {.tensor_parallel = 2, .data_parallel = 2})};
  ASSERT_TRUE(plan::WritePlan(other, *ops, root_.File("8.json")).ok());
  const Outcome outcome = RunWords({"plan", "compare", Written(File(), "a.json"), root_.File("8.json")});
  EXPECT_EQ(outcome.code, kExitUsage);
  EXPECT_THAT(outcome.err, HasSubstr("8.json is a plan for gpt-layers:8; allowed: gpt-layers:4"));
}

TEST_F(PlanVerbs, VerifyListsFaultsAndFails) {
  const std::string good = Written(File(), "good.json");
  EXPECT_EQ(RunWords({"plan", "verify", good}).code, kExitDone);
  plan::PlanFile bad = File();
  bad.plan.global_batch = 30;
  const Outcome outcome = RunWords({"plan", "verify", good, Written(bad, "bad.json"), "--gpu-memory-mib", "60", "-o", "json"});
  EXPECT_EQ(outcome.code, kExitFailed);
  EXPECT_EQ(outcome.json()[0]["faults"][0]["kind"], "memory");
  EXPECT_EQ(outcome.json()[1]["faults"][0]["kind"], "batch");
  EXPECT_THAT(outcome.err, HasSubstr("2 of 2 plans cannot run"));
  EXPECT_EQ(RunWords({"plan", "verify", root_.File("bad.json"), "--allow-dropped-samples"}).code, kExitDone);
  EXPECT_EQ(RunWords({"plan", "verify", good, "--gpu-memory-mib", "60", "--no-check-memory"}).code, kExitDone);
  EXPECT_THAT(RunWords({"plan", "verify", good, "--nodes", "2", "--gpus-per-node", "4"}).out,
              HasSubstr("the stages have 4 devices; allowed: 8"));
}

TEST_F(PlanVerbs, NameFileLineAndKeyOfWhatIsWrong) {
  const std::string text = testing::ReadAll(Written(File(), "a.json"));
  std::string broken = text;
  broken.replace(broken.find("\"micro_batch_size\": 4"), 21, "\"micro_batch_size\": 0");
  const std::string path = root_.Write("broken.json", broken);
  const Outcome outcome = RunWords({"plan", "predict", path});
  EXPECT_EQ(outcome.code, kExitUsage);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr(path + ":"), HasSubstr("key 'micro_batch_size'")));
  EXPECT_THAT(RunWords({"plan", "verify", root_.File("none.json")}).err, HasSubstr("none.json"));
  EXPECT_EQ(RunWords({"plan", "predict"}).code, kExitUsage);
}

TEST_F(PlanVerbs, SayWhatIsWrongWithTheirOptions) {
  const std::string path = Written(File(), "a.json");
  EXPECT_THAT(RunWords({"plan", "predict", path, "--cost", "x"}).err, HasSubstr("--cost: 'x' is no cost model"));
  EXPECT_THAT(RunWords({"plan", "predict", path, "--profiles", "h10"}).err, HasSubstr("--profiles: there is no profile 'h10'"));
  EXPECT_THAT(RunWords({"plan", "predict", path, "--profiles", root_.path()}).err,
              HasSubstr("holds neither manifest.json nor *.csv"));
  EXPECT_THAT(RunWords({"plan", "predict", path, "--gpus-per-node", "-3", "--nodes", "1"}).code, kExitDone);  // as the plan needs
  EXPECT_THAT(RunWords({"plan", "predict", path, "--gpu-memory-mib", "-5"}).err, HasSubstr("memory_limit_mib is -5"));
}

// Whatever a file holds, the verb ends with an error and not with a crash.
TEST_F(PlanVerbs, SurviveMutatedFiles) {
  const std::string text = testing::ReadAll(Written(File(), "a.json"));
  std::mt19937 random(7);
  for (int i = 0; i < 150; ++i) {
    std::string mutated = text;
    for (int k = 0; k < 1 + i % 3; ++k) {
      const size_t at = random() % mutated.size();
      switch (random() % 3) {
        case 0: mutated[at] = static_cast<char>("0123456789-,[]{}\"ex"[random() % 19]); break;
        case 1: mutated.erase(at, 1 + random() % 8); break;
        default: mutated.insert(at, std::string(1 + random() % 2, static_cast<char>('0' + random() % 10)));
      }
    }
    const Outcome outcome = RunWords({"plan", "verify", root_.Write("m.json", mutated)});
    EXPECT_TRUE(outcome.code == kExitDone || outcome.code == kExitFailed || outcome.code == kExitUsage) << outcome.err;
    EXPECT_EQ(outcome.code == kExitDone, outcome.err.empty()) << outcome.err;
  }
}

TEST(PlanText, DrawsBarsThatSayWhenTheyAreTooLong) {
  EXPECT_EQ(BarText(0.5, 4), "[##..]");
  EXPECT_EQ(BarText(0, 4), "[....]");
  EXPECT_EQ(BarText(1.2, 4), "[####]!");
  EXPECT_EQ(BarText(std::numeric_limits<double>::infinity(), 2), "????");
}

TEST(PlanModels, CanBePublishedOnesOrAnyFamily) {
  EXPECT_EQ(FindOpList("gpt:1.3b")->size(), 315);
  const auto graph = FindOpList("resnet18:image=32,small_stem=true,classes=10");
  ASSERT_TRUE(graph.ok()) << ToString(graph.status());
  EXPECT_GT(graph->size(), 20);
  const auto wrong = FindOpList("gpt:2b");
  EXPECT_EQ(wrong.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(ToString(wrong.status()), AllOf(HasSubstr("gpt:1.3b"), HasSubstr("resnet")));
}

TEST(PlanReference, PredictGivesThePublishedPredictionToTheLastDigit) {
  if (Reference().empty()) GTEST_SKIP() << "no reference data; set TIDEPOOL_REFERENCE_DIR";
  const Outcome outcome =
      RunWords({"plan", "predict", Reference() + "/golden-plans/peer_small_gpt_1_3B.json", "--profiles",
                Reference() + "/profiled-time-miniset", "--gpu-memory-mib", "12000", "--cost", "parity", "-o", "json"});
  ASSERT_EQ(outcome.code, kExitDone) << outcome.err;
  EXPECT_EQ(fmt::format("{:.5f}", outcome.json()[0]["iteration_seconds"].get<double>()), "58.76092");
  EXPECT_EQ(outcome.json()[0]["setting"]["profiles"]["origin"], "measured");
  EXPECT_EQ(outcome.json()[0]["valid"], true);
  EXPECT_THAT(RunWords({"plan", "predict", Reference() + "/golden-plans/peer_small_gpt_1_3B.json", "--profiles",
                        Reference() + "/profiled-time-miniset"})
                  .err,
              HasSubstr("--gpu-memory-mib is missing"));
}

TEST(Experiments, AreListedAndFoundByName) {
  const Outcome list = RunWords({"experiment", "-o", "json"});
  ASSERT_EQ(list.code, kExitDone) << list.err;
  EXPECT_EQ(list.json()[0]["name"], "planning/prices");
  EXPECT_THAT(RunWords({"experiment", "planning/price"}).err, HasSubstr("did you mean 'planning/prices'?"));
  const Outcome absent = RunWords({"experiment", "planning/prices", "--reference", "/nowhere"});
  EXPECT_EQ(absent.code, kExitFailed);
  EXPECT_THAT(absent.err, HasSubstr("the reference data 'aceso' is not there (/nowhere/aceso)"));
}

TEST(Experiments, PricesAgreeWithThePublishedOnes) {
  if (Reference().empty()) GTEST_SKIP() << "no reference data; set TIDEPOOL_REFERENCE_DIR";
  testing::TempDir root;
  const Outcome outcome = RunWords({"experiment", "planning/prices", "--quick", "--reference", Reference() + "/..", "--json",
                                    root.File("x.json"), "--html", root.File("x.html"), "-o", "json"});
  ASSERT_EQ(outcome.code, kExitDone) << outcome.err;
  EXPECT_LT(outcome.json()["largest_difference_ms"], 0.01);
  EXPECT_EQ(nlohmann::json::parse(testing::ReadAll(root.File("x.json"))), outcome.json());
  EXPECT_THAT(testing::ReadAll(root.File("x.html")), HasSubstr("PUBLISHED ms"));
}

}  // namespace
}  // namespace tidepool::cli
