#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/json.h"
#include "base/testing.h"
#include "cli/command_line.h"
#include "cli/profile_measure.h"
#include "cli/verb.h"
#include "profile/builtin.h"
#include "profile/bundle_io.h"

namespace tidepool::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ProfileVerbs : public ::testing::Test {
 protected:
  int Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--profiles", directory_.File("profiles")});
    VerbList verbs;
    AddProfileVerbs(&verbs);
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const int code = RunCommandLine(arguments, verbs);
    out_ = ::testing::internal::GetCapturedStdout();
    err_ = ::testing::internal::GetCapturedStderr();
    return code;
  }
  json Json() const { return json::parse(out_, nullptr, false); }

  // A measured bundle of ResNet-50 steps on a P100.
  void Make(const std::string& name, double factor) {
    profile::Bundle bundle = *profile::FindBuiltin("p100");
    bundle.manifest.name = name;
    bundle.manifest.measured = true;
    bundle.manifest.source = "a test";
    bundle.manifest.date = "2025-01-31";
    for (const auto& [batch, us] : {std::pair<int64_t, double>{32, 166e3}, {64, 302e3}, {128, 575e3}}) {
      bundle.ops.push_back(profile::OpRow{.key = {.model = "resnet50", .phase = profile::Phase::kStep, .batch = batch},
                                          .repeats = 55,
                                          .median_us = us * factor,
                                          .memory = {.peak_bytes = 1e9 + 1e8 * static_cast<double>(batch)}});
    }
    fs::create_directories(directory_.File("profiles"));
    const Status written = profile::WriteBundle(bundle, directory_.File("profiles/" + name));
    ASSERT_TRUE(written.ok()) << ToString(written);
  }

  testing::TempDir directory_;
  std::string out_, err_;
};

TEST_F(ProfileVerbs, ListShowsBuiltInAndOwnBundlesAndWhatIsUnreadable) {
  ASSERT_EQ(Run({"profile", "list"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("h200  h200    estimated     0       0  ok      estimated from: NVIDIA H200 datasheet"));
  Make("mine", 1);
  directory_.Write("profiles/mine/links.tsv", "nonsense\n");
  Make("other", 1);
  ASSERT_EQ(Run({"profile", "list", "-o", "json"}), 0) << err_;
  EXPECT_THAT(Json()[0]["error"].get<std::string>(), HasSubstr("links.tsv:1:1: column 1 is 'nonsense'"));
  EXPECT_EQ(Json()[1]["name"], "other");
  EXPECT_EQ(Json()[1]["measured"], true);
  EXPECT_EQ(Json()[1]["rows"], 3);
  EXPECT_EQ(Json()[1]["models"], json({"resnet50"}));
}

TEST_F(ProfileVerbs, ShowAnswersWithTheOriginOfEachTime) {
  Make("mine", 1);
  ASSERT_EQ(Run({"profile", "show", "mine", "--model", "resnet50", "--batch", "64,96,256", "-o", "json"}), 0) << err_;
  ASSERT_EQ(Json().size(), 3u);
  EXPECT_EQ(Json()[0]["origin"], "measured");
  EXPECT_EQ(Json()[0]["median_us"], 302000);
  EXPECT_EQ(Json()[0]["memory"]["peak_bytes"], 7.4e9);
  EXPECT_EQ(Json()[1]["origin"], "fitted");
  EXPECT_EQ(Json()[1]["method"], "neighbours");
  EXPECT_EQ(Json()[2]["method"], "affine");
  ASSERT_EQ(Run({"profile", "show", "h200", "--model", "resnet50", "--batch", "64"}), 0) << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("estimated"), HasSubstr("roofline"), HasSubstr("25.0 %")));
  ASSERT_EQ(Run({"profile", "show", "mine", "--model", "resnet50"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("measured"));

  ASSERT_EQ(Run({"profile", "show", "mine"}), 0) << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("times        measured\n"), HasSubstr("resnet50  -   step   F32       3   32-128")));
  ASSERT_EQ(Run({"profile", "show", "mine", "-o", "json"}), 0) << err_;
  EXPECT_EQ(Json()["ops"][0]["model"], "resnet50");
  EXPECT_EQ(Json()["hardware"]["peak_flops"]["F32"], 9.3e12);
}

