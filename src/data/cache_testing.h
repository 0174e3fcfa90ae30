// For tests of what stands before a RecordSource: a source in memory that counts, fails and stops on request.
#pragma once

#include <absl/synchronization/mutex.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/augment.h"
#include "data/record_source.h"

namespace tidepool::data {

// Record i has base_bytes + (i mod spread) bytes that follow from its number. Groups are runs of `group` records.
class MemorySource : public RecordSource {
 public:
  struct Options {
    int64_t records = 100;
    int64_t base_bytes = 100;
    int64_t spread = 1;
    int64_t group = 1;
    uint64_t fingerprint = 0x1234;
  };
  explicit MemorySource(const Options& options) : options_(options) {}

  int64_t size() const override { return options_.records; }
  int64_t classes() const override { return 10; }
  StatusOr<int64_t> SizeBytes(int64_t record) const override { return options_.base_bytes + record % options_.spread; }
  std::string Describe(int64_t record) const override { return fmt::format("memory:{}", record); }
  uint64_t fingerprint() const override { return options_.fingerprint; }
  RecordRange Group(int64_t record) const override {
    const int64_t begin = record / options_.group * options_.group;
    return {begin, std::min(begin + options_.group, options_.records)};
  }

  std::string Content(int64_t record) const {
    std::string text(static_cast<size_t>(options_.base_bytes + record % options_.spread), '\0');
    for (size_t i = 0; i < text.size(); i += 8) {
      const uint64_t bits = RandomBits(77, static_cast<uint64_t>(record), i);
      std::memcpy(&text[i], &bits, std::min<size_t>(8, text.size() - i));
    }
    return text;
  }

  StatusOr<RecordView> Read(int64_t record) const override {
    {
      absl::MutexLock lock(&mu_);
      ++reads_[record];
      ++read_count_;
      if (hints_[record] > 0) --hints_[record];
    }
    if (on_read) TIDEPOOL_RETURN_IF_ERROR(on_read(record));
    // In a larger buffer, as from a disk.
    auto owner = std::make_shared<std::string>(Content(record));
    const auto size = static_cast<int64_t>(owner->size());
    owner->resize(owner->size() + 64, '#');
    return RecordView({reinterpret_cast<const std::byte*>(owner->data()), static_cast<size_t>(size)}, owner, size + 64);
  }
  StatusOr<LabelledPicture> Parse(int64_t record, std::span<const std::byte> bytes) const override {
    return LabelledPicture{.picture = bytes, .label = record % 10};
  }
  Status ReadGroup(int64_t record, std::vector<RecordView>* views) const override {
    {
      absl::MutexLock lock(&mu_);
      ++group_reads_;
      if (hints_[record] > 0) --hints_[record];
    }
    views->clear();
    const RecordRange group = Group(record);
    for (int64_t i = group.begin; i < group.end; ++i) {
      Status status = on_read ? on_read(i) : Status();
      if (!status.ok() && group.size() == 1) return status;
      auto owner = std::make_shared<std::string>(Content(i));
      views->push_back(status.ok() ? RecordView(std::as_bytes(std::span(*owner)), owner) : RecordView());
    }
    return {};
  }
  void WillNeed(int64_t record) const override {
    absl::MutexLock lock(&mu_);
    ++hints_[record];
  }
  void WontNeed(int64_t record) const override {
    absl::MutexLock lock(&mu_);
    if (hints_[record] > 0) --hints_[record];
  }

  std::function<Status(int64_t record)> on_read;  // set before threads read
  int64_t reads(int64_t record) const {
    absl::MutexLock lock(&mu_);
    return reads_[record];
  }
  int64_t read_count() const {
    absl::MutexLock lock(&mu_);
    return read_count_;
  }
  int64_t group_reads() const {
    absl::MutexLock lock(&mu_);
    return group_reads_;
  }
  int64_t open_hints() const {
    absl::MutexLock lock(&mu_);
    int64_t open = 0;
    for (const auto& [record, count] : hints_) open += count;
    return open;
  }

 private:
  const Options options_;
  mutable absl::Mutex mu_;
  mutable std::map<int64_t, int64_t> reads_ ABSL_GUARDED_BY(mu_), hints_ ABSL_GUARDED_BY(mu_);
  mutable int64_t read_count_ ABSL_GUARDED_BY(mu_) = 0, group_reads_ ABSL_GUARDED_BY(mu_) = 0;
};

inline std::string TextOf(const RecordView& view) {
  return {reinterpret_cast<const char*>(view.bytes().data()), view.bytes().size()};
}

}  // namespace tidepool::data
