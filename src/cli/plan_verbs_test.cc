#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "base/fd.h"
#include "base/json.h"
#include "base/testing.h"
#include "cli/plan_output.h"
#include "cli/plan_search.h"
#include "cli/plan_setting.h"
#include "cli/testing.h"
#include "profile/testing.h"

namespace tidepool::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

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
                    value("reshard_us") - value("hidden_us"),
                1e-6);
    EXPECT_NEAR(value("memory_mib"),
                value("state_mib") + value("activation_mib") + value("peak_mib") + value("reserved_mib") + value("margin_mib"),
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

std::vector<std::string> SmallSearch(const std::vector<std::string>& more) {
  std::vector<std::string> words = {"plan", "--model",  "gpt-layers:4", "--global-batch", "32", "--gpus-per-node",
                                    "4",    "--search", "exact"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST_F(PlanVerbs, SearchGivesAPlanThatIsValidAndCostsWhatItSays) {
  const std::string file = root_.File("plan.json");
  const Outcome found = RunWords(SmallSearch({"--out", file, "--json", root_.File("result.json"), "-o", "json", "--top", "2"}));
  ASSERT_EQ(found.code, kExitDone) << found.err;
  const auto json = found.json();
  EXPECT_EQ(nlohmann::json::parse(testing::ReadAll(root_.File("result.json"))), json);
  for (const char* key : {"search_seconds", "evaluations", "iteration_seconds", "throughput_samples_per_s", "memory_mib",
                          "lower_bound_seconds", "gap", "baselines", "plan"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["search"], "exact");
  EXPECT_GT(json["evaluations"], 0);
  EXPECT_EQ(json["memory_mib"].size(), json["plan"]["num_stages"]);
  EXPECT_EQ(json["top"].size(), 2u);
  EXPECT_EQ(json["cost"]["valid"], true);
  const auto priced = RunWords({"plan", "predict", file, "-o", "json"}).json()[0];
  EXPECT_EQ(priced["iteration_seconds"], json["iteration_seconds"]);
  EXPECT_EQ(priced["stored_iteration_seconds"], json["iteration_seconds"]);
  EXPECT_EQ(RunWords({"plan", "verify", file}).code, kExitDone);
}

TEST_F(PlanVerbs, SearchExplainsItsBottleneckAndWhatItRejected) {
  const Outcome text = RunWords(SmallSearch({"--explain", "--baselines"}));
  ASSERT_EQ(text.code, kExitDone) << text.err;
  EXPECT_THAT(text.out,
              AllOf(HasSubstr("search       exact:"), HasSubstr("is the slowest: compute"), HasSubstr("AGAINST THE PLAN"),
                    HasSubstr("small changes of the plan"), HasSubstr("grid"), HasSubstr("inter-intra")));
  const auto json = RunWords(SmallSearch({"--explain", "--baselines", "--cost", "parity", "-o", "json"})).json();
  ASSERT_FALSE(json["alternatives"].empty());
  // The search is exact among plans whose stages have one split: no other micro-batch or split is better.
  for (const auto& one : json["alternatives"]) {
    if (one["refused"].is_null() && one["change"].get<std::string>().starts_with("micro-batch")) {
      EXPECT_GE(one["iteration_seconds"].get<double>(), json["iteration_seconds"].get<double>()) << one;
    }
  }
  EXPECT_EQ(json["baselines"].size(), 3u);
}

TEST_F(PlanVerbs, SearchReadsAnOpListFileThatItWrote) {
  const std::string file = root_.Write("net.json", RunWords({"plan", "ops", "gpt-layers:4", "-o", "json"}).out);
  const auto named = RunWords(SmallSearch({"-o", "json"})).json();
  std::vector<std::string> words = SmallSearch({"-o", "json", "--out", root_.File("plan.json")});
  words[2] = file;
  const Outcome read = RunWords(words);
  ASSERT_EQ(read.code, kExitDone) << read.err;
  EXPECT_EQ(read.json()["iteration_seconds"], named["iteration_seconds"]);
  EXPECT_EQ(RunWords({"plan", "verify", root_.File("plan.json")}).code, kExitDone);
  EXPECT_THAT(RunWords({"plan", "ops", "gpt-layers:4"}).out, HasSubstr("ops 1 to 52: 4 times 13 ops"));
}

TEST_F(PlanVerbs, SearchSaysWhatIsWrongOrImpossible) {
  EXPECT_THAT(RunWords({"plan", "--model", "gpt-layers:4"}).err, HasSubstr("--global-batch is 0"));
  EXPECT_THAT(RunWords({"plan", "--global-batch", "8"}).err, HasSubstr("--model is missing"));
  EXPECT_THAT(RunWords(SmallSearch({"--micro-batch", "2,x"})).err, HasSubstr("--micro-batch: 'x'"));
  EXPECT_THAT(RunWords(SmallSearch({"--micro-batch", "3"})).err, HasSubstr("divisors of global_batch, 32"));
  EXPECT_THAT(RunWords(SmallSearch({"--search", "magic"})).err, HasSubstr("search 'magic'; allowed: auto, op-dp"));
  const Outcome small = RunWords(SmallSearch({"--gpu-memory-mib", "10"}));
  EXPECT_EQ(small.code, kExitFailed);
  EXPECT_THAT(small.err, HasSubstr("MiB"));
  EXPECT_EQ(RunWords({"plan", "--model", root_.Write("x.json", "{"), "--global-batch", "8"}).code, kExitUsage);
}

TEST_F(PlanVerbs, SearchGivesABoundUnderBothCostModels) {
  for (const char* cost : {"calibrated", "parity"}) {
    const std::vector<std::string> words = {"plan",   "--model", "gpt-layers:4", "--global-batch", "64", "--gpus-per-node", "2",
                                            "--cost", cost};
    EXPECT_THAT(RunWords(words).out, HasSubstr("certificate  no plan is faster than")) << cost;
    std::vector<std::string> more = words;
    more.insert(more.end(), {"-o", "json"});
    const auto json = RunWords(more).json();
    EXPECT_GT(json["lower_bound_seconds"].get<double>(), 0) << cost;
    EXPECT_LE(json["lower_bound_seconds"].get<double>(), json["iteration_seconds"].get<double>()) << cost;
    EXPECT_LT(json["gap"].get<double>(), 0.1) << cost;
    EXPECT_EQ(json["plan"]["lower_bound_seconds"], json["lower_bound_seconds"]);
  }
}

TEST_F(PlanVerbs, PlansRememberTheOptionsThatTheyWereMadeWith) {
  const std::string file = root_.File("plan.json");
  const Outcome found = RunWords(SmallSearch(
      {"--zero1", "--sync-overlap", "0.5", "--context-mib", "100", "--out", file, "-o", "json", "--min-stages", "2"}));
  ASSERT_EQ(found.code, kExitDone) << found.err;
  EXPECT_EQ(found.json()["setting"]["cost_options"]["zero1"], true);
  EXPECT_EQ(found.json()["plan"]["cost_options"]["sync_overlap"], 0.5);
  const auto as_made = RunWords({"plan", "predict", file, "-o", "json"}).json()[0];
  EXPECT_EQ(as_made["iteration_seconds"], found.json()["iteration_seconds"]);
  EXPECT_EQ(as_made["memory_mib"], found.json()["memory_mib"]);
  const auto other = RunWords({"plan", "predict", file, "--context-mib", "0", "--no-zero1", "-o", "json"}).json()[0];
  EXPECT_EQ(other["setting"]["cost_options"]["zero1"], false);
  EXPECT_EQ(other["setting"]["cost_options"]["sync_overlap"], 0.5);
  EXPECT_NE(other["memory_mib"], as_made["memory_mib"]);
  const Outcome show = RunWords({"plan", "show", file, "--schedule", "zero-bubble"});
  EXPECT_THAT(show.out, HasSubstr("options      zero-bubble, ZeRO-1, sync overlap 0.5, context MiB 100"));
  EXPECT_THAT(show.out, HasSubstr("W weight gradients"));
  EXPECT_THAT(RunWords({"plan", "compare", file, file}).out, HasSubstr("options: ZeRO-1, sync overlap 0.5, context MiB 100"));
}

TEST_F(PlanVerbs, PlansRememberTheMemoryLimitThatTheyWereSearchedWith) {
  const std::string file = root_.File("plan.json");
  const Outcome found = RunWords(SmallSearch({"--gpu-memory-mib", "3000", "--out", file, "-o", "json"}));
  ASSERT_EQ(found.code, kExitDone) << found.err;
  EXPECT_EQ(found.json()["plan"]["gpu_memory_mib"], 3000);
  EXPECT_EQ(found.json()["setting"]["cluster"]["gpu_memory_from"], "flag");
  for (const char* verb : {"predict", "show", "verify"}) {
    SCOPED_TRACE(verb);
    const auto cluster = [&](const std::vector<std::string>& more) {
      std::vector<std::string> words = {"plan", verb, file, "-o", "json"};
      words.insert(words.end(), more.begin(), more.end());
      const Outcome outcome = RunWords(words);
      EXPECT_EQ(outcome.code, kExitDone) << outcome.err;
      return outcome.json()[0]["setting"]["cluster"];
    };
    EXPECT_EQ(cluster({})["gpu_memory_mib"], 3000);
    EXPECT_EQ(cluster({})["gpu_memory_from"], "plan_file");
    EXPECT_EQ(cluster({"--gpu-memory-mib", "4000"})["gpu_memory_mib"], 4000);
    EXPECT_EQ(cluster({"--gpu-memory-mib", "4000"})["gpu_memory_from"], "flag");
    // 0 asks for the whole device, although the file says something.
    EXPECT_EQ(cluster({"--gpu-memory-mib", "0", "--profiles", "h200"})["gpu_memory_mib"], 134468);
    EXPECT_EQ(cluster({"--gpu-memory-mib", "0"})["gpu_memory_from"], "device");
    EXPECT_THAT(RunWords({"plan", verb, file}).out, HasSubstr("devices of 3000 MiB (the plan file)"));
    EXPECT_THAT(RunWords({"plan", verb, file, "--gpu-memory-mib", "4000"}).out, HasSubstr("4000 MiB (--gpu-memory-mib)"));
  }
  // A search that had the whole device leaves no limit behind.
  ASSERT_EQ(RunWords(SmallSearch({"--out", file})).code, kExitDone);
  EXPECT_FALSE(plan::ReadPlan(file)->gpu_memory_mib.has_value());
  EXPECT_THAT(RunWords({"plan", "verify", file, "--profiles", "h200"}).out, HasSubstr("134468 MiB (the profile's device)"));
}

TEST_F(PlanVerbs, JudgeAPlanByTheLimitInItsFileUnlessAFlagSaysOtherwise) {
  plan::PlanFile tight = File(), wide = File();
  tight.gpu_memory_mib = 60;
  wide.gpu_memory_mib = 1e6;
  const std::string a = Written(tight, "tight.json"), b = Written(wide, "wide.json");
  const Outcome verify = RunWords({"plan", "verify", a, b, "-o", "json"});
  EXPECT_EQ(verify.code, kExitFailed);
  EXPECT_EQ(verify.json()[0]["faults"][0]["kind"], "memory");
  EXPECT_EQ(verify.json()[1]["valid"], true);
  EXPECT_THAT(RunWords({"plan", "verify", b}).out,
              HasSubstr("wide.json: made for devices of 1000000 MiB; that of the profile has "));
  EXPECT_EQ(RunWords({"plan", "verify", a, "--gpu-memory-mib", "4000"}).code, kExitDone);
  const auto compared = RunWords({"plan", "compare", a, b, "-o", "json"}).json()["plans"];
  EXPECT_EQ(compared[0]["fits"], false);
  EXPECT_EQ(compared[0]["gpu_memory_mib"], 60);
  EXPECT_EQ(compared[1]["fits"], true);
  EXPECT_EQ(compared[1]["gpu_memory_from"], "plan_file");
  EXPECT_THAT(RunWords({"plan", "compare", a, b}).out,
              AllOf(HasSubstr("devices of 60 MiB (the plan file)"), HasSubstr("devices of 1000000 MiB (the plan file)"),
                    HasSubstr("note         " + b + ": made for devices")));
  // Nonsense is refused, wherever it comes from.
  std::string text = testing::ReadAll(a);
  const std::string limit = "\"gpu_memory_mib\": 60.0";
  ASSERT_NE(text.find(limit), std::string::npos);
  const Outcome negative =
      RunWords({"plan", "show", root_.Write("n.json", text.replace(text.find(limit), limit.size(), "\"gpu_memory_mib\": -60"))});
  EXPECT_EQ(negative.code, kExitUsage);
  EXPECT_THAT(negative.err, HasSubstr("key 'gpu_memory_mib': is -60; allowed: a number above 0, up to 1000000000"));
  for (const char* flag : {"-1", "1e12", "nan", "inf"})
    EXPECT_EQ(RunWords({"plan", "verify", a, "--gpu-memory-mib", flag}).code, kExitUsage) << flag;
}

TEST_F(PlanVerbs, OtherSchedulesAreSearchedByTheirOwnSearches) {
  for (const std::vector<std::string>& schedule :
       {std::vector<std::string>{"--schedule", "zero-bubble"}, {"--schedule", "interleaved", "--chunks", "2"}}) {
    const std::string file = root_.File("plan.json");
    std::vector<std::string> words = {"plan", "--model",  "gpt-layers:4", "--global-batch", "32", "--gpus-per-node",
                                      "4",    "--budget", "2000",         "--min-stages",   "2",  "--out",
                                      file,   "-o",       "json"};
    words.insert(words.end(), schedule.begin(), schedule.end());
    const Outcome found = RunWords(words);
    ASSERT_EQ(found.code, kExitDone) << found.err;
    EXPECT_EQ(found.json()["search"], "aceso");
    EXPECT_EQ(found.json()["plan"]["cost_options"]["schedule"], schedule[1]);
    EXPECT_EQ(RunWords({"plan", "verify", file}).code, kExitDone);
    EXPECT_EQ(RunWords({"plan", "predict", file, "-o", "json"}).json()[0]["iteration_seconds"],
              found.json()["iteration_seconds"]);
  }
}

TEST_F(PlanVerbs, ContradictoryOptionsAreRefused) {
  const std::string file = Written(File(), "a.json");
  for (const auto& [words, fault] :
       {std::pair<std::vector<std::string>, const char*>{{"--cost", "parity", "--zero1", "--chunks", "2"},
                                                         "--chunks, --zero1 with --cost parity; allowed: with --cost calibrated"},
        {{"--chunks", "2"}, "--chunks is 2 with the schedule 1f1b; allowed: 1, or --schedule interleaved"},
        {{"--schedule", "zero-bubble", "--chunks", "2"}, "--chunks is 2 with the schedule zero-bubble"},
        {{"--schedule", "interleaved", "--chunks", "0"}, "chunks is 0; allowed: 1 to 1024"},
        {{"--schedule", "gpipe"}, "--schedule: schedule 'gpipe'; allowed: 1f1b, interleaved, zero-bubble"},
        {{"--sync-overlap", "1.5"}, "sync_overlap is 1.5; allowed: 0 to 1"},
        {{"--memory-margin", "-1"}, "memory_margin is -1; allowed: 0 or more"},
        {{"--cost", "guess"}, "--cost: 'guess' is no cost model; allowed: calibrated, parity"}}) {
    for (std::vector<std::string> command :
         {std::vector<std::string>{"plan", "predict", file}, {"plan", "compare", file}, SmallSearch({})}) {
      command.insert(command.end(), words.begin(), words.end());
      const Outcome outcome = RunWords(command);
      EXPECT_EQ(outcome.code, kExitUsage) << command[1];
      EXPECT_THAT(outcome.err, HasSubstr(fault));
    }
  }
  EXPECT_THAT(RunWords(SmallSearch({"--schedule", "zero-bubble"})).err,
              HasSubstr("--search exact with the schedule zero-bubble; allowed: auto, aceso, grid, random"));
  EXPECT_THAT(RunWords(SmallSearch({"--schedule", "zero-bubble", "--what-if", "gpus=2,4"})).err,
              HasSubstr("--search exact with"));
  // Eight micro-batches in three stages.
  plan::PlanFile three = File();
  three.plan.stages = {plan::Stage::MakeUniform(0, 20, {}), plan::Stage::MakeUniform(20, 20, {}),
                       plan::Stage::MakeUniform(40, 15, {})};
  const Outcome odd = RunWords({"plan", "verify", Written(three, "b.json"), "--schedule", "interleaved"});
  EXPECT_EQ(odd.code, kExitFailed);
  EXPECT_THAT(odd.out, HasSubstr("8 micro-batches in an interleaved pipeline; allowed: a multiple of its 3 stages"));
}

TEST_F(PlanVerbs, SearchThatIsStoppedBeforeItFindsAPlanIsCancelled) {
  auto ops = FindOpList("gpt-layers:4");
  const auto profile = LoadPlanProfile("", *ops, {.micro_batches = {1}, .gpus = 4});
  const int32_t micro_batches[] = {1};
  const auto setting =
      MakePlanSetting(*std::move(ops), *profile, {.nodes = 1, .gpus_per_node = 4}, {.name = "parity"}, micro_batches);
  ASSERT_TRUE(setting.ok()) << ToString(setting.status());
  VerbContext context;
  context.stopped = [] { return true; };
  const plan::SearchRequest request{.global_batch = 8, .micro_batches = {1}};
  EXPECT_EQ(RunSearch(plan::SearchKind::kExact, **setting, request, context).status().code(), StatusCode::kCancelled);
}

TEST_F(PlanVerbs, WhatIfFindsTheSmallestClusterThatIsFastEnough) {
  const std::string svg = root_.File("sweep.svg");
  const std::vector<std::string> sweep = {"--what-if", "gpus=1,2,4", "--what-if", "memory=20,2000", "-o", "json", "--svg", svg};
  const auto all = RunWords(SmallSearch(sweep)).json();
  ASSERT_EQ(all["points"].size(), 6u);
  EXPECT_TRUE(all["points"][0].contains("error")) << "20 MiB hold nothing";
  EXPECT_EQ(all["points"][5]["gpus"], 4);
  EXPECT_TRUE(all["cheapest"].is_null());
  EXPECT_THAT(testing::ReadAll(svg), AllOf(HasSubstr("<svg xmlns"), HasSubstr("memory 2000")));
  // A target that two devices reach and one does not.
  const double one = all["points"][1]["throughput_samples_per_s"], two = all["points"][3]["throughput_samples_per_s"];
  ASSERT_GT(two, one);
  std::vector<std::string> words = sweep;
  words.insert(words.end(), {"--target-throughput", fmt::format("{}", (one + two) / 2)});
  EXPECT_EQ(RunWords(SmallSearch(words)).json()["cheapest"], 3);
  words.resize(words.size() - 2);
  words.insert(words.end(), {"--target-throughput", "1e12", "-o", "text"});
  EXPECT_THAT(RunWords(SmallSearch(words)).out, HasSubstr("none of these clusters reaches"));
}

TEST_F(PlanVerbs, WhatIfScalesLinks) {
  const auto points = RunWords(SmallSearch({"--what-if", "links=x0.001,x1", "--min-stages", "2", "-o", "json"})).json()["points"];
  ASSERT_EQ(points.size(), 2u);
  EXPECT_LT(points[0]["throughput_samples_per_s"].get<double>(), 0.9 * points[1]["throughput_samples_per_s"].get<double>());
}

TEST_F(PlanVerbs, WhatIfSaysWhatItDoesNotUnderstand) {
  for (const auto& [word, fault] : {std::pair{"gpu=4", "'gpu=4'; allowed: gpus=N"},
                                    {"4", "'4'; allowed: gpus=N"},
                                    {"gpus=4,x", "'x' for gpus"},
                                    {"gpus=2.5", "'2.5' for gpus; allowed: integers"},
                                    {"links=x0", "'x0' for links"},
                                    {"gpus=1,gpus=2", "gpus twice"},
                                    {"gpus=6", "gpus=6; allowed: up to 4, or a multiple"}}) {
    EXPECT_THAT(RunWords(SmallSearch({"--what-if", word})).err, HasSubstr(fault)) << word;
  }
  EXPECT_THAT(RunWords(SmallSearch({"--what-if", "gpus=4", "--explain"})).err, HasSubstr("does not go with"));
  EXPECT_THAT(RunWords(SmallSearch({"--target-throughput", "4"})).err, HasSubstr("need --what-if"));
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

TEST(Experiments, FiguresSetOursBesideThePublishedNumbers) {
  for (const std::string name : {"figure-7", "figure-8", "figure-9", "accuracy"}) {
    EXPECT_THAT(RunWords({"experiment", "planning/" + name, "--reference", "/nowhere"}).err, HasSubstr("is not there")) << name;
  }
  if (Reference().empty()) GTEST_SKIP() << "no reference data; set TIDEPOOL_REFERENCE_DIR";
  testing::TempDir root;
  const Outcome depth = RunWords({"experiment", "planning/figure-9", "--quick", "--reference", Reference() + "/..", "--svg",
                                  root.File("x.svg"), "-o", "json"});
  ASSERT_EQ(depth.code, kExitDone) << depth.err;
  ASSERT_EQ(depth.json()["settings"].size(), 2u);
  EXPECT_EQ(depth.json()["settings"][0]["setting"], "scale/8");
  // The published search had as much time as it wanted for this one.
  EXPECT_LE(depth.json()["settings"][0]["ours_seconds"].get<double>(),
            depth.json()["settings"][0]["peer_seconds"].get<double>() + 0.001);
  EXPECT_THAT(testing::ReadAll(root.File("x.svg")), HasSubstr("Aceso, published"));
  const Outcome accuracy = RunWords({"experiment", "planning/accuracy", "--reference", Reference() + "/.."});
  EXPECT_THAT(accuracy.out, HasSubstr("gpt: mean error of the time 2.9 %"));
}

}  // namespace
}  // namespace tidepool::cli
