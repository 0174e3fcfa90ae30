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
  if (!header.ok()) fuzz::Check(!MessageOf(header.status()).empty(), "a refusal has a reason");
  return 0;
}
