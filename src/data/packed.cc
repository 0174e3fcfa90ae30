// The reading side of the packed container. Everything that the index says is checked when the file is opened, so that later code
// may believe it; the bytes of a record are checked against its checksum each time they come from the disk.
#include "data/packed.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "data/containers.h"
#include "data/shard_scan.h"

namespace tidepool::data {
namespace {

constexpr int64_t kLargestIndex = int64_t{16} * kGiB;

template <typename T>
T Get(std::span<const std::byte> bytes, size_t offset) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(static_cast<uint8_t>(bytes[offset + i])) << (8 * i);
  return value;
}

struct Header {
  int64_t records = 0, groups = 0, classes = 0, class_names = 0, names_bytes = 0, index_offset = 0, index_bytes = 0;
  uint64_t index_checksum = 0;
};

// A count or offset of the header: non-negative as int64.
Status GetCount(std::span<const std::byte> bytes, size_t offset, const char* what, int64_t most, int64_t* value) {
  const auto raw = Get<uint64_t>(bytes, offset);
  if (raw > static_cast<uint64_t>(most)) return DataLoss("{} at byte {} is {}; allowed: up to {}", what, offset, raw, most);
  *value = static_cast<int64_t>(raw);
  return {};
}

StatusOr<Header> ReadHeader(ShardScan* scan) {
  std::array<std::byte, kPackHeaderBytes> bytes;
  TIDEPOOL_ASSIGN_OR_RETURN(const size_t got, scan->ReadAt(0, bytes));
  if (got < kPackMagic.size() || std::memcmp(bytes.data(), kPackMagic.data(), kPackMagic.size()) != 0) {
    return InvalidArgument("no packed file: it does not begin with {}", kPackMagic);
  }
  if (got < bytes.size()) return DataLoss("the file ends at byte {}, within its header", got);
  if (const auto version = Get<uint32_t>(bytes, 8); version != kPackVersion) {
    return InvalidArgument("version {} of the packed format; this program reads version {}", version, kPackVersion);
  }
  const auto stored = Get<uint64_t>(bytes, kPackHeaderBytes - 8);
  if (const uint64_t computed = XXH3_64bits(bytes.data(), kPackHeaderBytes - 8); computed != stored) {
    return DataLoss("the header has checksum {:#018x}; stored at byte {}: {:#018x}", computed, kPackHeaderBytes - 8, stored);
  }
  const int64_t end = scan->file_bytes();
  Header header;
  TIDEPOOL_RETURN_IF_ERROR(GetCount(bytes, 16, "the number of records", end / kPackRecordEntryBytes, &header.records));
  TIDEPOOL_RETURN_IF_ERROR(GetCount(bytes, 24, "the number of groups", header.records, &header.groups));
  TIDEPOOL_RETURN_IF_ERROR(GetCount(bytes, 32, "the number of classes", INT32_MAX, &header.classes));
  TIDEPOOL_RETURN_IF_ERROR(GetCount(bytes, 40, "the number of class names", header.classes, &header.class_names));
  TIDEPOOL_RETURN_IF_ERROR(GetCount(bytes, 48, "the size of the names", std::min<int64_t>(end, UINT32_MAX), &header.names_bytes));
  TIDEPOOL_RETURN_IF_ERROR(GetCount(bytes, 56, "the offset of the index", end, &header.index_offset));
  TIDEPOOL_RETURN_IF_ERROR(GetCount(bytes, 64, "the size of the index", kLargestIndex, &header.index_bytes));
  header.index_checksum = Get<uint64_t>(bytes, 72);
  if (header.index_bytes > end - header.index_offset) {
    return DataLoss("the file ends at byte {}, but its index goes on to byte {}", end, header.index_offset + header.index_bytes);
  }
  const int64_t fixed =
      header.groups * kPackGroupEntryBytes + header.records * kPackRecordEntryBytes + header.names_bytes + 4 * header.class_names;
  if (header.records < 1 || header.groups < 1 || header.index_bytes < fixed) {
    return DataLoss("an index of {} bytes for {} records in {} groups; needed: at least {}", header.index_bytes, header.records,
                    header.groups, fixed);
  }
  return header;
}

class Packed : public ExtentSource {
 public:
  Status Open(const std::string& shards, const SourceOptions& options) {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> files, ExpandShards(shards, ".tpk"));
    Layout layout;
    Fingerprint fingerprint;
    for (const std::string& path : files) {
      layout.paths.Add(path);
      const Status opened = OpenShard(path, options, &layout, &fingerprint);
      if (opened.ok()) continue;
      const Status located = Annotate(opened, path);
      if (!options.allow_damaged) return located;
      layout.faults.push_back(MessageOf(located));
    }
    if (layout.records.empty()) return NotFound("'{}': no record in {} files", shards, files.size());
    layout.groups.push_back(static_cast<int64_t>(layout.records.size()));
    if (options.classes > 0) layout.classes = options.classes;
    if (static_cast<int64_t>(layout.class_names.size()) != layout.classes) layout.class_names.clear();
    layout.fingerprint = fingerprint.value();
    return Init(std::move(layout), options.disk);
  }

