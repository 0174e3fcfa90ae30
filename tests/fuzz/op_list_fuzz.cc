#include <cstddef>
#include <cstdint>

#include "fuzz/check.h"
#include "plan/op_list_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  const auto list = plan::ParseOpList(fuzz::TextOf(data, size), "fuzz.json");
  if (!list.ok()) {
    fuzz::CheckRefusal(list.status(), "fuzz.json");
    return 0;
  }
  fuzz::Check(list->size() > 0 && list->parameters() >= 0, "an accepted list has ops and a number of parameters");
  const auto again = plan::ParseOpList(plan::FormatOpList(*list), "again.json");
  fuzz::Check(again.ok() && again->hash == list->hash, "a list is read back as it was written: " + ToString(again.status()));
  return 0;
}
