// Plans, plan files, verification, and the small parts they stand on.
#include "plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <set>

#include "base/testing.h"
#include "plan/estimate.h"
#include "plan/plan_json.h"
#include "plan/testing.h"
#include "plan/verify.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;
using testing::MakeRandomProblem;
using testing::RandomPlan;
using ::tidepool::testing::TempDir;

TEST(Stage, EqualStagesHaveEqualRunsAndKeysHoweverTheyWereMade) {
  const OpChoice a{2, 1, 0, false}, b{1, 2, 1, true};
  const StagePtr one = Stage::Make(5, std::vector<OpChoice>{a, a, b});
  const StagePtr two = Stage::MakeRuns(5, {{1, a}, {1, a}, {1, b}});
  EXPECT_EQ(one->runs(), two->runs());
  EXPECT_EQ(one->key(), two->key());
  EXPECT_EQ(one->count(), 3);
  EXPECT_EQ(one->end(), 8);
  EXPECT_EQ(one->choice_at(7), b);
  EXPECT_EQ(one->Choices(), (std::vector<OpChoice>{a, a, b}));
  EXPECT_FALSE(one->is_uniform());
  EXPECT_TRUE(one->recomputes());
  std::set<Key128> keys = {one->key()};
  keys.insert(Stage::Make(6, std::vector<OpChoice>{a, a, b})->key());
  keys.insert(Stage::Make(5, std::vector<OpChoice>{a, b, b})->key());
  keys.insert(Stage::Make(5, std::vector<OpChoice>{b, a, a})->key());
  keys.insert(one->WithRecompute(std::vector<uint8_t>{0, 0, 0})->key());
  EXPECT_EQ(keys.size(), 5u);
  StagePool pool;
  EXPECT_EQ(pool.Intern(one), one);
  EXPECT_EQ(pool.Intern(two), one);
  EXPECT_EQ(pool.size(), 1u);
}

TEST(RangeMax, AgreesWithASearchOnEveryRange) {
  std::mt19937 random(1);
  for (const int32_t size : {1, 2, 15, 16, 17, 33, 200}) {
    std::vector<double> values(size);
    for (double& value : values) value = static_cast<double>(random() % 1000);
    const RangeMax table(values);
    for (int32_t first = 0; first <= size; ++first) {
      double largest = 0;
      for (int32_t last = first; last <= size; ++last) {
        if (last > first) largest = std::max(largest, values[last - 1]);
        ASSERT_EQ(table.Over(first, last), largest) << size << ": " << first << " to " << last;
      }
    }
  }
}

TEST(Cluster, StagesLieWithinANodeOrOnWholeNodes) {
  const Cluster cluster{.nodes = 3, .gpus_per_node = 8, .memory_limit_mib = 1};
  EXPECT_TRUE(cluster.IsStageRange(0, 8));
  EXPECT_TRUE(cluster.IsStageRange(12, 4));
  EXPECT_FALSE(cluster.IsStageRange(6, 4));
  EXPECT_TRUE(cluster.IsStageRange(8, 16));
  EXPECT_FALSE(cluster.IsStageRange(4, 8));
  EXPECT_FALSE(cluster.IsStageRange(16, 16));
  EXPECT_EQ(cluster.LinkAt(0), LinkClass::kWithinNode);
  EXPECT_EQ(cluster.LinkAt(8), LinkClass::kBetweenNodes);
  EXPECT_EQ(cluster.LinkAt(12), LinkClass::kWithinNode);
  EXPECT_THAT(MessageOf(Validate(Cluster{.nodes = 0, .gpus_per_node = 0})),
              HasSubstr("nodes is 0; allowed: 1 to 65536; gpus_per_node is 0; allowed: 1 to 1024; memory_limit_mib is 0"));
  const Cluster grouped{.nodes = 3, .gpus_per_node = 2, .memory_limit_mib = 10, .groups = {{"a", 1, 1, 5}, {"b", 2, 2, 0}}};
  EXPECT_TRUE(Validate(grouped).ok());
  EXPECT_EQ(grouped.MemoryLimitOf(1), 5);
  EXPECT_EQ(grouped.MemoryLimitOf(2), 10);
}

// --- Resharding ---

