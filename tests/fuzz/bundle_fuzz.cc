#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz/check.h"
#include "profile/bundle_io.h"
#include "profile/check.h"

namespace tidepool {
namespace {

void ReadManifest(std::string_view text) {
  const auto manifest = profile::ParseManifest("fuzz.json", text);
  if (!manifest.ok()) return fuzz::CheckRefusal(manifest.status(), "fuzz.json");
  const auto again = profile::ParseManifest("again.json", profile::ManifestText(*manifest));
  fuzz::Check(again.ok() && *again == *manifest, "a manifest is read back as it was written: " + ToString(again.status()));
  (void)profile::Check({.manifest = *manifest});
}

void ReadTable(profile::TableKind kind, std::string_view text) {
  profile::Bundle bundle;
  const Status read = profile::ParseTable(kind, "fuzz.tsv", text, &bundle);
  if (!read.ok()) return fuzz::CheckRefusal(read, "fuzz.tsv");
  profile::Bundle again;
  const Status reread = profile::ParseTable(kind, "again.tsv", profile::TableText(kind, bundle), &again);
  fuzz::Check(reread.ok() && again == bundle, "a table is read back as it was written: " + ToString(reread));
  (void)profile::Check(bundle);
}

}  // namespace
}  // namespace tidepool

// A file of a bundle; its beginning says which.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  const std::string_view text = fuzz::TextOf(data, size);
  if (text.starts_with('{')) {
    ReadManifest(text);
  } else {
    for (const auto kind :
         {profile::TableKind::kOps, profile::TableKind::kCollectives, profile::TableKind::kLinks, profile::TableKind::kPins}) {
      ReadTable(kind, text);
    }
  }
  return 0;
}
