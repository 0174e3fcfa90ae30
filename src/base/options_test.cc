#include "base/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/testing.h"
#include "base/units.h"

namespace tidepool {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;
using Source = OptionTable::Source;

struct Everything {
  std::string name = "node";
  bool strict = true;
  int port = 8001;
  int64_t seed = -1;
  uint64_t count = 3;
  double fraction = 0.5;
  absl::Duration grace = absl::Milliseconds(1500);
  int64_t capacity_bytes = 2 * kGiB;
  std::vector<std::string> load = {"a", "b"};
  std::string policy = "best";

  void Register(OptionTable* table) {
    table->Add({.key = "node.name", .help = "Name of the node"}, &name);
    table->Add({.key = "pool.strict", .help = "Unmap what is not owned"}, &strict);
    table->Add({.key = "serve.grpc_port", .flag = "grpc-port", .help = "Port of the gRPC API"}, &port);
    table->Add({.key = "train.seed", .help = "Seed"}, &seed);
    table->Add({.key = "train.count", .help = "Count"}, &count);
    table->Add({.key = "train.fraction", .help = "Part"}, &fraction);
    table->Add({.key = "serve.grace", .help = "Time to drain"}, &grace);
    table->Add({.key = "pool.capacity", .help = "Device memory"}, BytesField{&capacity_bytes});
    table->Add({.key = "serve.load", .help = "Models"}, &load);
    table->AddCustom(
        {.key = "pool.policy", .help = "Fit"}, "choice",
        [this](std::string_view text) -> Status {
          if (text != "best" && text != "first") return InvalidArgument("policy '{}' is unknown; allowed: best, first", text);
          policy = std::string(text);
          return {};
        },
        [this] { return policy; });
  }
};

class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
  ~Variable() { ::unsetenv(name_); }

 private:
  const char* name_;
};

TEST(OptionTable, TakesFlagOverEnvironmentOverFileOverDefault) {
  TempDir directory;
  const std::string path = directory.Write("c.toml",
                                           "[node]\nname = \"file\"\n[serve]\ngrpc_port = 1\ngrace = \"2s\"\n"
                                           "[pool]\ncapacity = \"1GiB\"\n");
  Variable port("TIDEPOOL_SERVE_GRPC_PORT", "2"), grace("TIDEPOOL_SERVE_GRACE", "3s");
  // In any order of loading.
  for (const bool flags_first : {false, true}) {
    Everything options;
    OptionTable table;
    options.Register(&table);
    auto flags = [&] { return table.Set("grace", "4s", Source::kFlag, "--grace"); };
    if (flags_first) {
      ASSERT_TRUE(flags().ok());
    }
    ASSERT_TRUE(table.LoadEnvironment().ok());
    const Status loaded = table.LoadFile(path);
    ASSERT_TRUE(loaded.ok()) << loaded;
    if (!flags_first) {
      ASSERT_TRUE(flags().ok());
    }
    EXPECT_EQ(options.seed, -1);
    EXPECT_EQ(options.name, "file");
    EXPECT_EQ(options.port, 2);
    EXPECT_EQ(options.grace, absl::Seconds(4));
    EXPECT_EQ(options.capacity_bytes, kGiB);
    EXPECT_EQ(table.FindKey("train.seed")->source, Source::kDefault);
    EXPECT_EQ(table.FindKey("node.name")->origin, path + ":2");
    EXPECT_EQ(table.FindKey("serve.grpc_port")->origin, "TIDEPOOL_SERVE_GRPC_PORT");
    EXPECT_EQ(table.FindFlag("grace")->origin, "--grace");
  }
}

