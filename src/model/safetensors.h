// Reader and writer of safetensors files, to the byte.
//
// Format: u64 little-endian header length (at most 100,000,000), a JSON object starting with '{' and optionally padded with
// trailing spaces, then the data buffer. Per tensor {dtype, shape, data_offsets [begin, end)} relative to the buffer; "__metadata__"
// maps strings to strings. No holes, no overlap, no duplicate keys. A header that breaks a rule is refused with the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
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

// An open file. Reading is by pread: any thread may read. Thread-safe.
class SafetensorsFile {
 public:
  static StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  const SafetensorsHeader& header() const { return header_; }
  const std::string& path() const { return path_; }
  // Reads the whole tensor into `target`, which has exactly its size. DATA_LOSS if the file has become shorter.
  Status Read(const TensorEntry& tensor, std::span<std::byte> target) const;
  // NOT_FOUND with the nearest name if it is absent.
  StatusOr<const TensorEntry*> Find(const std::string& name) const;

 private:
  SafetensorsFile(std::string path, UniqueFd fd, SafetensorsHeader header)
      : path_(std::move(path)), fd_(std::move(fd)), header_(std::move(header)) {}
  std::string path_;
  UniqueFd fd_;
  SafetensorsHeader header_;
};

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

// Writes atomically (temporary file, fsync, rename). Tensors keep their order; the header is padded so that data starts at a multiple of 64.
Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                        const std::map<std::string, std::string>& metadata);

}  // namespace tidepool::model
