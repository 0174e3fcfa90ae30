#include "base/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

#include "base/ids.h"

namespace tidepool {
namespace {

TEST(Status, IsBuiltFromAFormat) {
  const Status status = ResourceExhausted("lease {} wants {} pages; allowed: {}", "train", 12, 8);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(MessageOf(status), "lease train wants 12 pages; allowed: 8");
  EXPECT_EQ(ToString(status), "RESOURCE_EXHAUSTED: lease train wants 12 pages; allowed: 8");
  EXPECT_EQ(ToString(Status()), "OK");
}

TEST(Status, GetsContextInFrontAndKeepsItsCode) {
  const Status status = Annotate(NotFound("no such file"), "model 'a'");
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(MessageOf(status), "model 'a': no such file");
  EXPECT_TRUE(Annotate(Status(), "model 'a'").ok());
}

TEST(Status, OfASystemCallNamesTheCallAndTheReason) {
  const Status status = ErrnoError(ENOENT, "opening '/x'");
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(MessageOf(status), "opening '/x': No such file or directory");
  EXPECT_EQ(ErrnoError(ENOSPC, "x").code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoError(EPIPE, "x").code(), StatusCode::kUnavailable);
  EXPECT_EQ(ErrnoError(EACCES, "x").code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(ErrnoError(EXDEV, "x").code(), StatusCode::kInternal);
}

TEST(Status, HasAnHttpStatusForEachCode) {
  EXPECT_EQ(HttpStatusOf(StatusCode::kOk), 200);
  EXPECT_EQ(HttpStatusOf(StatusCode::kInvalidArgument), 400);
  EXPECT_EQ(HttpStatusOf(StatusCode::kNotFound), 404);
  EXPECT_EQ(HttpStatusOf(StatusCode::kResourceExhausted), 429);
  EXPECT_EQ(HttpStatusOf(StatusCode::kUnavailable), 503);
  EXPECT_EQ(HttpStatusOf(StatusCode::kDeadlineExceeded), 504);
  EXPECT_EQ(HttpStatusOf(StatusCode::kInternal), 500);
}

StatusOr<std::unique_ptr<int>> Half(int value) {
  if (value % 2 != 0) return InvalidArgument("{} is odd", value);
  return std::make_unique<int>(value / 2);
}

StatusOr<int> Quarter(int value) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto half, Half(value));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto quarter, Half(*half));
  return *quarter;
}

TEST(Status, IsPassedOnByTheMacros) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(MessageOf(Quarter(6).status()), "3 is odd");
}

TEST(StatusDeathTest, ACheckSaysWhereAndWhy) {
  EXPECT_DEATH(TIDEPOOL_CHECK(1 + 1 == 3, "sum is {}", 2), "internal error at .*status_test.cc.*1 \\+ 1 == 3.*sum is 2");
}

using PageId = StrongId<struct PageTag>;

TEST(StrongId, IsOrderedHashedAndPrinted) {
  EXPECT_LT(PageId(1), PageId(2));
  EXPECT_EQ(fmt::format("{}", PageId(7)), "7");
  EXPECT_EQ(std::hash<PageId>()(PageId(7)), std::hash<uint64_t>()(7));
}

}  // namespace
}  // namespace tidepool