TEST(OptionTable, ReadsEveryType) {
  TempDir directory;
  const std::string path = directory.Write(
      "c.toml",
      "node.name = 'x'\npool.strict = false\nserve.grpc_port = 80\ntrain.seed = -9000000000\ntrain.count = 7\n"
      "train.fraction = 1\nserve.grace = '250us'\npool.capacity = 4096\nserve.load = ['m,1', 'n']\npool.policy = 'first'\n");
  Everything options;
  OptionTable table;
  options.Register(&table);
  const Status loaded = table.LoadFile(path);
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_EQ(options.name, "x");
  EXPECT_FALSE(options.strict);
  EXPECT_EQ(options.port, 80);
  EXPECT_EQ(options.seed, -9'000'000'000);
  EXPECT_EQ(options.count, 7u);
  EXPECT_EQ(options.fraction, 1.0);
  EXPECT_EQ(options.grace, absl::Microseconds(250));
  EXPECT_EQ(options.capacity_bytes, 4096);
  EXPECT_THAT(options.load, ElementsAre("m,1", "n"));
  EXPECT_EQ(options.policy, "first");
}

TEST(OptionTable, ReportsAllFaultsOfAFileAtOnceWithTheirLines) {
  TempDir directory;
  const std::string path = directory.Write("c.toml",
                                           "[serve]\n"
                                           "grpc_prot = 8001\n"
                                           "grace = \"soon\"\n"
                                           "load = \"a\"\n"
                                           "[pool]\n"
                                           "strict = 3\n"
                                           "policy = \"worst\"\n"
                                           "[unknown]\n"
                                           "[train]\n"
                                           "seed = 1.5\n"
                                           "count = -1\n");
  Everything options;
  OptionTable table;
  options.Register(&table);
  const Status status = table.LoadFile(path);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  const std::string text = MessageOf(status);
  EXPECT_THAT(text, HasSubstr(path + ":2: key 'serve.grpc_prot' is unknown; did you mean 'serve.grpc_port'?"));
  EXPECT_THAT(text, HasSubstr(path + ":3: serve.grace: duration 'soon' is not a number with a unit"));
  EXPECT_THAT(text, HasSubstr(path + ":4: serve.load is a string; allowed: a value of type list of strings"));
  EXPECT_THAT(text, HasSubstr(path + ":6: pool.strict is an integer; allowed: a value of type bool"));
  EXPECT_THAT(text, HasSubstr(path + ":7: pool.policy: policy 'worst' is unknown; allowed: best, first"));
  EXPECT_THAT(text, HasSubstr(path + ":8: key 'unknown' is unknown"));
  EXPECT_THAT(text, HasSubstr(path + ":10: train.seed is a float; allowed: a value of type int"));
  EXPECT_THAT(text,
              HasSubstr(path + ":11: train.count: '-1' is not a whole number that fits; allowed: 0 to 18446744073709551615"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 7);
  // What was wrong left its field alone.
  EXPECT_EQ(options.grace, absl::Milliseconds(1500));
  EXPECT_EQ(options.policy, "best");
}

TEST(OptionTable, AcceptsKeysOfOtherTablesInTheSameFile) {
  TempDir directory;
  const std::string path = directory.Write("c.toml", "[other]\nkey = 1\n");
  OptionTable table;
  EXPECT_FALSE(table.LoadFile(path).ok());
  EXPECT_TRUE(table.LoadFile(path, {"other.key"}).ok());
}

TEST(OptionTable, ReportsTheLineOfASyntaxError) {
  TempDir directory;
  const std::string path = directory.Write("c.toml", "a = 1\nb = = 2\n");
  OptionTable table;
  EXPECT_THAT(MessageOf(table.LoadFile(path)), HasSubstr(path + ":2: "));
  EXPECT_EQ(table.LoadFile(directory.File("none")).code(), StatusCode::kNotFound);
}

TEST(OptionTable, ReportsAllFaultsOfTheEnvironment) {
  Variable port("TIDEPOOL_SERVE_GRPC_PORT", "http"), strict("TIDEPOOL_POOL_STRICT", "maybe");
  Everything options;
  OptionTable table;
  options.Register(&table);
  const std::string text = MessageOf(table.LoadEnvironment());
  EXPECT_THAT(text,
              HasSubstr("TIDEPOOL_SERVE_GRPC_PORT: 'http' is not a whole number that fits; allowed: -2147483648 to 2147483647"));
  EXPECT_THAT(text, HasSubstr("TIDEPOOL_POOL_STRICT: 'maybe' is neither true nor false; allowed: true, false"));
  EXPECT_TRUE(table.LoadEnvironment("train").ok());
}

TEST(OptionTable, NamesTheFlagOfABadValue) {
  Everything options;
  OptionTable table;
  options.Register(&table);
  EXPECT_EQ(MessageOf(table.Set("grpc-port", "80x", Source::kFlag, "--grpc-port")),
            "--grpc-port: '80x' is not a whole number that fits; allowed: -2147483648 to 2147483647");
  EXPECT_EQ(MessageOf(table.Set("fraction", "half", Source::kFlag, "--fraction")),
            "--fraction: 'half' is not a number; allowed: for example 3, 0.5, 1e-3");
  EXPECT_EQ(MessageOf(table.Set("speed", "1", Source::kFlag, "--speed")), "--speed: option 'speed' is unknown");
  EXPECT_FALSE(table.Set("load", "[1, 2]", Source::kFlag, "--load").ok());
}

TEST(OptionTable, ChecksAValueThatAHigherSourceOverrides) {
  Everything options;
  OptionTable table;
  options.Register(&table);
  ASSERT_TRUE(table.Set("grpc-port", "9", Source::kFlag, "--grpc-port").ok());
  EXPECT_FALSE(table.Set("serve.grpc_port", "nine", Source::kFile, "c.toml:1").ok());
  EXPECT_TRUE(table.Set("serve.grpc_port", "10", Source::kFile, "c.toml:1").ok());
  EXPECT_EQ(options.port, 9);
}

TEST(OptionTable, PrintsAFileThatReadsBackTheSame) {
  TempDir directory;
  Everything options;
  OptionTable table;
  options.Register(&table);
  options.name = "a \"quoted\"\ttab\x7f";
  options.grace = absl::Nanoseconds(1500001);
  options.capacity_bytes = kMiB + 1;
  options.fraction = 0.1;
  options.load = {"a,b", " c ", ""};
  const std::string text = table.PrintToml();
  EXPECT_THAT(text, HasSubstr("[serve]\ngrpc_port = 8001  # default\n"));
  Everything read;
  OptionTable other;
  read.Register(&other);
  const Status loaded = other.LoadFile(directory.Write("c.toml", text));
  ASSERT_TRUE(loaded.ok()) << loaded << "\n" << text;
  EXPECT_EQ(read.name, options.name);
  EXPECT_EQ(read.grace, options.grace);
  EXPECT_EQ(read.capacity_bytes, options.capacity_bytes);
  EXPECT_EQ(read.fraction, options.fraction);
  EXPECT_EQ(read.load, options.load);
  EXPECT_EQ(read.policy, options.policy);
}

TEST(OptionTable, MarksASectionAsAdvanced) {
  Everything options;
  OptionTable table;
  options.Register(&table);
  table.MarkAdvanced("train");
  EXPECT_TRUE(table.FindKey("train.seed")->info.advanced);
  EXPECT_FALSE(table.FindKey("serve.load")->info.advanced);
}

TEST(OptionTable, PrintsJsonWithTypesAndSources) {
  Everything options;
  OptionTable table;
  options.Register(&table);
  ASSERT_TRUE(table.Set("grpc-port", "9", Source::kFlag, "--grpc-port").ok());
  const auto json = nlohmann::json::parse(table.PrintJson());
  const auto& port = json["options"][2];
  EXPECT_EQ(port["key"], "serve.grpc_port");
  EXPECT_EQ(port["value"], 9);
  EXPECT_EQ(port["default"], "8001");
  EXPECT_EQ(port["source"], "flag");
  EXPECT_EQ(port["environment"], "TIDEPOOL_SERVE_GRPC_PORT");
  EXPECT_EQ(json["options"][1]["value"], true);
  EXPECT_EQ(json["options"][8]["value"], nlohmann::json({"a", "b"}));
}

TEST(OptionTableDeathTest, RefusesAKeyTwice) {
  int a = 0, b = 0;
  OptionTable table;
  table.Add({.key = "x.a"}, &a);
  EXPECT_DEATH(table.Add({.key = "x.a"}, &b), "option key 'x.a' is in the table twice");
  EXPECT_DEATH(table.Add({.key = "y.a"}, &b), "flag '--a' is in the table twice");
}

}  // namespace
}  // namespace tidepool
