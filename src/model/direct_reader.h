// Reads a file past the page cache (O_DIRECT). For weights of repositories that are larger than the host's memory: cached, they
// would only push other files out and be gone themselves before they are read again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace tidepool::model {

// Fast when it is read in the order of the file: one block is read from the disk at a time and kept. Thread-compatible.
class DirectReader {
 public:
  // UNIMPLEMENTED if the file system has no direct reads (tmpfs).
  static StatusOr<std::unique_ptr<DirectReader>> Open(const std::string& path);
  // Fills `target` from byte `offset` on. DATA_LOSS if the file ends before.
  Status Read(int64_t offset, std::span<std::byte> target);

 private:
  struct Freed {
    void operator()(std::byte* memory) const;
  };
  DirectReader(std::string path, UniqueFd fd, std::byte* block) : path_(std::move(path)), fd_(std::move(fd)), block_(block) {}
  Status ReadBlock(int64_t begin);

  const std::string path_;
  const UniqueFd fd_;
  std::unique_ptr<std::byte, Freed> block_;
  int64_t begin_ = 0, end_ = 0;  // of the file's bytes that lie in the block
};

}  // namespace tidepool::model
