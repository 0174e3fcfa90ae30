#include "data/jpeg.h"

#include <jerror.h>
#include <jpeglib.h>
#include <turbojpeg.h>

#include <algorithm>
#include <atomic>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/units.h"
#include "data/jpeg_baseline.h"
#include "data/jpeg_planes.h"

namespace tidepool::data {
namespace {

// libjpeg reports through callbacks; a fatal error must not return. Between setjmp and longjmp there are only plain values.
struct ErrorState : jpeg_error_mgr {
  std::jmp_buf jump;
  char text[JMSG_LENGTH_MAX];  // of the first complaint
  bool damaged;                // pixels had to be invented
};

constexpr int kMostScans = 500;  // of a progressive file; a small one with more is made to waste time

void OnFatal(j_common_ptr codec) {
  auto* errors = static_cast<ErrorState*>(codec->err);
  if (errors->text[0] == '\0') errors->format_message(codec, errors->text);
  std::longjmp(errors->jump, 1);
}

// libjpeg calls it a warning when it had to invent pixels. A picture with invented pixels is not what the file's author stored,
// so it is an error here; bytes that were skipped between two markers lose nothing.
void OnMessage(j_common_ptr codec, int level) {
  auto* errors = static_cast<ErrorState*>(codec->err);
  if (level >= 0 || errors->msg_code == JWRN_EXTRANEOUS_DATA) return;
  if (!errors->damaged) errors->format_message(codec, errors->text);
  errors->damaged = true;
}

void OnProgress(j_common_ptr codec) {
  const auto* decoder = reinterpret_cast<j_decompress_ptr>(codec);
  if (decoder->is_decompressor && decoder->input_scan_number > kMostScans) {
    auto* errors = static_cast<ErrorState*>(codec->err);
    std::snprintf(errors->text, sizeof(errors->text), "more than %d scans", kMostScans);
    std::longjmp(errors->jump, 1);
  }
}

// One per thread: making one costs more than decoding a small picture.
struct Decoder {
  jpeg_decompress_struct codec = {};
  ErrorState errors = {};
  jpeg_progress_mgr progress = {};
  uint64_t header = 0;  // JpegInfo::header of the file whose header was read last and is not decoded yet; 0: none

