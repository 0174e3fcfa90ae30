#include "data/jpeg_planes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <jpeglib.h>
#include <turbojpeg.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "data/augment.h"
#include "data/jpeg_huffman.h"
#include "data/jpeg_idct.h"
#include "data/resize.h"
#include "data/resize_filter.h"
#include "data/resize_planes.h"

namespace tidepool::data {
namespace {

std::span<const std::byte> AsBytes(const std::string& text) { return std::as_bytes(std::span(text)); }

struct Kind {
  int chroma_width = 2, chroma_height = 2;
  int quality = 90;
  int restart_rows = 0;  // of units between restarts
  bool optimise = false;
  bool progressive = false;
  J_COLOR_SPACE colours = JCS_YCbCr;
};

std::string Encode(const std::vector<uint8_t>& rgb, int width, int height, const Kind& kind) {
  jpeg_compress_struct codec;
  jpeg_error_mgr errors;
  codec.err = jpeg_std_error(&errors);
  jpeg_create_compress(&codec);
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&codec, &buffer, &size);
  codec.image_width = static_cast<JDIMENSION>(width);
  codec.image_height = static_cast<JDIMENSION>(height);
  codec.input_components = 3;
  codec.in_color_space = JCS_RGB;
  jpeg_set_defaults(&codec);
  jpeg_set_colorspace(&codec, kind.colours);
  jpeg_set_quality(&codec, kind.quality, TRUE);
  codec.restart_in_rows = kind.restart_rows;
  codec.optimize_coding = kind.optimise ? TRUE : FALSE;
  codec.comp_info[0].h_samp_factor = kind.chroma_width;
  codec.comp_info[0].v_samp_factor = kind.chroma_height;
  if (kind.progressive) jpeg_simple_progression(&codec);
  jpeg_start_compress(&codec, TRUE);
  while (codec.next_scanline < codec.image_height) {
    JSAMPROW row = const_cast<JSAMPROW>(rgb.data() + size_t{3} * width * codec.next_scanline);
    jpeg_write_scanlines(&codec, &row, 1);
  }
  jpeg_finish_compress(&codec);
  std::string jpeg(reinterpret_cast<char*>(buffer), size);
  jpeg_destroy_compress(&codec);
  std::free(buffer);
  return jpeg;
}

// Waves of several lengths, as photographs have them; `grain` is added to every channel of every pixel.
std::vector<uint8_t> Waves(int width, int height, int grain) {
  std::vector<uint8_t> rgb;
  std::mt19937 random(5);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) {
        double value = 128;
        for (const double length : {90.0, 37.0, 17.0})
          value += length / 3 * std::sin(x / length * (1 + c * 0.3) + c) * std::cos(y / length - c);
        if (grain > 0) value += static_cast<int>(random() % static_cast<unsigned>(grain)) - grain / 2;
        rgb.push_back(static_cast<uint8_t>(std::clamp(value, 0.0, 255.0)));
      }
    }
  }
  return rgb;
}

// Saturated colours with hard edges, not on the borders of blocks.
std::vector<uint8_t> Patches(int width, int height) {
  std::vector<uint8_t> rgb;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const uint64_t patch = RandomBits(3, static_cast<uint64_t>(x / 29), static_cast<uint64_t>(y / 23));
      for (int c = 0; c < 3; ++c) rgb.push_back((patch >> c & 1) != 0 ? 235 : 20);
    }
  }
  return rgb;
}

// Keeps the part that comes, and checks that strips come in order.
class KeptPlanes : public PlaneSink {
 public:
  void Begin(const PlaneParts& begun) override {
    parts = begun;
    for (int c = 0; c < 3; ++c) {
      const PixelRect& part = Part(c);
      samples[c].assign(size_t(part.width) * part.height, 0);
    }
  }
  uint8_t* Rows(int plane, int y, ptrdiff_t* stride) override {
    *stride = Part(plane).width;
    return samples[plane].data() + (y - Part(plane).y) * *stride;
  }
  void Done(int luma, int chroma) override {
    luma_end = luma;
    chroma_end = chroma;
  }
  const PixelRect& Part(int plane) const { return plane == 0 ? parts.luma : parts.chroma; }
  int At(int plane, int x, int y) const {
    const PixelRect& part = Part(plane);
    return samples[plane][size_t(y - part.y) * part.width + x - part.x];
  }

