// Rules that hold for every verb of the program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/testing.h"
#include "base/text.h"
#include "cli/command_line.h"
#include "cli/completion.h"
#include "cli/help.h"

namespace tidepool::cli {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  int code = 0;
  std::string out, err;
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

class EveryVerb : public ::testing::Test {
 protected:
  EveryVerb() { AddAllVerbs(&verbs_); }
  VerbList verbs_;
};

TEST_F(EveryVerb, HasAPathOfItsOwnAndASummaryOfOneLine) {
  std::set<std::string> paths;
  for (const auto& verb : verbs_) {
    EXPECT_TRUE(paths.insert(verb->path()).second) << verb->path();
    EXPECT_FALSE(verb->summary().empty()) << verb->path();
    EXPECT_LE(verb->summary().size(), 90u) << verb->path();
    EXPECT_EQ(verb->summary().find('\n'), std::string::npos) << verb->path();
  }
  EXPECT_TRUE(paths.contains("doctor"));
  EXPECT_TRUE(paths.contains("demo"));
}

// Two words that clash, with each other or with a global flag, end the program: --help of each verb builds its command line.
TEST_F(EveryVerb, HasFlagsThatDoNotClashAndHelpThatFitsAScreen) {
  for (const auto& verb : verbs_) {
    std::vector<std::string> words = SplitText(verb->path(), ' ');
    words.push_back("--help");
    const Outcome outcome = RunWords(words);
    EXPECT_EQ(outcome.code, kExitDone) << verb->path();
    EXPECT_THAT(outcome.out, HasSubstr("Usage: tidepool " + verb->path()));
    EXPECT_LE(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 60) << outcome.out;
  }
}

TEST_F(EveryVerb, ExplainsEachOptionInOneLine) {
  for (const auto& verb : verbs_) {
    OptionTable table;
    RegisterAll(verb.get(), &table);
    for (const OptionTable::Entry& entry : table.entries()) {
      const std::string name = verb->path() + " --" + entry.info.flag;
      EXPECT_FALSE(entry.info.help.empty()) << name;
      EXPECT_EQ(entry.info.help.find('\n'), std::string::npos) << name;
      EXPECT_NE(entry.info.key.find('.'), std::string::npos) << name;
    }
  }
}

// One file configures all verbs that read one, so a key must mean the same to each of them.
TEST_F(EveryVerb, SharesKeysOnlyWithTheSameFlagTypeAndDefault) {
  std::map<std::string, OptionTable::Entry> known;
  for (const auto& verb : verbs_) {
    if (!verb->reads_config() || verb->path() == "config print") continue;
    OptionTable table;
    verb->Register(&table);
    for (const OptionTable::Entry& entry : table.entries()) {
      const auto [other, added] = known.emplace(entry.info.key, entry);
      if (added) continue;
      EXPECT_EQ(other->second.info.flag, entry.info.flag) << verb->path() << " " << entry.info.key;
      EXPECT_EQ(other->second.type, entry.type) << verb->path() << " " << entry.info.key;
    }
  }
  EXPECT_FALSE(known.empty());
}

TEST_F(EveryVerb, IsInTheConfigurationThatIsPrinted) {
  const Outcome printed = RunWords({"config", "print"});
  ASSERT_EQ(printed.code, kExitDone) << printed.err;
  // What is printed can be read again, and gives the same values.
  testing::TempDir directory;
  const Outcome again = RunWords({"config", "print", "--config", directory.Write("c.toml", printed.out)});
  ASSERT_EQ(again.code, kExitDone) << again.err;
  auto values = [](const std::string& text) {
    std::vector<std::string> lines;
    for (const std::string& line : SplitText(text, '\n')) lines.push_back(line.substr(0, line.rfind("  # ")));
    return lines;
  };
  EXPECT_EQ(values(printed.out), values(again.out));
}

// serve, up, demo and train take the same names of devices, and refuse the same ones before anything is started.
TEST_F(EveryVerb, ThatRunsADeviceTakesTheSameNames) {
  testing::TempDir folder;
  int verbs = 0;
  for (const auto& verb : verbs_) {
    if (verb->path() == "config print") continue;  // has everybody's options
    OptionTable table;
    RegisterAll(verb.get(), &table);
    const OptionTable::Entry* flag = table.FindFlag("device");
    if (flag == nullptr || !std::set<std::string>{"node.device", "demo.device", "train.device"}.contains(flag->info.key))
      continue;
    ++verbs;
    EXPECT_EQ(flag->default_value, "host") << verb->path();
    EXPECT_THAT(flag->info.help, HasSubstr("emulated:PROFILE")) << verb->path();
    const auto run = [&](const std::string& device) {
      std::vector<std::string> words = {verb->path(), "--device", device};
      if (table.FindFlag("model-repository") != nullptr) words.insert(words.end(), {"--model-repository", folder.path()});
      if (table.FindFlag("data") != nullptr) words.insert(words.end(), {"--data", "text:" + folder.File("none")});
      const Outcome outcome = RunWords(words);
      EXPECT_NE(outcome.code, kExitDone) << verb->path() << " " << device;
      return outcome.err;
    };
    EXPECT_THAT(run("v100"), HasSubstr("device name 'v100' is unknown; allowed: host, cuda:<index>, emulated:<profile>"))
        << verb->path();
    EXPECT_THAT(run("emulated:h200x0"), HasSubstr("the number of devices is '0'")) << verb->path();
    EXPECT_THAT(run("emulated:h200x17"), HasSubstr("means 17 devices")) << verb->path();
    EXPECT_THAT(run("emulated:nothing"), HasSubstr("there is no profile 'nothing'")) << verb->path();
    EXPECT_THAT(run("emulated:v100,clock=virtual"), HasSubstr("allowed here: real")) << verb->path();
  }
  EXPECT_EQ(verbs, 4);
}

TEST_F(EveryVerb, IsInEachCompletion) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    auto script = CompletionScript(shell, verbs_);
    ASSERT_TRUE(script.ok());
    for (const auto& verb : verbs_) EXPECT_THAT(*script, HasSubstr(SplitText(verb->path(), ' ').back())) << shell;
  }
}

TEST_F(EveryVerb, RefusesAFlagThatItDoesNotHave) {
  for (const auto& verb : verbs_) {
    std::vector<std::string> words = SplitText(verb->path(), ' ');
    words.insert(words.end(), {"--no-such-flag-anywhere", "-o", "json"});
    const Outcome outcome = RunWords(words);
    EXPECT_EQ(outcome.code, kExitUsage) << verb->path();
    EXPECT_THAT(outcome.err, HasSubstr("--no-such-flag-anywhere: unknown flag")) << verb->path();
  }
}

}  // namespace
}  // namespace tidepool::cli
