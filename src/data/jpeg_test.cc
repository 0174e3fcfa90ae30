#include "data/jpeg.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <turbojpeg.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace tidepool::data {
namespace {

using ::testing::HasSubstr;

std::span<const std::byte> AsBytes(const std::string& text) { return std::as_bytes(std::span(text)); }

// A smooth picture, so that compression changes it little.
std::vector<uint8_t> Gradient(int width, int height) {
  std::vector<uint8_t> rgb;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      rgb.push_back(static_cast<uint8_t>(255 * x / width));
      rgb.push_back(static_cast<uint8_t>(255 * y / height));
      rgb.push_back(128);
    }
  }
  return rgb;
}

std::string Encoded(int width, int height, int quality = 90) {
  return EncodeJpeg(Gradient(width, height), width, height, quality).value();
}

// Where the frame header's height and width stand: two big-endian 16-bit numbers, 5 bytes behind the SOF0 marker.
size_t SizeOffset(const std::string& jpeg) {
  const size_t marker = jpeg.find("\xff\xc0");
  EXPECT_NE(marker, std::string::npos);
  return marker + 5;
}

TEST(Jpeg, GivesBackWhatWasEncodedWithinTheLossOfItsQuality) {
  const std::string jpeg = Encoded(120, 80);
  const JpegInfo info = ReadJpegInfo(AsBytes(jpeg)).value();
  EXPECT_EQ(info.width, 120);
  EXPECT_EQ(info.height, 80);
  Image image;
  ASSERT_TRUE(DecodeJpeg(AsBytes(jpeg), info, 1, &image).ok());
  const std::vector<uint8_t> rgb = Gradient(120, 80);
  for (int i = 0; i < 120 * 80; ++i) {
    for (int c = 0; c < 3; ++c) ASSERT_NEAR(image.rgbx[4 * i + c], rgb[3 * i + c], 12) << "pixel " << i << " channel " << c;
  }
}

TEST(Jpeg, DecodesAtHalfQuarterAndEighthSizeRoundedUp) {
  const std::string jpeg = Encoded(101, 67);
  const JpegInfo info = ReadJpegInfo(AsBytes(jpeg)).value();
  for (const int denominator : {1, 2, 4, 8}) {
    Image image;
    ASSERT_TRUE(DecodeJpeg(AsBytes(jpeg), info, denominator, &image).ok());
    EXPECT_EQ(image.width, (101 + denominator - 1) / denominator);
    EXPECT_EQ(image.height, (67 + denominator - 1) / denominator);
    EXPECT_EQ(image.rgbx.size(), size_t(image.width) * image.height * 4 + kPixelPadding);
    const uint8_t* centre = image.rgbx.data() + 4 * ((image.height / 2) * image.width + image.width / 2);
    EXPECT_NEAR(centre[0], 128, 16);
    EXPECT_NEAR(centre[1], 128, 16);
  }
}

TEST(Jpeg, ChoosesTheSmallestDecodeThatStillCoversTheOutput) {
  EXPECT_EQ(ChooseScaleDenominator(500, 375, 224, 224), 1);
  EXPECT_EQ(ChooseScaleDenominator(500, 448, 224, 224), 2);
  EXPECT_EQ(ChooseScaleDenominator(500, 447.9, 224, 224), 1);
  EXPECT_EQ(ChooseScaleDenominator(500, 375, 64, 64), 4);
  EXPECT_EQ(ChooseScaleDenominator(5000, 3750, 64, 64), 8);
}

TEST(Jpeg, EncodesTheSamePixelsToTheSameBytes) { EXPECT_EQ(Encoded(64, 48, 75), Encoded(64, 48, 75)); }

TEST(Jpeg, RefusesToEncodeAWrongSizeOrQuality) {
  const std::vector<uint8_t> rgb(3 * 4 * 4);
  EXPECT_THAT(MessageOf(EncodeJpeg(rgb, 4, 5, 80).status()), HasSubstr("48 bytes of pixels for 4 x 5; needed: 60"));
  EXPECT_THAT(MessageOf(EncodeJpeg(rgb, 4, 4, 0).status()), HasSubstr("JPEG quality 0; allowed: 1 to 100"));
  EXPECT_THAT(MessageOf(EncodeJpeg(rgb, -4, 4, 80).status()), HasSubstr("-4 x 4"));
}

