#include "cli/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/testing.h"
#include "base/units.h"
#include "cli/completion.h"

namespace tidepool::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// A verb with an option of every kind that records how it was run.
class ShipVerb : public Verb {
 public:
  std::string path() const override { return "fleet ship"; }
  std::string summary() const override { return "Send a ship"; }
  bool reads_config() const override { return true; }
  void Register(OptionTable* table) override {
    table->Add({.key = "ship.crew", .help = "Sailors"}, &crew);
    table->Add({.key = "ship.sails", .help = "Hoist them"}, &sails);
    table->Add({.key = "ship.lamp", .help = "Light it"}, &lamp);
    table->Add({.key = "ship.cargo", .help = "What it carries"}, &cargo);
    table->Add({.key = "ship.hold", .help = "Room", .advanced = true}, BytesField{&hold_bytes});
  }
  std::vector<Positional> positionals() override {
    return {{.name = "FROM", .help = "Port", .values = &from, .min = 1, .max = 1},
            {.name = "VIA", .help = "Ports between", .values = &via, .min = 0, .max = -1},
            {.name = "TO", .help = "Port", .values = &to, .min = 1, .max = 1}};
  }
  Status Run(const VerbContext& given) override {
    ran = true;
    context = given;
    level_origin = given.options->FindKey("log.level")->origin;
    fmt::print("{}\n", given.output == OutputFormat::kJson ? "{}" : "sailed");
    return result;
  }

  int crew = 3;
  bool sails = true, lamp = false, ran = false;
  std::vector<std::string> cargo, from, via, to;
  int64_t hold_bytes = kMiB;
  Status result;
  VerbContext context;
  std::string level_origin;
};

class RowVerb : public Verb {
 public:
  std::string path() const override { return "row"; }
  std::string summary() const override { return "Row a boat"; }
  bool reads_config() const override { return true; }
  void Register(OptionTable* table) override { table->Add({.key = "row.oars", .help = "Oars"}, &oars); }
  std::vector<Positional> positionals() override {
    return {{.name = "CONFIG", .help = "A file", .values = &files, .min = 0, .max = 1, .is_config = true}};
  }
  Status Run(const VerbContext&) override { return {}; }
  int oars = 2;
  std::vector<std::string> files;
};

struct Outcome {
  int code = 0;
  std::string out, err;
};

class CommandLine : public ::testing::Test {
 protected:
  CommandLine() {
    auto ship = std::make_unique<ShipVerb>();
    auto row = std::make_unique<RowVerb>();
    ship_ = ship.get();
    row_ = row.get();
    verbs_.push_back(std::move(ship));
    verbs_.push_back(std::move(row));
    AddToolVerbs(&verbs_);
  }

  Outcome Run(const std::vector<std::string>& arguments) {
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    Outcome outcome;
    outcome.code = RunCommandLine(arguments, verbs_);
    outcome.out = ::testing::internal::GetCapturedStdout();
    outcome.err = ::testing::internal::GetCapturedStderr();
    return outcome;
  }

  VerbList verbs_;
  ShipVerb* ship_;
  RowVerb* row_;
  testing::TempDir directory_;
};

