// Walking over a shard from front to back to make an index of it: a format without one has its headers between the data.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace tidepool::data {

// Reads small pieces at rising offsets; what lies near the last piece costs no system call. Thread-compatible.
class ShardScan {
 public:
  static StatusOr<ShardScan> Open(const std::string& path);

  // Fills `buffer` from `offset`; returns how much there is, less than asked for only at the end of the file.
  StatusOr<size_t> ReadAt(int64_t offset, std::span<std::byte> buffer);
  int64_t file_bytes() const { return file_bytes_; }
  const std::string& path() const { return path_; }

 private:
  ShardScan(std::string path, UniqueFd fd, int64_t file_bytes)
      : path_(std::move(path)), fd_(std::move(fd)), file_bytes_(file_bytes) {}
  StatusOr<size_t> Pread(int64_t offset, std::span<std::byte> buffer) const;

  std::string path_;
  UniqueFd fd_;
  int64_t file_bytes_ = 0;
  std::vector<std::byte> window_;
  int64_t window_offset_ = 0;
};

}  // namespace tidepool::data
