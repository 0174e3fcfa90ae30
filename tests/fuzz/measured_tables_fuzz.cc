#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz/check.h"
#include "profile/bundle_io.h"
#include "profile/import.h"

// A table of published measurements of another project; its first line says which.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  constexpr char kFile[] = "p100_resnet50-batch32.csv";
  profile::Importer importer({.model = "resnet50", .keep_flagged = true});
  const Status added = importer.Add(kFile, fuzz::TextOf(data, size));
  if (!added.ok()) {
    fuzz::CheckRefusal(added, kFile);
    return 0;
  }
  const auto bundle = importer.Finish();
  if (!bundle.ok()) {
    fuzz::CheckRefusal(bundle.status(), "");
    return 0;
  }
  fuzz::Check(!bundle->ops.empty() || !bundle->pins.empty(), "what was imported has rows");
  return 0;
}
