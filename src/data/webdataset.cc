// Tar shards in the manner of WebDataset: neighbouring files whose names agree up to the first dot after the last slash are one
// sample, and what follows the dot says what they are: "jpg" or "jpeg" a picture, "cls" its label in decimal digits. Other files
// are skipped.
//
// A record spans the sample's members with their headers. A sample without picture or label keeps its place: Parse tells what it
// lacks.
#include <charconv>
#include <limits>
#include <optional>

#include "data/containers.h"
#include "data/shard_scan.h"
#include "data/tar.h"

namespace tidepool::data {
namespace {

constexpr int64_t kLongestLabel = 32;  // bytes of a .cls file

struct NameParts {
  std::string_view key, extension;
};

NameParts SplitName(std::string_view name) {
  const size_t slash = name.rfind('/');
  const size_t base = slash == std::string_view::npos ? 0 : slash + 1;
  const size_t dot = name.find('.', base);
  if (dot == std::string_view::npos) return {name, {}};
  return {name.substr(0, dot), name.substr(dot + 1)};
}

bool EqualsIgnoringCase(std::string_view text, std::string_view lower) {
  if (text.size() != lower.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(text[i])) != lower[i]) return false;
  }
  return true;
}

class WebDataset : public ExtentSource {
 public:
  Status Open(const std::string& shards, const SourceOptions& options) {
    options_ = options;
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> files, ExpandShards(shards, ".tar"));
    Layout layout;
    Fingerprint fingerprint;
    for (const std::string& path : files) {
      layout.paths.Add(path);
      const Status scanned = ScanShard(path, &layout, &fingerprint);
      if (scanned.ok()) continue;
      const Status located = Annotate(scanned, path);
      if (!options.allow_damaged) return located;
      layout.faults.push_back(MessageOf(located));
    }
    if (layout.records.empty()) return NotFound("'{}': no sample in {} tar files", shards, files.size());
    int64_t highest = -1;
    for (const RecordPlace& record : layout.records) highest = std::max<int64_t>(highest, record.label);
    layout.classes = options.classes > 0 ? options.classes : highest + 1;
    layout.groups = MakeGroups(layout.records, options.group_bytes);
    layout.fingerprint = fingerprint.value();
    return Init(std::move(layout), options.disk);
  }

  StatusOr<LabelledPicture> Parse(int64_t record, std::span<const std::byte> bytes) const override {
    TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
    const Sample& sample = samples_[record];
    if (sample.pictures != 1) {
      return InvalidArgument("{}: the sample has {} members .jpg or .jpeg; needed: 1", Describe(record), int{sample.pictures});
    }
    if (sample.labels != 1) {
      return InvalidArgument("{}: the sample has {} members .cls; needed: 1", Describe(record), int{sample.labels});
    }
    const int64_t label = place(record).label;
    if (label < 0 || label >= classes()) {
      return InvalidArgument("{}: the sample's .cls holds no label of {} to {}", Describe(record), options_.first_label,
                             options_.first_label + classes() - 1);
    }
    if (size_t{sample.offset} + sample.length > bytes.size()) {
      return DataLoss("{}: {} bytes; the sample's picture ends at byte {}", Describe(record), bytes.size(),
                      size_t{sample.offset} + sample.length);
    }
    return LabelledPicture{.picture = bytes.subspan(sample.offset, sample.length), .label = label};
  }

 private:
  struct Sample {
    uint32_t offset = 0, length = 0;  // of the picture within the record
    uint8_t pictures = 0, labels = 0;
  };

  Status ScanShard(const std::string& path, Layout* layout, Fingerprint* fingerprint) {
    TIDEPOOL_ASSIGN_OR_RETURN(ShardScan scan, ShardScan::Open(path));
    TarReader reader([&scan](int64_t offset, std::span<std::byte> buffer) { return scan.ReadAt(offset, buffer); },
                     scan.file_bytes());
    std::string key;
    bool open = false;
    while (true) {
      TIDEPOOL_ASSIGN_OR_RETURN(const std::optional<TarMember> member, reader.Next());
      if (!member.has_value()) return {};
      if (!member->regular) continue;
      const NameParts parts = SplitName(member->name);
      if (!open || parts.key != key) {
        key = std::string(parts.key);
        open = !parts.extension.empty();
        if (!open) continue;
        layout->records.push_back(
            {.offset = member->header_offset, .length = 0, .file = static_cast<int32_t>(layout->paths.size() - 1), .label = -1});
        samples_.push_back({});
        fingerprint->Add(key);
      }
      TIDEPOOL_RETURN_IF_ERROR(AddMember(*member, parts.extension, &scan, layout));
      fingerprint->Add(member->size_bytes);
    }
  }

  // A member of the sample that is the last record.
  Status AddMember(const TarMember& member, std::string_view extension, ShardScan* scan, Layout* layout) {
    RecordPlace& record = layout->records.back();
    Sample& sample = samples_.back();
    record.length = member.data_offset + member.size_bytes - record.offset;
    if (record.length > options_.disk.max_record_bytes) {
      return OutOfRange("the sample at byte {} has {} bytes; allowed: up to {}", record.offset, record.length,
                        options_.disk.max_record_bytes);
    }
    if (EqualsIgnoringCase(extension, "jpg") || EqualsIgnoringCase(extension, "jpeg")) {
      sample.offset = static_cast<uint32_t>(member.data_offset - record.offset);
      sample.length = static_cast<uint32_t>(member.size_bytes);
      if (sample.pictures < 255) ++sample.pictures;
    } else if (EqualsIgnoringCase(extension, "cls")) {
      if (sample.labels < 255) ++sample.labels;
      if (member.size_bytes > kLongestLabel) return {};
      std::array<std::byte, kLongestLabel> buffer;
      TIDEPOOL_ASSIGN_OR_RETURN(const size_t got, scan->ReadAt(member.data_offset, std::span(buffer).first(member.size_bytes)));
      record.label = ParseLabel({reinterpret_cast<const char*>(buffer.data()), got});
    }
    return {};
  }

  // -1 for what is no label.
  int32_t ParseLabel(std::string_view text) const {
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
    int64_t label = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), label);
    if (text.empty() || error != std::errc() || end != text.data() + text.size()) return -1;
    label -= options_.first_label;
    return label < 0 || label > std::numeric_limits<int32_t>::max() - 1 ? -1 : static_cast<int32_t>(label);
  }

  SourceOptions options_;
  std::vector<Sample> samples_;
};

}  // namespace

StatusOr<std::unique_ptr<ExtentSource>> OpenWebDataset(const std::string& shards, const SourceOptions& options) {
  auto source = std::make_unique<WebDataset>();
  TIDEPOOL_RETURN_IF_ERROR(source->Open(shards, options));
  return source;
}

}  // namespace tidepool::data
