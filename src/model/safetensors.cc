#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <set>

#include "base/json.h"
#include "base/text.h"

namespace tidepool::model {
namespace {

constexpr int64_t kDataAlignmentBytes = 64;

// Reads exactly target.size() bytes at `offset_bytes`.
Status ReadAt(int fd, const std::string& path, int64_t offset_bytes, std::span<std::byte> target) {
  size_t done = 0;
  while (done < target.size()) {
    const ssize_t got = ::pread(fd, target.data() + done, target.size() - done, offset_bytes + static_cast<int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return ErrnoError(errno, fmt::format("reading '{}' at byte {}", path, offset_bytes + static_cast<int64_t>(done)));
    if (got == 0) {
      return DataLoss("'{}' ends at byte {} where {} more were expected; it was changed while it was open", path,
                      offset_bytes + static_cast<int64_t>(done), target.size() - done);
    }
    done += static_cast<size_t>(got);
  }
  return {};
}

StatusOr<int64_t> SizeOfPlan(const TensorPlan& plan) {
  int64_t size = SizeOf(plan.dtype);
  if (size == 0) return InvalidArgument("tensor '{}' has a type that safetensors does not have", plan.name);
  for (const int64_t dim : plan.shape) {
    if (dim < 0 || __builtin_mul_overflow(size, dim, &size)) {
      return InvalidArgument("tensor '{}' has the dimension {}; allowed: 0 or more, and fewer than 2^63 bytes in all", plan.name,
                             dim);
    }
  }
  return size;
}

// The header with its length and padding; the size of the data goes to `data_bytes`.
StatusOr<std::string> HeaderText(std::span<const TensorPlan> tensors, const std::map<std::string, std::string>& metadata,
                                 int64_t* data_bytes) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  // An ordered object searches its keys one by one, so the entries are written one by one instead.
  std::string text = json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.pop_back();
  std::set<std::string> names;
  *data_bytes = 0;
  for (const TensorPlan& plan : tensors) {
    if (plan.name == "__metadata__") return InvalidArgument("a tensor cannot be called '__metadata__'");
    const std::string quoted = JsonQuoted(plan.name);
    if (!names.insert(quoted).second) return InvalidArgument("two tensors are called '{}'", plan.name);
    if (plan.shape.size() > kMaxSafetensorsRank) {
      return InvalidArgument("tensor '{}' has {} dimensions; allowed: {}", plan.name, plan.shape.size(), kMaxSafetensorsRank);
    }
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t size, SizeOfPlan(plan));
    int64_t end = 0;
    if (__builtin_add_overflow(*data_bytes, size, &end)) return InvalidArgument("the tensors have more than 2^63 bytes in all");
    nlohmann::ordered_json entry{{"dtype", SafetensorsName(plan.dtype)}, {"shape", plan.shape}};
    entry["data_offsets"] = {*data_bytes, end};
    *data_bytes = end;
    if (text.size() > 1) text += ',';
    text += quoted + ':' + entry.dump();
  }
  text += '}';
  while ((text.size() + 8) % kDataAlignmentBytes != 0) text += ' ';
  if (static_cast<int64_t>(text.size()) > kMaxSafetensorsHeaderBytes) {
    return InvalidArgument("the header would have {} bytes; allowed: {}", text.size(), kMaxSafetensorsHeaderBytes);
  }
  std::string length;
  for (int i = 0; i < 8; ++i) length += static_cast<char>(text.size() >> (8 * i) & 0xff);
  return length + text;
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::string path, UniqueFd fd, SafetensorsHeader header)
    : path_(std::move(path)), fd_(std::move(fd)), header_(std::move(header)) {
  for (size_t i = 0; i < header_.tensors.size(); ++i) by_name_[header_.tensors[i].name] = i;
}

StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  // Non-blocking, so that a pipe in the place of a file is refused instead of waited for.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}'", path));
  struct stat facts {};
  if (::fstat(fd.get(), &facts) != 0) return ErrnoError(errno, fmt::format("looking at '{}'", path));
  if (!S_ISREG(facts.st_mode)) return InvalidArgument("'{}' is not a regular file", path);
  const int64_t file_bytes = facts.st_size;
  std::vector<std::byte> prefix(static_cast<size_t>(std::min<int64_t>(file_bytes, 8)));
  TIDEPOOL_RETURN_IF_ERROR(ReadAt(fd.get(), path, 0, prefix));
  if (prefix.size() == 8) {
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | std::to_integer<uint64_t>(prefix[i]);
    // A length out of bounds is left to the parser, which names it.
    if (length <= static_cast<uint64_t>(std::min(file_bytes - 8, kMaxSafetensorsHeaderBytes))) {
      prefix.resize(8 + length);
      TIDEPOOL_RETURN_IF_ERROR(ReadAt(fd.get(), path, 8, std::span(prefix).subspan(8)));
    }
  }
  StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(prefix, file_bytes);
  if (!header.ok()) return Annotate(header.status(), fmt::format("'{}'", path));
  return std::unique_ptr<SafetensorsFile>(new SafetensorsFile(path, std::move(fd), *std::move(header)));
}

