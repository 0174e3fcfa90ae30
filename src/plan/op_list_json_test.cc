#include "plan/op_list_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/testing.h"
#include "plan/json_lines.h"

namespace tidepool::plan {
namespace {

using ::testing::HasSubstr;

constexpr char kSmall[] = R"({
  "schema": 1,
  "name": "small",
  "dtype": "F16",
  "master_factor": 2,
  "ops": [
    {"name": "in", "input_bytes_per_sample": 8, "output_bytes_per_sample": 16, "recompute_seed": false},
    {"name": "norm", "input_bytes_per_sample": 16, "output_bytes_per_sample": 16, "starts_layer": true},
    {"name": "mix", "kind": "linear", "parameters": 1000, "forward_flops_per_sample": 2000, "input_bytes_per_sample": 16,
     "output_bytes_per_sample": 16, "activation_bytes_per_sample": 48, "tunable": true,
     "algorithms": [{"input": "td11", "output": "1d1t"}, {"input": "1d1t", "output": "td11"}]}
  ],
  "sequence": ["in", {"repeat": 3, "ops": ["norm", "mix"]}, "norm"],
  "skips": [[1, 4]],
  "tied": [{"ops": [0, 7], "parameters": 12}]
}
)";

// kSmall with one piece replaced.
std::string Changed(const std::string& from, const std::string& to) {
  std::string text = kSmall;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}
std::string FaultOf(const std::string& text) {
  const auto list = ParseOpList(text, "net.json");
  EXPECT_FALSE(list.ok());
  EXPECT_EQ(list.status().code(), StatusCode::kInvalidArgument);
  return list.ok() ? "" : MessageOf(list.status());
}

TEST(OpListFile, IsReadWithRepeatsAsSegments) {
  const auto list = ParseOpList(kSmall, "net.json");
  ASSERT_TRUE(list.ok()) << ToString(list.status());
  EXPECT_EQ(list->name, "small");
  EXPECT_EQ(list->profile_model, "small");
  EXPECT_EQ(list->dtype, DType::kF16);
  EXPECT_EQ(list->state_factor(), 1 + 1 + 2 + 2);
  EXPECT_EQ(list->size(), 8);
  ASSERT_EQ(list->segments.size(), 1u);
  EXPECT_EQ(list->segments[0].period, 2);
  EXPECT_EQ(list->segments[0].repeats, 3);
  EXPECT_EQ(list->at(2).algorithms[0].output, (Layout{Split::kNone, {Split::kData, Split::kNone, Split::kTensor}}));
  EXPECT_EQ(list->at(0).activation_bytes_per_sample, 16) << "as the output, where it is not said";
  EXPECT_EQ(list->parameters(), 3000);
  EXPECT_FALSE(list->SkipsAllowStage(2, 2));
  ASSERT_EQ(list->tied.size(), 1u);
  EXPECT_EQ(list->tied[0].ops, (std::vector<int32_t>{0, 7}));
}

TEST(OpListFile, GivesBackEveryPublishedListAsItWas) {
  for (const std::string name : {"gpt:1.3b", "gpt-layers:12", "t5:770m", "wresnet:500m"}) {
    const auto list = PublishedOpList(name);
    ASSERT_TRUE(list.ok());
    const auto again = ParseOpList(FormatOpList(*list), name);
    ASSERT_TRUE(again.ok()) << ToString(again.status());
    EXPECT_EQ(again->hash, list->hash) << name;
    EXPECT_EQ(again->segments.size(), list->segments.size()) << name;
    EXPECT_EQ(again->name, list->name);
    for (size_t i = 0; i < list->distinct.size(); ++i) EXPECT_EQ(again->distinct[i].kind, list->distinct[i].kind);
  }
}