TEST(Sharding, RulesAreThoseOfThePublishedPlanner) {
  using profile::CollectiveKind;
  const auto plan = [](const Sharding& from, const Sharding& to) { return PlanReshard(from, to); };
  const Sharding replicated{4, 1, {1, 1, 1}}, cut{1, 1, {1, 1, 4}}, other{1, 1, {4, 1, 1}}, sums{1, 4, {1, 1, 1}};
  EXPECT_FALSE(plan(cut, cut).forward || plan(cut, cut).backward);
  EXPECT_FALSE(plan(replicated, cut).forward.has_value());
  EXPECT_EQ(plan(replicated, cut).backward, CollectiveKind::kAllGather);
  EXPECT_EQ(plan(replicated, cut).ranks, 4);
  EXPECT_EQ(plan(sums, replicated).forward, CollectiveKind::kAllReduce);
  EXPECT_FALSE(plan(sums, replicated).backward.has_value());
  EXPECT_EQ(plan(sums, cut).forward, CollectiveKind::kReduceScatter);
  EXPECT_EQ(plan(sums, cut).backward, CollectiveKind::kAllGather);
  EXPECT_EQ(plan(cut, replicated).forward, CollectiveKind::kAllGather);
  EXPECT_FALSE(plan(cut, replicated).backward.has_value());
  EXPECT_EQ(plan(cut, other).forward, CollectiveKind::kAllToAll);
  EXPECT_EQ(plan(cut, other).backward, CollectiveKind::kAllToAll);
  // tp 4 to tp 2 x dp 2 of a tensor that is whole on every tensor-parallel device.
  const Reshard partly = plan({4, 1, {1, 1, 1}}, {2, 1, {1, 2, 1}});
  EXPECT_EQ(partly.backward, CollectiveKind::kAllGather);
  EXPECT_EQ(partly.ranks, 2);
}

// --- Plan files ---

std::unique_ptr<testing::RandomProblem> Problem(std::mt19937& random) {
  return MakeRandomProblem(random, {.list = {.layers = 4, .period = 4, .extra = 2}, .cluster = {2, 4, 1e6}});
}

TEST(PlanFile, WhatIsWrittenIsReadBack) {
  std::mt19937 random(1);
  for (int round = 0; round < 50; ++round) {
    const auto problem = Problem(random);
    const auto plan = RandomPlan(random, *problem->model, 4, round % 2 == 0);
    ASSERT_NE(plan, nullptr);
    PlanFile file;
    file.plan = *plan;
    file.cost_model = "parity";
    file.database_hash = problem->table->hash();
    if (round % 3 != 0) file.gpu_memory_mib = round % 3 == 1 ? 12000 : 1.0 / 3 + round;
    file.upper_bound_seconds = 1.5;
    file.lower_bound_seconds = 1.25;
    TempDir dir;
    const std::string path = dir.File("plan.json");
    ASSERT_TRUE(WritePlan(file, problem->ops, path).ok());
    const auto read = ReadPlan(path);
    ASSERT_TRUE(read.ok()) << ToString(read.status());
    EXPECT_EQ(read->plan.Key(), plan->Key());
    EXPECT_EQ(read->plan.global_batch, plan->global_batch);
    EXPECT_EQ(read->schema, kPlanSchema);
    EXPECT_EQ(read->gpu_memory_mib, file.gpu_memory_mib);
    EXPECT_EQ(read->model, "random");
    EXPECT_EQ(read->model_hash, problem->ops.hash);
    EXPECT_EQ(read->database_hash, problem->table->hash());
    EXPECT_DOUBLE_EQ(*read->gap(), 0.2);
    EXPECT_EQ(FormatPlan(*read, problem->ops), ::tidepool::testing::ReadAll(path));
  }
}

constexpr char kFile[] = R"({
  "model_name": "gpt",
  "model_size": "1_3B",
  "num_layers": 24,
  "global_batch_size": 8,
  "micro_batch_size": 2,
  "num_stages": 2,
  "num_gpus": [1, 2],
  "num_ops_in_each_stage": [2, 1],
  "model_parallel_size_of_each_op": [[1, 1], [2]],
  "data_parallel_size_of_each_op": [[1, 1], [1]],
  "recompute_ops": [[0, 1], [0]],
  "algo_of_each_op": [[0, 0], [1]]
})";

std::string Replaced(const std::string& what, const std::string& with) {
  std::string text = kFile;
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return text.replace(at, what.size(), with);
}

std::string Refusal(const std::string& text) {
  const auto file = ParsePlan(text, "p.json");
  EXPECT_EQ(file.status().code(), StatusCode::kInvalidArgument) << text;
  return MessageOf(file.status());
}

