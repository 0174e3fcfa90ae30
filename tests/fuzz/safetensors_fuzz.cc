#include <cstddef>
#include <cstdint>
#include <span>

#include "fuzz/check.h"
#include "model/safetensors.h"

// The input is the whole file, as short as it is: data after the header is promised and missing, or the other way around.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
  const auto header = model::ParseSafetensorsHeader(file, static_cast<int64_t>(size));
  if (!header.ok()) {
    fuzz::CheckRefusal(header.status(), "");  // Open adds the file's name
    return 0;
  }
  int64_t end = header->data_offset_bytes;
  for (const model::TensorEntry& tensor : header->tensors) {
    fuzz::Check(tensor.offset_bytes == end && tensor.size_bytes >= 0, "tensors follow each other without a hole: " + tensor.name);
    end += tensor.size_bytes;
  }
  fuzz::Check(end == static_cast<int64_t>(size), "the tensors end with the file");
  return 0;
}
