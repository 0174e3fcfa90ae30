// Bundles on disk: a directory with manifest.json and one TSV table per kind of row. docs/profile.md has the format to the byte.
//
// A reader sees the old bundle or the new one, never a mixture, also after a crash: WriteBundle fills a directory beside the
// target and exchanges the two by one rename.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "profile/bundle.h"

namespace tidepool::profile {

inline constexpr int kBundleVersion = 1;
inline constexpr int64_t kMaxManifestBytes = int64_t{1} << 20;
inline constexpr int64_t kMaxTableBytes = int64_t{256} << 20;

// Reads and sorts. INVALID_ARGUMENT lists the faults of every file as "file:line:column: ...", FAILED_PRECONDITION says that the
// version is not kBundleVersion, NOT_FOUND that there is no such directory or no manifest in it. What the numbers mean is not
// judged here: that is Check's (check.h).
StatusOr<Bundle> ReadBundle(const std::string& directory);

struct WriteOptions {
  bool replace = false;  // a bundle that is there already; anything else that is there is never replaced
};
// Makes `directory`; its parent must exist. ALREADY_EXISTS, or INVALID_ARGUMENT if the bundle could not be read back (for example
// a key that is there twice); nothing is left behind then.
Status WriteBundle(const Bundle& bundle, const std::string& directory, const WriteOptions& options = {});

// Puts rows into the order of the files. Rows with equal keys stay neighbours.
void SortRows(Bundle* bundle);

// The files as texts, for WriteBundle and for tests. `file` names the file in messages.
std::string ManifestText(const Manifest& manifest);
StatusOr<Manifest> ParseManifest(const std::string& file, std::string_view text);
enum class TableKind : uint8_t { kOps, kCollectives, kLinks, kPins };
std::string_view FileName(TableKind kind);
std::string TableText(TableKind kind, const Bundle& bundle);
// Replaces the rows of one kind.
Status ParseTable(TableKind kind, const std::string& file, std::string_view text, Bundle* bundle);

// A name for bundles and hardware: letters, digits, '.', '_', '-', not beginning with '.' or '-', at most 64.
Status CheckName(std::string_view what, std::string_view name);

}  // namespace tidepool::profile