  StatusOr<LabelledPicture> Parse(int64_t record, std::span<const std::byte> bytes) const override {
    TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
    const int32_t label = place(record).label;
    if (label >= classes()) return InvalidArgument("{}: label {}; allowed: 0 to {}", Describe(record), label, classes() - 1);
    return LabelledPicture{.picture = bytes, .label = label};
  }

  std::string Describe(int64_t record) const override {
    const std::string where = ExtentSource::Describe(record);
    if (!CheckIndex(record).ok() || names_.name(record).empty()) return where;
    return fmt::format("{} ({})", where, names_.name(record));
  }

 protected:
  Status Verify(int64_t record, std::span<const std::byte> bytes) const override {
    const uint64_t computed = XXH3_64bits(bytes.data(), bytes.size());
    if (computed != checksums_[record]) {
      return DataLoss("the record has checksum {:#018x}; stored: {:#018x}", computed, checksums_[record]);
    }
    return {};
  }

 private:
  Status OpenShard(const std::string& path, const SourceOptions& options, Layout* layout, Fingerprint* fingerprint) {
    TIDEPOOL_ASSIGN_OR_RETURN(ShardScan scan, ShardScan::Open(path));
    TIDEPOOL_ASSIGN_OR_RETURN(const Header header, ReadHeader(&scan));
    std::vector<std::byte> index(static_cast<size_t>(header.index_bytes));
    TIDEPOOL_ASSIGN_OR_RETURN(const size_t got, scan.ReadAt(header.index_offset, index));
    if (got < index.size()) return DataLoss("the file ends at byte {}, within its index", header.index_offset + int64_t(got));
    if (const uint64_t computed = XXH3_64bits(index.data(), index.size()); computed != header.index_checksum) {
      return DataLoss("the index at byte {} has checksum {:#018x}; stored: {:#018x}", header.index_offset, computed,
                      header.index_checksum);
    }
    // All or nothing: a shard with a fault in its index adds no record.
    Layout shard;
    std::vector<uint64_t> checksums;
    TIDEPOOL_RETURN_IF_ERROR(ReadRecords(header, index, options, &shard, &checksums));
    TIDEPOOL_RETURN_IF_ERROR(ReadGroups(header, index, options, shard.records, &shard));
    TIDEPOOL_RETURN_IF_ERROR(ReadNames(header, index, layout));
    const auto before = static_cast<int64_t>(layout->records.size());
    for (RecordPlace& record : shard.records) {
      record.file = static_cast<int32_t>(layout->paths.size() - 1);
      layout->records.push_back(record);
    }
    for (const int64_t first : shard.groups) layout->groups.push_back(before + first);
    checksums_.insert(checksums_.end(), checksums.begin(), checksums.end());
    layout->classes = std::max(layout->classes, header.classes);
    fingerprint->Add(static_cast<int64_t>(header.index_checksum));
    return {};
  }

  static Status ReadRecords(const Header& header, std::span<const std::byte> index, const SourceOptions& options, Layout* shard,
                            std::vector<uint64_t>* checksums) {
    const auto base = static_cast<size_t>(header.groups * kPackGroupEntryBytes);
    int64_t end = kPackHeaderBytes;
    for (int64_t i = 0; i < header.records; ++i) {
      const size_t at = base + static_cast<size_t>(i * kPackRecordEntryBytes);
      const auto offset = Get<uint64_t>(index, at);
      const auto length = Get<uint32_t>(index, at + 8);
      const auto label = Get<uint32_t>(index, at + 12);
      const int64_t entry = header.index_offset + static_cast<int64_t>(at);
      if (offset % kPackRecordAlignment != 0 || offset < static_cast<uint64_t>(end) || length == 0 ||
          offset > static_cast<uint64_t>(header.index_offset) || length > header.index_offset - static_cast<int64_t>(offset)) {
        return DataLoss("record {}, whose entry is at byte {}, lies at [{}, +{}); allowed: multiples of {} in [{}, {})", i, entry,
                        offset, length, kPackRecordAlignment, end, header.index_offset);
      }
      if (length > options.disk.max_record_bytes) {
        return OutOfRange("record {} has {} bytes; allowed: up to {}", i, length, options.disk.max_record_bytes);
      }
      if (label >= header.classes)
        return DataLoss("record {}, whose entry is at byte {}, has label {} of {}", i, entry, label, header.classes);
      end = static_cast<int64_t>(offset) + length;
      shard->records.push_back({.offset = static_cast<int64_t>(offset), .length = length, .label = static_cast<int32_t>(label)});
      checksums->push_back(Get<uint64_t>(index, at + 16));
    }
    return {};
  }