TEST(PlanFile, OptionsOfTheCostModelAreReadBack) {
  std::mt19937 random(2);
  const auto problem = Problem(random);
  const auto plan = RandomPlan(random, *problem->model, 4, false);
  ASSERT_NE(plan, nullptr);
  PlanFile file;
  file.plan = *plan;
  file.cost_model = "calibrated";
  file.cost_options = CalibratedOptions{.schedule = PipelineSchedule::kInterleaved,
                                        .chunks = 3,
                                        .transfer_overlap = 0.25,
                                        .sync_overlap = 0.5,
                                        .zero1 = true,
                                        .sequence_parallel = true,
                                        .memory_bytes_per_s = 1e12,
                                        .memory_margin = 0.1,
                                        .noise_factor = 2,
                                        .context_mib = 300};
  const std::string text = FormatPlan(file, problem->ops);
  const auto read = ParsePlan(text, "p.json");
  ASSERT_TRUE(read.ok()) << ToString(read.status());
  ASSERT_TRUE(read->cost_options.has_value());
  EXPECT_EQ(read->cost_options->chunks, 3);
  EXPECT_EQ(FormatPlan(*read, problem->ops), text);
  file.cost_options = std::nullopt;
  EXPECT_FALSE(ParsePlan(FormatPlan(file, problem->ops), "p.json")->cost_options.has_value());
}

TEST(PlanFile, FilesOfThePublishedPlannerAreRead) {
  const auto file = ParsePlan(kFile, "p.json");
  ASSERT_TRUE(file.ok()) << ToString(file.status());
  EXPECT_EQ(file->schema, 0);
  EXPECT_EQ(file->num_layers, (std::vector<int64_t>{24}));
  ASSERT_EQ(file->plan.stages.size(), 2u);
  EXPECT_EQ(file->plan.stages[1]->choice_at(2), (OpChoice{2, 1, 1, false}));
  EXPECT_TRUE(file->plan.stages[0]->choice_at(1).recompute);
  EXPECT_EQ(file->plan.micro_batches(), 4);
  EXPECT_EQ(PublishedOpListOf(*file)->name, "gpt:1.3b");
}

TEST(PlanFile, FaultsNameFileLineAndKey) {
  EXPECT_EQ(Refusal("{\n\"a\": ["), "p.json:2: this is not JSON");
  EXPECT_EQ(Refusal("[1]"), "p.json:1: the file holds array; allowed: an object");
  EXPECT_THAT(Refusal(std::string(40, '[')), HasSubstr("nested deeper than 16"));
  EXPECT_EQ(Refusal(Replaced("\"model_size\"", "\"model_name\"")), "p.json:3: key 'model_name' appears twice");
  EXPECT_EQ(Refusal(Replaced("\"num_stages\": 2,", "")), "p.json: key 'num_stages' is missing");
  EXPECT_EQ(Refusal(Replaced("\"num_stages\": 2", "\"num_stages\": \"2\"")),
            "p.json:7: key 'num_stages': is \"2\"; allowed: an integer from 1 to 65536");
  EXPECT_EQ(Refusal(Replaced("\"num_stages\": 2", "\"num_stages\": 3")),
            "p.json:9: key 'num_ops_in_each_stage': has 2 entries; allowed: 3");
  EXPECT_EQ(Refusal(Replaced("[2]]", "[0]]")),
            "p.json:10: key 'model_parallel_size_of_each_op': entry [1][0] is 0; allowed: an integer from 1 to 65536");
  EXPECT_EQ(Refusal(Replaced("[[0, 1], [0]]", "[[0, 1, 1], [0]]")),
            "p.json:12: key 'recompute_ops': entry [0] has 3 entries; allowed: 2");
  EXPECT_EQ(Refusal(Replaced("[[0, 1], [0]]", "[[0, 2], [0]]")),
            "p.json:12: key 'recompute_ops': entry [0][1] is 2; allowed: an integer from 0 to 1");
  EXPECT_EQ(Refusal(Replaced("[[1, 1], [1]]", "[[1, 2], [1]]")),
            "p.json:10: key 'model_parallel_size_of_each_op': entry [0][1] is 1 with data-parallel 2; the stage has 1 devices");
  EXPECT_EQ(Refusal(Replaced("\"micro_batch_size\": 2", "\"micro_batch_size\": 9")),
            "p.json:6: key 'micro_batch_size': is 9; allowed: up to the global batch, 8");
  EXPECT_EQ(Refusal(Replaced("\"model_name\": \"gpt\",", "\"model_name\": \"gpt\", \"schema\": 3, \"model\": \"x\",")),
            "p.json:2: key 'schema': is 3; this version reads up to 2");
  EXPECT_EQ(MessageOf(PublishedOpListOf(*ParsePlan(Replaced("1_3B", "7B"), "p")).status())
                .find("model_name 'gpt' with model_size '7B'"),
            0u);
  EXPECT_EQ(ReadPlan("/no/plan.json").status().code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(WritePlan({}, OpList(), "/no/folder/plan.json")), HasSubstr("'/no/folder/plan.json'"));
}

