#include "profile/bundle_io.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "base/fd.h"
#include "profile/table.h"

namespace tidepool::profile {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kManifest = "manifest.json";
constexpr std::array kTables = {TableKind::kOps, TableKind::kCollectives, TableKind::kLinks, TableKind::kPins};

bool IsEmpty(TableKind kind, const Bundle& bundle) {
  switch (kind) {
    case TableKind::kOps: return bundle.ops.empty();
    case TableKind::kCollectives: return bundle.collectives.empty();
    case TableKind::kLinks: return bundle.links.empty();
    case TableKind::kPins: return bundle.pins.empty();
  }
  return true;
}

// ReadFile opens what it is given; a pipe or a device would make it wait.
StatusOr<std::string> ReadRegular(const std::string& path, int64_t limit_bytes) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return NotFound("'{}' does not exist", path);
  if (status.type() != fs::file_type::regular) return InvalidArgument("'{}' is not a regular file", path);
  return ReadFile(path, limit_bytes);
}

// What would be wrong with the files that `bundle` becomes: they are read back before anything is written.
Status CheckRoundTrip(const Bundle& bundle, const std::string& directory) {
  const std::string manifest_file = fmt::format("{}/{}", directory, kManifest);
  TIDEPOOL_ASSIGN_OR_RETURN(const Manifest manifest, ParseManifest(manifest_file, ManifestText(bundle.manifest)));
  if (!(manifest == bundle.manifest)) return InvalidArgument("{}: the manifest holds bytes that are not UTF-8", manifest_file);
  Bundle read;
  for (const TableKind kind : kTables) {
    TIDEPOOL_RETURN_IF_ERROR(ParseTable(kind, fmt::format("{}/{}", directory, FileName(kind)), TableText(kind, bundle), &read));
  }
  return {};
}

Status SyncDirectory(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}'", path));
  if (::fsync(fd.get()) != 0) return ErrnoError(errno, fmt::format("flushing '{}'", path));
  return {};
}

// Removes a directory with what is in it, when it goes out of scope.
struct Scratch {
  std::string path;
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

// Puts `fresh` where `directory` is; the old bundle is then at `fresh`.
Status Exchange(const std::string& fresh, const std::string& directory) {
  if (::renameat2(AT_FDCWD, fresh.c_str(), AT_FDCWD, directory.c_str(), RENAME_EXCHANGE) == 0) return {};
  const std::string what = fmt::format("exchanging '{}' and '{}'", fresh, directory);
  if (errno != EINVAL && errno != ENOSYS) return ErrnoError(errno, what);
  // A file system that cannot exchange: for a moment there is neither.
  const std::string old = fresh + ".old";
  if (::rename(directory.c_str(), old.c_str()) != 0 || ::rename(fresh.c_str(), directory.c_str()) != 0) {
    return ErrnoError(errno, what);
  }
  if (::rename(old.c_str(), fresh.c_str()) != 0) return ErrnoError(errno, what);
  return {};
}

}  // namespace

StatusOr<Bundle> ReadBundle(const std::string& directory) {
  std::error_code error;
  const fs::file_status status = fs::status(directory, error);
  if (status.type() == fs::file_type::not_found) return NotFound("there is no bundle '{}'", directory);
  if (status.type() != fs::file_type::directory) return InvalidArgument("bundle '{}' is not a directory", directory);

  Bundle bundle;
  const std::string manifest_file = fmt::format("{}/{}", directory, kManifest);
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadRegular(manifest_file, kMaxManifestBytes));
  const StatusOr<Manifest> manifest = ParseManifest(manifest_file, text);
  // An unknown version says nothing of the tables; a damaged manifest is reported together with damaged tables.
  if (!manifest.ok() && manifest.status().code() != StatusCode::kInvalidArgument) return manifest.status();
  std::string faults = manifest.ok() ? "" : MessageOf(manifest.status());
  if (manifest.ok()) bundle.manifest = *manifest;
  for (const TableKind kind : kTables) {
    const std::string file = fmt::format("{}/{}", directory, FileName(kind));
    const StatusOr<std::string> table = ReadRegular(file, kMaxTableBytes);
    if (table.status().code() == StatusCode::kNotFound) continue;
    if (!table.ok()) return table.status();
    if (const Status parsed = ParseTable(kind, file, *table, &bundle); !parsed.ok()) {
      faults += (faults.empty() ? "" : "\n") + MessageOf(parsed);
    }
  }
  if (!faults.empty()) return InvalidArgument("{}", faults);
  return bundle;
}

Status WriteBundle(const Bundle& bundle, const std::string& given, const WriteOptions& options) {
  std::string directory = given;
  while (directory.size() > 1 && directory.ends_with('/')) directory.pop_back();
  Bundle sorted = bundle;
  SortRows(&sorted);
  TIDEPOOL_RETURN_IF_ERROR(CheckRoundTrip(sorted, directory));

  std::error_code error;
  const bool exists = fs::symlink_status(directory, error).type() != fs::file_type::not_found;
  if (exists && !options.replace) return AlreadyExists("'{}' exists already", directory);
  if (exists && !fs::is_regular_file(fmt::format("{}/{}", directory, kManifest), error)) {
    return AlreadyExists("'{}' is no bundle and is not replaced", directory);
  }

  static std::atomic<uint64_t> counter{0};
  const Scratch fresh{fmt::format("{}.tmp.{}.{}", directory, ::getpid(), counter.fetch_add(1))};
  if (!fs::create_directory(fresh.path, error)) {
    return ErrnoError(error ? error.value() : EEXIST, fmt::format("creating '{}'", fresh.path));
  }
  TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(fmt::format("{}/{}", fresh.path, kManifest), ManifestText(sorted.manifest)));
  for (const TableKind kind : kTables) {
    if (IsEmpty(kind, sorted)) continue;
    TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(fmt::format("{}/{}", fresh.path, FileName(kind)), TableText(kind, sorted)));
  }
  TIDEPOOL_RETURN_IF_ERROR(SyncDirectory(fresh.path));
  if (exists) {
    TIDEPOOL_RETURN_IF_ERROR(Exchange(fresh.path, directory));
  } else if (::rename(fresh.path.c_str(), directory.c_str()) != 0) {
    return ErrnoError(errno, fmt::format("renaming '{}' to '{}'", fresh.path, directory));
  }
  const fs::path parent = fs::path(directory).parent_path();
  return SyncDirectory(parent.empty() ? "." : parent.string());
}

}  // namespace tidepool::profile