TEST_F(ProfileVerbs, ShowSaysWhatIsWrongWithTheQuestion) {
  EXPECT_EQ(Run({"profile", "show", "h20"}), 1);
  EXPECT_THAT(err_, HasSubstr("did you mean 'h200'?"));
  EXPECT_EQ(Run({"profile", "show", "h200", "--model", "resnet50", "--batch", "0"}), 2);
  EXPECT_THAT(err_, HasSubstr("--batch: '0' is no batch"));
  EXPECT_EQ(Run({"profile", "show", "h200", "--model", "resnet50", "--phase", "sideways"}), 2);
  EXPECT_THAT(err_, HasSubstr("'sideways' is no phase; allowed: forward, backward, step, optimizer"));
  EXPECT_EQ(Run({"profile", "show", "h200", "--model", "nothing"}), 1);
  EXPECT_THAT(err_, HasSubstr("profile 'h200' has no rows for nothing step"));
}

TEST_F(ProfileVerbs, CheckListsEveryFaultAndFails) {
  EXPECT_EQ(Run({"profile", "check"}), 0) << out_ << err_;
  Make("slow", 1);
  Make("fast", 0.2);
  EXPECT_EQ(Run({"profile", "check"}), 1);
  EXPECT_THAT(out_,
              AllOf(HasSubstr("slow: ok\n"), HasSubstr("fast: 4 faults\n"), HasSubstr("  fault  flops: resnet50 step B=64 F32"),
                    HasSubstr("  fault  device: bundle: 3 of the 3 rows")));
  EXPECT_THAT(err_, HasSubstr("1 of 9 bundles have faults"));
  EXPECT_EQ(Run({"profile", "check", "slow"}), 0) << err_;
  EXPECT_EQ(Run({"profile", "check", "fast", "-o", "json"}), 1);
  EXPECT_EQ(Json()[0]["faults"], 4);
  EXPECT_EQ(Json()[0]["findings"][0]["check"], "device") << "what is wrong with the whole comes first";
}

TEST_F(ProfileVerbs, DiffComparesRowByRowAndMindsATolerance) {
  Make("a", 1);
  Make("b", 1.01);
  ASSERT_EQ(Run({"profile", "diff", "a", "b", "--tolerance", "2"}), 0) << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("resnet50 step B=64 F32   302.0 ms  305.0 ms  1.010"),
                          HasSubstr("3 rows in both, 0 only in a, 0 only in b; mean difference 1.00 %, largest 1.00 %\n")));
  EXPECT_EQ(Run({"profile", "diff", "a", "b", "--tolerance", "0.5"}), 1);
  EXPECT_THAT(err_, HasSubstr("the mean difference is 1.00 %; allowed: 0.5 %"));
  EXPECT_EQ(Run({"profile", "diff", "a", "h100", "--tolerance", "2"}), 1);
  EXPECT_THAT(err_, HasSubstr("'a' and 'h100' have no row in common"));
  ASSERT_EQ(Run({"profile", "diff", "a", "h100", "-o", "json"}), 0) << err_;
  EXPECT_EQ(Json()["only_a"], 3);
  EXPECT_EQ(Json()["only_b"], 3);
  EXPECT_EQ(Json()["same_hardware"], false);
}

