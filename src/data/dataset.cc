#include "data/dataset.h"

#include <filesystem>

namespace tidepool::data {

int64_t TensorSpec::size_bytes() const {
  int64_t bytes = SizeOf(dtype);
  for (const int64_t side : shape) bytes *= side;
  return bytes;
}

StatusOr<std::unique_ptr<Dataset>> OpenDataset(const std::string& uri, const std::vector<int64_t>& input_shape) {
  namespace fs = std::filesystem;
  std::vector<int64_t> shape = input_shape;
  if (!shape.empty() && shape.front() < 0) shape.erase(shape.begin());  // the batch
  std::string kind, path = uri;
  if (const size_t colon = uri.find(':'); colon != std::string::npos && uri.find('/') > colon) {
    kind = uri.substr(0, colon);
    path = uri.substr(colon + 1);
  } else {
    std::error_code error;
    bool has_folder = false;
    for (fs::directory_iterator entry(uri, error), end; !error && entry != end; entry.increment(error)) {
      has_folder = has_folder || entry->is_directory(error);
    }
    kind = has_folder ? "imagefolder" : "text";
  }
  if (kind == "imagefolder") {
    if (shape.size() != 3 || shape[0] != 3 || shape[1] != shape[2]) {
      return InvalidArgument("'{}' is an ImageFolder, but the model's input has shape [{}]; allowed: [3, size, size]", uri,
                             fmt::join(shape, ", "));
    }
    return OpenImageFolder({.root = path, .image_size = static_cast<int>(shape[1])});
  }
  if (kind == "text") {
    if (shape.size() != 1) {
      return InvalidArgument("'{}' is text, but the model's input has shape [{}]; allowed: [context]", uri, fmt::join(shape, ", "));
    }
    return OpenText({.path = path, .context = static_cast<int>(shape[0])});
  }
  return InvalidArgument("data '{}' is of kind '{}'; allowed: imagefolder:PATH, text:PATH, PATH", uri, kind);
}

}  // namespace tidepool::data
