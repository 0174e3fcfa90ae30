#include "data/extent_source.h"

#include <xxhash.h>

#include <algorithm>

namespace tidepool::data {

ExtentSource::~ExtentSource() = default;

Status ExtentSource::Init(Layout layout, const DiskOptions& options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  layout_ = std::move(layout);
  files_ = std::make_unique<DiskFiles>(std::move(layout_.paths), layout_.keep_open, options);
  TIDEPOOL_ASSIGN_OR_RETURN(ahead_, ReadAhead::Create(files_.get(), [this](int64_t group) { return GroupExtent(group); }));
  return {};
}

Status ExtentSource::CheckIndex(int64_t record) const {
  if (record < 0 || record >= size()) return OutOfRange("sample {}; the data set has {}", record, size());
  return {};
}

StatusOr<int64_t> ExtentSource::SizeBytes(int64_t record) const {
  TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
  if (place(record).length >= 0) return place(record).length;
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t size, files_->SizeOf(place(record).file));
  return std::max<int64_t>(0, size - place(record).offset);
}

std::string ExtentSource::Describe(int64_t record) const {
  if (!CheckIndex(record).ok()) return fmt::format("record {} of {}", record, size());
  const RecordPlace& at = place(record);
  return files_->Where({.file = at.file, .offset = at.offset, .length = at.length});
}

int64_t ExtentSource::GroupIndex(int64_t record) const {
  if (layout_.groups.empty()) return record;
  return std::upper_bound(layout_.groups.begin(), layout_.groups.end(), record) - layout_.groups.begin() - 1;
}

RecordRange ExtentSource::Group(int64_t record) const {
  if (layout_.groups.empty() || !CheckIndex(record).ok()) return {record, record + 1};
  const int64_t group = GroupIndex(record);
  return {layout_.groups[group], layout_.groups[group + 1]};
}

Extent ExtentSource::GroupExtent(int64_t group) const {
  const RecordPlace& first = place(layout_.groups.empty() ? group : layout_.groups[group]);
  const RecordPlace& last = place(layout_.groups.empty() ? group : layout_.groups[group + 1] - 1);
  return {.file = first.file, .offset = first.offset, .length = last.length < 0 ? -1 : last.offset + last.length - first.offset};
}

StatusOr<RecordView> ExtentSource::Part(int64_t record, const RecordView& group, int64_t group_offset) const {
  const RecordPlace& at = place(record);
  const std::span<const std::byte> bytes =
      at.length < 0 ? group.bytes() : group.bytes().subspan(at.offset - group_offset, static_cast<size_t>(at.length));
  if (const Status verified = Verify(record, bytes); !verified.ok()) return Annotate(verified, Describe(record));
  return RecordView(bytes, group.owner(), group.held_bytes());
}

StatusOr<RecordView> ExtentSource::Read(int64_t record) const {
  TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
  const int64_t group = GroupIndex(record);
  TIDEPOOL_ASSIGN_OR_RETURN(const std::optional<RecordView> ahead, ahead_->Take(group));
  if (ahead.has_value()) return Part(record, *ahead, GroupExtent(group).offset);
  const RecordPlace& at = place(record);
  TIDEPOOL_ASSIGN_OR_RETURN(const RecordView view, files_->Read({.file = at.file, .offset = at.offset, .length = at.length}));
  return Part(record, view, at.offset);
}

Status ExtentSource::ReadGroup(int64_t record, std::vector<RecordView>* views) const {
  TIDEPOOL_RETURN_IF_ERROR(CheckIndex(record));
  const int64_t group = GroupIndex(record);
  const RecordRange range = Group(record);
  const Extent extent = GroupExtent(group);
  TIDEPOOL_ASSIGN_OR_RETURN(std::optional<RecordView> bytes, ahead_->Take(group));
  if (!bytes.has_value()) {
    TIDEPOOL_ASSIGN_OR_RETURN(bytes, files_->Read(extent));
  }
  views->clear();
  for (int64_t i = range.begin; i < range.end; ++i) {
    StatusOr<RecordView> part = Part(i, *bytes, extent.offset);
    if (!part.ok() && range.size() == 1) return part.status();
    views->push_back(part.ok() ? *std::move(part) : RecordView());
  }
  return {};
}

void ExtentSource::WillNeed(int64_t record) const {
  if (CheckIndex(record).ok()) ahead_->WillNeed(GroupIndex(record));
}

void ExtentSource::WontNeed(int64_t record) const {
  if (CheckIndex(record).ok()) ahead_->WontNeed(GroupIndex(record));
}

SourceStats ExtentSource::stats() const {
  return {
      .ahead = ahead_->stats(), .reads = files_->reads(), .read_bytes = files_->read_bytes(), .direct = files_->wants_direct()};
}

std::vector<int64_t> MakeGroups(std::span<const RecordPlace> records, int64_t group_bytes) {
  std::vector<int64_t> groups;
  if (group_bytes <= 0 || records.empty()) return groups;
  for (int64_t i = 0; i < static_cast<int64_t>(records.size()); ++i) {
    const bool fits = !groups.empty() && records[i].file == records[groups.back()].file && records[i].length >= 0 &&
                      records[i].offset + records[i].length - records[groups.back()].offset <= group_bytes;
    if (!fits) groups.push_back(i);
  }
  groups.push_back(static_cast<int64_t>(records.size()));
  return groups;
}

Fingerprint::Fingerprint() : state_(XXH3_createState()) { XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_)); }
Fingerprint::~Fingerprint() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }
void Fingerprint::Add(std::string_view text) {
  Add(static_cast<int64_t>(text.size()));
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), text.data(), text.size());
}
void Fingerprint::Add(int64_t number) {
  unsigned char bytes[8];  // little-endian on every machine
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(static_cast<uint64_t>(number) >> (8 * i));
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), bytes, sizeof(bytes));
}
uint64_t Fingerprint::value() const { return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_)); }

}  // namespace tidepool::data
