#include "data/dataset.h"

#include "data/containers.h"

namespace tidepool::data {

int64_t TensorSpec::size_bytes() const {
  int64_t bytes = SizeOf(dtype);
  for (const int64_t side : shape) bytes *= side;
  return bytes;
}

StatusOr<std::unique_ptr<Dataset>> OpenDataset(const std::string& uri, const std::vector<int64_t>& input_shape) {
  std::vector<int64_t> shape = input_shape;
  if (!shape.empty() && shape.front() < 0) shape.erase(shape.begin());  // the batch
  TIDEPOOL_ASSIGN_OR_RETURN(const DataUri parsed, ParseDataUri(uri));
  if (parsed.kind == "text") {
    if (shape.size() != 1) {
      return InvalidArgument("'{}' is text, but the model's input has shape [{}]; allowed: [context]", uri,
                             fmt::join(shape, ", "));
    }
    return OpenText({.path = parsed.place, .context = static_cast<int>(shape[0])});
  }
  if (shape.size() != 3 || shape[0] != 3 || shape[1] != shape[2]) {
    return InvalidArgument("'{}' holds pictures ({}), but the model's input has shape [{}]; allowed: [3, size, size]", uri,
                           parsed.kind, fmt::join(shape, ", "));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<const RecordSource> source, OpenRecordSource(uri));
  return OpenImages(std::move(source), {.image_size = static_cast<int>(shape[1])});
}

}  // namespace tidepool::data
