#include "profile/plan_csv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/testing.h"
#include "base/units.h"
#include "profile/testing.h"

namespace tidepool::profile {
namespace {

using ::testing::HasSubstr;
using ::tidepool::testing::ReadAll;
using ::tidepool::testing::TempDir;

constexpr char kHeader[] =
    "op_name,forward-compute,backward-compute,input_size,output_size,weights,activations,fwd_reserved,bwd_reserved\n";
const std::string kTable = std::string(kHeader) +
                           "embed,10.500,20.250,0.008,8.000,208.000,12.000,4.000,220.000\n"
                           "head,1.000,2.000,8.000,0.000,200.000,400.025,1.000,0.000\n";

std::string MessageOfTable(const std::string& text) {
  std::vector<OpRow> rows;
  return MessageOf(ParsePlanOpTable(text, "t.csv", {.model = "gpt:1b"}, &rows));
}

TEST(PlanCsv, AFolderBecomesABundleWithBothPhasesOfEveryOp) {
  TempDir dir;
  dir.Write("gpt_1_3B_mbs2_tp4_algo1.csv", kTable);
  dir.Write("prim_gpt_1_3B_all_gather_2gpus.csv", "data_size(MB),time(ms)\n8,0.500\n16,1000000000.000\n4,1000000.000\n");
  dir.Write("p2p_intra_node.csv", "1,2,4\n10, 20, 40\n");
  dir.Write("README.md", "not a table");
  const auto database = ReadPlanCsv(dir.path());
  ASSERT_TRUE(database.ok()) << ToString(database.status());
  EXPECT_EQ(database->files, 3);
  const Bundle& bundle = database->bundle;
  ASSERT_EQ(bundle.ops.size(), 4u);
  const OpRow& forward = bundle.ops[0];
  EXPECT_EQ(forward.key, (OpKey{"gpt:1.3b", "embed", Phase::kForward, 2, DType::kF16, 4, 1}));
  EXPECT_EQ(forward.median_us, 10.5);
  EXPECT_EQ(forward.memory.weight_bytes, 208.0 * kMiB);
  EXPECT_EQ(forward.memory.input_bytes, 0.008 * kMiB);
  EXPECT_EQ(forward.memory.reserved_bytes, 4.0 * kMiB);
  EXPECT_EQ(bundle.ops[1].key.phase, Phase::kBackward);
  EXPECT_EQ(bundle.ops[1].median_us, 20.25);
  EXPECT_EQ(bundle.ops[1].memory.reserved_bytes, 220.0 * kMiB);
  ASSERT_EQ(bundle.collectives.size(), 1u);
  EXPECT_EQ(bundle.collectives[0].median_us, 500);
  EXPECT_THAT(database->refused, ::testing::ElementsAre("gpt:1.3b all-gather of 2, 16 MiB: skipped by its authors",
                                                        "gpt:1.3b all-gather of 2, 4 MiB: failed"));
  ASSERT_EQ(bundle.links.size(), 3u);
  EXPECT_EQ(bundle.links[1].kind, LinkKind::kPeer);
  EXPECT_DOUBLE_EQ(bundle.links[1].median_us, 100);
}

TEST(PlanCsv, OnlyWantedModelsAreRead) {
  TempDir dir;
  dir.Write("gpt_13B_mbs1_tp1_algo0.csv", kTable);
  dir.Write("resnet_6_8B_mbs1_tp1_algo0.csv", "broken");
  dir.Write("gpt_scale-layer_mbs1_tp1_algo0.csv", kTable);
  const auto database = ReadPlanCsv(dir.path(), {.models = {"gpt-layers"}});
  ASSERT_TRUE(database.ok()) << ToString(database.status());
  EXPECT_EQ(database->files, 1);
  EXPECT_EQ(database->bundle.ops[0].key.model, "gpt-layers");
  EXPECT_EQ(MessageOf(ReadPlanCsv(dir.path(), {.models = {"t5:3b"}}).status()),
            "'" + dir.path() + "' has no op tables of t5:3b; it has: gpt-layers, gpt:13b, wresnet:6.8b");
}

TEST(PlanCsv, FaultsNameFileLineAndColumn) {
  EXPECT_THAT(MessageOfTable(""), HasSubstr("t.csv:1: the header is ''"));
  EXPECT_THAT(MessageOfTable("op,a\n"), HasSubstr("t.csv:1: the header is 'op,a'"));
  EXPECT_EQ(MessageOfTable(kHeader), "t.csv:2: there is no row after the header");
  EXPECT_EQ(MessageOfTable(std::string(kHeader) + "a,1,2,3\n"), "t.csv:2: 4 fields; allowed: 9");
  EXPECT_EQ(MessageOfTable(std::string(kHeader) + "a,1,2,3,4,5,6,7,8\na,1,2,3,4,5,6,7,8\n"), "t.csv:3: op 'a' appears twice");
  EXPECT_EQ(MessageOfTable(std::string(kHeader) + "a,1,2,3,x,5,6,7,8\n"),
            "t.csv:2: column 'output_size' is 'x'; allowed: 0, or a number from 1e-09 to 1000000000000");
  EXPECT_THAT(MessageOfTable(std::string(kHeader) + "a,-1,2,3,4,5,6,7,8\n"), HasSubstr("column 'forward-compute' is '-1'"));
  EXPECT_THAT(MessageOfTable(std::string(kHeader) + "a,1,nan,3,4,5,6,7,8\n"), HasSubstr("column 'backward-compute' is 'nan'"));
  EXPECT_THAT(MessageOfTable(std::string(kHeader) + "a,1000000000.000,2,3,4,5,6,7,8\n"),
              HasSubstr("t.csv:2: column 'forward-compute' of op 'a' is 1000000000, the mark of a failed measurement"));
}

TEST(PlanCsv, FaultsOfCollectivesAndLinksNameFileAndLine) {
  std::vector<CollectiveRow> rows;
  std::vector<std::string> refused;
  const auto collective = [&](const std::string& text) {
    return MessageOf(ParsePlanCollectiveTable(text, "p.csv", {.model = "m"}, &rows, &refused));
  };
  EXPECT_THAT(collective("size,time\n"), HasSubstr("p.csv:1: the header"));
  EXPECT_EQ(collective("data_size(MB),time(ms)\n1\n"), "p.csv:2: 1 fields; allowed: 2");
  EXPECT_EQ(collective("data_size(MB),time(ms)\n1,2\n1,3\n"), "p.csv:3: size 1 appears twice");
  std::vector<LinkRow> links;
  const auto link = [&](const std::string& text) {
    return MessageOf(ParsePlanLinkTable(text, "l.csv", LinkKind::kPeer, &links));
  };
  EXPECT_THAT(link("1,2\n"), HasSubstr("l.csv: 1 lines; allowed: 2"));
  EXPECT_EQ(link("1,2\n3\n"), "l.csv:2: 1 fields; allowed: 2, as in line 1");
  EXPECT_EQ(link("2,1\n3,4\n"), "l.csv:1: size 1 after 2; allowed: sizes that grow");
  EXPECT_EQ(link("1,2\n3,0\n"), "l.csv:2: speed 0 of size 2; allowed: above 0");
}

TEST(PlanCsv, NumbersThatWouldOverflowInOtherUnitsAreRefused) {
  EXPECT_THAT(MessageOfTable(std::string(kHeader) + "a,1,2,3,4,1e308,6,7,8\n"),
              HasSubstr("t.csv:2: column 'weights' is '1e308'"));
  EXPECT_THAT(MessageOfTable(std::string(kHeader) + "a,1,2e-320,3,4,5,6,7,8\n"), HasSubstr("'backward-compute' is '2e-320'"));
  std::vector<CollectiveRow> rows;
  std::vector<std::string> refused;
  EXPECT_THAT(MessageOf(ParsePlanCollectiveTable("data_size(MB),time(ms)\n8,1e307\n", "p.csv", {.model = "m"}, &rows, &refused)),
              HasSubstr("p.csv:2: column 'time(ms)' is '1e307'"));
  std::vector<LinkRow> links;
  EXPECT_THAT(MessageOf(ParsePlanLinkTable("1,2\n3,1e-320\n", "l.csv", LinkKind::kPeer, &links)),
              HasSubstr("l.csv:2: column '2' is '1e-320'"));
  EXPECT_EQ(MessageOfTable(std::string(kHeader) + "a,0,-0,3,4,5,6,7,8\n"), "") << "zero is a number";
}

TEST(PlanCsv, HostileTablesAreRefusedInFewWords) {
  const std::string commas(4 << 20, ',');
  EXPECT_EQ(MessageOfTable(std::string(kHeader) + commas), "t.csv:2: 4194305 fields; allowed: 9");
  std::vector<LinkRow> links;
  EXPECT_EQ(MessageOf(ParsePlanLinkTable(commas + "\n" + commas + "\n", "l.csv", LinkKind::kPeer, &links)),
            "l.csv:1: 4194305 fields; allowed: at most 4096");
  EXPECT_EQ(MessageOfTable(std::string(kHeader) + std::string(1 << 20, '\n') + "a,1,2,3,4,5,6,7,8\n"),
            "t.csv: more than 65535 rows; allowed: up to that");
  EXPECT_EQ(MessageOfTable(kTable + std::string(100, '\n')), "") << "empty lines at the end do not count";
  const std::string name(5000, 'n');
  EXPECT_EQ(MessageOfTable(std::string(kHeader) + name + ",1,2,3,4,5,6,7,8\n"),
            "t.csv:2: column 'op_name', '" + name.substr(0, 60) + "...', has 5000 bytes; allowed: 4096");
  EXPECT_EQ(MessageOfTable(std::string(kHeader) + "a\x1b[2J,1,2,3,4,5,6,7,8\n"),
            "t.csv:2: column 'op_name', 'a?[2J', holds the control character 0x1b; allowed: printable text");
}

TEST(PlanCsv, TablesOfOneModelMustListTheSameOps) {
  TempDir dir;
  dir.Write("gpt_1_3B_mbs1_tp1_algo0.csv", kTable);
  dir.Write("gpt_1_3B_mbs1_tp2_algo0.csv", std::string(kHeader) + "embed,1,2,3,4,5,6,7,8\ntail,1,2,3,4,5,6,7,8\n");
  EXPECT_THAT(MessageOf(ReadPlanCsv(dir.path()).status()), HasSubstr("tp2_algo0.csv:3: op 'tail' where"));
}

TEST(PlanCsv, AMissingFolderIsNamed) {
  const auto database = ReadPlanCsv("/no/such/folder");
  EXPECT_EQ(database.status().code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(database.status()), HasSubstr("'/no/such/folder'"));
}

TEST(PlanCsv, MutatedTablesNeverCrashTheReader) {
  std::mt19937 random(7);
  const std::string seeds[] = {kTable, "data_size(MB),time(ms)\n8,0.500\n16,1.000\n", "1,2,4\n10, 20, 40\n"};
  int accepted = 0, refused_count = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = seeds[i % 3];
    const int edits = 1 + static_cast<int>(random() % 6);
    for (int e = 0; e < edits && !text.empty(); ++e) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text.erase(at, 1 + random() % 5); break;
        case 2: text.insert(at, text.substr(random() % text.size(), random() % 40)); break;
        default: text.insert(at, 1, ",\n.-+e0\r"[random() % 8]);
      }
    }
    std::vector<OpRow> ops;
    std::vector<CollectiveRow> collectives;
    std::vector<LinkRow> links;
    std::vector<std::string> marks;
    for (const Status& status :
         {ParsePlanOpTable(text, "f", {}, &ops), ParsePlanCollectiveTable(text, "f", {}, &collectives, &marks),
          ParsePlanLinkTable(text, "f", LinkKind::kPeer, &links)}) {
      ++(status.ok() ? accepted : refused_count);
      if (!status.ok()) {
        EXPECT_THAT(MessageOf(status), HasSubstr("f:"));
      }
    }
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused_count, 20000);
}

