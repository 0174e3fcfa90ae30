// Where a node keeps its sockets and the checkpoint of its training job.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"

namespace tidepool::cluster {

// A directory with mode 0700. One that was made here is removed with all that is in it when this object is destroyed.
class RuntimeDirectory {
 public:
  // Empty `path`: a new directory below $XDG_RUNTIME_DIR, $TMPDIR or /tmp. A given one is made if it is missing and then kept;
  // PERMISSION_DENIED if it belongs to another user.
  static StatusOr<std::unique_ptr<RuntimeDirectory>> Open(const std::string& path);
  ~RuntimeDirectory();
  RuntimeDirectory(const RuntimeDirectory&) = delete;
  RuntimeDirectory& operator=(const RuntimeDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  RuntimeDirectory(std::string path, bool remove) : path_(std::move(path)), remove_(remove) {}
  std::string path_;
  bool remove_;
};

}  // namespace tidepool::cluster
