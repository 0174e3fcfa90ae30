// Pictures of any container as samples: decoded, cropped, resized, normalised.
#include <cstring>

#include "data/augment.h"
#include "data/containers.h"
#include "data/dataset.h"
#include "data/jpeg.h"
#include "data/jpeg_planes.h"
#include "data/resize.h"
#include "data/resize_planes.h"

namespace tidepool::data {
namespace {

class ImageDataset : public Dataset {
 public:
  ImageDataset(std::shared_ptr<const RecordSource> source, ImageOptions options)
      : source_(std::move(source)),
        options_(std::move(options)),
        normalisation_(MakeNormalisation(options_.mean, options_.stddev)) {
    input_ = {DType::kF32, {3, options_.image_size, options_.image_size}};
    target_ = {DType::kI64, {}};
  }

  int64_t size() const override { return source_->size(); }
  const TensorSpec& input() const override { return input_; }
  const TensorSpec& target() const override { return target_; }
  int64_t classes() const override { return source_->classes(); }
  std::string Describe(int64_t index) const override { return source_->Describe(index); }
  RecordRange Group(int64_t index) const override { return source_->Group(index); }
  void WillNeed(int64_t index) const override { source_->WillNeed(index); }
  void WontNeed(int64_t index) const override { source_->WontNeed(index); }

  Status Read(int64_t index, const ReadOptions& options, std::span<std::byte> input, std::span<std::byte> target) const override {
    if (index < 0 || index >= size()) return OutOfRange("sample {}; the data set has {}", index, size());
    if (static_cast<int64_t>(input.size()) != input_.size_bytes() || target.size() != sizeof(int64_t)) {
      return InvalidArgument("buffers of {} and {} bytes for a sample; needed: {} and {}", input.size(), target.size(),
                             input_.size_bytes(), sizeof(int64_t));
    }
    TIDEPOOL_ASSIGN_OR_RETURN(const RecordView record, source_->Read(index));
    TIDEPOOL_ASSIGN_OR_RETURN(const LabelledPicture sample, source_->Parse(index, record.bytes()));
    const std::span<float> pixels(reinterpret_cast<float*>(input.data()), input.size() / sizeof(float));
    const Status decoded = Decode(sample.picture, index, options, pixels);
    if (!decoded.ok()) return Annotate(decoded, source_->Describe(index));
    std::memcpy(target.data(), &sample.label, sizeof(sample.label));
    return {};
  }

 private:
  Status Decode(std::span<const std::byte> jpeg, int64_t index, const ReadOptions& options, std::span<float> output) const {
    thread_local CropResizer resizer;
    thread_local PlaneResizer planes;
    TIDEPOOL_ASSIGN_OR_RETURN(const JpegInfo info, ReadJpegInfo(jpeg));
    const Crop crop = options.augment ? RandomResizedCrop(info.width, info.height, options_.min_area, options.augment_key,
                                                          static_cast<uint64_t>(index))
                                      : CentreCrop(info.width, info.height);
    const int denominator = options_.decode == DecodeMode::kFullScale
                                ? 1
                                : ChooseScaleDenominator(crop.width, crop.height, options_.image_size, options_.image_size);
    const Extraction extraction = options_.decode == DecodeMode::kCrop ? Extraction::kPart : Extraction::kWhole;
    if (info.planes) {
      planes.Plan(info, denominator, crop, options_.image_size, normalisation_, output);
      if (DecodeJpegPlanes(jpeg, info, denominator, extraction, planes.needed(), &planes)) return {};
    }
    const int width = ScaledSide(info.width, denominator), height = ScaledSide(info.height, denominator);
    resizer.Plan(width, height, denominator, crop, options_.image_size, normalisation_, output);
    return DecodeJpegRows(jpeg, info, denominator, extraction, resizer.needed(), &resizer);
  }

  const std::shared_ptr<const RecordSource> source_;
  const ImageOptions options_;
  const Normalisation normalisation_;
  TensorSpec input_, target_;
};

}  // namespace

Status ImageOptions::Validate() const {
  if (image_size < 1 || image_size > 4096) return InvalidArgument("image_size {}; allowed: 1 to 4096", image_size);
  if (mean.size() != 3 || stddev.size() != 3) {
    return InvalidArgument("mean and stddev need one number per colour; seen: {} and {}", mean.size(), stddev.size());
  }
  for (const float each : stddev) {
    if (!(each > 0)) return InvalidArgument("stddev {}; allowed: above 0", each);
  }
  if (!(min_area > 0 && min_area <= 1)) return InvalidArgument("min_area {}; allowed: above 0, at most 1", min_area);
  return {};
}

StatusOr<std::unique_ptr<Dataset>> OpenImages(std::shared_ptr<const RecordSource> source, const ImageOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  return std::make_unique<ImageDataset>(std::move(source), options);
}

StatusOr<std::unique_ptr<Dataset>> OpenImageFolder(const ImageFolderOptions& options) {
  const ImageOptions images = {
      .image_size = options.image_size, .mean = options.mean, .stddev = options.stddev, .min_area = options.min_area};
  TIDEPOOL_RETURN_IF_ERROR(images.Validate());
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<const RecordSource> source, OpenImageFolderSource(options.root));
  return OpenImages(std::move(source), images);
}

}  // namespace tidepool::data
