// root/<class>/<file>.jpg|.jpeg: class ids are the sorted folder names, samples are the sorted files of class after class.
#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/fd.h"
#include "base/units.h"
#include "data/augment.h"
#include "data/dataset.h"
#include "data/jpeg.h"

namespace tidepool::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLargestFile = 256 * kMiB;
// A thread keeps its pixel buffer between pictures unless one was larger than this.
constexpr size_t kKeptPixelBytes = 32 * kMiB;

bool HasJpegName(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension == ".jpg" || extension == ".jpeg";
}

class ImageFolder : public Dataset {
 public:
  struct File {
    std::string path;
    int32_t label;
  };

  ImageFolder(ImageFolderOptions options, std::vector<File> files, int64_t classes)
      : options_(std::move(options)), files_(std::move(files)), classes_(classes),
        normalisation_(MakeNormalisation(options_.mean, options_.stddev)) {
    input_ = {DType::kF32, {3, options_.image_size, options_.image_size}};
    target_ = {DType::kI64, {}};
  }

  int64_t size() const override { return static_cast<int64_t>(files_.size()); }
  const TensorSpec& input() const override { return input_; }
  const TensorSpec& target() const override { return target_; }
  int64_t classes() const override { return classes_; }
  std::string Describe(int64_t index) const override { return files_[index].path; }

  Status Read(int64_t index, const ReadOptions& options, std::span<std::byte> input,
              std::span<std::byte> target) const override {
    if (index < 0 || index >= size()) return OutOfRange("sample {}; the data set has {}", index, size());
    if (static_cast<int64_t>(input.size()) != input_.size_bytes() || target.size() != sizeof(int64_t)) {
      return InvalidArgument("buffers of {} and {} bytes for a sample; needed: {} and {}", input.size(), target.size(),
                             input_.size_bytes(), sizeof(int64_t));
    }
    const File& file = files_[index];
    Status decoded = ReadImage(file.path, index, options, {reinterpret_cast<float*>(input.data()), input.size() / sizeof(float)});
    if (!decoded.ok()) return Annotate(decoded, file.path);
    const int64_t label = file.label;
    std::memcpy(target.data(), &label, sizeof(label));
    return {};
  }

 private:
  Status ReadImage(const std::string& path, int64_t index, const ReadOptions& options, std::span<float> output) const {
    thread_local Image image;
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string content, ReadFile(path, kLargestFile));
    const std::span<const std::byte> bytes = std::as_bytes(std::span(content));
    TIDEPOOL_ASSIGN_OR_RETURN(const JpegInfo info, ReadJpegInfo(bytes));
    const Crop crop = options.augment ? RandomResizedCrop(info.width, info.height, options_.min_area, options.augment_key,
                                                          static_cast<uint64_t>(index))
                                      : CentreCrop(info.width, info.height);
    const int denominator = ChooseScaleDenominator(crop.width, crop.height, options_.image_size, options_.image_size);
    TIDEPOOL_RETURN_IF_ERROR(DecodeJpeg(bytes, info, denominator, &image));
    CropToTensor(image, denominator, crop, options_.image_size, normalisation_, output);
    if (image.rgbx.capacity() > kKeptPixelBytes) image.rgbx = {};
    return {};
  }

  const ImageFolderOptions options_;
  const std::vector<File> files_;
  const int64_t classes_;
  const Normalisation normalisation_;
  TensorSpec input_, target_;
};

StatusOr<std::vector<fs::path>> SortedEntries(const fs::path& folder) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  if (error) return ErrnoError(error.value(), fmt::format("reading the folder '{}'", folder.string()));
  std::vector<fs::path> paths;
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    if (!entries->path().filename().string().starts_with('.')) paths.push_back(entries->path());
  }
  if (error) return ErrnoError(error.value(), fmt::format("reading the folder '{}'", folder.string()));
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

StatusOr<std::unique_ptr<Dataset>> OpenImageFolder(const ImageFolderOptions& options) {
  if (options.image_size < 1 || options.image_size > 4096) {
    return InvalidArgument("image_size {}; allowed: 1 to 4096", options.image_size);
  }
  if (options.mean.size() != 3 || options.stddev.size() != 3) {
    return InvalidArgument("mean and stddev need one number per colour; seen: {} and {}", options.mean.size(), options.stddev.size());
  }
  for (const float stddev : options.stddev) {
    if (!(stddev > 0)) return InvalidArgument("stddev {}; allowed: above 0", stddev);
  }
  if (!(options.min_area > 0 && options.min_area <= 1)) {
    return InvalidArgument("min_area {}; allowed: above 0, at most 1", options.min_area);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<fs::path> folders, SortedEntries(options.root));
  std::vector<ImageFolder::File> files;
  int64_t classes = 0;
  for (const fs::path& folder : folders) {
    std::error_code error;
    if (!fs::is_directory(folder, error)) continue;
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<fs::path> members, SortedEntries(folder));
    for (const fs::path& member : members) {
      if (HasJpegName(member)) files.push_back({member.string(), static_cast<int32_t>(classes)});
    }
    ++classes;
  }
  if (files.empty()) {
    return NotFound("'{}' holds no <class>/<file>.jpg or .jpeg ({} folders seen)", options.root, classes);
  }
  return std::make_unique<ImageFolder>(options, std::move(files), classes);
}

}  // namespace tidepool::data
