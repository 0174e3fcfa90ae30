#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/json.h"
#include "base/testing.h"
#include "base/text.h"

namespace tidepool {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using testing::TempDir;

// Logging is one per process: each test sets it up for its own file.
class Logging : public ::testing::Test {
 protected:
  void Start(LogFormat format, LogLevel level = LogLevel::kInfo, const std::string& process = "") {
    const Status started = InitLogging({.level = level, .format = format, .file = directory_.File("log"), .process = process});
    ASSERT_TRUE(started.ok()) << started;
  }
  std::string Text() const { return testing::ReadAll(directory_.File("log")); }

 private:
  TempDir directory_;
};

TEST_F(Logging, WritesTextWithQuotesOnlyWhereNeeded) {
  Start(LogFormat::kText, LogLevel::kInfo, "node");
  Log(LogLevel::kWarning, "model loaded",
      {{"model", "resnet"}, {"path", "/a b"}, {"bytes", 12}, {"ok", true}, {"ratio", 0.25}, {"empty", ""}});
  EXPECT_THAT(Text(),
              ContainsRegex("^[0-9-]+T[0-9:.]+Z warning \\[node\\] model loaded model=resnet path=\"/a b\" bytes=12 ok=true "
                            "ratio=0.25 empty=\"\"\n$"));
}

TEST_F(Logging, KeepsOneEventOnOneLine) {
  Start(LogFormat::kText);
  Log(LogLevel::kInfo, "two\nlines", {{"text", "a\nb"}});
  const std::string text = Text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_THAT(text, HasSubstr(R"("two\nlines" text="a\nb")"));
}

TEST_F(Logging, WritesJsonThatParses) {
  Start(LogFormat::kJson, LogLevel::kInfo, "worker");
  Log(LogLevel::kError, "load \"failed\"",
      {{"error", NotFound("no '{}'", "x")},
       {"bytes", int64_t{1} << 40},
       {"nan", std::numeric_limits<double>::quiet_NaN()},
       {"raw", "\xff\n"}});
  const auto json = nlohmann::json::parse(Text());
  EXPECT_EQ(json["level"], "error");
  EXPECT_EQ(json["event"], "load \"failed\"");
  EXPECT_EQ(json["process"], "worker");
  EXPECT_EQ(json["error"], "NOT_FOUND: no 'x'");
  EXPECT_EQ(json["bytes"], int64_t{1} << 40);
  EXPECT_EQ(json["nan"], "nan");
}

TEST_F(Logging, LeavesOutWhatIsLessImportant) {
  Start(LogFormat::kText, LogLevel::kWarning);
  Log(LogLevel::kInfo, "quiet");
  Log(LogLevel::kError, "loud");
  EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
  EXPECT_THAT(Text(), ::testing::Not(HasSubstr("quiet")));
  EXPECT_THAT(Text(), HasSubstr("loud"));
}

TEST(LogOptions, NameWhatIsAllowed) {
  EXPECT_EQ(*ParseLogLevel("warning"), LogLevel::kWarning);
  EXPECT_EQ(MessageOf(ParseLogLevel("warn").status()), "log level 'warn' is unknown; allowed: debug, info, warning, error");
  EXPECT_EQ(MessageOf(ParseLogFormat("xml").status()), "log format 'xml' is unknown; allowed: text, json");
  EXPECT_THAT(MessageOf(InitLogging({.file = "/dev/null/log"})), HasSubstr("log file '/dev/null/log' cannot be opened"));
}

}  // namespace
}  // namespace tidepool