  Decoder() {
    codec.err = jpeg_std_error(&errors);
    errors.error_exit = OnFatal;
    errors.emit_message = OnMessage;
    progress.progress_monitor = OnProgress;
  }
  ~Decoder() { jpeg_destroy_decompress(&codec); }
  // False without memory.
  bool Create() {
    if (setjmp(errors.jump) != 0) return false;
    jpeg_create_decompress(&codec);
    codec.progress = &progress;
    return true;
  }
};

std::unique_ptr<Decoder>& TheDecoder() {
  thread_local std::unique_ptr<Decoder> decoder;
  if (decoder == nullptr) {
    decoder = std::make_unique<Decoder>();
    if (!decoder->Create()) decoder.reset();
  }
  return decoder;
}

// After an error a decoder still holds the broken file's marker state, and would refuse the next good file for it.
Status Discard(std::unique_ptr<Decoder>* decoder, Status status) {
  decoder->reset();
  return status;
}

// The functions named ...Core call libjpeg and return false after a fatal error. They hold nothing that has a destructor.

bool HeaderCore(Decoder* decoder, const unsigned char* bytes, size_t size) {
  if (setjmp(decoder->errors.jump) != 0) return false;
  decoder->errors.text[0] = '\0';
  decoder->errors.damaged = false;
  jpeg_abort_decompress(&decoder->codec);
  jpeg_mem_src(&decoder->codec, bytes, size);
  jpeg_read_header(&decoder->codec, TRUE);
  return true;
}

// Upsampling of chroma looks one sample beyond the pixel that it makes. So a part begins and ends this far outside of what is
// wanted, where the picture goes on: then the wanted pixels are those of the whole picture.
constexpr int kPartMargin = 4;

// Widens `part` to what is decoded.
bool StartCore(Decoder* decoder, bool cmyk, int denominator, bool whole, PixelRect* part) {
  if (setjmp(decoder->errors.jump) != 0) return false;
  jpeg_decompress_struct* codec = &decoder->codec;
  codec->scale_num = 1;
  codec->scale_denom = static_cast<unsigned>(denominator);
  codec->out_color_space = cmyk ? JCS_CMYK : JCS_EXT_RGBX;
  codec->dct_method = JDCT_ISLOW;
  codec->do_fancy_upsampling = TRUE;
  jpeg_start_decompress(codec);
  const int width = static_cast<int>(codec->output_width), height = static_cast<int>(codec->output_height);
  if (whole) {
    *part = {.x = 0, .y = 0, .width = width, .height = height};
    return true;
  }
  const int left = std::max(part->x - kPartMargin, 0), right = std::min(part->x + part->width + kPartMargin, width);
  const int top = std::max(part->y - kPartMargin, 0), bottom = std::min(part->y + part->height, height);
  JDIMENSION first = static_cast<JDIMENSION>(left), columns = static_cast<JDIMENSION>(right - left);
  if (left > 0 || right < width) jpeg_crop_scanline(codec, &first, &columns);
  *part = {.x = static_cast<int>(first), .y = top, .width = static_cast<int>(columns), .height = bottom - top};
  return true;
}

void CmykToRgb(uint8_t* row, int width) {
  for (uint8_t* pixel = row; pixel < row + ptrdiff_t{4} * width; pixel += 4) {
    for (int c = 0; c < 3; ++c) pixel[c] = static_cast<uint8_t>((pixel[c] * pixel[3] + 127) / 255);
  }
}

// The sink's functions call nothing of libjpeg, so that no longjmp passes over them.
bool RowsCore(Decoder* decoder, const PixelRect* part, bool cmyk, RowSink* sink) {
  if (setjmp(decoder->errors.jump) != 0) return false;
  jpeg_decompress_struct* codec = &decoder->codec;
  if (part->y > 0) jpeg_skip_scanlines(codec, static_cast<JDIMENSION>(part->y));
  const JDIMENSION end = static_cast<JDIMENSION>(part->y + part->height);
  while (codec->output_scanline < end) {
    JSAMPROW rows[RowSink::kMostRows];
    const JDIMENSION first = codec->output_scanline, asked = std::min<JDIMENSION>(RowSink::kMostRows, end - first);
    for (JDIMENSION i = 0; i < asked; ++i) rows[i] = sink->Row(static_cast<int>(first + i));
    const JDIMENSION got = jpeg_read_scanlines(codec, rows, asked);
    if (got == 0) return false;
    for (JDIMENSION i = 0; cmyk && i < got; ++i) CmykToRgb(rows[i], part->width);
    sink->Done(static_cast<int>(first + got));
  }
  if (end == codec->output_height) {
    jpeg_finish_decompress(codec);
  } else {
    jpeg_abort_decompress(codec);
  }
  return true;
}

const unsigned char* Bytes(std::span<const std::byte> jpeg) { return reinterpret_cast<const unsigned char*>(jpeg.data()); }

// Whether the marker that ends a JPEG file stands near the end; some writers append padding or notes of their own.
bool HasEnd(std::span<const std::byte> jpeg) {
  constexpr size_t kTail = 4096;
  for (size_t i = jpeg.size(); i >= 2 && i + kTail > jpeg.size(); --i) {
    if (jpeg[i - 2] == std::byte{0xff} && jpeg[i - 1] == std::byte{0xd9}) return true;
  }
  return false;
}

tjhandle Compressor() {
  struct Deleter {
    void operator()(void* handle) const { tjDestroy(handle); }
  };
  thread_local std::unique_ptr<void, Deleter> handle(tjInitCompress());
  return handle.get();
}

// Into an Image.
class ImageSink : public RowSink {
 public:
  explicit ImageSink(Image* image) : image_(*image) {}
  void Begin(const PixelRect& part) override {
    top_ = part.y;
    image_.width = part.width;
    image_.height = part.height;
    image_.rgbx.resize(size_t{4} * part.width * part.height + kPixelPadding);
  }
  uint8_t* Row(int y) override { return image_.rgbx.data() + size_t{4} * image_.width * (y - top_); }
  void Done(int) override {}