TEST(OpListFile, NamesFileLineAndPlaceOfEachFault) {
  EXPECT_EQ(FaultOf(Changed("\"parameters\": 1000", "\"parameters\": -1")),
            "net.json:9: ops[2].parameters: is -1; allowed: an integer from 0 to 1125899906842624");
  EXPECT_THAT(FaultOf(Changed("\"F16\"", "\"F17\"")), HasSubstr("net.json:4: dtype: "));
  EXPECT_THAT(FaultOf(Changed("\"F16\"", "\"BYTES\"")), HasSubstr("net.json:4: dtype: "));
  EXPECT_THAT(FaultOf(Changed("\"tunable\"", "\"tuneable\"")),
              HasSubstr("net.json:10: ops[2].tuneable: unknown key; did you mean 'tunable'?"));
  EXPECT_THAT(FaultOf(Changed("[\"norm\", \"mix\"]", "[\"norm\", \"mux\"]")),
              HasSubstr("net.json:13: sequence[1].ops[1]: 'mux' is not among the ops; did you mean 'mix'?"));
  EXPECT_THAT(FaultOf(Changed("\"repeat\": 3", "\"repeat\": 900000")),
              HasSubstr("net.json:13: sequence[1]: brings the list to more than"));
  EXPECT_THAT(FaultOf(Changed("\"repeat\": 3", "\"repeat\": 3.5")), HasSubstr("sequence[1].repeat: is 3.5; allowed: an integer"));
  EXPECT_THAT(FaultOf(Changed("[[1, 4]]", "[[4, 1]]")),
              HasSubstr("net.json:14: skips[0][1]: is 1; allowed: an integer from 5 to 7"));
  EXPECT_THAT(FaultOf(Changed("[0, 7]", "[7, 0]")),
              HasSubstr("net.json:15: tied[0].ops[1]: is 0; allowed: an integer from 8 to 7"));
  EXPECT_THAT(FaultOf(Changed("[0, 7]", "[0]")), HasSubstr("net.json"));
  EXPECT_THAT(FaultOf(Changed("[[1, 4]]", "[[1]]")), HasSubstr("skips[0]: is array; allowed: [producer, consumer]"));
  EXPECT_THAT(FaultOf(Changed("\"1d1t\"}, {", "\"1d1x\"}, {")),
              HasSubstr("ops[2].algorithms[0].output: is '1d1x'; allowed: four of"));
  EXPECT_THAT(FaultOf(Changed("\"td11\"", "\"tt11\"")), HasSubstr("one t and one d"));
  EXPECT_THAT(FaultOf(Changed("\"name\": \"norm\"", "\"name\": \"in\"")), HasSubstr("ops[1].name: 'in' is defined twice"));
  EXPECT_THAT(FaultOf(Changed("\"schema\": 1", "\"schema\": 2")), HasSubstr("schema: is 2; this version reads up to 1"));
  EXPECT_THAT(FaultOf(Changed("  \"name\": \"small\",\n", "")), HasSubstr("key 'name' is missing"));
  EXPECT_THAT(FaultOf(Changed("\"name\": \"small\"", "\"name\": \"small\", \"name\": \"x\"")),
              HasSubstr("net.json:3: key 'name' appears twice"));
  EXPECT_THAT(FaultOf(Changed("\"skips\": [[1, 4]]", "\"skips\": [[1, 4]")), HasSubstr("this is not JSON"));
  EXPECT_THAT(FaultOf(std::string(50, '[')), HasSubstr("nested deeper than 8"));
  EXPECT_THAT(FaultOf("7"), HasSubstr("net.json:1: the file: is 7; allowed: an object"));
  EXPECT_EQ(ReadOpList("/nowhere/net.json").status().code(), StatusCode::kNotFound);
}

TEST(OpListFile, HostileOnesAreRefusedInFewWords) {
  const std::string key(1 << 20, 'k');
  const std::string unknown = FaultOf(Changed("\"tunable\"", "\"" + key + "\""));
  EXPECT_THAT(unknown, HasSubstr("net.json:10: ops[2].kkkk"));
  EXPECT_THAT(unknown, HasSubstr("unknown key; allowed: "));
  EXPECT_LT(unknown.size(), 1000u);
  std::string heavy = Changed("\"parameters\": 1000", "\"parameters\": 1125899906842624");
  heavy.replace(heavy.find("\"repeat\": 3"), 11, "\"repeat\": 8192");
  EXPECT_THAT(FaultOf(heavy), HasSubstr("net.json: small: the ops have more than 9223372036854775807 parameters together"));
  std::string tied = "{\"ops\": [0, 7], \"parameters\": 12}";
  for (int i = 0; i < 500; ++i) tied += ", {\"ops\": [0], \"parameters\": 1}";
  const std::string many = FaultOf(Changed("{\"ops\": [0, 7], \"parameters\": 12}", tied));
  EXPECT_THAT(many, HasSubstr("net.json: small: a tied weight of 1 parameters and 1 ops"));
  EXPECT_THAT(many, HasSubstr("; and 480 more"));
}

TEST(OpListFile, IsReadOrRefusedButNeverHarmful) {
  std::mt19937 random(11);
  const std::string large = FormatOpList(*PublishedOpList("t5:770m"));
  int good = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = i % 10 == 0 ? large : kSmall;
    for (int k = 0; k < 1 + i % 4; ++k) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0: text[at] = static_cast<char>("0123456789-,:[]{}\"\\etd"[random() % 22]); break;
        case 1: text.erase(at, 1 + random() % 12); break;
        case 2: text.insert(at, text.substr(random() % text.size(), random() % 20)); break;
        default: text[at] = static_cast<char>(random() % 256);
      }
    }
    const auto list = ParseOpList(text, "mutated");
    if (!list.ok()) {
      EXPECT_THAT(MessageOf(list.status()), HasSubstr("mutated")) << text;
      continue;
    }
    ++good;
    EXPECT_EQ(ParseOpList(FormatOpList(*list), "again")->hash, list->hash);
  }
  EXPECT_GT(good, 20);
}

TEST(JsonLines, FindValuesAndTheNearestAroundThem) {
  const auto lines = JsonLines::Scan("{\n\"a\": [1,\n2, {\"b\\\"\":\n 3}],\n\"c\": \"x\"}", "f", 8);
  ASSERT_TRUE(lines.ok()) << ToString(lines.status());
  EXPECT_EQ(lines->Of(""), 1);
  EXPECT_EQ(lines->Of("a"), 2);
  EXPECT_EQ(lines->Of("a[1]"), 3);
  EXPECT_EQ(lines->Of("a[2].none"), 3);
  EXPECT_EQ(lines->Of("c"), 5);
  EXPECT_EQ(lines->Of("none[3].x"), 1);
  // Only the beginning of a key counts, or a large key around many values would be kept once for each.
  const auto large = JsonLines::Scan("{\n\"" + std::string(100000, 'k') + "\": [0,\n1]}", "f", 8);
  ASSERT_TRUE(large.ok()) << ToString(large.status());
  EXPECT_EQ(large->Of(std::string(80, 'k') + "[1]"), 3);
}

}  // namespace
}  // namespace tidepool::plan