TEST(Jpeg, NamesAFileThatIsNoJpeg) {
  const Status empty = ReadJpegInfo({}).status();
  EXPECT_EQ(empty.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(empty), HasSubstr("it is empty"));
  const std::string png = "\x89PNG\r\n\x1a\n this is no JPEG at all";
  const Status garbage = ReadJpegInfo(AsBytes(png)).status();
  EXPECT_EQ(garbage.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(garbage), HasSubstr("Not a JPEG file: starts with 0x89 0x50"));
}

TEST(Jpeg, TreatsEveryTruncationAsAnErrorAndNeverCrashes) {
  const std::string jpeg = Encoded(64, 64);
  Image image;
  for (size_t length = 0; length + 2 < jpeg.size(); length += 7) {
    const std::string cut = jpeg.substr(0, length);
    const StatusOr<JpegInfo> info = ReadJpegInfo(AsBytes(cut));
    if (!info.ok()) {
      EXPECT_EQ(info.status().code(), StatusCode::kInvalidArgument);
      continue;
    }
    const Status status = DecodeJpeg(AsBytes(cut), *info, 1, &image);
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << length << " of " << jpeg.size() << ": " << ToString(status);
    EXPECT_THAT(MessageOf(status), HasSubstr("damaged JPEG data: "));
  }
}

TEST(Jpeg, SurvivesDamageAtEveryByteAndReadsTheNextFileAllTheSame) {
  const std::string jpeg = Encoded(40, 24);
  Image image;
  int refused = 0;
  for (size_t i = 0; i < jpeg.size(); ++i) {
    std::string damaged = jpeg;
    damaged[i] = static_cast<char>(~damaged[i]);
    const StatusOr<JpegInfo> info = ReadJpegInfo(AsBytes(damaged), {.max_side = 4096, .max_pixels = 1 << 20});
    if (!info.ok() || !DecodeJpeg(AsBytes(damaged), *info, 1, &image).ok()) ++refused;
    const StatusOr<JpegInfo> good = ReadJpegInfo(AsBytes(jpeg));
    ASSERT_TRUE(good.ok()) << "byte " << i << " spoilt the next file: " << ToString(good.status());
    ASSERT_TRUE(DecodeJpeg(AsBytes(jpeg), *good, 1, &image).ok());
  }
  EXPECT_GT(refused, 0);
}

TEST(Jpeg, RefusesAHeaderThatAsksForTooManyPixels) {
  std::string jpeg = Encoded(32, 32);
  const size_t at = SizeOffset(jpeg);
  jpeg.replace(at, 4, "\xff\xdc\xff\xdc");
  const Status status = ReadJpegInfo(AsBytes(jpeg)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("JPEG header says 65500 x 65500 pixels; allowed: sides up to 16384"));
  jpeg.replace(at, 4, "\x3f\xff\x3f\xff");
  EXPECT_THAT(MessageOf(ReadJpegInfo(AsBytes(jpeg)).status()), HasSubstr("16383 x 16383 pixels"));
}

std::string EncodeWith(const std::vector<uint8_t>& pixels, int width, int height, int format, int subsampling, int flags = 0) {
  tjhandle handle = tjInitCompress();
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  EXPECT_EQ(tjCompress2(handle, pixels.data(), width, 0, height, format, &buffer, &size, subsampling, 95, flags), 0);
  std::string jpeg(reinterpret_cast<char*>(buffer), size);
  tjFree(buffer);
  tjDestroy(handle);
  return jpeg;
}

TEST(Jpeg, TurnsGreyIntoEqualColours) {
  const std::string jpeg = EncodeWith(std::vector<uint8_t>(16 * 16, 77), 16, 16, TJPF_GRAY, TJSAMP_GRAY);
  Image image;
  ASSERT_TRUE(DecodeJpeg(AsBytes(jpeg), ReadJpegInfo(AsBytes(jpeg)).value(), 1, &image).ok());
  for (int c = 0; c < 3; ++c) EXPECT_NEAR(image.rgbx[c], 77, 2);
}