TEST_F(CommandLine, RunsAVerbOfTwoWordsWithFlagsAndArguments) {
  const Outcome outcome = Run(
      {"fleet", "ship", "--crew", "12", "Oslo", "--no-sails", "Kiel", "Riga", "--cargo=a,b", "--cargo", "c", "Turku", "--lamp"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "sailed\n");
  EXPECT_EQ(ship_->crew, 12);
  EXPECT_FALSE(ship_->sails);
  EXPECT_TRUE(ship_->lamp);
  EXPECT_THAT(ship_->cargo, ElementsAre("a", "b", "c"));
  EXPECT_THAT(ship_->from, ElementsAre("Oslo"));
  EXPECT_THAT(ship_->via, ElementsAre("Kiel", "Riga"));
  EXPECT_THAT(ship_->to, ElementsAre("Turku"));
  EXPECT_EQ(ship_->context.output, OutputFormat::kText);
  EXPECT_FALSE(ship_->context.color);
}

TEST_F(CommandLine, TakesGlobalFlagsBeforeAndAfterTheVerb) {
  EXPECT_EQ(Run({"-o", "json", "fleet", "ship", "A", "B"}).code, 0);
  EXPECT_EQ(ship_->context.output, OutputFormat::kJson);
  EXPECT_EQ(Run({"fleet", "ship", "A", "B", "--output=json", "--log-level", "error"}).code, 0);
  EXPECT_EQ(ship_->level_origin, "--log-level");
}

TEST_F(CommandLine, TakesWordsAfterTwoDashesAsArguments) {
  EXPECT_EQ(Run({"fleet", "ship", "--", "--crew", "-5"}).code, 0);
  EXPECT_THAT(ship_->from, ElementsAre("--crew"));
  EXPECT_THAT(ship_->to, ElementsAre("-5"));
}

TEST_F(CommandLine, SuggestsTheVerbThatWasMeant) {
  const Outcome outcome = Run({"fleet", "shp"});
  EXPECT_EQ(outcome.code, kExitUsage);
  EXPECT_THAT(outcome.err, HasSubstr("'fleet shp' is no verb; did you mean 'fleet ship'?"));
  EXPECT_THAT(Run({"rwo"}).err, HasSubstr("did you mean 'row'?"));
  EXPECT_THAT(Run({"xylophone"}).err, HasSubstr("'xylophone' is no verb; 'tidepool --help' lists them"));
  EXPECT_EQ(outcome.out, "");
}

TEST_F(CommandLine, NamesTheFlagInEveryError) {
  EXPECT_THAT(Run({"fleet", "ship", "A", "B", "--crews", "3"}).err, HasSubstr("--crews: unknown flag; did you mean --crew?"));
  EXPECT_THAT(Run({"fleet", "ship", "A", "B", "--crew", "many"}).err, HasSubstr("--crew: 'many' is not a whole number"));
  EXPECT_THAT(Run({"fleet", "ship", "A", "B", "--crew"}).err, HasSubstr("--crew"));
  EXPECT_THAT(Run({"fleet", "ship", "A", "B", "-o", "xml"}).err,
              HasSubstr("--output: 'xml' is no output format; allowed: text, json"));
  EXPECT_THAT(Run({"version", "--config", "x"}).err, HasSubstr("--config: unknown flag"));
  EXPECT_THAT(Run({"--no-colour"}).err, HasSubstr("--no-colour: unknown flag; did you mean --no-color?"));
  EXPECT_FALSE(ship_->ran);
}

TEST_F(CommandLine, CountsArguments) {
  EXPECT_THAT(Run({"fleet", "ship", "Oslo"}).err, HasSubstr("'tidepool fleet ship' needs TO (Port)"));
  EXPECT_THAT(Run({"version", "x"}).err, HasSubstr("'tidepool version' does not take the argument 'x'; it takes none"));
}

TEST_F(CommandLine, PrintsErrorsAsJsonWhenAsked) {
  const Outcome usage = Run({"fleet", "ship", "A", "B", "--crew", "many", "-o", "json"});
  EXPECT_EQ(usage.code, kExitUsage);
  const auto json = nlohmann::json::parse(usage.err);
  EXPECT_EQ(json["error"]["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(json["error"]["exit_code"], kExitUsage);
  ship_->result = NotFound("no \"water\"");
  const Outcome failed = Run({"-ojson", "fleet", "ship", "A", "B"});
  EXPECT_EQ(failed.code, kExitFailed);
  EXPECT_EQ(nlohmann::json::parse(failed.err)["error"]["message"], "no \"water\"");
}

TEST_F(CommandLine, GivesEachKindOfFailureItsExitCode) {
  ship_->result = InvalidArgument("the sea is dry");
  EXPECT_EQ(Run({"fleet", "ship", "A", "B"}).code, kExitUsage);
  ship_->result = Unavailable("no wind");
  const Outcome outcome = Run({"fleet", "ship", "A", "B"});
  EXPECT_EQ(outcome.code, kExitFailed);
  EXPECT_EQ(outcome.err, "tidepool fleet ship: no wind\n");
}

TEST_F(CommandLine, ReportsFaultsOfFileEnvironmentAndFlagsTogether) {
  ::setenv("TIDEPOOL_SHIP_SAILS", "torn", 1);
  const std::string path = directory_.Write("c.toml", "[ship]\ncrow = 3\n[row]\noars = 4\n");
  const Outcome outcome = Run({"fleet", "ship", "A", "B", "--config", path, "--crew", "many"});
  ::unsetenv("TIDEPOOL_SHIP_SAILS");
  EXPECT_EQ(outcome.code, kExitUsage);
  EXPECT_THAT(outcome.err, HasSubstr(path + ":2: key 'ship.crow' is unknown; did you mean 'ship.crew'?"));
  EXPECT_THAT(outcome.err, HasSubstr("TIDEPOOL_SHIP_SAILS: 'torn' is neither true nor false"));
  EXPECT_THAT(outcome.err, HasSubstr("--crew: 'many'"));
  // A key of another verb that shares the file is no fault.
  EXPECT_THAT(outcome.err, Not(HasSubstr("row.oars")));
}

TEST_F(CommandLine, ReadsAConfigurationNamedByFlagArgumentOrVariable) {
  const std::string path = directory_.Write("c.toml", "[ship]\ncrew = 7\n[row]\noars = 4\n");
  EXPECT_EQ(Run({"fleet", "ship", "A", "B", "--config", path}).code, 0);
  EXPECT_EQ(ship_->crew, 7);
  EXPECT_EQ(Run({"row", path}).code, 0);
  EXPECT_EQ(row_->oars, 4);
  row_->oars = 2;
  row_->files.clear();
  ::setenv("TIDEPOOL_CONFIG", path.c_str(), 1);
  EXPECT_EQ(Run({"row"}).code, 0);
  ::unsetenv("TIDEPOOL_CONFIG");
  EXPECT_EQ(row_->oars, 4);
  EXPECT_THAT(Run({"row", "--config", directory_.File("none")}).err, HasSubstr("--config: opening"));
}

TEST_F(CommandLine, WarnsOfAVariableThatIsNearlyAnOption) {
  ::setenv("TIDEPOOL_SHIP_CROW", "3", 1);
  const Outcome outcome = Run({"fleet", "ship", "A", "B"});
  ::unsetenv("TIDEPOOL_SHIP_CROW");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.err, HasSubstr("variable is no option variable=TIDEPOOL_SHIP_CROW nearest=TIDEPOOL_SHIP_CREW"));
}

TEST_F(CommandLine, ShowsHelpThatFitsAScreen) {
  const Outcome root = Run({"--help"});
  EXPECT_EQ(root.code, 0);
  EXPECT_THAT(root.out, HasSubstr("fleet ship    Send a ship"));
  EXPECT_THAT(root.out, Not(HasSubstr("--log-level")));
  EXPECT_THAT(Run({"--help-all"}).out, HasSubstr("--log-level LEVEL"));
  EXPECT_THAT(Run({"fleet", "--help"}).out, HasSubstr("tidepool fleet VERB"));
  const Outcome verb = Run({"fleet", "ship", "--help"});
  EXPECT_THAT(verb.out, StartsWith("Send a ship\n\nUsage: tidepool fleet ship FROM [VIA...] TO [FLAGS]\n"));
  EXPECT_THAT(verb.out, HasSubstr("--crew N"));
  EXPECT_THAT(verb.out, HasSubstr("--no-sails"));
  EXPECT_THAT(verb.out, Not(HasSubstr("--hold")));
  const std::string all = Run({"fleet", "ship", "--help-all"}).out;
  EXPECT_THAT(all, HasSubstr("--hold SIZE"));
  EXPECT_THAT(all, HasSubstr("TIDEPOOL_SHIP_CREW"));
  for (const std::string& text : {root.out, verb.out, all}) {
    size_t longest = 0, start = 0;
    for (size_t end = text.find('\n'); end != std::string::npos; start = end + 1, end = text.find('\n', start))
      longest = std::max(longest, end - start);
    EXPECT_LE(longest, 120u);
  }
}

TEST_F(CommandLine, WithoutAVerbPrintsHelpAsAnError) {
  const Outcome outcome = Run({});
  EXPECT_EQ(outcome.code, kExitUsage);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, HasSubstr("Usage: tidepool VERB"));
  EXPECT_EQ(Run({"fleet"}).code, kExitUsage);
}

TEST_F(CommandLine, PrintsTheConfigurationOfAllVerbs) {
  const std::string path = directory_.Write("c.toml", "[ship]\ncrew = 7\n");
  const Outcome text = Run({"config", "print", "--config", path, "--oars", "8"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("[ship]\ncrew = 7  # file " + path + ":2\n"));
  EXPECT_THAT(text.out, HasSubstr("hold = \"1MiB\"  # default\n"));
  EXPECT_THAT(text.out, HasSubstr("[row]\noars = 8  # flag --oars\n"));
  // What it prints is a configuration file.
  EXPECT_EQ(Run({"config", "print", "--config", directory_.Write("again.toml", text.out)}).code, 0);
  EXPECT_EQ(nlohmann::json::parse(Run({"config", "print", "-o", "json"}).out)["options"][0]["key"], "log.level");
}

TEST_F(CommandLine, PrintsItsVersion) {
  EXPECT_THAT(Run({"--version"}).out, StartsWith("tidepool "));
  EXPECT_EQ(nlohmann::json::parse(Run({"version", "-o", "json"}).out)["name"], "tidepool");
}

TEST_F(CommandLine, CompletesInBash) {
  const Outcome script = Run({"completion", "bash"});
  ASSERT_EQ(script.code, 0);
  const std::string file = directory_.Write("script", script.out);
  auto complete = [&](const std::string& words, int index) {
    const std::string out = directory_.File("out");
    const std::string command = fmt::format(
        "bash -c 'source {}; COMP_WORDS=({}); COMP_CWORD={}; _tidepool; echo ${{COMPREPLY[@]}}' > {}", file, words, index, out);
    EXPECT_EQ(std::system(command.c_str()), 0);
    return testing::ReadAll(out);
  };
  EXPECT_EQ(complete("tidepool fl", 1), "fleet\n");
  EXPECT_EQ(complete("tidepool fleet sh", 2), "ship\n");
  EXPECT_EQ(complete("tidepool fleet ship --cr", 3), "--crew\n");
  EXPECT_EQ(complete("tidepool row --oa", 2), "--oars\n");
  EXPECT_EQ(complete("tidepool version -o j", 3), "json\n");
}

TEST_F(CommandLine, OffersThreeShells) {
  EXPECT_THAT(Run({"completion", "zsh"}).out, StartsWith("#compdef tidepool\n"));
  EXPECT_THAT(Run({"completion", "fish"}).out, HasSubstr("complete -c tidepool -n '__fish_seen_subcommand_from fleet; and "
                                                         "__fish_seen_subcommand_from ship' -l crew -r -d 'Sailors'"));
  EXPECT_THAT(Run({"completion", "tcsh"}).err, HasSubstr("there is no completion for shell 'tcsh'; allowed: bash, zsh, fish"));
}

}  // namespace
}  // namespace tidepool::cli