  PlaneParts parts;
  std::vector<uint8_t> samples[3];
  int luma_end = 0, chroma_end = 0;
};

struct Planes {
  bool ok = false;
  std::vector<uint8_t> samples[3];
  int widths[3] = {}, heights[3] = {}, strides[3] = {};
};

// By libjpeg-turbo; not ok if it has any warning.
Planes TurboPlanes(const std::string& jpeg) {
  Planes planes;
  tjhandle handle = tjInitDecompress();
  int width = 0, height = 0, subsampling = 0, colours = 0;
  const auto* bytes = reinterpret_cast<const unsigned char*>(jpeg.data());
  if (tjDecompressHeader3(handle, bytes, jpeg.size(), &width, &height, &subsampling, &colours) != 0) {
    tjDestroy(handle);
    return planes;
  }
  unsigned char* places[3];
  for (int c = 0; c < 3; ++c) {
    planes.widths[c] = tjPlaneWidth(c, width, subsampling);
    planes.heights[c] = tjPlaneHeight(c, height, subsampling);
    planes.strides[c] = planes.widths[c];
    planes.samples[c].resize(size_t(planes.widths[c]) * planes.heights[c]);
    places[c] = planes.samples[c].data();
  }
  planes.ok = tjDecompressToYUVPlanes(handle, bytes, jpeg.size(), places, width, nullptr, height, TJFLAG_ACCURATEDCT) == 0;
  tjDestroy(handle);
  return planes;
}

// By libjpeg's raw data, at 1/denominator, of a file without a fault; with what fills up the blocks at the edges.
Planes RawPlanes(const std::string& jpeg, int denominator) {
  Planes planes;
  jpeg_decompress_struct codec;
  jpeg_error_mgr errors;
  codec.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&codec);
  jpeg_mem_src(&codec, reinterpret_cast<const unsigned char*>(jpeg.data()), jpeg.size());
  jpeg_read_header(&codec, TRUE);
  codec.scale_num = 1;
  codec.scale_denom = static_cast<unsigned>(denominator);
  codec.raw_data_out = TRUE;
  codec.dct_method = JDCT_ISLOW;
  jpeg_start_decompress(&codec);
  const int units = static_cast<int>(codec.total_iMCU_rows);
  int rows_at_once[3];
  for (int c = 0; c < 3; ++c) {
    const jpeg_component_info& component = codec.comp_info[c];
    rows_at_once[c] = component.v_samp_factor * component.DCT_scaled_size;
    planes.widths[c] = static_cast<int>(component.downsampled_width);
    planes.heights[c] = static_cast<int>(component.downsampled_height);
    planes.strides[c] = static_cast<int>(component.width_in_blocks + 4) * component.DCT_scaled_size;
    planes.samples[c].resize(size_t(units * rows_at_once[c]) * planes.strides[c]);
  }
  for (int unit = 0; unit < units; ++unit) {
    std::vector<JSAMPROW> rows[3];
    JSAMPARRAY arrays[3];
    for (int c = 0; c < 3; ++c) {
      for (int y = 0; y < rows_at_once[c]; ++y) {
        rows[c].push_back(planes.samples[c].data() + size_t(unit * rows_at_once[c] + y) * planes.strides[c]);
      }
      arrays[c] = rows[c].data();
    }
    EXPECT_GT(jpeg_read_raw_data(&codec, arrays, static_cast<JDIMENSION>(rows_at_once[0])), 0u);
  }
  jpeg_destroy_decompress(&codec);
  planes.ok = true;
  return planes;
}

// The whole picture by our decoder; false if it leaves the file to libjpeg.
bool OurPlanes(const std::string& jpeg, KeptPlanes* planes, int denominator = 1) {
  const StatusOr<JpegInfo> info = ReadJpegInfo(AsBytes(jpeg), {.max_side = 4096, .max_pixels = 1 << 20});
  return info.ok() && DecodeJpegPlanes(AsBytes(jpeg), *info, denominator, Extraction::kWhole, {}, planes);
}