  static Status ReadGroups(const Header& header, std::span<const std::byte> index, const SourceOptions& options,
                           const std::vector<RecordPlace>& records, Layout* shard) {
    for (int64_t i = 0; i < header.groups; ++i) {
      const auto at = static_cast<size_t>(i * kPackGroupEntryBytes);
      const auto first = Get<uint64_t>(index, at);
      const auto offset = Get<uint64_t>(index, at + 8);
      const uint64_t least = i == 0 ? 0 : static_cast<uint64_t>(shard->groups.back()) + 1;
      if (first < least || (i == 0 && first != 0) || first >= static_cast<uint64_t>(header.records) ||
          offset % kPackHeaderBytes != 0 || offset != static_cast<uint64_t>(records[first].offset)) {
        return DataLoss("group {}, whose entry is at byte {}, begins with record {} at byte {}; that contradicts the records", i,
                        header.index_offset + static_cast<int64_t>(at), first, offset);
      }
      shard->groups.push_back(static_cast<int64_t>(first));
    }
    for (int64_t i = 0; i < header.groups; ++i) {
      const RecordPlace& first = records[shard->groups[i]];
      const RecordPlace& last = records[(i + 1 < header.groups ? shard->groups[i + 1] : header.records) - 1];
      if (const int64_t bytes = last.offset + last.length - first.offset; bytes > options.disk.max_record_bytes) {
        return OutOfRange("group {} has {} bytes; allowed: up to {}", i, bytes, options.disk.max_record_bytes);
      }
    }
    return {};
  }

  Status ReadNames(const Header& header, std::span<const std::byte> index, Layout* layout) {
    const auto records = static_cast<size_t>(header.groups * kPackGroupEntryBytes);
    const size_t names = records + static_cast<size_t>(header.records * kPackRecordEntryBytes);
    const size_t class_ends = names + static_cast<size_t>(header.names_bytes);
    const size_t class_text = class_ends + static_cast<size_t>(4 * header.class_names);
    PathTable table;
    uint32_t begin = 0;
    for (int64_t i = 0; i < header.records; ++i) {
      const auto end = Get<uint32_t>(index, records + static_cast<size_t>(i * kPackRecordEntryBytes) + 24);
      if (end < begin || end > header.names_bytes) {
        return DataLoss("the name of record {} is [{}, {}) of {} bytes", i, begin, end, header.names_bytes);
      }
      table.Add({reinterpret_cast<const char*>(index.data()) + names + begin, end - begin});
      begin = end;
    }
    std::vector<std::string> class_names;
    begin = 0;
    for (int64_t i = 0; i < header.class_names; ++i) {
      const auto end = Get<uint32_t>(index, class_ends + static_cast<size_t>(4 * i));
      if (end < begin || end > index.size() - class_text) {
        return DataLoss("the name of class {} is [{}, {}) of {} bytes", i, begin, end, index.size() - class_text);
      }
      class_names.emplace_back(reinterpret_cast<const char*>(index.data()) + class_text + begin, end - begin);
      begin = end;
    }
    for (int64_t i = 0; i < table.size(); ++i) names_.Add(table.name(i));
    if (class_names.size() > layout->class_names.size()) layout->class_names = std::move(class_names);
    return {};
  }

  std::vector<uint64_t> checksums_;
  PathTable names_;
};

}  // namespace

StatusOr<std::unique_ptr<ExtentSource>> OpenPacked(const std::string& shards, const SourceOptions& options) {
  auto source = std::make_unique<Packed>();
  TIDEPOOL_RETURN_IF_ERROR(source->Open(shards, options));
  return source;
}

}  // namespace tidepool::data