TEST(PlanFile, FlagsStandForZeroAndOneOnlyWhereThoseAreAllowed) {
  const auto flags = ParsePlan(Replaced("[[0, 1], [0]]", "[[false, true], [false]]"), "p.json");
  ASSERT_TRUE(flags.ok()) << ToString(flags.status());
  EXPECT_TRUE(flags->plan.stages[0]->choice_at(1).recompute);
  EXPECT_EQ(Refusal(Replaced("\"num_stages\": 2", "\"num_stages\": false")),
            "p.json:7: key 'num_stages': is false; allowed: an integer from 1 to 65536");
  EXPECT_EQ(Refusal(Replaced("[2, 1]", "[2, false]")),
            "p.json:9: key 'num_ops_in_each_stage': entry [1] is false; allowed: an integer from 1 to 1000000");
  EXPECT_EQ(Refusal(Replaced("[2]]", "[false]]")),
            "p.json:10: key 'model_parallel_size_of_each_op': entry [1][0] is false; allowed: an integer from 1 to 65536");
  EXPECT_THAT(Refusal(Replaced("\"micro_batch_size\": 2", "\"micro_batch_size\": false")),
              HasSubstr("p.json:6: key 'micro_batch_size': is false"));
}

TEST(PlanFile, MoreDevicesThanCanBeCountedAreRefused) {
  const auto wide = [](int stages, int replicas) {
    std::string ones, widths, counts, zeros;
    for (int i = 0; i < stages; ++i) {
      const std::string comma = i == 0 ? "" : ", ";
      ones += comma + "1";
      widths += comma + "[65536]";
      counts += fmt::format("{}[{}]", comma, replicas);
      zeros += comma + "[0]";
    }
    return fmt::format(R"({{"model_name": "gpt", "model_size": "1_3B", "num_layers": 24, "global_batch_size": 8,
"micro_batch_size": 2, "num_stages": {},
"num_ops_in_each_stage": [{}],
"model_parallel_size_of_each_op": [{}],
"data_parallel_size_of_each_op": [{}], "recompute_ops": [{}], "algo_of_each_op": [{}]}})",
                       stages, ones, widths, counts, zeros, zeros);
  };
  const auto most = ParsePlan(wide(256, 1), "p.json");
  ASSERT_TRUE(most.ok()) << ToString(most.status());
  EXPECT_EQ(most->plan.gpus(), 1 << 24);
  EXPECT_EQ(Refusal(wide(1, 65536)),
            "p.json:4: key 'model_parallel_size_of_each_op': entry [0] gives the stage 4294967296 devices, and all to here "
            "4294967296; allowed: 65536 and 16777216");
  EXPECT_THAT(Refusal(wide(257, 1)), HasSubstr("entry [256] gives the stage 65536 devices, and all to here 16842752"));
}

TEST(PlanFile, WhatIsTooMuchIsRefusedBeforeItIsKept) {
  std::string list = "[0";
  for (int i = 0; i < (6 << 20); ++i) list += ",0";
  EXPECT_EQ(Refusal(Replaced("\"num_stages\": 2,", "\"num_stages\": 2, \"x\": " + list + "],")),
            "p.json:1: has more than 6291456 values");
  std::string keys, layers = "24";
  for (int i = 0; i < 5000; ++i) keys += fmt::format("\"k{}\": 0,", i);
  EXPECT_EQ(Refusal(Replaced("\"num_stages\": 2,", "\"num_stages\": 2, " + keys)), "p.json:1: an object has more than 4096 keys");
  for (int i = 0; i < 64; ++i) layers += ",24";
  EXPECT_EQ(Refusal(Replaced("\"num_layers\": 24", "\"num_layers\": [" + layers + "]")),
            "p.json:4: key 'num_layers': has 65 entries; allowed: 64 or fewer");
}

TEST(PlanFile, FaultsInOptionsOfTheCostModelAreNamed) {
  const auto refusal = [](const std::string& options, const std::string& model = "calibrated") {
    return Refusal(
        Replaced("\"model_name\": \"gpt\",", "\"schema\": 1, \"model\": \"x\", \"model_name\": \"gpt\", \"cost_model\": \"" +
                                                 model + "\",\n\"cost_options\": " + options + ","));
  };
  EXPECT_EQ(refusal("3"), "p.json:3: key 'cost_options': is number; allowed: an object");
  EXPECT_EQ(refusal("{}", "parity"),
            "p.json:3: key 'cost_options': is there with cost_model 'parity'; allowed: with 'calibrated'");
  EXPECT_EQ(refusal("{\"zero1\": true, \"zero1\": false}"), "p.json:3: key 'zero1' appears twice");
  EXPECT_EQ(refusal("{\"zero1\": 1}"), "p.json:3: key 'cost_options': zero1 is 1; allowed: true or false");
  EXPECT_EQ(refusal("{\"zero3\": true}"), "p.json:3: key 'cost_options': zero3 is unknown to this version");
  EXPECT_EQ(refusal("{\"chunks\": 0}"), "p.json:3: key 'cost_options': chunks is 0; allowed: an integer from 1 to 1024");
  EXPECT_EQ(refusal("{\"chunks\": 2}"), "p.json:3: key 'cost_options': chunks is 2; allowed: 1, if not interleaved");
  EXPECT_EQ(refusal("{\"sync_overlap\": \"all\"}"), "p.json:3: key 'cost_options': sync_overlap is \"all\"; allowed: a number");
  EXPECT_EQ(refusal("{\"sync_overlap\": 2}"), "p.json:3: key 'cost_options': sync_overlap is 2; allowed: 0 to 1");
  EXPECT_EQ(refusal("{\"schedule\": \"gpipe\"}"),
            "p.json:3: key 'cost_options': schedule 'gpipe'; allowed: 1f1b, interleaved, zero-bubble");
}

