// Our own container of pictures (docs/data.md has the format byte by byte): groups of records that one disk read brings in, one
// index at the end, a checksum for every part. This header is the writing side; OpenPacked in containers.h reads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "base/units.h"
#include "data/record_source.h"

namespace tidepool::data {

inline constexpr std::string_view kPackMagic = "TIDEPACK";
inline constexpr uint32_t kPackVersion = 1;
inline constexpr int64_t kPackHeaderBytes = 4096;    // also the alignment of groups and of the index
inline constexpr int64_t kPackRecordAlignment = 64;  // of a record within its group
inline constexpr int64_t kPackGroupEntryBytes = 16;  // of the index
inline constexpr int64_t kPackRecordEntryBytes = 32;

struct PackOptions {
  int64_t group_bytes = 4 * kMiB;        // a group ends before it would grow beyond this; a larger record is a group of its own
  int64_t classes = 0;                   // labels are 0 ... classes - 1
  std::vector<std::string> class_names;  // empty, or one for each class
  Status Validate() const;
};

// Writes one file. It appears under its name when Finish has returned OK, complete and on the disk; until then, and if the writer
// is destroyed before, there is nothing. Thread-compatible.
class PackWriter {
 public:
  static StatusOr<std::unique_ptr<PackWriter>> Create(const std::string& path, PackOptions options);
  ~PackWriter();
  PackWriter(const PackWriter&) = delete;
  PackWriter& operator=(const PackWriter&) = delete;

  // `name` is for messages; it may be empty.
  Status Add(std::span<const std::byte> picture, int64_t label, std::string_view name);
  Status Finish();
  int64_t records() const { return static_cast<int64_t>(records_.size()); }
  int64_t groups() const { return static_cast<int64_t>(groups_.size()); }
  int64_t file_bytes() const { return offset_ + static_cast<int64_t>(group_.size()); }

 private:
  struct Record {
    int64_t offset = 0, length = 0;
    int32_t label = 0;
    uint64_t checksum = 0;
    uint32_t name_end = 0;
  };
  struct Group {
    int64_t first_record = 0, offset = 0;
  };

  PackWriter(std::string path, std::string temporary, UniqueFd fd, PackOptions options)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(std::move(fd)), options_(std::move(options)) {}
  Status Write(int64_t offset, std::span<const std::byte> bytes);
  Status FlushGroup();
  std::vector<std::byte> EncodeIndex() const;

  const std::string path_, temporary_;
  UniqueFd fd_;
  const PackOptions options_;
  std::vector<std::byte> group_;       // the group that is being filled
  int64_t offset_ = kPackHeaderBytes;  // where it will stand
  std::vector<Record> records_;
  std::vector<Group> groups_;
  std::string names_;
  bool finished_ = false;
};

struct PackJob {
  std::string output;  // "x.tpk", or with several shards "x-00000.tpk" ...
  int64_t group_bytes = 4 * kMiB;
  int64_t shard_bytes = 0;  // a new file before one would grow beyond this; 0: one file
  bool shuffle = false;     // records in the order of EpochOrder(size, seed, 0), so that every group holds a mixture
  uint64_t seed = 0;
  bool skip_broken = false;  // leave out records that cannot be read or whose pictures have no readable header
  std::function<bool(int64_t done, int64_t total)> progress;  // false stops with CANCELLED
};
struct PackSummary {
  std::vector<std::string> files;
  int64_t records = 0, groups = 0, bytes = 0, skipped = 0;
  std::string first_skipped;
};
// Copies the pictures of `source` into packed files. Files that exist are replaced.
StatusOr<PackSummary> PackRecords(const RecordSource& source, const std::vector<std::string>& class_names, const PackJob& job);

}  // namespace tidepool::data
