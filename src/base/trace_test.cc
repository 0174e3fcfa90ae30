#include "base/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "base/json.h"
#include "base/testing.h"

namespace tidepool {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

void WriteSome(TraceWriter* trace) {
  trace->NameProcess(1, "node \"a\"");
  trace->NameThread(1, 2, "stream");
  trace->Complete(1, 2, "conv", kStart + absl::Microseconds(10), absl::Microseconds(5), {{"bytes", "12"}});
  trace->Instant(1, 2, "reclaim", kStart + absl::Microseconds(11));
  trace->Counter(1, "memory", kStart + absl::Microseconds(12), {{"train", 3}, {"bad", std::numeric_limits<double>::quiet_NaN()}});
  trace->FlowStart(1, 2, "send", kStart, 7);
  trace->FlowEnd(2, 1, "send", kStart + absl::Microseconds(1), 7);
}

TEST(Trace, IsValidJsonWithEveryKindOfEvent) {
  TempDir directory;
  auto trace = TraceWriter::Open(directory.File("t.json"), kStart);
  ASSERT_TRUE(trace.ok()) << trace.status();
  WriteSome(trace->get());
  ASSERT_TRUE((*trace)->Finish().ok());
  (*trace)->Instant(1, 2, "too late", kStart);
  const auto events = nlohmann::json::parse(testing::ReadAll(directory.File("t.json")));
  ASSERT_EQ(events.size(), 7u);
  EXPECT_EQ(events[0]["args"]["name"], "node \"a\"");
  EXPECT_EQ(events[2]["ph"], "X");
  EXPECT_EQ(events[2]["ts"], 10.0);
  EXPECT_EQ(events[2]["dur"], 5.0);
  EXPECT_EQ(events[2]["args"]["bytes"], "12");
  EXPECT_EQ(events[4]["args"]["train"], 3);
  EXPECT_TRUE(events[4]["args"]["bad"].is_null());
  EXPECT_EQ(events[5]["id"], events[6]["id"]);
}

TEST(Trace, WithoutEventsIsAnEmptyArray) {
  TempDir directory;
  ASSERT_TRUE(TraceWriter::Open(directory.File("t.json"), kStart).ok());
  EXPECT_TRUE(nlohmann::json::parse(testing::ReadAll(directory.File("t.json"))).empty());
}

// The viewers accept an array without its end: whatever line the file stops at, closing it gives valid JSON.
TEST(Trace, CutShortAtAnyLineIsReadable) {
  TempDir directory;
  {
    auto trace = TraceWriter::Open(directory.File("t.json"), kStart);
    ASSERT_TRUE(trace.ok());
    WriteSome(trace->get());
  }
  const std::string whole = testing::ReadAll(directory.File("t.json"));
  for (size_t end = whole.find(",\n"); end != std::string::npos; end = whole.find(",\n", end + 1)) {
    EXPECT_FALSE(nlohmann::json::parse(whole.substr(0, end) + "]", nullptr, false).is_discarded()) << whole.substr(0, end);
  }
}

TEST(Trace, OfManyThreadsHasEveryEvent) {
  TempDir directory;
  {
    auto trace = TraceWriter::Open(directory.File("t.json"), kStart);
    ASSERT_TRUE(trace.ok());
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        for (int k = 0; k < 1000; ++k) (*trace)->Instant(1, i, "event", kStart + absl::Microseconds(k));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(nlohmann::json::parse(testing::ReadAll(directory.File("t.json"))).size(), 4000u);
}

TEST(Trace, ReportsWhereItCannotWrite) {
  EXPECT_THAT(MessageOf(TraceWriter::Open("/proc/nonexistent/t.json", kStart).status()),
              HasSubstr("creating trace '/proc/nonexistent/t.json'"));
  auto full = TraceWriter::Open("/dev/full", kStart);
  ASSERT_TRUE(full.ok());
  (*full)->Instant(1, 1, "x", kStart);
  const Status status = (*full)->Finish();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), HasSubstr("writing trace '/dev/full'"));
}

}  // namespace
}  // namespace tidepool