TEST(PlanFile, MemoryLimitsThatNoDeviceHasAreRefused) {
  const auto with = [](const std::string& limit) {
    return Replaced("\"model_name\": \"gpt\",",
                    "\"schema\": 2, \"model\": \"x\", \"model_name\": \"gpt\",\n\"gpu_memory_mib\": " + limit + ",");
  };
  EXPECT_EQ(ParsePlan(with("12000"), "p.json")->gpu_memory_mib, 12000);
  EXPECT_EQ(ParsePlan(with("0.5"), "p.json")->gpu_memory_mib, 0.5);
  EXPECT_EQ(ParsePlan(with("1e9"), "p.json")->gpu_memory_mib, kMostMemoryMib);
  for (const auto& [limit, shown] : {std::pair{"0", "0"},
                                     {"-1", "-1"},
                                     {"-0.0", "-0.0"},
                                     {"1e10", "10000000000.0"},
                                     {"18446744073709551615", "18446744073709551615"},
                                     {"null", "null"},
                                     {"true", "true"},
                                     {"\"12000\"", "\"12000\""},
                                     {"[12000]", "array"}}) {
    EXPECT_EQ(Refusal(with(limit)),
              fmt::format("p.json:3: key 'gpu_memory_mib': is {}; allowed: a number above 0, up to 1000000000", shown));
  }
  for (const char* limit : {"NaN", "Infinity", "-Infinity", "1e999"}) {
    EXPECT_EQ(Refusal(with(limit)), "p.json:3: this is not JSON") << limit;
  }
}

TEST(PlanFile, FilesOfTheFirstSchemaHaveNoMemoryLimit) {
  const auto first = ParsePlan(
      Replaced("\"model_name\": \"gpt\",", "\"schema\": 1, \"model\": \"gpt:1.3b\", \"model_name\": \"gpt\","), "p.json");
  ASSERT_TRUE(first.ok()) << ToString(first.status());
  EXPECT_EQ(first->schema, 1);
  EXPECT_EQ(first->gpu_memory_mib, std::nullopt);
  // The key is ours: in a file without a schema it says nothing.
  const auto published =
      ParsePlan(Replaced("\"model_name\": \"gpt\",", "\"model_name\": \"gpt\", \"gpu_memory_mib\": -3,"), "p.json");
  ASSERT_TRUE(published.ok()) << ToString(published.status());
  EXPECT_EQ(published->gpu_memory_mib, std::nullopt);
}

TEST(PlanFile, MutatedFilesNeverCrashTheReader) {
  std::mt19937 random(3);
  const std::string ours =
      Replaced("\"model_name\": \"gpt\",",
               R"("schema": 2, "model": "x", "model_name": "gpt", "gpu_memory_mib": 12000.5, "cost_model": "calibrated",
                                    "cost_options": {"schedule": "interleaved", "chunks": 2, "zero1": true, "context_mib": 1.5},)");
  int accepted = 0, refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = i % 2 == 0 ? kFile : ours;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int e = 0; e < edits; ++e) {
      const size_t at = random() % text.size();
      switch (random() % 5) {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text.erase(at, 1 + random() % 6); break;
        case 2: text.insert(at, text.substr(random() % text.size(), random() % 60)); break;
        case 3: text[at] = "0123456789-[]{}\",:"[random() % 18]; break;
        default: text.insert(at, std::string(1 + random() % 4, "0-[]{}\",:9e"[random() % 11]));
      }
    }
    const auto file = ParsePlan(text, "f");
    ++(file.ok() ? accepted : refused);
    if (file.ok()) {
      EXPECT_FALSE(file->plan.stages.empty());
      EXPECT_GT(file->gpu_memory_mib.value_or(1), 0);
      EXPECT_LE(file->gpu_memory_mib.value_or(1), kMostMemoryMib);
    } else {
      EXPECT_THAT(MessageOf(file.status()), HasSubstr("f:"));
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 5000);
}

