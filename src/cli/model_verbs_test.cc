#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/json.h"
#include "cli/command_line.h"
#include "cli/verb.h"

namespace tidepool::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ModelVerbs : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/verbsXXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Runs one command on the test's repository; what it printed is in out_ and err_.
  int Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--model-repository", folder_ + "/repo"});
    VerbList verbs;
    AddModelVerbs(&verbs);
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const int code = RunCommandLine(arguments, verbs);
    out_ = ::testing::internal::GetCapturedStdout();
    err_ = ::testing::internal::GetCapturedStderr();
    return code;
  }
  json Json() const { return json::parse(out_, nullptr, false); }

  std::string folder_, out_, err_;
};

TEST(ModelFamilies, AreListedWithTheirPresetsAndOptions) {
  VerbList verbs;
  AddModelVerbs(&verbs);
  ::testing::internal::CaptureStdout();
  const int code = RunCommandLine({"model", "families", "-o", "json"}, verbs);
  const json families = json::parse(::testing::internal::GetCapturedStdout(), nullptr, false);
  ASSERT_EQ(code, 0);
  ASSERT_GE(families.size(), 5u);
  EXPECT_EQ(families[0]["name"], "resnet");
  for (const json& family : families) EXPECT_FALSE(family["options"].empty()) << family;
}

constexpr char kSpec[] = "resnet18:width=2,image=8,classes=3";

TEST_F(ModelVerbs, CreateListShowAndCheckAModel) {
  ASSERT_EQ(Run({"model", "create", "m[2]", kSpec, "--seed", "3", "--slo", "20ms", "-o", "json"}), 0) << err_;
  EXPECT_EQ(Json()["name"], "m");
  EXPECT_EQ(Json()["serving"]["slo_ms"], 20.0);
  EXPECT_EQ(Json()["bytes"], fs::file_size(folder_ + "/repo/m/1/model.safetensors"));

  ASSERT_EQ(Run({"model", "list"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("NAME  SPEC                                VERSIONS  PARAMETERS   WEIGHTS  STATUS\n"));
  EXPECT_THAT(out_, HasSubstr("m-1   resnet18:width=2,image=8,classes=3  1"));
  ASSERT_EQ(Run({"model", "list", "-o", "json"}), 0) << err_;
  ASSERT_EQ(Json().size(), 2u);
  EXPECT_EQ(Json()[1]["base_name"], "m");
  EXPECT_EQ(Json()[1]["status"]["code"], "OK");

  ASSERT_EQ(Run({"model", "show", "m-1"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("output       logits F32 [B,3]\n"));
  EXPECT_EQ(Run({"model", "check"}), 0) << err_;
}

TEST_F(ModelVerbs, ShowASpecAsACompleteGraph) {
  ASSERT_EQ(Run({"model", "show", "resnet50", "-o", "json"}), 0) << err_;
  const json graph = Json();
  EXPECT_EQ(graph["trainable_parameters"], 25557032);
  EXPECT_EQ(graph["params"].size(), 320u);
  EXPECT_EQ(graph["ops"][0]["body"][0]["op"], "aten::conv2d");
  EXPECT_EQ(graph["ops"][0]["body"][0]["args"], json::parse(R"([{"value":0},{"param":0},null,[2,2],[3,3],[1,1],1])"));
  EXPECT_EQ(graph["ops"][1]["body"][0]["args"][5], json::parse(R"({"training":true})"));
}

TEST_F(ModelVerbs, NameWhatIsNeitherAModelNorASpec) {
  EXPECT_EQ(Run({"model", "show", "vgg"}), 1);
  EXPECT_THAT(err_, HasSubstr("'vgg' is neither a model nor a spec"));
  EXPECT_EQ(Run({"model", "show", "resnet18:colour=1"}), 2);
  EXPECT_THAT(err_, HasSubstr("resnet has no option 'colour'"));
}

TEST_F(ModelVerbs, TheCheckListsEveryFaultAndFails) {
  ASSERT_EQ(Run({"model", "create", "good", kSpec}), 0) << err_;
  ASSERT_EQ(Run({"model", "create", "cut", kSpec}), 0) << err_;
  fs::resize_file(folder_ + "/repo/cut/1/model.safetensors", 5000);
  fs::create_directories(folder_ + "/repo/empty");
  EXPECT_EQ(Run({"model", "check"}), 1);
  EXPECT_THAT(out_, HasSubstr("good   1         ok\n"));
  EXPECT_THAT(out_, HasSubstr("cut    1         bad\n"));
  EXPECT_THAT(out_, HasSubstr("model 'cut' has 1 fault:\nversion 1: "));
  EXPECT_THAT(out_, HasSubstr("empty/model.toml' is missing"));
  EXPECT_THAT(err_, HasSubstr("2 of 3 models cannot be served"));
  EXPECT_EQ(Run({"model", "check", "good"}), 0) << err_;
  EXPECT_EQ(Run({"model", "check", "-o", "json"}), 1);
  EXPECT_EQ(Json().size(), 3u);
  EXPECT_EQ(Run({"model", "check", "god"}), 1);
  EXPECT_THAT(err_, HasSubstr("did you mean 'good'?"));
}

TEST_F(ModelVerbs, ImportReportsWhatDoesNotFit) {
  ASSERT_EQ(Run({"model", "create", "source", kSpec}), 0) << err_;
  const std::string file = folder_ + "/repo/source/1/model.safetensors";
  EXPECT_EQ(Run({"model", "import", "copy", file, "--spec", kSpec}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("copy version 1: 122 tensors of resnet18"));
  EXPECT_EQ(Run({"model", "import", "other", file, "--spec", "resnet18:width=2,image=8,classes=4", "-o", "json"}), 1);
  EXPECT_EQ(Json()["mismatched"].size(), 2u);
  EXPECT_EQ(Json()["status"]["code"], "FAILED_PRECONDITION");
  EXPECT_EQ(Run({"model", "import", "other", file, "--spec", "resnet18:width=2,image=8,classes=4"}), 1);
  EXPECT_THAT(out_, HasSubstr("mismatched  tensor 'fc.weight' is F32 [3,16] in the file but F32 [4,16] in the network"));
  EXPECT_EQ(Run({"model", "import", "other", file, "--spec", "resnet18:width=2,image=8,classes=4", "--allow-partial"}), 0)
      << err_;
  EXPECT_EQ(Run({"model", "import", "other", file}), 2);
  EXPECT_THAT(err_, HasSubstr("give a spec"));
}

}  // namespace
}  // namespace tidepool::cli
