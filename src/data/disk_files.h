// The files of a data set: their names, their open descriptors, and reading a part of one.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "base/units.h"
#include "data/buffer_pool.h"
#include "data/record_source.h"

namespace tidepool::data {

struct DiskOptions {
  // kAuto: io_uring where the kernel has it, else pread.
  enum class Method : uint8_t { kAuto, kUring, kPread } method = Method::kAuto;
  bool direct = false;                    // O_DIRECT, past the page cache; where a file system refuses it, reads are buffered
  int depth = 32;                         // reads under way at once
  int64_t read_ahead_bytes = 64 * kMiB;   // read, or being read, and not yet taken
  int64_t max_record_bytes = 256 * kMiB;  // a larger file or record is refused
  absl::Duration timeout = absl::Seconds(60);  // of one read that was started ahead

  Status Validate() const;
};

// Many names in little memory: a data set may have millions of files. Thread-compatible.
class PathTable {
 public:
  PathTable() = default;
  explicit PathTable(std::string root) : root_(std::move(root)) {}  // stands before every name, with a '/'
  void Add(std::string_view name);
  int64_t size() const { return static_cast<int64_t>(ends_.size()); }
  std::string_view name(int64_t index) const;
  std::string path(int64_t index) const;

 private:
  std::string root_, names_;
  std::vector<int64_t> ends_;
};

// A part of a file; `length` -1: all of it from `offset` to its end.
struct Extent {
  int32_t file = 0;
  int64_t offset = 0;
  int64_t length = -1;
};

// One open file. Its descriptor may be used by any thread.
struct OpenedFile {
  UniqueFd fd;
  std::atomic<bool> direct{false};
};

// Thread-safe.
class DiskFiles {
 public:
  // `keep_open`: descriptors stay open (shards, up to kMostOpen of them), else each read opens the file (a file per record).
  DiskFiles(PathTable paths, bool keep_open, const DiskOptions& options);

  std::string path(int32_t file) const { return paths_.path(file); }
  const PathTable& paths() const { return paths_; }
  int64_t size() const { return paths_.size(); }

  StatusOr<std::shared_ptr<OpenedFile>> Open(int32_t file) const;
  // The descriptor if the file is kept open and was opened before, else null.
  std::shared_ptr<OpenedFile> Opened(int32_t file) const;
  // For a descriptor that somebody else opened with OpenFlags().
  std::shared_ptr<OpenedFile> Adopt(int32_t file, UniqueFd fd, bool direct) const;
  int OpenFlags(bool direct) const;
  bool wants_direct() const { return options_.direct && !direct_refused_.load(std::memory_order_relaxed); }
  // Leaves O_DIRECT for this file, or for all if the file system does not know it.
  void RefuseDirect(OpenedFile* file) const;

  StatusOr<int64_t> SizeOf(int32_t file) const;
  // The length of `extent` in an open file. RESOURCE_EXHAUSTED above max_record_bytes, DATA_LOSS if the file is shorter.
  StatusOr<int64_t> LengthOf(const Extent& extent, const OpenedFile& opened) const;
  // Reads in the calling thread.
  StatusOr<RecordView> Read(const Extent& extent) const;
  // Fills buffer[got, ...) with the bytes of `file` from `start` on until `needed` are there; `capacity` is what the buffer
  // takes.
  Status ReadRest(int32_t file, OpenedFile* opened, int64_t start, int64_t needed, int64_t capacity, int64_t got,
                  std::byte* buffer) const;

  BufferPool& pool() const { return *pool_; }
  const DiskOptions& options() const { return options_; }
  std::string Where(const Extent& extent) const;  // "PATH" or "PATH at byte N"
  int64_t reads() const { return reads_.load(std::memory_order_relaxed); }
  int64_t read_bytes() const { return read_bytes_.load(std::memory_order_relaxed); }
  void CountRead(int64_t bytes) const;
  bool direct_refused() const { return direct_refused_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kMostOpen = 512;

  const PathTable paths_;
  const bool keep_open_;
  const DiskOptions options_;
  const std::shared_ptr<BufferPool> pool_;
  mutable absl::Mutex mu_;
  mutable std::vector<std::shared_ptr<OpenedFile>> opened_ ABSL_GUARDED_BY(mu_);  // by file, for files that are kept open
  mutable int64_t opened_count_ ABSL_GUARDED_BY(mu_) = 0;
  mutable std::atomic<bool> direct_refused_{false};
  mutable std::atomic<int64_t> reads_{0}, read_bytes_{0};
};

// Where an O_DIRECT read of [offset, offset + length) starts and how many bytes it takes; without O_DIRECT, just that.
struct ReadPlan {
  int64_t start = 0;   // in the file
  int64_t size = 0;    // of the read and of the buffer
  int64_t skip = 0;    // bytes of the buffer before the first wanted one
  int64_t needed = 0;  // bytes of the buffer up to the last wanted one
};
ReadPlan PlanRead(int64_t offset, int64_t length, bool direct);

}  // namespace tidepool::data
