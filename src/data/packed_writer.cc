#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "data/jpeg.h"
#include "data/order.h"
#include "data/packed.h"

namespace tidepool::data {
namespace {

class Encoder {
 public:
  explicit Encoder(std::vector<std::byte>* out) : out_(out) {}
  template <typename T>
  void Put(T value) {
    for (size_t i = 0; i < sizeof(T); ++i) out_->push_back(static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i)));
  }
  void PutText(std::string_view text) {
    const auto bytes = std::as_bytes(std::span(text));
    out_->insert(out_->end(), bytes.begin(), bytes.end());
  }

 private:
  std::vector<std::byte>* out_;
};

std::string ShardName(const PackJob& job, int shard) {
  if (job.shard_bytes <= 0) return job.output;
  const std::string stem = job.output.ends_with(".tpk") ? job.output.substr(0, job.output.size() - 4) : job.output;
  return fmt::format("{}-{:05}.tpk", stem, shard);
}

// A record's place without the folders above its own: "class/picture.jpg", "shards/x-000001.tar at byte 512".
std::string ShortName(const std::string& place) {
  const size_t last = place.rfind('/');
  const size_t before = last == std::string::npos || last == 0 ? std::string::npos : place.rfind('/', last - 1);
  return before == std::string::npos ? place : place.substr(before + 1);
}

}  // namespace

Status PackOptions::Validate() const {
  if (group_bytes < 1 || group_bytes > 256 * kMiB) {
    return InvalidArgument("groups of {} bytes; allowed: 1 to {}", group_bytes, 256 * kMiB);
  }
  if (classes < 1 || classes > INT32_MAX) return InvalidArgument("{} classes; allowed: 1 to {}", classes, INT32_MAX);
  if (!class_names.empty() && static_cast<int64_t>(class_names.size()) != classes) {
    return InvalidArgument("{} names for {} classes", class_names.size(), classes);
  }
  return {};
}

StatusOr<std::unique_ptr<PackWriter>> PackWriter::Create(const std::string& path, PackOptions options) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  std::string temporary = fmt::format("{}.tmp.{}", path, ::getpid());
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("creating '{}'", temporary));
  return std::unique_ptr<PackWriter>(new PackWriter(path, std::move(temporary), std::move(fd), std::move(options)));
}

PackWriter::~PackWriter() {
  if (!finished_) ::unlink(temporary_.c_str());
}

Status PackWriter::Write(int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd_.get(), bytes.data(), bytes.size(), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return ErrnoError(errno, fmt::format("writing '{}' at byte {}", temporary_, offset));
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += put;
  }
  return {};
}

Status PackWriter::FlushGroup() {
  if (group_.empty()) return {};
  TIDEPOOL_RETURN_IF_ERROR(Write(offset_, group_));
  offset_ = RoundUp(offset_ + static_cast<int64_t>(group_.size()), kPackHeaderBytes);
  group_.clear();
  return {};
}

Status PackWriter::Add(std::span<const std::byte> picture, int64_t label, std::string_view name) {
  if (label < 0 || label >= options_.classes) return InvalidArgument("label {}; allowed: 0 to {}", label, options_.classes - 1);
  if (picture.empty() || picture.size() > size_t{UINT32_MAX}) {
    return InvalidArgument("a record of {} bytes; allowed: 1 to {}", picture.size(), UINT32_MAX);
  }
  if (names_.size() + name.size() > size_t{UINT32_MAX}) return ResourceExhausted("the names of the records take more than 4 GiB");
  const auto begin = static_cast<size_t>(RoundUp(static_cast<int64_t>(group_.size()), kPackRecordAlignment));
  if (!group_.empty() && static_cast<int64_t>(begin + picture.size()) > options_.group_bytes)
    TIDEPOOL_RETURN_IF_ERROR(FlushGroup());
  if (group_.empty()) groups_.push_back({.first_record = records(), .offset = offset_});
  const auto at = static_cast<size_t>(RoundUp(static_cast<int64_t>(group_.size()), kPackRecordAlignment));
  group_.resize(at);
  group_.insert(group_.end(), picture.begin(), picture.end());
  names_ += name;
  records_.push_back({.offset = offset_ + static_cast<int64_t>(at),
                      .length = static_cast<int64_t>(picture.size()),
                      .label = static_cast<int32_t>(label),
                      .checksum = XXH3_64bits(picture.data(), picture.size()),
                      .name_end = static_cast<uint32_t>(names_.size())});
  return {};
}

std::vector<std::byte> PackWriter::EncodeIndex() const {
  std::vector<std::byte> index;
  Encoder encoder(&index);
  for (const Group& group : groups_) {
    encoder.Put(static_cast<uint64_t>(group.first_record));
    encoder.Put(static_cast<uint64_t>(group.offset));
  }
  for (const Record& record : records_) {
    encoder.Put(static_cast<uint64_t>(record.offset));
    encoder.Put(static_cast<uint32_t>(record.length));
    encoder.Put(static_cast<uint32_t>(record.label));
    encoder.Put(record.checksum);
    encoder.Put(record.name_end);
    encoder.Put(uint32_t{0});
  }
  encoder.PutText(names_);
  uint32_t class_end = 0;
  for (const std::string& name : options_.class_names) encoder.Put(class_end += static_cast<uint32_t>(name.size()));
  for (const std::string& name : options_.class_names) encoder.PutText(name);
  return index;
}

