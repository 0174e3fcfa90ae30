#include <cstddef>
#include <cstdint>
#include <vector>

#include "data/jpeg.h"
#include "data/jpeg_planes.h"
#include "fuzz/check.h"

namespace tidepool {
namespace {

// Rows of exactly the size that was said to come, so that a byte beside them is a fault.
class ExactPlanes : public data::PlaneSink {
 public:
  void Begin(const data::PlaneParts& parts) override {
    parts_ = parts;
    for (int plane = 0; plane < 3; ++plane) {
      const data::PixelRect& part = Part(plane);
      fuzz::Check(part.width > 0 && part.height > 0 && part.x >= 0 && part.y >= 0, "a part has samples");
      samples_[plane].assign(static_cast<size_t>(part.width) * static_cast<size_t>(part.height), 0);
    }
  }
  uint8_t* Rows(int plane, int y, ptrdiff_t* stride) override {
    const data::PixelRect& part = Part(plane);
    fuzz::Check(y >= part.y && y < part.y + part.height, "rows lie in the part");
    *stride = part.width;
    return samples_[plane].data() + (y - part.y) * *stride;
  }
  void Done(int, int) override {}
  const data::PixelRect& Part(int plane) const { return plane == 0 ? parts_.luma : parts_.chroma; }
  const std::vector<uint8_t>& samples(int plane) const { return samples_[plane]; }

 private:
  data::PlaneParts parts_;
  std::vector<uint8_t> samples_[3];
};

// A part of a plane of `width` x `height` that depends on `seed`.
data::PixelRect AnyPart(int width, int height, uint32_t seed) {
  data::PixelRect part;
  part.x = static_cast<int>(seed % static_cast<uint32_t>(width));
  part.y = static_cast<int>((seed >> 8) % static_cast<uint32_t>(height));
  part.width = 1 + static_cast<int>((seed >> 16) % static_cast<uint32_t>(width - part.x));
  part.height = 1 + static_cast<int>((seed >> 20) % static_cast<uint32_t>(height - part.y));
  return part;
}

}  // namespace
}  // namespace tidepool

// What our decoder takes, libjpeg-turbo takes too; and a part has the samples of the whole.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  const std::span<const std::byte> jpeg(reinterpret_cast<const std::byte*>(data), size);
  const auto info = data::ReadJpegInfo(jpeg, {.max_side = 1024, .max_pixels = 1 << 16});
  if (!info.ok() || !info->planes) return 0;
  ExactPlanes whole, part;
  const int denominator = 1 << (data[size / 7] % 4);
  if (!data::DecodeJpegPlanes(jpeg, *info, denominator, data::Extraction::kWhole, {}, &whole)) return 0;
  data::Image image;
  const Status decoded = data::DecodeJpeg(jpeg, *info, denominator, &image);
  fuzz::Check(decoded.ok(), "libjpeg-turbo takes what our decoder takes: " + ToString(decoded));
  const uint32_t seed = static_cast<uint32_t>(data[size / 2]) << 24 | static_cast<uint32_t>(data[size / 3]) << 16 |
                        static_cast<uint32_t>(data[size / 5]) << 8 | data[size - 1];
  const data::PlaneLayout layout = data::LayOutPlanes(*info, denominator);
  const data::PlaneParts wanted = {.luma = AnyPart(layout.luma.width, layout.luma.height, seed),
                                   .chroma = AnyPart(layout.chroma.width, layout.chroma.height, seed * 2654435761u)};
  if (!data::DecodeJpegPlanes(jpeg, *info, denominator, data::Extraction::kPart, wanted, &part)) {
    fuzz::Check(false, "a part of what can be decoded can be decoded");
  }
  for (int plane = 0; plane < 3; ++plane) {
    const data::PixelRect &all = whole.Part(plane), &some = part.Part(plane);
    for (int y = 0; y < some.height; ++y) {
      for (int x = 0; x < some.width; ++x) {
        const size_t there =
            static_cast<size_t>(some.y - all.y + y) * static_cast<size_t>(all.width) + static_cast<size_t>(some.x - all.x + x);
        fuzz::Check(there < whole.samples(plane).size() &&
                        part.samples(plane)[static_cast<size_t>(y) * static_cast<size_t>(some.width) + static_cast<size_t>(x)] ==
                            whole.samples(plane)[there],
                    "a part has the samples of the whole");
      }
    }
  }
  return 0;
}
