#include "data/dataset.h"

#include "data/containers.h"
#include "data/wrapped_source.h"

namespace tidepool::data {

int64_t TensorSpec::size_bytes() const {
  int64_t bytes = SizeOf(dtype);
  for (const int64_t side : shape) bytes *= side;
  return bytes;
}

StatusOr<std::unique_ptr<Dataset>> OpenDataset(const std::string& uri, const std::vector<int64_t>& input_shape) {
  return OpenDataset(uri, input_shape, WrapOptions());
}

StatusOr<std::unique_ptr<Dataset>> OpenDataset(const std::string& uri, const std::vector<int64_t>& input_shape,
                                               const WrapOptions& wrap) {
  TIDEPOOL_RETURN_IF_ERROR(wrap.Validate());
  std::vector<int64_t> shape = input_shape;
  if (!shape.empty() && shape.front() < 0) shape.erase(shape.begin());  // the batch
  TIDEPOOL_ASSIGN_OR_RETURN(const DataUri parsed, ParseDataUri(uri));
  if (parsed.kind == "text") {
    if (shape.size() != 1) {
      return InvalidArgument("'{}' is text, but the model's input has shape [{}]; allowed: [context]", uri,
                             fmt::join(shape, ", "));
    }
    if (wrap.wraps()) return InvalidArgument("'{}' is text; a cache or a storage model takes data of pictures", uri);
    return OpenText({.path = parsed.place, .context = static_cast<int>(shape[0])});
  }
  if (shape.size() != 3 || shape[0] != 3 || shape[1] != shape[2]) {
    return InvalidArgument("'{}' holds pictures ({}), but the model's input has shape [{}]; allowed: [3, size, size]", uri,
                           parsed.kind, fmt::join(shape, ", "));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<const RecordSource> source, OpenRecordSource(uri));
  if (wrap.wraps()) {
    TIDEPOOL_ASSIGN_OR_RETURN(source, WrappedSource::Create(std::move(source), wrap));
  }
  return OpenImages(std::move(source), {.image_size = static_cast<int>(shape[1])});
}

}  // namespace tidepool::data