TEST(Jpeg, TurnsInvertedCmykIntoColours) {
  // Stored inverted: 255 is no ink. Full red paper: cyan none, magenta and yellow full, black none.
  std::vector<uint8_t> pixels;
  for (int i = 0; i < 16 * 16; ++i) pixels.insert(pixels.end(), {255, 0, 0, 255});
  const std::string jpeg = EncodeWith(pixels, 16, 16, TJPF_CMYK, TJSAMP_444);
  const JpegInfo info = ReadJpegInfo(AsBytes(jpeg)).value();
  EXPECT_TRUE(info.cmyk);
  Image image;
  ASSERT_TRUE(DecodeJpeg(AsBytes(jpeg), info, 1, &image).ok());
  EXPECT_GT(image.rgbx[0], 240);
  EXPECT_LT(image.rgbx[1], 15);
  EXPECT_LT(image.rgbx[2], 15);
}

// Noise on a gradient: every chroma sample differs from its neighbours.
std::vector<uint8_t> Noisy(int width, int height) {
  std::vector<uint8_t> rgb = Gradient(width, height);
  std::mt19937 random(5);
  for (uint8_t& value : rgb) value = static_cast<uint8_t>(std::min<unsigned>(255, value / 2 + random() % 128));
  return rgb;
}

// Keeps the part that comes, and checks that rows come in order and are all asked for.
class PartSink : public RowSink {
 public:
  void Begin(const PixelRect& begun) override {
    part = begun;
    pixels.assign(size_t{4} * begun.width * begun.height, 0);
    next = begun.y;
  }
  uint8_t* Row(int y) override {
    EXPECT_GE(y, next);
    EXPECT_LT(y, next + kMostRows);
    return pixels.data() + size_t{4} * part.width * (y - part.y);
  }
  void Done(int end) override {
    EXPECT_GT(end, next);
    next = end;
  }
  PixelRect part;
  std::vector<uint8_t> pixels;
  int next = 0;
};

TEST(Jpeg, DecodesAPartToTheSamePixelsAsTheWhole) {
  const int width = 203, height = 157;
  const std::vector<uint8_t> rgb = Noisy(width, height);
  std::vector<uint8_t> grey(rgb.begin(), rgb.begin() + width * height), cmyk(rgb.begin(), rgb.end());
  cmyk.resize(4 * width * height, 200);
  struct Kind {
    const std::vector<uint8_t>* pixels;
    int format, subsampling, flags;
  };
  const Kind kinds[] = {{&rgb, TJPF_RGB, TJSAMP_420, 0},    {&rgb, TJPF_RGB, TJSAMP_422, 0},
                        {&rgb, TJPF_RGB, TJSAMP_444, 0},    {&rgb, TJPF_RGB, TJSAMP_440, 0},
                        {&rgb, TJPF_RGB, TJSAMP_411, 0},    {&rgb, TJPF_RGB, TJSAMP_420, TJFLAG_PROGRESSIVE},
                        {&grey, TJPF_GRAY, TJSAMP_GRAY, 0}, {&cmyk, TJPF_CMYK, TJSAMP_420, 0}};
  std::mt19937 random(17);
  Image whole;
  PartSink part;
  for (const Kind& kind : kinds) {
    const std::string jpeg = EncodeWith(*kind.pixels, width, height, kind.format, kind.subsampling, kind.flags);
    for (int round = 0; round < 120; ++round) {
      const int denominator = 1 << round % 4;
      const int w = ScaledSide(width, denominator), h = ScaledSide(height, denominator);
      PixelRect wanted;
      wanted.width = 1 + static_cast<int>(random() % w);
      wanted.height = 1 + static_cast<int>(random() % h);
      wanted.x = static_cast<int>(random() % (w - wanted.width + 1));
      wanted.y = static_cast<int>(random() % (h - wanted.height + 1));
      ASSERT_TRUE(DecodeJpeg(AsBytes(jpeg), ReadJpegInfo(AsBytes(jpeg)).value(), denominator, &whole).ok());
      const Status decoded =
          DecodeJpegRows(AsBytes(jpeg), ReadJpegInfo(AsBytes(jpeg)).value(), denominator, Extraction::kPart, wanted, &part);
      ASSERT_TRUE(decoded.ok()) << ToString(decoded);
      const PixelRect* const got = &part.part;
      ASSERT_EQ(part.next, got->y + got->height);
      ASSERT_LE(got->x, wanted.x);
      ASSERT_LE(got->y, wanted.y);
      ASSERT_GE(got->x + got->width, wanted.x + wanted.width);
      ASSERT_GE(got->y + got->height, wanted.y + wanted.height);
      for (int y = wanted.y; y < wanted.y + wanted.height; ++y) {
        for (int x = wanted.x; x < wanted.x + wanted.width; ++x) {
          for (int c = 0; c < 3; ++c) {
            ASSERT_EQ(part.pixels[4 * ((y - got->y) * got->width + x - got->x) + c], whole.rgbx[4 * (y * w + x) + c])
                << "subsampling " << kind.subsampling << " flags " << kind.flags << " 1/" << denominator << " pixel " << x << ", "
                << y << " of part " << wanted.x << ", " << wanted.y << " + " << wanted.width << " x " << wanted.height;
          }
        }
      }
    }
  }
}

