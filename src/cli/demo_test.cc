#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/fd.h"
#include "base/json.h"
#include "cli/demo_data.h"
#include "cli/demo_figures.h"
#include "cli/demo_report.h"
#include "data/dataset.h"
#include "data/jpeg.h"

namespace tidepool::cli {
namespace {

using ::testing::DoubleNear;
using ::testing::HasSubstr;

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

TEST(DemoPicture, DependsOnClassSeedAndIndexOnly) {
  const DemoPicture first = DrawDemoPicture(3, 1, 7);
  EXPECT_EQ(first.rgb, DrawDemoPicture(3, 1, 7).rgb);
  EXPECT_NE(first.rgb, DrawDemoPicture(3, 1, 8).rgb);
  EXPECT_NE(first.rgb, DrawDemoPicture(3, 2, 7).rgb);
  EXPECT_NE(first.rgb, DrawDemoPicture(4, 1, 7).rgb);
  EXPECT_EQ(first.rgb.size(), static_cast<size_t>(first.width) * first.height * 3);
  EXPECT_GE(first.width, 96);
  EXPECT_LE(first.width, 160);
}

TEST(DemoPicture, IsAFolderThatTheDatasetReads) {
  // The whole of MakeDemoData writes half a gigabyte of weights; the pictures alone show that an ImageFolder accepts them.
  const std::string root = ::testing::TempDir() + "/demo-pictures";
  std::filesystem::remove_all(root);
  for (size_t c = 0; c < DemoClasses().size(); ++c) {
    std::filesystem::create_directories(root + "/" + DemoClasses()[c]);
    const DemoPicture picture = DrawDemoPicture(static_cast<int>(c), 1, c);
    const auto jpeg = data::EncodeJpeg(picture.rgb, picture.width, picture.height, 88);
    ASSERT_TRUE(jpeg.ok());
    ASSERT_TRUE(WriteFileAtomically(root + "/" + DemoClasses()[c] + "/0.jpg", *jpeg).ok());
  }
  const auto dataset = data::OpenImageFolder({.root = root, .image_size = 64});
  ASSERT_TRUE(dataset.ok()) << ToString(dataset.status());
  EXPECT_EQ((*dataset)->size(), 8);
  EXPECT_EQ((*dataset)->classes(), 8);
  std::filesystem::remove_all(root);
}

// Ten seconds of load: two models, one request late, one failed, one dropped.
DemoRun SomeRun() {
  DemoRun run{.start = kStart, .end = kStart + absl::Seconds(10)};
  run.load.models = {{.model = "a"}, {.model = "b"}};
  run.load.samples = {
      {.planned = absl::Seconds(1), .latency = absl::Milliseconds(10), .model = 0},
      {.planned = absl::Seconds(2), .latency = absl::Milliseconds(50), .model = 0},
      {.planned = absl::Seconds(3), .latency = absl::Milliseconds(50), .model = 1},
      {.planned = absl::Seconds(4), .latency = absl::Milliseconds(1), .model = 1, .code = StatusCode::kUnavailable},
      {.planned = absl::Seconds(5), .model = 1, .dropped = true}};
  const auto step = [](double at, int64_t samples, double loss) {
    train::TrainProgress progress{.event = "step", .time = kStart + absl::Seconds(at), .samples = samples, .loss = loss};
    progress.step = samples / 32;
    progress.longest_operator_ms = 3 + loss;
    return progress;
  };
  run.timeline.train = {step(-2, 0, 2.1), step(2, 64, 1.5), step(12, 264, 0.5)};
  train::TrainProgress evaluation{.event = "evaluation", .time = kStart - absl::Seconds(3)};
  evaluation.accuracy = 0.125;
  run.timeline.train.push_front(evaluation);
  evaluation.time = kStart + absl::Seconds(9);
  evaluation.accuracy = 0.75;
  run.timeline.train.push_back(evaluation);
  const auto handover = [](double at, int ms, bool granted) {
    pool::HandoverRecord record{.requester = "model:a",
                                .giver = "train",
                                .pages = 4,
                                .start = kStart + absl::Seconds(at),
                                .total = absl::Milliseconds(ms)};
    record.notify = absl::Milliseconds(1);
    record.giver_parts.wait = absl::Milliseconds(ms - 2);
    record.granted = granted;
    return record;
  };
  run.timeline.handovers = {handover(-1, 900, true), handover(1, 4, true), handover(2, 8, true), handover(3, 700, false),
                            handover(11, 800, true)};
  run.timeline.page_bytes = 2 << 20;
  run.timeline.total_pages = 256;
  run.timeline.tenants = {"train", "model:a"};
  run.timeline.memory = {{.time = kStart, .free = 200, .held = {{0, 50}, {1, 6}}},
                         {.time = kStart + absl::Seconds(1), .free = 200, .held = {{0, 56}}}};
  run.timeline.serve = {
      {.kind = serve::ServeEvent::Kind::kLoad, .model = "a", .start = kStart + absl::Seconds(1)},
      {.kind = serve::ServeEvent::Kind::kLoad, .model = "b", .start = kStart - absl::Seconds(1)},
      {.kind = serve::ServeEvent::Kind::kExecute, .model = "a", .batch = 2, .start = kStart + absl::Seconds(2)}};
  return run;
}

DemoPlan SomePlan() {
  DemoPlan plan{.made = true};
  plan.slo = {{"a", absl::Milliseconds(20)}, {"b", absl::Milliseconds(100)}};
  return plan;
}

DemoFigures SomeFigures() {
  return FiguresOf(SomeRun(), SomePlan(), {{.page_bytes = 2 << 20, .total = 256, .peak_granted = 100, .violations = 0}});
}

TEST(DemoFigures, HoldEveryRequestAgainstThePlansSlo) {
  const DemoFigures figures = SomeFigures();
  EXPECT_EQ(figures.requests, 5);
  EXPECT_EQ(figures.errors, 2);
  EXPECT_THAT(figures.slo_attainment, DoubleNear(0.4, 1e-9));
  EXPECT_THAT(figures.infer_p50_ms, DoubleNear(50, 1e-9));
}

TEST(DemoFigures, CountTheSamplesTrainedWhileTheLoadRan) {
  const DemoFigures figures = SomeFigures();
  // 0 at -2 s, 64 at 2 s, 264 at 12 s: 32 at the start, 224 at the end.
  EXPECT_THAT(figures.samples_per_s, DoubleNear(19.2, 1e-9));
  EXPECT_EQ(figures.samples, 192);
  EXPECT_THAT(figures.loss_first, DoubleNear(2.1, 1e-9));
  EXPECT_THAT(figures.loss_last, DoubleNear(0.5, 1e-9));
  EXPECT_THAT(figures.accuracy_first, DoubleNear(0.125, 1e-9));
  EXPECT_THAT(figures.accuracy_last, DoubleNear(0.75, 1e-9));
}

TEST(DemoFigures, TakeTheHandoversOfTheLoadAndSplitThem) {
  const DemoFigures figures = SomeFigures();
  EXPECT_EQ(figures.handovers, 2);
  EXPECT_EQ(figures.handovers_late, 1);
  EXPECT_THAT(figures.handover_ms.p99, DoubleNear(8, 1e-9));
  EXPECT_THAT(HandoverLimitMs(figures), DoubleNear(3 + 2.1 + 5, 1e-9));
  ASSERT_EQ(figures.parts_ms.size(), 7u);
  EXPECT_EQ(figures.parts_ms[2].first, "wait");
  EXPECT_THAT(figures.parts_ms[2].second.p99, DoubleNear(6, 1e-9));
  EXPECT_EQ(figures.parts_ms[6].first, "other");
  EXPECT_THAT(figures.parts_ms[6].second.p99, DoubleNear(1, 1e-9));
  EXPECT_EQ(figures.loads, 1);
  EXPECT_EQ(figures.capacity_bytes, int64_t{512} << 20);
  EXPECT_EQ(figures.peak_granted_bytes, int64_t{200} << 20);
}

TEST(DemoFigures, AddUpTheMemoryOfSeveralDevices) {
  const pool::PoolStats first{.page_bytes = 2 << 20, .total = 256, .peak_granted = 100};
  pool::PoolStats second = first;
  second.peak_granted = 28;
  second.violations = 2;
  const DemoFigures figures = FiguresOf(SomeRun(), SomePlan(), {first, second});
  EXPECT_EQ(figures.capacity_bytes, int64_t{1024} << 20);
  EXPECT_EQ(figures.peak_granted_bytes, int64_t{256} << 20);
  EXPECT_EQ(figures.violations, 2);
  ASSERT_EQ(figures.devices.size(), 2u);
  EXPECT_EQ(figures.devices[1].peak_granted_bytes, int64_t{56} << 20);

  DemoResult result{.plan = SomePlan(), .main = SomeRun()};
  result.settings.device = "emulated:v100x2";
  result.settings.devices = 2;
  result.main.figures = figures;
  result.main.timeline.devices = 2;
  result.main.timeline.memory.push_back({.time = kStart, .device = 1, .free = 200, .held = {{1, 7}}});
  const nlohmann::json json = nlohmann::json::parse(DemoJson(result));
  EXPECT_EQ(json["device_count"], 2);
  EXPECT_EQ(json["memory"]["violations"], 2);
  EXPECT_EQ(json["memory"]["devices"][1]["violations"], 2);
  EXPECT_EQ(json["memory"]["devices"][0]["capacity_bytes"], int64_t{512} << 20);
  EXPECT_THAT(DemoText(result), HasSubstr("2, the first one trains; peaks  200 MiB of 512 MiB  56.0 MiB of 512 MiB"));
  const std::string folder = ::testing::TempDir();
  ASSERT_TRUE(WriteDemoReport(result, folder + "/two.html").ok());
  const auto html = ReadFile(folder + "/two.html", 1 << 24);
  ASSERT_TRUE(html.ok());
  EXPECT_THAT(*html, HasSubstr("Memory per tenant, device 0"));
  EXPECT_THAT(*html, HasSubstr("Memory per tenant, device 1"));
  EXPECT_THAT(*html, HasSubstr("2 devices of 200 MiB"));
  ASSERT_TRUE(WriteDemoTrace(result, folder + "/two.json").ok());
  const auto trace = ReadFile(folder + "/two.json", 1 << 24);
  ASSERT_TRUE(trace.ok());
  EXPECT_THAT(*trace, HasSubstr("MiB held, device 1"));
  EXPECT_THAT(*trace, HasSubstr("a, device 0"));
}

TEST(DemoFigures, AreZeroNotGarbageWhenNothingHappened) {
  const DemoFigures figures = FiguresOf({.start = kStart, .end = kStart + absl::Seconds(1)}, {}, {});
  EXPECT_EQ(figures.requests, 0);
  EXPECT_EQ(figures.slo_attainment, 0);
  EXPECT_EQ(figures.samples_per_s, 0);
  EXPECT_EQ(figures.parts_ms.size(), 7u);
}

TEST(DemoFigures, CompareWithTheSplitThatIsHardestToBeat) {
  const std::vector<StaticSplit> splits = {{.train_fraction = 0.3, .slo_attainment = 0.97, .samples_per_s = 40},
                                           {.train_fraction = 0.4, .slo_attainment = 0.95, .samples_per_s = 60},
                                           {.train_fraction = 0.5, .slo_attainment = 0.90, .samples_per_s = 90},
                                           {.train_fraction = 0.6, .slo_attainment = 1, .samples_per_s = 100, .failure = "no"}};
  EXPECT_EQ(BestSplit(splits, 0.95), 1u);  // the fastest of those that keep as many
  EXPECT_EQ(BestSplit(splits, 0.80), 2u);
  EXPECT_EQ(BestSplit(splits, 0.99), 0u);  // none does
  EXPECT_EQ(BestSplit({splits.back()}, 0.5), std::nullopt);
  EXPECT_EQ(BestSplit({}, 0.5), std::nullopt);
}

DemoResult SomeResult() {
  DemoResult result{.plan = SomePlan(), .main = SomeRun()};
  result.main.figures = SomeFigures();
  DemoRun baseline = result.main;
  baseline.mode = serve::Mode::kTaskSwitch;
  result.baselines.push_back(baseline);
  baseline.mode = serve::Mode::kStatic;
  baseline.static_train_fraction = 0.5;
  result.baselines.push_back(baseline);
  result.static_splits.push_back({.train_fraction = 0.7, .failure = "too <small>"});
  return result;
}

TEST(DemoOutput, HasTheKeysThatScriptsRead) {
  const nlohmann::json json = nlohmann::json::parse(DemoJson(SomeResult()));
  for (const nlohmann::json* run : {&json, &json["baselines"]["static"], &json["baselines"]["task_switch"]}) {
    EXPECT_TRUE((*run)["slo_attainment"].is_number());
    for (const char* key : {"requests", "errors", "p50_ms", "p99_ms"}) EXPECT_TRUE((*run)["infer"][key].is_number()) << key;
    for (const char* key : {"samples_per_s", "loss_first", "loss_last", "accuracy_first", "accuracy_last"})
      EXPECT_TRUE((*run)["train"][key].is_number()) << key;
    for (const char* key : {"count", "p50_ms", "p99_ms"}) EXPECT_TRUE((*run)["handover"][key].is_number()) << key;
    EXPECT_TRUE((*run)["handover"]["parts_ms"]["wait"]["p99"].is_number());
    for (const char* key : {"capacity_bytes", "peak_granted_bytes", "violations"})
      EXPECT_TRUE((*run)["memory"][key].is_number()) << key;
  }
  EXPECT_EQ(json["static_splits"][0]["failure"], "too <small>");
  EXPECT_EQ(json["memory"]["devices"].size(), 1u);
}

TEST(DemoOutput, WritesAReportAndATraceThatOpen) {
  const std::string folder = ::testing::TempDir();
  ASSERT_TRUE(WriteDemoReport(SomeResult(), folder + "/report.html").ok());
  const auto html = ReadFile(folder + "/report.html", 1 << 24);
  ASSERT_TRUE(html.ok());
  EXPECT_THAT(*html, HasSubstr("Handovers split into their parts"));
  EXPECT_THAT(*html, HasSubstr("Beside it: static, 50 % training"));
  EXPECT_THAT(*html, ::testing::Not(HasSubstr("<small>")));
  EXPECT_THAT(*html, ::testing::Not(HasSubstr("http")));

  ASSERT_TRUE(WriteDemoTrace(SomeResult(), folder + "/trace.json").ok());
  const auto trace = ReadFile(folder + "/trace.json", 1 << 24);
  ASSERT_TRUE(trace.ok());
  const auto parsed = nlohmann::json::parse(*trace, nullptr, false);
  ASSERT_FALSE(parsed.is_discarded());
  EXPECT_THAT(*trace, HasSubstr("train -> model:a"));
}

TEST(DemoOutput, TableSaysWhetherHandoversKeptTheirLimit) {
  EXPECT_THAT(DemoText(SomeResult()), HasSubstr("limit = longest operator 5.1 ms + 5 ms = 10.1 ms: kept"));
  EXPECT_THAT(DemoText(SomeResult()), HasSubstr("task-switch"));
  EXPECT_THAT(DemoText(SomeResult()), HasSubstr("70 % training: too <small>"));
}

}  // namespace
}  // namespace tidepool::cli