// --- Verification ---

TEST(Verify, RandomPlansThatAreWholeAreValid) {
  std::mt19937 random(4);
  for (int round = 0; round < 100; ++round) {
    const auto problem = Problem(random);
    const auto plan = RandomPlan(random, *problem->model, 1 << (round % 3), round % 2 == 0);
    ASSERT_NE(plan, nullptr);
    const auto faults = FindFaults(*problem->model, *plan, {.check_skips = false});
    EXPECT_TRUE(faults.empty()) << faults[0].text;
  }
}

TEST(Verify, EveryFaultIsNamedWithItsPlace) {
  std::mt19937 random(5);
  const auto problem = Problem(random);  // 18 ops, 2 x 4 devices
  const CostModel& model = *problem->model;
  const OpChoice four{4, 1, 0, false};
  const auto text = [&](const Plan& plan, const VerifyOptions& options = {}) { return MessageOf(Verify(model, plan, options)); };
  const auto plan = [&](std::vector<StagePtr> stages) {
    return Plan{.global_batch = 8, .micro_batch = 4, .stages = std::move(stages)};
  };
  const StagePtr whole = Stage::MakeUniform(0, 10, four), rest = Stage::MakeUniform(10, 8, four);
  EXPECT_EQ(text(plan({whole, rest})), "");
  EXPECT_THAT(text(plan({})), HasSubstr("the plan has no stages"));
  EXPECT_THAT(text(plan({whole, Stage::MakeUniform(11, 7, four)})), HasSubstr("stage 1: begins with op 11; allowed: 10"));
  EXPECT_THAT(text(plan({whole})), HasSubstr("the stages end with op 9; allowed: 17, the last of random"));
  EXPECT_THAT(text(plan({whole, Stage::MakeUniform(10, 99, four)})), HasSubstr("stage 1: has ops 10 to 108; random has 18"));
  EXPECT_THAT(text(plan({whole, Stage::MakeUniform(10, 8, {2, 1, 0, false})})),
              HasSubstr("the stages have 6 devices; allowed: 8"));
  EXPECT_EQ(text(plan({whole, Stage::MakeUniform(10, 8, {2, 1, 0, false})}), {.allow_idle_gpus = true}), "");
  const StagePtr uneven = Stage::MakeRuns(10, {{4, four}, {4, {1, 2, 0, false}}});
  EXPECT_THAT(text(plan({whole, uneven})),
              HasSubstr("stage 1, op 14 (op2): tensor-parallel 1 x data-parallel 2 are 2 devices; the stage has 4"));
  EXPECT_THAT(text(plan({whole, Stage::MakeRuns(10, {{8, {4, 1, 5, false}}})})),
              HasSubstr("algorithm 5 was not profiled; profiled: batches 1, 2, 4"));
  EXPECT_THAT(text(plan({whole, Stage::MakeRuns(10, {{8, {1, 3, 0, false}}})})),
              HasSubstr("3 replicas; allowed: a divisor of the micro-batch, 4"));
  EXPECT_THAT(text(plan({Stage::MakeUniform(0, 6, {2, 1, 0, false}), Stage::MakeUniform(6, 6, four),
                         Stage::MakeUniform(12, 6, {2, 1, 0, false})})),
              HasSubstr("stage 1: devices 2 to 5 lie on more than one node of 4"));
  EXPECT_THAT(text(plan({Stage::MakeUniform(0, 3, {2, 1, 0, false}), Stage::MakeUniform(3, 2, {2, 1, 0, false}),
                         Stage::MakeUniform(5, 13, four)})),
              HasSubstr("stage 1: the tensor from op 2 (op2) to op 5 (op5) would cross more than one edge"));
  Plan dropped = plan({whole, rest});
  dropped.global_batch = 10;
  EXPECT_THAT(text(dropped), HasSubstr("(2 samples would be dropped)"));
  EXPECT_EQ(text(dropped, {.allow_dropped_samples = true}), "");
  dropped.micro_batch = 0;
  EXPECT_THAT(text(dropped), HasSubstr("the micro-batch is 0"));
}

TEST(Verify, TooLittleMemoryIsAnErrorOfItsOwn) {
  std::mt19937 random(6);
  const auto problem = MakeRandomProblem(random, {.list = {.layers = 4, .period = 4, .extra = 2}, .cluster = {1, 4, 1}});
  const Plan plan{.global_batch = 8, .micro_batch = 4, .stages = {Stage::MakeUniform(0, 18, {4, 1, 0, false})}};
  const Status status = Verify(*problem->model, plan);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), ::testing::ContainsRegex("stage 0: needs [0-9.]+ MiB on each device; allowed: 1.00"));
  EXPECT_TRUE(Verify(*problem->model, plan, {.check_memory = false}).ok());
}

