// What all containers on disk have in common: a table that says where each record lies, reading, reading ahead and groups.
//
// A container fills a Layout when it opens, and overrides Parse and, where its format has checksums, Verify.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/disk_files.h"
#include "data/read_ahead.h"
#include "data/record_source.h"

namespace tidepool::data {

struct RecordPlace {
  int64_t offset = 0;
  int64_t length = -1;  // -1: to the end of the file
  int32_t file = 0;
  int32_t label = -1;  // -1: only the record's bytes tell
};

struct Layout {
  PathTable paths;
  bool keep_open = true;
  std::vector<RecordPlace> records;  // by file, then by offset
  std::vector<int64_t> groups;       // the first record of each group, and records.size() at the end; empty: groups of one
  int64_t classes = 0;
  std::vector<std::string> class_names;  // empty, or one for each class
  uint64_t fingerprint = 0;
  std::vector<std::string> faults;  // what had to be left out of a damaged file, if the options allow that
};

struct SourceStats {
  ReadAheadStats ahead;
  int64_t reads = 0;  // disk reads, of whatever size
  int64_t read_bytes = 0;
  bool direct = false;  // reads go past the page cache
};

// Thread-safe once it is open.
class ExtentSource : public RecordSource {
 public:
  ~ExtentSource() override;

  int64_t size() const override { return static_cast<int64_t>(layout_.records.size()); }
  int64_t classes() const override { return layout_.classes; }
  StatusOr<int64_t> SizeBytes(int64_t record) const override;
  std::string Describe(int64_t record) const override;
  uint64_t fingerprint() const override { return layout_.fingerprint; }
  StatusOr<RecordView> Read(int64_t record) const override;
  RecordRange Group(int64_t record) const override;
  Status ReadGroup(int64_t record, std::vector<RecordView>* views) const override;
  void WillNeed(int64_t record) const override;
  void WontNeed(int64_t record) const override;
  SourceStats stats() const;
  const std::vector<std::string>& class_names() const { return layout_.class_names; }
  const std::vector<std::string>& faults() const { return layout_.faults; }

 protected:
  // Call once, before any of the functions above.
  Status Init(Layout layout, const DiskOptions& options);
  // Checks what Read got from the disk, if the format can. The error names what is wrong; Read adds where.
  virtual Status Verify(int64_t record, std::span<const std::byte> bytes) const {
    (void)record, (void)bytes;
    return {};
  }
  Status CheckIndex(int64_t record) const;
  const RecordPlace& place(int64_t record) const { return layout_.records[record]; }
  const Layout& layout() const { return layout_; }
  const DiskFiles& files() const { return *files_; }

 private:
  int64_t GroupIndex(int64_t record) const;
  Extent GroupExtent(int64_t group) const;
  StatusOr<RecordView> Part(int64_t record, const RecordView& group, int64_t group_offset) const;

  Layout layout_;
  std::unique_ptr<DiskFiles> files_;
  std::unique_ptr<ReadAhead> ahead_;
};

// Groups for a format that has none: runs of records of one file that span at most `group_bytes`, or one record. 0: groups of
// one.
std::vector<int64_t> MakeGroups(std::span<const RecordPlace> records, int64_t group_bytes);

// Adds text and numbers to a fingerprint.
class Fingerprint {
 public:
  Fingerprint();
  ~Fingerprint();
  Fingerprint(const Fingerprint&) = delete;
  Fingerprint& operator=(const Fingerprint&) = delete;
  void Add(std::string_view text);
  void Add(int64_t number);
  uint64_t value() const;

 private:
  void* state_;
};

}  // namespace tidepool::data