TEST(Jpeg, SeesDamageAboveAPartAndAMissingEndButNotDamageBelow) {
  const std::string jpeg = EncodeWith(Noisy(160, 160), 160, 160, TJPF_RGB, TJSAMP_420);
  PartSink sink;
  const auto decode = [&](const std::string& bytes, const PixelRect& part) {
    const auto info = ReadJpegInfo(AsBytes(bytes));
    return info.ok() ? DecodeJpegRows(AsBytes(bytes), *info, 1, Extraction::kPart, part, &sink) : info.status();
  };
  const PixelRect upper = {.x = 32, .y = 16, .width = 32, .height = 32}, lower = {.x = 32, .y = 120, .width = 32, .height = 32};
  // A marker within the data ends it: everything behind is missing.
  std::string damaged = jpeg;
  damaged.replace(jpeg.size() / 2, 2, "\xff\xd9");
  EXPECT_TRUE(decode(damaged, upper).ok());
  EXPECT_EQ(decode(damaged, lower).code(), StatusCode::kDataLoss);
  const std::string cut = jpeg.substr(0, jpeg.size() * 3 / 4);
  EXPECT_EQ(decode(cut, upper).code(), StatusCode::kDataLoss);
  EXPECT_TRUE(decode(jpeg + std::string(100, '\0'), upper).ok());
  EXPECT_TRUE(decode(jpeg, upper).ok());
}

TEST(Jpeg, RefusesAPartOutsideOfThePicture) {
  const std::string jpeg = Encoded(32, 32);
  const JpegInfo info = ReadJpegInfo(AsBytes(jpeg)).value();
  PartSink sink;
  const auto decode = [&](int denominator, const PixelRect& part) {
    return MessageOf(DecodeJpegRows(AsBytes(jpeg), info, denominator, Extraction::kPart, part, &sink));
  };
  EXPECT_THAT(decode(2, {.x = 10, .y = 0, .width = 7, .height = 1}), HasSubstr("part 7 x 1 at (10, 0) of a picture of 16 x 16"));
  EXPECT_THAT(decode(1, {.x = 0, .y = 0, .width = 0, .height = 1}), HasSubstr("part 0 x 1"));
}

TEST(Jpeg, DecodesTheRightFileWhenHeadersAndPicturesAreReadInAnotherOrder) {
  const std::string one = EncodeWith(std::vector<uint8_t>(16 * 16, 10), 16, 16, TJPF_GRAY, TJSAMP_GRAY);
  const std::string two = EncodeWith(std::vector<uint8_t>(16 * 16, 200), 16, 16, TJPF_GRAY, TJSAMP_GRAY);
  const JpegInfo first = ReadJpegInfo(AsBytes(one)).value(), second = ReadJpegInfo(AsBytes(two)).value();
  Image image;
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(DecodeJpeg(AsBytes(one), first, 1, &image).ok());
    EXPECT_NEAR(image.rgbx[0], 10, 2);
    ASSERT_TRUE(DecodeJpeg(AsBytes(two), second, 1, &image).ok());
    EXPECT_NEAR(image.rgbx[0], 200, 2);
  }
}

}  // namespace
}  // namespace tidepool::data