TEST(PlanCsv, ThePublishedDatabasesAreReadWhole) {
  const std::string root = ::tidepool::testing::ReferenceFolder("aceso", TIDEPOOL_SOURCE_DIR);
  if (root.empty()) GTEST_SKIP() << "no reference data; set TIDEPOOL_REFERENCE_DIR";
  const auto large = ReadPlanCsv(root + "/profiled-time-eurosys"), small = ReadPlanCsv(root + "/profiled-time-miniset");
  ASSERT_TRUE(large.ok()) << ToString(large.status());
  ASSERT_TRUE(small.ok()) << ToString(small.status());
  EXPECT_EQ(large->files, 540);
  EXPECT_EQ(small->files, 107);
  std::map<std::string, std::set<std::string>> ops;
  for (const OpRow& row : large->bundle.ops) ops[row.key.model].insert(row.key.op);
  EXPECT_EQ(ops.size(), 6u + 4u + 5u);
  EXPECT_EQ(ops["gpt:13b"].size(), 16u);
  EXPECT_EQ(ops["t5:11b"].size(), 39u);
  EXPECT_EQ(ops["wresnet:2b"].size(), 134u);
  EXPECT_EQ(ops["wresnet:13b"].size(), 270u);
  // 16 rows x 32 tables x 6 sizes, 39 x (3 x 16 + 12), 134 x 32 x 4, 270 x 32; two phases each.
  EXPECT_EQ(large->bundle.ops.size(), 2u * (16 * 32 * 6 + 39 * (3 * 16 + 12) + 134 * 32 * 4 + 270 * 32));
  EXPECT_GT(large->refused.size(), 100u);
  EXPECT_EQ(large->bundle.links.size(), 22u);
  EXPECT_EQ(small->bundle.links.size(), 11u);
}

}  // namespace
}  // namespace tidepool::profile
