#include "cluster/runtime_directory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

namespace tidepool::cluster {
namespace {

// The longest path of a Unix socket is 107 bytes; the name of the socket follows ours.
constexpr size_t kMaxPathBytes = 90;

std::string Parent() {
  for (const char* name : {"XDG_RUNTIME_DIR", "TMPDIR"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && value[0] == '/' && ::access(value, W_OK | X_OK) == 0) return value;
  }
  return "/tmp";
}

}  // namespace

StatusOr<std::unique_ptr<RuntimeDirectory>> RuntimeDirectory::Open(const std::string& path) {
  if (path.empty()) {
    std::string made = Parent() + "/tidepool-XXXXXX";
    if (made.size() > kMaxPathBytes) made = "/tmp/tidepool-XXXXXX";
    if (::mkdtemp(made.data()) == nullptr) return ErrnoError(errno, "cannot make the runtime directory " + made);
    return std::unique_ptr<RuntimeDirectory>(new RuntimeDirectory(made, true));
  }
  if (path.size() > kMaxPathBytes) {
    return InvalidArgument("the runtime directory '{}' has {} letters; allowed: {}, because sockets live in it", path,
                           path.size(), kMaxPathBytes);
  }
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoError(errno, "cannot make the runtime directory " + path);
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoError(errno, "cannot read the runtime directory " + path);
  if (!S_ISDIR(info.st_mode)) return InvalidArgument("the runtime directory '{}' is not a directory", path);
  if (info.st_uid != ::geteuid()) {
    return PermissionDenied("the runtime directory '{}' belongs to user {}; allowed: user {}, who runs the node", path,
                            info.st_uid, ::geteuid());
  }
  if ((info.st_mode & 0077) != 0 && ::chmod(path.c_str(), 0700) != 0)
    return ErrnoError(errno, "cannot protect the runtime directory " + path);
  return std::unique_ptr<RuntimeDirectory>(new RuntimeDirectory(path, false));
}

RuntimeDirectory::~RuntimeDirectory() {
  std::error_code ignored;
  if (remove_) std::filesystem::remove_all(path_, ignored);
}

}  // namespace tidepool::cluster
