#include "data/jpeg.h"

#include <turbojpeg.h>

#include <memory>
#include <string_view>

namespace tidepool::data {
namespace {

struct HandleDeleter {
  void operator()(void* handle) const { tjDestroy(handle); }
};
using Handle = std::unique_ptr<void, HandleDeleter>;

// Making a handle costs more than decoding a small picture: one per thread and direction.
Handle& Decompressor() {
  thread_local Handle handle;
  if (handle == nullptr) handle.reset(tjInitDecompress());
  return handle;
}

tjhandle Compressor() {
  thread_local Handle handle(tjInitCompress());
  return handle.get();
}

const uint8_t* Bytes(std::span<const std::byte> jpeg) { return reinterpret_cast<const uint8_t*>(jpeg.data()); }

// libjpeg calls it a warning when it had to invent pixels. A picture with invented pixels is not what the file's author stored,
// so it is an error here; bytes that were skipped between two markers lose nothing. (The text is that of the last complaint; the
// code says "warning" even if a fatal error followed one.)
bool Harmless(tjhandle handle) {
  return std::string_view(tjGetErrorStr2(handle)).find("extraneous bytes") != std::string_view::npos;
}

// After an error a decoder still holds the broken file's marker state, and would refuse the next good file for it.
Status Discard(Handle* handle, Status status) {
  handle->reset();
  return status;
}

void CmykToRgb(std::vector<uint8_t>* pixels) {
  for (size_t i = 0; i + 3 < pixels->size(); i += 4) {
    uint8_t* pixel = pixels->data() + i;
    for (int c = 0; c < 3; ++c) pixel[c] = static_cast<uint8_t>((pixel[c] * pixel[3] + 127) / 255);
  }
}

}  // namespace

StatusOr<JpegInfo> ReadJpegInfo(std::span<const std::byte> jpeg, const JpegLimits& limits) {
  Handle& owner = Decompressor();
  tjhandle handle = owner.get();
  if (handle == nullptr) return ResourceExhausted("no memory for a JPEG decoder");
  if (jpeg.empty()) return InvalidArgument("not a JPEG file: it is empty");
  JpegInfo info;
  int subsampling = 0, colorspace = 0;
  if (tjDecompressHeader3(handle, Bytes(jpeg), jpeg.size(), &info.width, &info.height, &subsampling, &colorspace) != 0 &&
      !Harmless(handle)) {
    return Discard(&owner, InvalidArgument("not a readable JPEG file: {}", tjGetErrorStr2(handle)));
  }
  info.cmyk = colorspace == TJCS_CMYK || colorspace == TJCS_YCCK;
  if (info.width <= 0 || info.height <= 0) {
    return InvalidArgument("not a readable JPEG file: its header gives no size");
  }
  if (info.width > limits.max_side || info.height > limits.max_side || int64_t{info.width} * info.height > limits.max_pixels) {
    return InvalidArgument("JPEG header says {} x {} pixels; allowed: sides up to {} and {} pixels in all", info.width,
                           info.height, limits.max_side, limits.max_pixels);
  }
  return info;
}

int ChooseScaleDenominator(double crop_width, double crop_height, int width, int height) {
  for (int denominator : {8, 4, 2}) {
    if (crop_width >= double{1} * width * denominator && crop_height >= double{1} * height * denominator) return denominator;
  }
  return 1;
}

Status DecodeJpeg(std::span<const std::byte> jpeg, const JpegInfo& info, int scale_denominator, Image* image) {
  Handle& owner = Decompressor();
  tjhandle handle = owner.get();
  if (handle == nullptr) return ResourceExhausted("no memory for a JPEG decoder");
  image->width = ScaledSide(info.width, scale_denominator);
  image->height = ScaledSide(info.height, scale_denominator);
  image->rgbx.resize(size_t{4} * image->width * image->height + kPixelPadding);
  const int format = info.cmyk ? TJPF_CMYK : TJPF_RGBX;
  if (tjDecompress2(handle, Bytes(jpeg), jpeg.size(), image->rgbx.data(), image->width, 4 * image->width, image->height, format,
                    TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS) != 0 &&
      !Harmless(handle)) {
    return Discard(&owner, DataLoss("damaged JPEG data: {}", tjGetErrorStr2(handle)));
  }
  if (info.cmyk) CmykToRgb(&image->rgbx);
  return {};
}

StatusOr<std::string> EncodeJpeg(std::span<const uint8_t> rgb, int width, int height, int quality) {
  if (width <= 0 || height <= 0 || width > 65500 || height > 65500) {
    return InvalidArgument("a JPEG picture of {} x {} pixels; allowed: sides of 1 to 65500", width, height);
  }
  if (quality < 1 || quality > 100) return InvalidArgument("JPEG quality {}; allowed: 1 to 100", quality);
  if (rgb.size() != size_t{3} * width * height) {
    return InvalidArgument("{} bytes of pixels for {} x {}; needed: {}", rgb.size(), width, height, size_t{3} * width * height);
  }
  tjhandle handle = Compressor();
  if (handle == nullptr) return ResourceExhausted("no memory for a JPEG encoder");
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  const int failed = tjCompress2(handle, rgb.data(), width, 3 * width, height, TJPF_RGB, &buffer, &size, TJSAMP_420, quality,
                                 TJFLAG_ACCURATEDCT);
  std::unique_ptr<unsigned char, decltype(&tjFree)> owner(buffer, &tjFree);
  if (failed != 0) return Internal("JPEG encoder: {}", tjGetErrorStr2(handle));
  return std::string(reinterpret_cast<const char*>(buffer), size);
}

}  // namespace tidepool::data
