// Training data as numbered samples. The same (index, key) gives the same bytes on every machine and thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/status.h"
#include "data/record_source.h"

namespace tidepool::data {

struct TensorSpec {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // of one sample
  int64_t size_bytes() const;
};

struct ReadOptions {
  bool augment = true;       // random crop and flip; otherwise resize and centre crop
  uint64_t augment_key = 0;  // mixes seed and epoch
};

// Thread-safe.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  virtual const TensorSpec& input() const = 0;
  virtual const TensorSpec& target() const = 0;
  virtual int64_t classes() const = 0;
  // Fills one sample. DATA_LOSS or INVALID_ARGUMENT names the file and what is wrong with it.
  virtual Status Read(int64_t index, const ReadOptions& options, std::span<std::byte> input,
                      std::span<std::byte> target) const = 0;
  virtual std::string Describe(int64_t index) const = 0;  // the file, for messages

  // Samples that one disk read brings in together, and hints about what will be read: as in RecordSource.
  virtual RecordRange Group(int64_t index) const { return {index, index + 1}; }
  virtual void WillNeed(int64_t index) const { (void)index; }
  virtual void WontNeed(int64_t index) const { (void)index; }
};

// What of a picture is decoded. Crop and full give the same bytes, apart from damage behind the crop that a crop does not see.
enum class DecodeMode : uint8_t {
  kCrop,       // the rows and columns that the crop needs, at reduced size if the crop is at least twice the output
  kFull,       // every pixel of the picture, at reduced size if the crop is at least twice the output
  kFullScale,  // every pixel at full size
};

struct ImageOptions {
  int image_size = 64;
  std::vector<float> mean = {0.485f, 0.456f, 0.406f};
  std::vector<float> stddev = {0.229f, 0.224f, 0.225f};
  double min_area = 0.25;  // of the random resized crop
  DecodeMode decode = DecodeMode::kCrop;
  Status Validate() const;
};
// Pictures of any container, cropped, resized and normalised: input f32 [3, image_size, image_size], target i64 [].
StatusOr<std::unique_ptr<Dataset>> OpenImages(std::shared_ptr<const RecordSource> source, const ImageOptions& options);

struct ImageFolderOptions {
  std::string root;  // root/<class>/<file>.jpg; class ids are the sorted folder names
  int image_size = 64;
  std::vector<float> mean = {0.485f, 0.456f, 0.406f};
  std::vector<float> stddev = {0.229f, 0.224f, 0.225f};
  double min_area = 0.25;  // of the random resized crop
};
StatusOr<std::unique_ptr<Dataset>> OpenImageFolder(const ImageFolderOptions& options);

struct TextOptions {
  std::string path;  // a plain text file, or a folder of them; tokens are its bytes
  int context = 64;
};
StatusOr<std::unique_ptr<Dataset>> OpenText(const TextOptions& options);

// A data URI as containers.h reads it; input_shape is the model's, [3, size, size] for pictures and [context] for text.
StatusOr<std::unique_ptr<Dataset>> OpenDataset(const std::string& uri, const std::vector<int64_t>& input_shape);
// Behind a cache and a storage model (wrapped_source.h); INVALID_ARGUMENT if one is wanted for text.
struct WrapOptions;
StatusOr<std::unique_ptr<Dataset>> OpenDataset(const std::string& uri, const std::vector<int64_t>& input_shape,
                                               const WrapOptions& wrap);

}  // namespace tidepool::data