Status SafetensorsFile::Read(const TensorEntry& tensor, std::span<std::byte> target) const {
  if (static_cast<int64_t>(target.size()) != tensor.size_bytes) {
    return InvalidArgument("tensor '{}' has {} bytes but the target has {}", tensor.name, tensor.size_bytes, target.size());
  }
  return ReadAt(fd_.get(), path_, tensor.offset_bytes, target);
}

Status SafetensorsFile::ReadPart(const TensorEntry& tensor, int64_t begin_bytes, std::span<std::byte> target) const {
  const int64_t size = static_cast<int64_t>(target.size());
  if (begin_bytes < 0 || begin_bytes > tensor.size_bytes || size > tensor.size_bytes - begin_bytes) {
    return OutOfRange("{} bytes from byte {} of tensor '{}' were asked for; it has {}", size, begin_bytes, tensor.name,
                      tensor.size_bytes);
  }
  return ReadAt(fd_.get(), path_, tensor.offset_bytes + begin_bytes, target);
}

StatusOr<const TensorEntry*> SafetensorsFile::Find(const std::string& name) const {
  const auto found = by_name_.find(name);
  if (found != by_name_.end()) return &header_.tensors[found->second];
  std::vector<std::string> names;
  for (const TensorEntry& tensor : header_.tensors) {
    if (tensor.name.size() <= 256 && names.size() < 10'000) names.push_back(tensor.name);
  }
  const std::string nearest = NearestName(name, names);
  return NotFound("'{}' has no tensor '{}'{}", path_, name, nearest.empty() ? "" : fmt::format("; the nearest is '{}'", nearest));
}

StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(const std::string& path,
                                                                       std::span<const TensorPlan> tensors,
                                                                       const std::map<std::string, std::string>& metadata) {
  static std::atomic<uint64_t> counter{0};
  int64_t data_bytes = 0;
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string header, HeaderText(tensors, metadata, &data_bytes));
  std::string temporary = fmt::format("{}.tmp.{}.{}", path, ::getpid(), counter.fetch_add(1));
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("creating '{}'", temporary));
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter(path, std::move(temporary), std::move(fd), data_bytes));
  TIDEPOOL_RETURN_IF_ERROR(writer->Write(std::as_bytes(std::span(header))));
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_.valid()) ::unlink(temporary_.c_str());
}

Status SafetensorsWriter::Write(std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t put = ::write(fd_.get(), data.data(), data.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return ErrnoError(errno, fmt::format("writing '{}'", temporary_));
    data = data.subspan(static_cast<size_t>(put));
  }
  return {};
}

Status SafetensorsWriter::Append(std::span<const std::byte> data) {
  if (static_cast<int64_t>(data.size()) > left_bytes_) {
    return InvalidArgument("'{}' has room for {} more bytes but {} came", path_, left_bytes_, data.size());
  }
  TIDEPOOL_RETURN_IF_ERROR(Write(data));
  left_bytes_ -= static_cast<int64_t>(data.size());
  return {};
}

Status SafetensorsWriter::Finish() {
  if (left_bytes_ != 0) return FailedPrecondition("'{}' lacks {} bytes of its tensors", path_, left_bytes_);
  if (::fsync(fd_.get()) != 0) return ErrnoError(errno, fmt::format("flushing '{}'", temporary_));
  if (::rename(temporary_.c_str(), path_.c_str()) != 0)
    return ErrnoError(errno, fmt::format("renaming '{}' to '{}'", temporary_, path_));
  fd_.reset();
  return {};
}

Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                        const std::map<std::string, std::string>& metadata) {
  std::vector<TensorPlan> plans;
  for (const TensorToWrite& tensor : tensors) {
    plans.push_back({tensor.name, tensor.dtype, tensor.shape});
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t size, SizeOfPlan(plans.back()));
    if (size != static_cast<int64_t>(tensor.data.size())) {
      return InvalidArgument("tensor '{}' has {} bytes by its shape and type but {} were given", tensor.name, size,
                             tensor.data.size());
    }
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer, SafetensorsWriter::Create(path, plans, metadata));
  for (const TensorToWrite& tensor : tensors) TIDEPOOL_RETURN_IF_ERROR(writer->Append(tensor.data));
  return writer->Finish();
}

}  // namespace tidepool::model