 private:
  Image& image_;
  int top_ = 0;
};

// Fills in what DecodeJpegPlanes needs to know.
void FindPlanes(const jpeg_decompress_struct& codec, JpegInfo* info) {
  if (codec.progressive_mode || codec.arith_code || codec.data_precision != 8 || codec.jpeg_color_space != JCS_YCbCr) return;
  if (codec.num_components != 3 || codec.comps_in_scan != 3) return;
  if (codec.Ss != 0 || codec.Se != DCTSIZE2 - 1 || codec.Ah != 0 || codec.Al != 0) return;
  for (int c = 0; c < 3; ++c) {
    if (codec.cur_comp_info[c] != codec.comp_info + c) return;
    if (c > 0 && (codec.comp_info[c].h_samp_factor != 1 || codec.comp_info[c].v_samp_factor != 1)) return;
  }
  const int width = codec.comp_info[0].h_samp_factor, height = codec.comp_info[0].v_samp_factor;
  info->planes = width >= 1 && width <= 2 && height >= 1 && height <= 2;
  info->chroma_width = width;
  info->chroma_height = height;
}

BaselineHeader MakeBaselineHeader(const jpeg_decompress_struct& codec) {
  BaselineHeader header = {.restart_interval = static_cast<int>(codec.restart_interval)};
  for (int i = 0; i < 4; ++i) {
    if (const JHUFF_TBL* table = codec.dc_huff_tbl_ptrs[i]) header.dc[i] = {.counts = table->bits, .symbols = table->huffval};
    if (const JHUFF_TBL* table = codec.ac_huff_tbl_ptrs[i]) header.ac[i] = {.counts = table->bits, .symbols = table->huffval};
  }
  for (int c = 0; c < 3; ++c) {
    const jpeg_component_info& component = codec.comp_info[c];
    header.components[c] = {.dc = component.dc_tbl_no, .ac = component.ac_tbl_no};
    if (component.quant_tbl_no < 0 || component.quant_tbl_no >= NUM_QUANT_TBLS) continue;
    const JQUANT_TBL* const quantiser = codec.quant_tbl_ptrs[component.quant_tbl_no];
    if (quantiser != nullptr) header.components[c].quantiser = quantiser->quantval;
  }
  header.scan = {reinterpret_cast<const std::byte*>(codec.src->next_input_byte), codec.src->bytes_in_buffer};
  return header;
}

}  // namespace

StatusOr<JpegInfo> ReadJpegInfo(std::span<const std::byte> jpeg, const JpegLimits& limits) {
  static std::atomic<uint64_t> counter{0};
  std::unique_ptr<Decoder>& decoder = TheDecoder();
  if (decoder == nullptr) return ResourceExhausted("no memory for a JPEG decoder");
  if (jpeg.empty()) return InvalidArgument("not a JPEG file: it is empty");
  decoder->header = 0;
  if (!HeaderCore(decoder.get(), Bytes(jpeg), jpeg.size()) || decoder->errors.damaged) {
    return Discard(&decoder, InvalidArgument("not a readable JPEG file: {}", decoder->errors.text));
  }
  JpegInfo info;
  info.width = static_cast<int>(decoder->codec.image_width);
  info.height = static_cast<int>(decoder->codec.image_height);
  info.cmyk = decoder->codec.jpeg_color_space == JCS_CMYK || decoder->codec.jpeg_color_space == JCS_YCCK;
  if (info.width > limits.max_side || info.height > limits.max_side || int64_t{info.width} * info.height > limits.max_pixels) {
    return InvalidArgument("JPEG header says {} x {} pixels; allowed: sides up to {} and {} pixels in all", info.width,
                           info.height, limits.max_side, limits.max_pixels);
  }
  FindPlanes(decoder->codec, &info);
  info.header = decoder->header = ++counter;
  return info;
}

int ChooseScaleDenominator(double crop_width, double crop_height, int width, int height) {
  for (int denominator : {8, 4, 2}) {
    if (crop_width >= double{1} * width * denominator && crop_height >= double{1} * height * denominator) return denominator;
  }
  return 1;
}

Status DecodeJpegRows(std::span<const std::byte> jpeg, const JpegInfo& info, int scale_denominator, Extraction extraction,
                      const PixelRect& wanted, RowSink* sink) {
  const int width = ScaledSide(info.width, scale_denominator), height = ScaledSide(info.height, scale_denominator);
  PixelRect part = wanted;
  if (part.x < 0 || part.y < 0 || part.width < 1 || part.height < 1 || part.x > width - part.width ||
      part.y > height - part.height) {
    return InvalidArgument("part {} x {} at ({}, {}) of a picture of {} x {}", part.width, part.height, part.x, part.y, width,
                           height);
  }
  std::unique_ptr<Decoder>& decoder = TheDecoder();
  if (decoder == nullptr) return ResourceExhausted("no memory for a JPEG decoder");
  const auto damaged = [&decoder] { return Discard(&decoder, DataLoss("damaged JPEG data: {}", decoder->errors.text)); };
  if (decoder->header != info.header && !HeaderCore(decoder.get(), Bytes(jpeg), jpeg.size())) return damaged();
  decoder->header = 0;
  const bool whole = extraction == Extraction::kWhole || !HasEnd(jpeg);
  if (!StartCore(decoder.get(), info.cmyk, scale_denominator, whole, &part)) return damaged();
  sink->Begin(part);
  if (!RowsCore(decoder.get(), &part, info.cmyk, sink) || decoder->errors.damaged) return damaged();
  return {};
}

PlaneLayout LayOutPlanes(const JpegInfo& info, int denominator) {
  PlaneLayout layout;
  layout.luma = {.block = DCTSIZE / denominator, .across = info.chroma_width, .down = info.chroma_height};
  layout.chroma = {.block = layout.luma.block};
  if (info.chroma_width == 2 && info.chroma_height == 2 && denominator > 1) layout.chroma.block *= 2;
  for (PlaneLayout::Plane* plane : {&layout.luma, &layout.chroma}) {
    // A block of it stands for so many pixels.
    const int columns = DCTSIZE * info.chroma_width / plane->across, rows = DCTSIZE * info.chroma_height / plane->down;
    plane->width = (info.width * plane->block + columns - 1) / columns;
    plane->height = (info.height * plane->block + rows - 1) / rows;
    plane->x_scale = double{1} * plane->block / columns;
    plane->y_scale = double{1} * plane->block / rows;
  }
  return layout;
}

bool DecodeJpegPlanes(std::span<const std::byte> jpeg, const JpegInfo& info, int scale_denominator, Extraction extraction,
                      const PlaneParts& wanted, PlaneSink* sink) {
  thread_local BaselineDecoder baseline;
  if (!info.planes) return false;
  std::unique_ptr<Decoder>& decoder = TheDecoder();
  if (decoder == nullptr) return false;
  if (decoder->header != info.header) {
    decoder->header = 0;
    if (!HeaderCore(decoder.get(), Bytes(jpeg), jpeg.size())) return false;
    decoder->header = info.header;
  }
  return baseline.Decode(MakeBaselineHeader(decoder->codec), LayOutPlanes(info, scale_denominator),
                         extraction == Extraction::kWhole, wanted, sink);
}

Status DecodeJpeg(std::span<const std::byte> jpeg, const JpegInfo& info, int scale_denominator, Image* image) {
  ImageSink sink(image);
  const PixelRect all = {.width = ScaledSide(info.width, scale_denominator),
                         .height = ScaledSide(info.height, scale_denominator)};
  return DecodeJpegRows(jpeg, info, scale_denominator, Extraction::kWhole, all, &sink);
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