TEST_F(ProfileVerbs, ImportChecksBeforeItWrites) {
  const std::string table = directory_.Write("profile.csv",
                                             "p100\t\tresnet50\t64\t\t\t0.0034\t0.3017\t20018\t\t\t\n"
                                             "p100\t\tresnet50\t128\t\t\t0.0067\t0.5753\t20018\t\t\t\n"
                                             "p100\t\tvgg11\t64\t\t\tN/A\tN/A\t20018\t\t\t\n");
  ASSERT_EQ(Run({"profile", "import", table, "--gpu", "P100", "--name", "p", "--date", "2024-12-01", "-o", "json"}), 0) << err_;
  EXPECT_EQ(Json()["ops"], 2);
  EXPECT_EQ(Json()["not_measured"], 1);
  EXPECT_EQ(Run({"profile", "import", table, "--gpu", "P100", "--name", "p"}), 1);
  EXPECT_THAT(err_, HasSubstr("exists already"));
  EXPECT_EQ(Run({"profile", "import", table, "--gpu", "P100", "--name", "p", "--replace"}), 0) << err_;
  ASSERT_EQ(Run({"profile", "show", "p", "--model", "resnet50", "-o", "json"}), 0) << err_;
  EXPECT_EQ(Json()[1]["origin"], "measured");

  const std::string v100 = directory_.Write("v100.csv", "p100\t\tresnet50\t64\t\t\t0.0034\t0.1794\t20018\t\t\t\n");
  EXPECT_EQ(Run({"profile", "import", v100, "--gpu", "P100", "--card", "k80", "--name", "k"}), 1);
  EXPECT_THAT(err_, HasSubstr("flops: resnet50 step B=64 F32"));
  EXPECT_FALSE(fs::exists(directory_.File("profiles/k")));
  EXPECT_EQ(Run({"profile", "import", table, "--gpu", "A100", "--name", "k"}), 1);
  EXPECT_THAT(err_, HasSubstr("no row was taken; the tables hold: --gpu 'p100'"));
  EXPECT_EQ(Run({"profile", "import", table, "--name", "k"}), 2);
  EXPECT_THAT(err_, HasSubstr("--card: give the bundle"));
  EXPECT_EQ(Run({"profile", "import", directory_.File("absent"), "--gpu", "P100", "--name", "k"}), 1);
}

TEST_F(ProfileVerbs, CopyMakesABuiltInBundleEditable) {
  ASSERT_EQ(Run({"profile", "copy", "h100", "--name", "mine"}), 0) << err_;
  ASSERT_EQ(Run({"profile", "show", "mine", "-o", "json"}), 0) << err_;
  EXPECT_EQ(Json()["name"], "mine");
  EXPECT_EQ(Json()["ops"].size(), 3u);
  EXPECT_EQ(Run({"profile", "copy", "h100", "--name", "../up"}), 2);
}

TEST_F(ProfileVerbs, MeasuringRefusesWrongOptionsTogether) {
  EXPECT_EQ(Run({"profile", "--batch", "1,x", "--phase", "sideways", "--repeats", "3"}), 2);
  EXPECT_THAT(err_, AllOf(HasSubstr("--model: name at least one network"), HasSubstr("--batch: 'x' is no batch"),
                          HasSubstr("--phase: 'sideways' is not measured"), HasSubstr("--repeats: 3; allowed: 10")));
  EXPECT_EQ(Run({"profile", "--device", "cuda:0", "--model", "resnet18"}), 1);
  EXPECT_THAT(err_, HasSubstr("--device: 'cuda:0' cannot be measured by this build; allowed: host"));
  EXPECT_EQ(Run({"profile", "--model", "resnet18", "--worker-binary", "/absent/worker"}), 1);
  EXPECT_THAT(err_, HasSubstr("/absent/worker"));
}

TEST(MeasureOptions, GoThroughJsonUnchanged) {
  MeasureOptions options;
  options.models = {"resnet18:image=64", "classes=10", "gpt2"};  // as the command line cuts it
  options.batches = {"16", "1", "4", "16"};
  options.phases = {"forward"};
  options.ops = false;
  options.memory_bytes = kGiB;
  options.output = "/somewhere";
  const auto read = ParseMeasureOptions(ToJson(options));
  ASSERT_TRUE(read.ok()) << ToString(read.status());
  EXPECT_EQ(ToJson(*read), ToJson(options));
  EXPECT_EQ(read->models, (std::vector<std::string>{"resnet18:image=64,classes=10", "gpt2"}));
  EXPECT_EQ(read->Models(), read->models);
  EXPECT_EQ(read->Batches(), (std::vector<int64_t>{1, 4, 16}));
  EXPECT_FALSE(ParseMeasureOptions("[]").ok());
  EXPECT_FALSE(ParseMeasureOptions("{\"measure.models\": [1]}").ok());
  EXPECT_FALSE(ParseMeasureOptions("{\"measure.colour\": \"1\"}").ok());
}

}  // namespace
}  // namespace tidepool::cli
