#include "base/units.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/dtype.h"

namespace tidepool {
namespace {

using ::testing::HasSubstr;

TEST(Bytes, AreReadInPowersOfTwoAndOfTen) {
  EXPECT_EQ(*ParseBytes("123"), 123);
  EXPECT_EQ(*ParseBytes("0"), 0);
  EXPECT_EQ(*ParseBytes("64KiB"), 64 * kKiB);
  EXPECT_EQ(*ParseBytes("12M"), 12 * kMiB);
  EXPECT_EQ(*ParseBytes("1.5GiB"), 3 * kGiB / 2);
  EXPECT_EQ(*ParseBytes("1.5 GiB"), 3 * kGiB / 2);
  EXPECT_EQ(*ParseBytes("200MB"), 200'000'000);
  EXPECT_EQ(*ParseBytes("1TiB"), 1024 * kGiB);
}

TEST(Bytes, RefuseWhatIsNoSize) {
  for (const char* text : {"", "MiB", "-5", "-1KiB", "nan", "inf", "1e999", "12 34"}) {
    EXPECT_EQ(ParseBytes(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
  EXPECT_THAT(MessageOf(ParseBytes("5parsecs").status()), HasSubstr("unknown unit 'parsecs'; allowed: for example 4096, 64KiB"));
  EXPECT_THAT(MessageOf(ParseBytes("5000000TiB").status()), HasSubstr("'5000000TiB' is too large; the largest is 4 EiB"));
}

TEST(Bytes, ArePrintedWithThreeDigits) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(3 * kMiB / 2), "1.50 MiB");
  EXPECT_EQ(FormatBytes(20 * kGiB), "20.0 GiB");
  EXPECT_EQ(FormatBytes(-2 * kMiB), "-2.00 MiB");
}

TEST(Durations, AreReadWithTheirUnit) {
  EXPECT_EQ(*ParseDuration("250us"), absl::Microseconds(250));
  EXPECT_EQ(*ParseDuration("1.5s"), absl::Milliseconds(1500));
  EXPECT_EQ(*ParseDuration("2m"), absl::Minutes(2));
  EXPECT_EQ(*ParseDuration("inf"), absl::InfiniteDuration());
}

TEST(Durations, RefuseWhatHasNoUnitOrIsNegative) {
  EXPECT_THAT(MessageOf(ParseDuration("5").status()), HasSubstr("duration '5' has the unknown unit ''"));
  EXPECT_THAT(MessageOf(ParseDuration("-5ms").status()), HasSubstr("duration '-5ms' is not a number with a unit"));
  EXPECT_FALSE(ParseDuration("soon").ok());
}

TEST(Durations, ArePrintedInTheNearestUnit) {
  EXPECT_EQ(tidepool::FormatDuration(absl::Nanoseconds(12)), "12 ns");
  EXPECT_EQ(tidepool::FormatDuration(absl::Microseconds(42)), "42.0 us");
  EXPECT_EQ(tidepool::FormatDuration(absl::Microseconds(4200)), "4.2 ms");
  EXPECT_EQ(tidepool::FormatDuration(absl::Milliseconds(1500)), "1.50 s");
  EXPECT_EQ(tidepool::FormatDuration(absl::Minutes(5)), "5.0 min");
  EXPECT_EQ(tidepool::FormatDuration(absl::InfiniteDuration()), "inf");
}

TEST(Rounding, GoesUp) {
  EXPECT_EQ(CeilDiv(10, 4), 3);
  EXPECT_EQ(CeilDiv(8, 4), 2);
  EXPECT_EQ(RoundUp(10, 4), 12);
  EXPECT_EQ(RoundUp(0, 4), 0);
}

TEST(DTypes, HaveASizeAndANameInEachFormat) {
  EXPECT_EQ(SizeOf(DType::kBF16), 2);
  EXPECT_EQ(SizeOf(DType::kBytes), 0);
  for (int i = 0; i <= static_cast<int>(DType::kBytes); ++i) {
    const DType dtype = static_cast<DType>(i);
    EXPECT_EQ(*DTypeFromInference(InferenceName(dtype)), dtype);
    if (dtype != DType::kBytes) {
      EXPECT_EQ(*DTypeFromSafetensors(SafetensorsName(dtype)), dtype);
      EXPECT_GT(SizeOf(dtype), 0);
    }
  }
}

TEST(DTypes, RefuseUnknownNames) {
  EXPECT_THAT(MessageOf(DTypeFromSafetensors("F8_E4M3").status()),
              HasSubstr("dtype 'F8_E4M3' is not supported; allowed: BOOL U8"));
  EXPECT_FALSE(DTypeFromSafetensors("").ok());
  EXPECT_THAT(MessageOf(DTypeFromInference("FLOAT").status()), HasSubstr("datatype 'FLOAT' is unknown; allowed: BOOL UINT8"));
}

}  // namespace
}  // namespace tidepool
