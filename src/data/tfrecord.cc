// TFRecord shards. One record on disk: u64 length, u32 masked CRC-32C of these 8 bytes, the data, u32 masked CRC-32C of the data;
// numbers are little-endian. The data is a tf.train.Example. Both checksums are checked: that of the length when the shard is
// opened, that of the data when it is read.
#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "data/containers.h"
#include "data/crc32c.h"
#include "data/shard_scan.h"
#include "data/tf_example.h"

namespace tidepool::data {
namespace {

constexpr int64_t kHeader = 12, kFooter = 4;

template <typename T>
T LittleEndian(std::span<const std::byte> bytes) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  return value;
}

class TfRecord : public ExtentSource {
 public:
  Status Open(const std::string& shards, const SourceOptions& options) {
    first_label_ = options.first_label;
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> files, ExpandShards(shards, ""));
    Layout layout;
    Fingerprint fingerprint;
    int64_t highest = -1;
    for (const std::string& path : files) {
      layout.paths.Add(path);
      const Status scanned = ScanShard(path, options, &layout, &fingerprint, &highest);
      if (scanned.ok()) continue;
      const Status located = Annotate(scanned, path);
      if (!options.allow_damaged) return located;
      layout.faults.push_back(MessageOf(located));
    }
    if (layout.records.empty()) return NotFound("'{}': no record in {} files", shards, files.size());
    layout.classes = options.classes > 0 ? options.classes : highest + 1;
    layout.groups = MakeGroups(layout.records, options.group_bytes);
    layout.fingerprint = fingerprint.value();
    return Init(std::move(layout), options.disk);
  }

  StatusOr<LabelledPicture> Parse(int64_t record, std::span<const std::byte> bytes) const override {
    TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
    if (static_cast<int64_t>(bytes.size()) != place(record).length) {
      return DataLoss("{}: {} bytes; the record has {}", Describe(record), bytes.size(), place(record).length);
    }
    const StatusOr<ExamplePicture> example = ParseExample(bytes.subspan(kHeader, bytes.size() - kHeader - kFooter));
    if (!example.ok()) return Annotate(example.status(), Describe(record));
    if (!example->label.has_value()) return NotFound("{}: the Example has no label", Describe(record));
    const std::optional<int64_t> label = ClassOf(*example->label);
    if (!label.has_value() || *label >= classes()) {
      return InvalidArgument("{}: label {}; allowed: {} to {}", Describe(record), *example->label, first_label_,
                             first_label_ + classes() - 1);
    }
    return LabelledPicture{.picture = example->picture, .label = *label};
  }

 protected:
  Status Verify(int64_t, std::span<const std::byte> bytes) const override {
    if (static_cast<int64_t>(bytes.size()) < kHeader + kFooter) return DataLoss("{} bytes; no record is so short", bytes.size());
    if (const Status header = VerifyHeader(bytes.first(kHeader)); !header.ok()) return header;
    const std::span<const std::byte> data = bytes.subspan(kHeader, bytes.size() - kHeader - kFooter);
    const auto stored = LittleEndian<uint32_t>(bytes.last(kFooter));
    if (const uint32_t computed = MaskCrc(Crc32c(data)); computed != stored) {
      return DataLoss("the data of {} bytes has checksum {:#010x}; stored: {:#010x}", data.size(), computed, stored);
    }
    return {};
  }

 private:
  static Status VerifyHeader(std::span<const std::byte> header) {
    const auto stored = LittleEndian<uint32_t>(header.subspan(8, 4));
    if (const uint32_t computed = MaskCrc(Crc32c(header.first(8))); computed != stored) {
      return DataLoss("the length field has checksum {:#010x}; stored: {:#010x}", computed, stored);
    }
    return {};
  }

  // Nothing for a label that can be none.
  std::optional<int64_t> ClassOf(int64_t label) const {
    constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
    if (label < first_label_ || label > kLimit) return std::nullopt;
    return label - first_label_;
  }

  Status ScanShard(const std::string& path, const SourceOptions& options, Layout* layout, Fingerprint* fingerprint,
                   int64_t* highest) {
    TIDEPOOL_ASSIGN_OR_RETURN(ShardScan scan, ShardScan::Open(path));
    const int64_t end = scan.file_bytes();
    std::vector<std::byte> whole;
    for (int64_t offset = 0; offset < end;) {
      std::array<std::byte, kHeader> header;
      TIDEPOOL_ASSIGN_OR_RETURN(const size_t got, scan.ReadAt(offset, header));
      if (got < header.size())
        return DataLoss("the file ends at byte {}, within the header of the record at byte {}", end, offset);
      if (const Status valid = VerifyHeader(header); !valid.ok()) {
        if (offset == 0) return InvalidArgument("no TFRecord file: {}", MessageOf(valid));
        return Annotate(valid, fmt::format("record at byte {}", offset));
      }
      const auto length = LittleEndian<uint64_t>(header);
      if (length > static_cast<uint64_t>(options.disk.max_record_bytes)) {
        return OutOfRange("the record at byte {} has {} bytes; allowed: up to {}", offset, length, options.disk.max_record_bytes);
      }
      const int64_t framed = kHeader + static_cast<int64_t>(length) + kFooter;
      if (framed > end - offset) {
        return DataLoss("the file ends at byte {}, but the record at byte {} goes on to byte {}", end, offset, offset + framed);
      }
      if (options.classes <= 0) {
        // A record that does not parse keeps its place; reading it gives the error.
        whole.resize(static_cast<size_t>(length));
        TIDEPOOL_ASSIGN_OR_RETURN(const size_t read, scan.ReadAt(offset + kHeader, whole));
        const StatusOr<ExamplePicture> example = ParseExample(std::span(whole).first(read));
        if (example.ok() && example->label.has_value()) *highest = std::max(*highest, ClassOf(*example->label).value_or(-1));
      }
      layout->records.push_back({.offset = offset, .length = framed, .file = static_cast<int32_t>(layout->paths.size() - 1)});
      fingerprint->Add(framed);
      offset += framed;
    }
    return {};
  }

  int64_t first_label_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<ExtentSource>> OpenTfRecord(const std::string& shards, const SourceOptions& options) {
  auto source = std::make_unique<TfRecord>();
  TIDEPOOL_RETURN_IF_ERROR(source->Open(shards, options));
  return source;
}

}  // namespace tidepool::data