// Edges of the picture are filled up to whole blocks differently; what lies inside must be equal.
void ExpectEqualPlanes(const Planes& wanted, const KeptPlanes& planes) {
  for (int c = 0; c < 3; ++c) {
    ASSERT_LE(wanted.widths[c], planes.Part(c).width);
    ASSERT_LE(wanted.heights[c], planes.Part(c).height);
    for (int y = 0; y < wanted.heights[c]; ++y) {
      for (int x = 0; x < wanted.widths[c]; ++x) {
        ASSERT_EQ(planes.At(c, x, y), wanted.samples[c][size_t(y) * wanted.strides[c] + x])
            << "plane " << c << " at " << x << ", " << y;
      }
    }
  }
}

// Restores the instructions that this machine has.
struct LevelGuard {
  ~LevelGuard() { internal::ForceResizeLevel(-1); }
};

std::vector<Kind> CommonKinds() {
  std::vector<Kind> kinds;
  for (const int width : {1, 2}) {
    for (const int height : {1, 2}) {
      for (const int quality : {40, 90, 100})
        kinds.push_back({.chroma_width = width, .chroma_height = height, .quality = quality});
      kinds.push_back({.chroma_width = width, .chroma_height = height, .quality = 100, .optimise = true});
      kinds.push_back({.chroma_width = width, .chroma_height = height, .restart_rows = 1});
      kinds.push_back({.chroma_width = width, .chroma_height = height, .restart_rows = 2, .optimise = true});
    }
  }
  return kinds;
}

