#include <cstddef>
#include <cstdint>

#include "fuzz/check.h"
#include "plan/op_list_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  const auto list = plan::ParseOpList({reinterpret_cast<const char*>(data), size}, "fuzz.json");
  if (!list.ok()) fuzz::CheckNames(list.status(), "fuzz.json");
  return 0;
}