// --- Profile tables ---

TEST(ProfileTable, WidthOneDuplicatesAreMergedOnRequest) {
  std::mt19937 random(7);
  const OpList list = testing::RandomOpList(random);
  const profile::Bundle bundle = testing::RandomProfile(random, list);
  const auto raw = ProfileTable::Build(bundle, list, kParityTable), merged = ProfileTable::Build(bundle, list);
  ASSERT_TRUE(raw.ok() && merged.ok());
  const int32_t a = raw->RowOf(2, 1, 0), b = raw->RowOf(2, 1, 1);
  const double mean = (raw->At(Column::kForwardUs, a, 0) + raw->At(Column::kForwardUs, b, 0)) / 2;
  EXPECT_EQ(merged->At(Column::kForwardUs, a, 0), Quantized(mean));
  EXPECT_EQ(merged->At(Column::kForwardUs, b, 0), Quantized(mean));
  EXPECT_EQ(merged->At(Column::kForwardUs, merged->RowOf(2, 2, 1), 0), raw->At(Column::kForwardUs, raw->RowOf(2, 2, 1), 0));
  EXPECT_GT(raw->duplicate_spread_max(), raw->duplicate_spread_median());
  EXPECT_EQ(merged->duplicate_spread_max(), raw->duplicate_spread_max()) << "of the measurements";
  EXPECT_NE(raw->hash(), merged->hash());
}

TEST(ProfileTable, GapsAreRowsThatAreNotThere) {
  std::mt19937 random(8);
  const OpList list = testing::RandomOpList(random);
  profile::Bundle bundle = testing::RandomProfile(random, list);
  std::erase_if(bundle.ops, [](const profile::OpRow& row) {
    return row.key.op == "op1" && row.key.batch == 2 && row.key.tensor_parallel == 4 && row.key.algorithm == 0;
  });
  std::erase_if(bundle.ops, [](const profile::OpRow& row) {
    return row.key.op == "op1" && row.key.batch == 1 && row.key.tensor_parallel == 2 && row.key.algorithm == 1;
  });
  const auto table = ProfileTable::Build(bundle, list, kParityTable);
  ASSERT_TRUE(table.ok());
  EXPECT_EQ(table->RowOf(2, 4, 0), -1);
  const int32_t other = table->RowOf(1, 2, 1);
  ASSERT_GE(other, 0) << "an op without this algorithm has the numbers of algorithm 0";
  EXPECT_EQ(table->At(Column::kForwardUs, other, 1), table->At(Column::kForwardUs, table->RowOf(1, 2, 0), 1));
  EXPECT_EQ(table->RowOf(3, 1, 0), -1);
  EXPECT_EQ(table->RowOf(-1, 1, 0), -1);
}

TEST(ProfileTable, FaultsNameTheRow) {
  std::mt19937 random(9);
  const OpList list = testing::RandomOpList(random);
  profile::Bundle bundle = testing::RandomProfile(random, list);
  profile::Bundle other = bundle;
  for (profile::OpRow& row : other.ops) row.key.model = "another";
  EXPECT_EQ(MessageOf(ProfileTable::Build(other, list).status()),
            "the profile has no rows of random with the ops of random; it has: another");
  other = bundle;
  std::erase_if(other.ops, [](const profile::OpRow& row) { return row.key.op == "op3"; });
  EXPECT_THAT(MessageOf(ProfileTable::Build(other, list).status()),
              HasSubstr("first missing is op 'op3' at batch 1, width 1, algorithm 0"));
  for (const double value : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), 1e12}) {
    other = bundle;
    other.ops[3].median_us = value;
    EXPECT_THAT(MessageOf(ProfileTable::Build(other, list).status()), HasSubstr("the time of op 'op")) << value;
    other = bundle;
    other.ops[3].memory.weight_bytes = value * (1 << 20);
    EXPECT_THAT(MessageOf(ProfileTable::Build(other, list).status()), HasSubstr("a size in MiB of op 'op")) << value;
  }
}

