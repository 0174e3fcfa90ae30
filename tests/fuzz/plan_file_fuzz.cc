#include <cstddef>
#include <cstdint>
#include <string_view>

#include "fuzz/check.h"
#include "plan/plan_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  const auto file = plan::ParsePlan({reinterpret_cast<const char*>(data), size}, "fuzz.json");
  if (!file.ok()) {
    fuzz::CheckNames(file.status(), "fuzz.json");
    return 0;
  }
  fuzz::Check(!file->plan.stages.empty(), "an accepted plan has stages");
  (void)plan::PublishedOpListOf(*file);
  return 0;
}
