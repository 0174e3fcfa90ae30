// Numbered records of encoded bytes: what a container on disk holds, what a cache keeps, what a decoder takes.
//
//   container (folder of pictures, tar shards, TFRecord, packed) -> wrappers (cache, storage model) -> decoder -> loader
//
// A record is the bytes that lie in storage for one sample; Parse says where its picture and label are in them. So a wrapper
// moves and keeps bytes without knowing the format. Records that one disk read brings in together form a group; groups are runs
// of neighbouring records, and most containers have groups of one.
//
// Errors name the file and, where the format has one, the offset: NOT_FOUND for a file that vanished, DATA_LOSS for bytes that
// are cut short or damaged, INVALID_ARGUMENT for what is not of the format, OUT_OF_RANGE for a record that does not exist.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace tidepool::data {

// Bytes that live and stay unchanged as long as the view or a copy of it does. Copying shares; it never copies the bytes.
//
// The views of one group may share one buffer: each keeps all of it alive (held_bytes). Whoever keeps views under a byte budget
// copies what is smaller than its buffer, or counts the whole buffer.
class RecordView {
 public:
  RecordView() = default;
  RecordView(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, int64_t held_bytes = -1)
      : bytes_(bytes), owner_(std::move(owner)), held_bytes_(held_bytes < 0 ? static_cast<int64_t>(bytes.size()) : held_bytes) {}

  std::span<const std::byte> bytes() const { return bytes_; }
  int64_t size_bytes() const { return static_cast<int64_t>(bytes_.size()); }
  int64_t held_bytes() const { return held_bytes_; }  // of the buffer behind it
  const std::shared_ptr<const void>& owner() const { return owner_; }

 private:
  std::span<const std::byte> bytes_;
  std::shared_ptr<const void> owner_;
  int64_t held_bytes_ = 0;
};

// Half-open.
struct RecordRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const RecordRange&, const RecordRange&) = default;
};

// One sample inside its record. `picture` points into the bytes that were parsed.
struct LabelledPicture {
  std::span<const std::byte> picture;  // an encoded picture: a JPEG file's bytes
  int64_t label = 0;                   // 0 ... classes - 1
};

// Thread-safe: any number of threads may read at once.
class RecordSource {
 public:
  virtual ~RecordSource() = default;

  virtual int64_t size() const = 0;     // number of records
  virtual int64_t classes() const = 0;  // labels are 0 ... classes - 1
  // The bytes that Read will return. From the index where there is one; otherwise it may ask the file system.
  virtual StatusOr<int64_t> SizeBytes(int64_t record) const = 0;
  // The place of a record for messages: "PATH", or "PATH at byte N".
  virtual std::string Describe(int64_t record) const = 0;
  // A number that two openings share exactly if names, sizes and order of the records are the same. Labels a cache or a resume
  // token.
  virtual uint64_t fingerprint() const = 0;

  // Waits for the disk.
  virtual StatusOr<RecordView> Read(int64_t record) const = 0;
  virtual StatusOr<LabelledPicture> Parse(int64_t record, std::span<const std::byte> bytes) const = 0;

  // The group of `record`. Groups are disjoint and cover all records.
  virtual RecordRange Group(int64_t record) const { return {record, record + 1}; }
  // Reads all records of the group of `record` with one disk read: views[i] is record Group(record).begin + i. If one record of
  // the group is damaged, the others are still good: it is an empty view, and Read of it gives its error.
  virtual Status ReadGroup(int64_t record, std::vector<RecordView>* views) const {
    TIDEPOOL_ASSIGN_OR_RETURN(RecordView view, Read(record));
    views->clear();
    views->push_back(std::move(view));
    return {};
  }

  // A hint: `record` will be read soon, after the records that were named before it. A source that reads ahead starts to, within
  // its limit of bytes; a wrapper passes on what it has to get from below. May be ignored; never waits; costs at most memory.
  virtual void WillNeed(int64_t record) const { (void)record; }
  // Takes back one WillNeed that no Read will follow, so that what was read for it can go.
  virtual void WontNeed(int64_t record) const { (void)record; }
};

// A source that stands before another one and passes on everything that it does not override. `base` outlives it.
class RecordSourceWrapper : public RecordSource {
 public:
  explicit RecordSourceWrapper(const RecordSource* base) : base_(*base) {}

  int64_t size() const override { return base_.size(); }
  int64_t classes() const override { return base_.classes(); }
  StatusOr<int64_t> SizeBytes(int64_t record) const override { return base_.SizeBytes(record); }
  std::string Describe(int64_t record) const override { return base_.Describe(record); }
  uint64_t fingerprint() const override { return base_.fingerprint(); }
  StatusOr<RecordView> Read(int64_t record) const override { return base_.Read(record); }
  StatusOr<LabelledPicture> Parse(int64_t record, std::span<const std::byte> bytes) const override {
    return base_.Parse(record, bytes);
  }
  RecordRange Group(int64_t record) const override { return base_.Group(record); }
  Status ReadGroup(int64_t record, std::vector<RecordView>* views) const override { return base_.ReadGroup(record, views); }
  void WillNeed(int64_t record) const override { base_.WillNeed(record); }
  void WontNeed(int64_t record) const override { base_.WontNeed(record); }

 protected:
  const RecordSource& base() const { return base_; }

 private:
  const RecordSource& base_;
};

}  // namespace tidepool::data