TEST(ProfileTable, CollectivesAreLookedUpAsThePublishedPlannerDoesOrInterpolated) {
  std::mt19937 random(10);
  const OpList list = testing::RandomOpList(random);
  profile::Bundle bundle = testing::RandomProfile(random, list);
  using profile::CollectiveKind;
  bundle.collectives = {{"random", CollectiveKind::kAllGather, 2, 8.0 * (1 << 20), 80},
                        {"random", CollectiveKind::kAllGather, 2, 32.0 * (1 << 20), 320}};
  const auto parity = ProfileTable::Build(bundle, list, kParityTable), table = ProfileTable::Build(bundle, list);
  ASSERT_TRUE(parity.ok() && table.ok());
  EXPECT_EQ(parity->Collective(CollectiveKind::kAllGather, 2, 8.4).us, 80);
  EXPECT_EQ(parity->Collective(CollectiveKind::kAllGather, 2, 8.5).us, 80) << "halves go to the even number";
  EXPECT_EQ(parity->Collective(CollectiveKind::kAllGather, 2, 9.3).us, 80) << "one MiB less";
  EXPECT_EQ(parity->Collective(CollectiveKind::kAllGather, 2, 16).us, kUnknownCollectiveUs);
  EXPECT_EQ(parity->Collective(CollectiveKind::kAllToAll, 2, 8).us, kUnknownCollectiveUs);
  EXPECT_NEAR(table->Collective(CollectiveKind::kAllGather, 2, 16).us, 160, 1e-5);
  EXPECT_EQ(table->Collective(CollectiveKind::kAllGather, 2, 16).origin, profile::Origin::kFitted);
  EXPECT_EQ(table->Collective(CollectiveKind::kAllGather, 2, 8.9).origin, profile::Origin::kMeasured);
  EXPECT_NEAR(table->Collective(CollectiveKind::kAllGather, 2, 64).us, 640, 1e-5);
  EXPECT_EQ(table->Collective(CollectiveKind::kAllGather, 2, 1).us, 80);
}

TEST(ProfileTable, TransfersUseTheBandwidthThatThePublishedPlannerPicks) {
  std::mt19937 random(11);
  const OpList list = testing::RandomOpList(random);
  profile::Bundle bundle = testing::RandomProfile(random, list);
  bundle.links.clear();
  for (int i = 0; i <= 10; ++i) {  // bandwidth i + 1 MiB/us
    const double mib = 1 << i;
    bundle.links.push_back({.kind = profile::LinkKind::kPeer, .bytes = mib * (1 << 20), .median_us = mib / (i + 1)});
  }
  const auto table = ProfileTable::Build(bundle, list, kParityTable);
  ASSERT_TRUE(table.ok());
  const auto bandwidth = [&](double mib) { return mib / table->TransferUs(LinkClass::kBetweenNodes, mib); };
  EXPECT_NEAR(bandwidth(32), 5, 1e-3) << "that of 16 MiB";
  EXPECT_NEAR(bandwidth(1), 1, 1e-3);
  EXPECT_NEAR(bandwidth(0.75), 1, 1e-3);
  EXPECT_NEAR(bandwidth(2), 1, 1e-3);
  EXPECT_NEAR(bandwidth(1e6), 11, 1e-3);
  EXPECT_NEAR(bandwidth(0.25), 10, 1e-2) << "the index -2 counts from the end";
  EXPECT_EQ(table->TransferUs(LinkClass::kWithinNode, 0), 0);
}

// --- Estimated profiles ---

TEST(Estimate, PublishedListsGetWholeTablesThatAreMarkedAsEstimates) {
  profile::Hardware hardware;
  hardware.name = "test";
  hardware.memory_bytes_per_s = 1e12;
  hardware.peak_flops = {{DType::kF16, 1e14}, {DType::kF32, 2e13}};
  hardware.link_bytes_per_s = {{profile::LinkKind::kPeer, 1e11}, {profile::LinkKind::kNetwork, 1e10}};
  hardware.launch_us = 5;
  for (const char* name : {"gpt:1.3b", "t5:770m", "wresnet:500m"}) {
    const auto list = PublishedOpList(name);
    const auto bundle = EstimateBundle(*list, hardware);
    ASSERT_TRUE(bundle.ok()) << ToString(bundle.status());
    EXPECT_FALSE(bundle->manifest.measured);
    const auto table = ProfileTable::Build(*bundle, *list);
    ASSERT_TRUE(table.ok()) << ToString(table.status());
    const int32_t narrow = table->RowOf(1, 1, 0), wide = table->RowOf(1, 8, 0);
    ASSERT_TRUE(narrow >= 0 && wide >= 0);
    double times[2] = {};
    for (int32_t op = 0; op < table->distinct_ops(); ++op) {
      times[0] += table->At(Column::kForwardUs, narrow, op);
      times[1] += table->At(Column::kForwardUs, wide, op);
      EXPECT_GE(table->At(Column::kWeightMib, narrow, op), table->At(Column::kWeightMib, wide, op));
    }
    EXPECT_GT(times[0], 0) << name;
  }
  hardware.peak_flops.clear();
  EXPECT_THAT(MessageOf(EstimateBundle(*PublishedOpList("gpt:1.3b"), hardware).status()),
              HasSubstr("'test' has no peak_flops of F16"));
}

}  // namespace
}  // namespace tidepool::plan
