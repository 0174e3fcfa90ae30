// Reader and writer of safetensors files, to the byte.
//
// Format: u64 little-endian header length (at most 100,000,000), a JSON object starting with '{' and optionally padded with
// trailing spaces, then the data buffer. Per tensor {dtype, shape, data_offsets [begin, end)} relative to the buffer;
// "__metadata__" maps strings to strings. No holes, no overlap, no duplicate keys. A header that breaks a rule is refused with
// the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/dtype.h"
#include "base/fd.h"
#include "base/status.h"

namespace tidepool::model {

struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t offset_bytes = 0;  // from the start of the file
  int64_t size_bytes = 0;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in order of offset
  std::map<std::string, std::string> metadata;
  int64_t data_offset_bytes = 0;  // where the buffer starts
  int64_t file_bytes = 0;
};

// Parses and checks a header. `prefix` holds at least the first 8 + header-length bytes of a file of `file_bytes`.
StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> prefix, int64_t file_bytes);

// The largest header that is read, and the most dimensions of a tensor.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr size_t kMaxSafetensorsRank = 64;

// An open file. Reading is by pread: any thread may read. Thread-safe.
class SafetensorsFile {
 public:
  static StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  const SafetensorsHeader& header() const { return header_; }
  const std::string& path() const { return path_; }
  // Reads the whole tensor into `target`, which has exactly its size. DATA_LOSS if the file has become shorter.
  Status Read(const TensorEntry& tensor, std::span<std::byte> target) const;
  // Reads target.size() bytes from byte `begin_bytes` of the tensor on.
  Status ReadPart(const TensorEntry& tensor, int64_t begin_bytes, std::span<std::byte> target) const;
  // NOT_FOUND with the nearest name if it is absent.
  StatusOr<const TensorEntry*> Find(const std::string& name) const;

 private:
  SafetensorsFile(std::string path, UniqueFd fd, SafetensorsHeader header);
  std::string path_;
  UniqueFd fd_;
  SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> by_name_;  // index into header_.tensors
};

struct TensorPlan {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// Writes a file piece by piece, for models larger than memory. The file appears under its name only when Finish succeeds; without
// Finish nothing is left of it. Thread-compatible.
class SafetensorsWriter {
 public:
  // Tensors keep their order; the header is padded with spaces so that data starts at a multiple of 64.
  static StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path, std::span<const TensorPlan> tensors,
                                                             const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  // The next bytes of the data buffer, in pieces of any size.
  Status Append(std::span<const std::byte> data);
  // Flushes and renames. FAILED_PRECONDITION if fewer bytes came than the tensors have.
  Status Finish();

 private:
  SafetensorsWriter(std::string path, std::string temporary, UniqueFd fd, int64_t data_bytes)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(std::move(fd)), left_bytes_(data_bytes) {}
  Status Write(std::span<const std::byte> data);
  std::string path_, temporary_;
  UniqueFd fd_;
  int64_t left_bytes_;
};

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

// Writes a whole file with SafetensorsWriter: atomically (temporary file, fsync, rename).
Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                        const std::map<std::string, std::string>& metadata);

}  // namespace tidepool::model