TEST(JpegPlanes, AreThoseOfLibjpegBitForBit) {
  const LevelGuard guard;
  for (const Kind& kind : CommonKinds()) {
    for (const int grain : {0, 60, 255}) {
      const int width = 203, height = 157;
      const std::string jpeg = Encode(Waves(width, height, grain), width, height, kind);
      const Planes wanted = TurboPlanes(jpeg);
      ASSERT_TRUE(wanted.ok);
      for (const int level : {0, 2}) {
        internal::ForceResizeLevel(level);
        KeptPlanes planes;
        ASSERT_TRUE(OurPlanes(jpeg, &planes)) << kind.chroma_width << " x " << kind.chroma_height << " quality " << kind.quality;
        ExpectEqualPlanes(wanted, planes);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(JpegPlanes, AtReducedSizeAreThoseOfLibjpegBitForBit) {
  const LevelGuard guard;
  for (const Kind& kind : CommonKinds()) {
    const int width = 203, height = 157;
    const std::string jpeg = Encode(Waves(width, height, 90), width, height, kind);
    for (const int denominator : {1, 2, 4, 8}) {
      const Planes wanted = RawPlanes(jpeg, denominator);
      const PlaneLayout layout = LayOutPlanes(ReadJpegInfo(AsBytes(jpeg)).value(), denominator);
      for (int c = 0; c < 3; ++c) {
        ASSERT_EQ(wanted.widths[c], c == 0 ? layout.luma.width : layout.chroma.width);
        ASSERT_EQ(wanted.heights[c], c == 0 ? layout.luma.height : layout.chroma.height);
      }
      for (const int level : {0, 2}) {
        internal::ForceResizeLevel(level);
        KeptPlanes planes;
        ASSERT_TRUE(OurPlanes(jpeg, &planes, denominator));
        ExpectEqualPlanes(wanted, planes);
        if (HasFatalFailure()) FAIL() << "1/" << denominator << " of chroma " << kind.chroma_width << " x " << kind.chroma_height;
      }
    }
  }
}

TEST(JpegPlanes, OfPicturesOfFewPixelsAreThoseOfLibjpeg) {
  for (int width = 1; width < 20; width += 3) {
    for (int height = 1; height < 20; height += 2) {
      const std::string jpeg = Encode(Waves(width, height, 90), width, height, {});
      KeptPlanes planes;
      ASSERT_TRUE(OurPlanes(jpeg, &planes)) << width << " x " << height;
      ExpectEqualPlanes(TurboPlanes(jpeg), planes);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(JpegPlanes, OfAPartAreThoseOfTheWhole) {
  const int width = 203, height = 157;
  std::mt19937 random(17);
  for (const Kind& kind : CommonKinds()) {
    const std::string jpeg = Encode(Waves(width, height, 100), width, height, kind);
    KeptPlanes whole, part;
    for (int round = 0; round < 24; ++round) {
      const int denominator = 1 << round % 4;
      ASSERT_TRUE(OurPlanes(jpeg, &whole, denominator));
      const auto any = [&](int w, int h) {
        PixelRect rect;
        rect.width = 1 + static_cast<int>(random() % static_cast<unsigned>(w));
        rect.height = 1 + static_cast<int>(random() % static_cast<unsigned>(h));
        rect.x = static_cast<int>(random() % static_cast<unsigned>(w - rect.width + 1));
        rect.y = static_cast<int>(random() % static_cast<unsigned>(h - rect.height + 1));
        return rect;
      };
      const JpegInfo info = ReadJpegInfo(AsBytes(jpeg)).value();
      const PlaneLayout layout = LayOutPlanes(info, denominator);
      const PlaneParts wanted = {.luma = any(layout.luma.width, layout.luma.height),
                                 .chroma = any(layout.chroma.width, layout.chroma.height)};
      ASSERT_TRUE(DecodeJpegPlanes(AsBytes(jpeg), info, denominator, Extraction::kPart, wanted, &part));
      EXPECT_EQ(part.luma_end, part.parts.luma.y + part.parts.luma.height);
      EXPECT_EQ(part.chroma_end, part.parts.chroma.y + part.parts.chroma.height);
      for (int c = 0; c < 3; ++c) {
        const PixelRect &asked = c == 0 ? wanted.luma : wanted.chroma, &got = part.Part(c);
        ASSERT_TRUE(got.x <= asked.x && got.y <= asked.y && got.x + got.width >= asked.x + asked.width &&
                    got.y + got.height >= asked.y + asked.height);
        for (int y = got.y; y < got.y + got.height; ++y) {
          for (int x = got.x; x < got.x + got.width; ++x) ASSERT_EQ(part.At(c, x, y), whole.At(c, x, y));
        }
      }
    }
  }
}

TEST(JpegPlanes, LeaveEveryDamagedByteToLibjpegOrGiveTheSame) {
  for (const Kind& kind : {Kind{.quality = 95}, Kind{.quality = 95, .restart_rows = 1, .optimise = true}}) {
    const std::string jpeg = Encode(Waves(56, 40, 120), 56, 40, kind);
    std::mt19937 random(11);
    int compared = 0, left = 0;
    for (size_t i = 0; i < jpeg.size(); ++i) {
      for (const int mask : {0xff, 0x80, static_cast<int>(1u << random() % 8)}) {
        std::string damaged = jpeg;
        damaged[i] = static_cast<char>(damaged[i] ^ mask);
        KeptPlanes planes;
        if (!OurPlanes(damaged, &planes)) {
          ++left;
          continue;
        }
        const JpegInfo info = ReadJpegInfo(AsBytes(damaged)).value();
        Image image;
        const Status decoded = DecodeJpeg(AsBytes(damaged), info, 1, &image);
        ASSERT_TRUE(decoded.ok()) << "byte " << i << ": " << ToString(decoded);
        const Planes wanted = TurboPlanes(damaged);
        if (!wanted.ok) continue;
        ++compared;
        ExpectEqualPlanes(wanted, planes);
        if (HasFatalFailure()) return;
      }
    }
    EXPECT_GT(compared, 300);
    EXPECT_GT(left, 0);
  }
}

TEST(JpegPlanes, LeaveEveryTruncatedFileToLibjpeg) {
  const std::string jpeg = Encode(Waves(64, 64, 50), 64, 64, {.restart_rows = 1});
  for (size_t length = 0; length < jpeg.size(); ++length) {
    KeptPlanes planes;
    ASSERT_FALSE(OurPlanes(jpeg.substr(0, length), &planes)) << length << " of " << jpeg.size();
  }
}

TEST(JpegPlanes, SurviveBytesThatAreNoScanAtAll) {
  const std::string jpeg = Encode(Waves(160, 160, 50), 160, 160, {});
  const size_t scan = jpeg.find("\xff\xda") + 14;
  std::mt19937 random(23);
  for (int round = 0; round < 300; ++round) {
    std::string bytes = jpeg.substr(0, scan);
    const int limit = round % 3 == 0 ? 4 : 255;  // many zeros: short codes, or a code that is not there
    for (size_t i = 0; i < 200 + random() % 4000; ++i)
      bytes.push_back(static_cast<char>(random() % static_cast<unsigned>(limit)));
    bytes += "\xff\xd9";
    KeptPlanes planes;
    if (!OurPlanes(bytes, &planes)) continue;
    const Planes wanted = TurboPlanes(bytes);
    ASSERT_TRUE(wanted.ok) << "round " << round;
    ExpectEqualPlanes(wanted, planes);
    if (HasFatalFailure()) return;
  }
}

TEST(JpegPlanes, LeaveUncommonFilesToLibjpeg) {
  const std::vector<uint8_t> rgb = Waves(40, 40, 0);
  const auto common = [&](const Kind& kind) {
    KeptPlanes planes;
    const std::string jpeg = Encode(rgb, 40, 40, kind);
    const bool taken = OurPlanes(jpeg, &planes);
    EXPECT_EQ(taken, ReadJpegInfo(AsBytes(jpeg)).value().planes);
    return taken;
  };
  EXPECT_TRUE(common({}));
  EXPECT_FALSE(common({.progressive = true}));
  EXPECT_FALSE(common({.chroma_width = 1, .chroma_height = 1, .colours = JCS_RGB}));
  EXPECT_FALSE(common({.chroma_width = 4, .chroma_height = 1}));
  EXPECT_FALSE(common({.chroma_width = 1, .chroma_height = 1, .colours = JCS_GRAYSCALE}));
}

TEST(InverseDct, GivesTheSameBitsWithEveryKindOfInstructions) {
  std::mt19937 random(3);
  const auto below = [&random](int limit) { return static_cast<int>(random() % static_cast<unsigned>(limit)); };
  for (int round = 0; round < 4000; ++round) {
    alignas(32) int16_t coefficients[64] = {}, copy[64], quantiser[64];
    const int size = 1 << round % 4, kept = round % 65, range = round % 3 == 0 ? 60000 : 200;
    for (int i = 0; i < kept; ++i) coefficients[below(64)] = static_cast<int16_t>(below(range) - range / 2);
    for (int16_t& factor : quantiser) factor = static_cast<int16_t>(1 + below(30));
    std::copy_n(coefficients, 64, copy);
    uint8_t plain[64] = {}, fast[64] = {};
    InverseDct(0, size, copy, quantiser, plain, 8);
    InverseDct(internal::ResizeLevel(), size, coefficients, quantiser, fast, 8);
    ASSERT_EQ(std::memcmp(plain, fast, 64), 0) << "round " << round;
    EXPECT_EQ(std::count(copy, copy + 64, 0) + std::count(coefficients, coefficients + 64, 0), 128);
    const int first = below(4000) - 2000;
    coefficients[0] = static_cast<int16_t>(first);
    InverseDct(0, size, coefficients, quantiser, plain, 8);
    InverseDctFlat(size, first, quantiser[0], fast, 8);
    ASSERT_EQ(std::memcmp(plain, fast, 64), 0) << "flat, round " << round;
  }
}

TEST(HuffmanTable, RefusesWhatIsNoPrefixCode) {
  HuffmanTable table;
  uint8_t counts[17] = {}, symbols[256] = {};
  counts[1] = 3;
  EXPECT_FALSE(table.Build(HuffmanTable::Kind::kAc, counts, symbols, true));
  counts[1] = 1;
  symbols[0] = 12;  // bits of a difference
  EXPECT_FALSE(table.Build(HuffmanTable::Kind::kDc, counts, symbols, true));
  symbols[0] = 11;
  EXPECT_TRUE(table.Build(HuffmanTable::Kind::kDc, counts, symbols, true));
  std::fill(std::begin(counts) + 1, std::end(counts), 255);
  EXPECT_FALSE(table.Build(HuffmanTable::Kind::kDc, counts, symbols, true));
}

constexpr Normalisation kPlain = {{1, 1, 1}, {0, 0, 0}};

struct Way {
  Extraction extraction = Extraction::kPart;
  int denominator = 1;
  Normalisation normalisation = kPlain;
};

std::vector<float> ByPlanes(const std::string& jpeg, const Crop& crop, int size, const Way& way = {}) {
  std::vector<float> out(size_t{3} * size * size, -1);
  PlaneResizer resizer;
  const JpegInfo info = ReadJpegInfo(AsBytes(jpeg)).value();
  resizer.Plan(info, way.denominator, crop, size, way.normalisation, out);
  EXPECT_TRUE(DecodeJpegPlanes(AsBytes(jpeg), info, way.denominator, way.extraction, resizer.needed(), &resizer));
  return out;
}

std::vector<float> ByPixels(const std::string& jpeg, const Crop& crop, int size, int denominator) {
  std::vector<float> out(size_t{3} * size * size, -1);
  const JpegInfo info = ReadJpegInfo(AsBytes(jpeg)).value();
  CropResizer resizer;
  resizer.Plan(ScaledSide(info.width, denominator), ScaledSide(info.height, denominator), denominator, crop, size, kPlain, out);
  EXPECT_TRUE(DecodeJpegRows(AsBytes(jpeg), info, denominator, Extraction::kPart, resizer.needed(), &resizer).ok());
  return out;
}

double MeanDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

// By how much the two ways differ, in levels of 0 to 255. They differ in how chroma is enlarged and in that a pixel's values are
// rounded and clamped before or after the resize.
TEST(PlaneResizer, AgreesWithResizingPixels) {
  struct Picture {
    std::vector<uint8_t> rgb;
    double smooth_limit, subsampled_limit;
  };
  const int width = 300, height = 225;
  const Picture pictures[] = {
      {Waves(width, height, 0), 0.6, 0.7}, {Waves(width, height, 60), 0.8, 1.5}, {Patches(width, height), 1.0, 5.0}};
  for (const Picture& picture : pictures) {
    for (const int chroma_width : {1, 2}) {
      for (const int chroma_height : {1, 2}) {
        const std::string jpeg =
            Encode(picture.rgb, width, height, {.chroma_width = chroma_width, .chroma_height = chroma_height});
        for (uint64_t i = 0; i < 8; ++i) {
          const Crop crop = RandomResizedCrop(width, height, 0.25, 2, i);
          const int denominator = 1 << i % 4, size = 128 / denominator;
          const double difference =
              MeanDifference(ByPlanes(jpeg, crop, size, {.denominator = denominator}), ByPixels(jpeg, crop, size, denominator));
          const double limit = chroma_width * chroma_height == 1 ? picture.smooth_limit : picture.subsampled_limit;
          EXPECT_LT(difference, limit) << "picture " << &picture - pictures << " chroma " << chroma_width << " x "
                                       << chroma_height << " crop " << i;
        }
      }
    }
  }
}

// The plain definition in floating point, of the planes.
float Reference(const KeptPlanes& planes, const JpegInfo& info, const Crop& crop, int size, int x, int y, int channel) {
  double values[3];
  for (int c = 0; c < 3; ++c) {
    const int across = c == 0 ? 1 : info.chroma_width, down = c == 0 ? 1 : info.chroma_height;
    const auto axis = [size](double start, double length, int i, int limit) {
      std::vector<double> weights(static_cast<size_t>(limit));
      const double step = length / size, support = std::max(step, 1.0), centre = start + (i + 0.5) * step;
      double sum = 0;
      for (int s = 0; s < limit; ++s) sum += weights[s] = std::max(0.0, 1 - std::abs(s + 0.5 - centre) / support);
      for (double& weight : weights) weight /= sum;
      return weights;
    };
    const auto wx = axis(crop.x / across, crop.width / across, crop.flip ? size - 1 - x : x, ScaledSide(info.width, across));
    const auto wy = axis(crop.y / down, crop.height / down, y, ScaledSide(info.height, down));
    values[c] = 0;
    for (size_t v = 0; v < wy.size(); ++v) {
      for (size_t u = 0; u < wx.size() && wy[v] != 0; ++u) {
        if (wx[u] != 0) values[c] += wx[u] * wy[v] * planes.At(c, static_cast<int>(u), static_cast<int>(v));
      }
    }
  }
  const double cb = values[1] - 128, cr = values[2] - 128;
  const double colours[3] = {values[0] + 1.402 * cr, values[0] - 0.344136 * cb - 0.714136 * cr, values[0] + 1.772 * cb};
  return static_cast<float>(std::clamp(colours[channel], 0.0, 255.0));
}

TEST(PlaneResizer, IsTheTriangleFilterOfEachPlane) {
  const int width = 61, height = 45;
  for (const Kind& kind :
       {Kind{}, Kind{.chroma_height = 1}, Kind{.chroma_width = 1}, Kind{.chroma_width = 1, .chroma_height = 1}}) {
    const std::string jpeg = Encode(Waves(width, height, 80), width, height, kind);
    const JpegInfo info = ReadJpegInfo(AsBytes(jpeg)).value();
    KeptPlanes planes;
    ASSERT_TRUE(OurPlanes(jpeg, &planes));
    for (uint64_t i = 0; i < 10; ++i) {
      const Crop crop = RandomResizedCrop(width, height, 0.1, 3, i);
      const int size = 3 + static_cast<int>(i) * 5;
      const std::vector<float> out = ByPlanes(jpeg, crop, size);
      for (int c = 0; c < 3; ++c) {
        for (int y = 0; y < size; ++y) {
          for (int x = 0; x < size; ++x) {
            ASSERT_NEAR(out[(c * size + y) * size + x], Reference(planes, info, crop, size, x, y, c), 0.5)
                << "crop " << i << " channel " << c << " at " << x << ", " << y;
          }
        }
      }
    }
  }
}

TEST(PlaneResizer, GivesTheSameBitsWithEveryKindOfInstructionsAndFromTheWhole) {
  const LevelGuard guard;
  const float mean[] = {0.485f, 0.456f, 0.406f}, stddev[] = {0.229f, 0.224f, 0.225f};
  for (uint64_t i = 0; i < 40; ++i) {
    const int width = 9 + static_cast<int>(RandomBits(9, i, 0) % 200), height = 9 + static_cast<int>(RandomBits(9, i, 1) % 200);
    const Kind kind = {.chroma_width = 1 + static_cast<int>(i % 2), .chroma_height = 1 + static_cast<int>(i / 2 % 2)};
    const std::string jpeg = Encode(Waves(width, height, 80), width, height, kind);
    const Crop crop = RandomResizedCrop(width, height, 0.05, 4, i);
    const int size = 1 + static_cast<int>(RandomBits(9, i, 2) % 60), denominator = 1 << i / 4 % 4;
    const Normalisation normalisation = MakeNormalisation(mean, stddev);
    internal::ForceResizeLevel(0);
    const std::vector<float> plain = ByPlanes(jpeg, crop, size, {.denominator = denominator, .normalisation = normalisation});
    for (const int level : {1, 2}) {
      internal::ForceResizeLevel(level);
      ASSERT_EQ(plain, ByPlanes(jpeg, crop, size, {.denominator = denominator, .normalisation = normalisation}))
          << "picture " << i << " level " << level;
      ASSERT_EQ(plain, ByPlanes(jpeg, crop, size, {Extraction::kWhole, denominator, normalisation}))
          << "picture " << i << " level " << level;
    }
  }
}

}  // namespace
}  // namespace tidepool::data