Status PackWriter::Finish() {
  if (finished_) return FailedPrecondition("'{}' is finished already", path_);
  if (records_.empty()) return FailedPrecondition("'{}' would hold no record", path_);
  TIDEPOOL_RETURN_IF_ERROR(FlushGroup());
  const std::vector<std::byte> index = EncodeIndex();
  TIDEPOOL_RETURN_IF_ERROR(Write(offset_, index));
  std::vector<std::byte> header;
  Encoder encoder(&header);
  encoder.PutText(kPackMagic);
  encoder.Put(kPackVersion);
  encoder.Put(static_cast<uint32_t>(kPackHeaderBytes));
  encoder.Put(static_cast<uint64_t>(records()));
  encoder.Put(static_cast<uint64_t>(groups()));
  encoder.Put(static_cast<uint64_t>(options_.classes));
  encoder.Put(static_cast<uint64_t>(options_.class_names.size()));
  encoder.Put(static_cast<uint64_t>(names_.size()));
  encoder.Put(static_cast<uint64_t>(offset_));
  encoder.Put(static_cast<uint64_t>(index.size()));
  encoder.Put(static_cast<uint64_t>(XXH3_64bits(index.data(), index.size())));
  header.resize(kPackHeaderBytes - 8);
  encoder.Put(static_cast<uint64_t>(XXH3_64bits(header.data(), header.size())));
  TIDEPOOL_RETURN_IF_ERROR(Write(0, header));
  if (::fsync(fd_.get()) != 0) return ErrnoError(errno, fmt::format("flushing '{}'", temporary_));
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return ErrnoError(errno, fmt::format("renaming '{}' to '{}'", temporary_, path_));
  }
  finished_ = true;
  // The new name is on the disk too once its folder is.
  const std::string folder = std::filesystem::path(path_).parent_path().string();
  const UniqueFd parent(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (parent.valid() && ::fsync(parent.get()) != 0) return ErrnoError(errno, fmt::format("flushing the folder '{}'", folder));
  return {};
}

StatusOr<PackSummary> PackRecords(const RecordSource& source, const std::vector<std::string>& class_names, const PackJob& job) {
  if (job.shard_bytes < 0) return InvalidArgument("files of {} bytes; allowed: 0 (one file) and above", job.shard_bytes);
  const PackOptions options{.group_bytes = job.group_bytes, .classes = source.classes(), .class_names = class_names};
  PackSummary summary;
  std::unique_ptr<PackWriter> writer;
  const auto finish = [&]() -> Status {
    if (writer == nullptr) return {};
    TIDEPOOL_RETURN_IF_ERROR(writer->Finish());
    summary.groups += writer->groups();
    std::error_code error;
    summary.bytes += static_cast<int64_t>(std::filesystem::file_size(summary.files.back(), error));
    writer.reset();
    return {};
  };
  const std::vector<int64_t> order = job.shuffle ? EpochOrder(source.size(), job.seed, 0) : std::vector<int64_t>();
  constexpr int64_t kAhead = 64;
  const auto record_at = [&](int64_t i) { return job.shuffle ? order[i] : i; };
  for (int64_t i = 0; i < std::min(kAhead, source.size()); ++i) source.WillNeed(record_at(i));
  for (int64_t i = 0; i < source.size(); ++i) {
    if (job.progress && !job.progress(i, source.size()))
      return Cancelled("packing was stopped after {} of {} records", i, source.size());
    if (i + kAhead < source.size()) source.WillNeed(record_at(i + kAhead));
    const int64_t record = record_at(i);
    const auto add = [&]() -> Status {
      TIDEPOOL_ASSIGN_OR_RETURN(const RecordView view, source.Read(record));
      TIDEPOOL_ASSIGN_OR_RETURN(const LabelledPicture sample, source.Parse(record, view.bytes()));
      if (const StatusOr<JpegInfo> info = ReadJpegInfo(sample.picture); !info.ok())
        return Annotate(info.status(), source.Describe(record));
      const auto size = static_cast<int64_t>(sample.picture.size());
      if (writer != nullptr && job.shard_bytes > 0 && writer->file_bytes() + size > job.shard_bytes)
        TIDEPOOL_RETURN_IF_ERROR(finish());
      if (writer == nullptr) {
        summary.files.push_back(ShardName(job, static_cast<int>(summary.files.size())));
        TIDEPOOL_ASSIGN_OR_RETURN(writer, PackWriter::Create(summary.files.back(), options));
      }
      return writer->Add(sample.picture, sample.label, ShortName(source.Describe(record)));
    };
    const Status added = add();
    if (added.ok()) {
      ++summary.records;
    } else if (job.skip_broken && (added.code() == StatusCode::kDataLoss || added.code() == StatusCode::kInvalidArgument ||
                                   added.code() == StatusCode::kNotFound)) {
      if (summary.skipped++ == 0) summary.first_skipped = MessageOf(added);
    } else {
      return added;
    }
  }
  if (writer == nullptr) return FailedPrecondition("none of {} records can be packed: {}", source.size(), summary.first_skipped);
  TIDEPOOL_RETURN_IF_ERROR(finish());
  return summary;
}

}  // namespace tidepool::data
