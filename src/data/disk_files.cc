#include "data/disk_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

namespace tidepool::data {

Status DiskOptions::Validate() const {
  std::vector<std::string> faults;
  if (depth < 1 || depth > 1024) faults.push_back(fmt::format("{} disk reads at once; allowed: 1 to 1024", depth));
  if (read_ahead_bytes < 0) faults.push_back(fmt::format("{} bytes to read ahead; allowed: 0 and above", read_ahead_bytes));
  if (max_record_bytes < 1 || max_record_bytes > kGiB) {
    faults.push_back(fmt::format("records of up to {} bytes; allowed: 1 to {}", max_record_bytes, kGiB));
  }
  if (timeout <= absl::ZeroDuration()) faults.push_back("a time limit for disk reads of 0; allowed: above 0");
  if (!faults.empty()) return InvalidArgument("{}", fmt::join(faults, "; "));
  return {};
}

void PathTable::Add(std::string_view name) {
  names_ += name;
  ends_.push_back(static_cast<int64_t>(names_.size()));
}

std::string_view PathTable::name(int64_t index) const {
  const int64_t begin = index == 0 ? 0 : ends_[index - 1];
  return std::string_view(names_).substr(begin, ends_[index] - begin);
}

std::string PathTable::path(int64_t index) const {
  if (root_.empty()) return std::string(name(index));
  std::string path = root_;
  if (!path.ends_with('/')) path += '/';
  return path += name(index);
}

ReadPlan PlanRead(int64_t offset, int64_t length, bool direct) {
  if (!direct) return {.start = offset, .size = length, .skip = 0, .needed = length};
  const int64_t start = offset / kDiskAlignment * kDiskAlignment;
  const int64_t skip = offset - start;
  return {.start = start, .size = RoundUp(skip + length, kDiskAlignment), .skip = skip, .needed = skip + length};
}

DiskFiles::DiskFiles(PathTable paths, bool keep_open, const DiskOptions& options)
    : paths_(std::move(paths)), keep_open_(keep_open), options_(options), pool_(BufferPool::Create(options.read_ahead_bytes)) {
  if (keep_open_) {
    absl::MutexLock lock(&mu_);
    opened_.resize(paths_.size());
  }
}

int DiskFiles::OpenFlags(bool direct) const { return O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0); }

std::shared_ptr<OpenedFile> DiskFiles::Opened(int32_t file) const {
  if (!keep_open_) return nullptr;
  absl::MutexLock lock(&mu_);
  return opened_[file];
}

std::shared_ptr<OpenedFile> DiskFiles::Adopt(int32_t file, UniqueFd fd, bool direct) const {
  auto opened = std::make_shared<OpenedFile>();
  opened->fd = std::move(fd);
  opened->direct = direct;
  if (!keep_open_) return opened;
  absl::MutexLock lock(&mu_);
  if (opened_[file] == nullptr && opened_count_ < kMostOpen) {
    opened_[file] = opened;
    ++opened_count_;
  }
  return opened;
}

StatusOr<std::shared_ptr<OpenedFile>> DiskFiles::Open(int32_t file) const {
  if (auto opened = Opened(file)) return opened;
  const std::string name = path(file);
  bool direct = wants_direct();
  UniqueFd fd(::open(name.c_str(), OpenFlags(direct)));
  if (!fd.valid() && direct && errno == EINVAL) {
    direct_refused_ = true;
    direct = false;
    fd.reset(::open(name.c_str(), OpenFlags(false)));
  }
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}'", name));
  return Adopt(file, std::move(fd), direct);
}

void DiskFiles::RefuseDirect(OpenedFile* file) const {
  if (file == nullptr) {
    direct_refused_ = true;
    return;
  }
  const int flags = ::fcntl(file->fd.get(), F_GETFL);
  if (flags >= 0) ::fcntl(file->fd.get(), F_SETFL, flags & ~O_DIRECT);
  file->direct = false;
  direct_refused_ = true;
}

StatusOr<int64_t> DiskFiles::SizeOf(int32_t file) const {
  struct stat info;
  const std::string name = path(file);
  if (::stat(name.c_str(), &info) != 0) return ErrnoError(errno, fmt::format("reading the size of '{}'", name));
  return info.st_size;
}

std::string DiskFiles::Where(const Extent& extent) const {
  if (extent.offset == 0 && extent.length < 0) return path(extent.file);
  return fmt::format("{} at byte {}", path(extent.file), extent.offset);
}

void DiskFiles::CountRead(int64_t bytes) const {
  reads_.fetch_add(1, std::memory_order_relaxed);
  read_bytes_.fetch_add(bytes, std::memory_order_relaxed);
}

StatusOr<int64_t> DiskFiles::LengthOf(const Extent& extent, const OpenedFile& opened) const {
  int64_t length = extent.length;
  if (length < 0) {
    struct stat info;
    if (::fstat(opened.fd.get(), &info) != 0)
      return ErrnoError(errno, fmt::format("reading the size of '{}'", path(extent.file)));
    if (S_ISDIR(info.st_mode)) return InvalidArgument("'{}' is a folder; needed: a file", path(extent.file));
    length = std::max<int64_t>(0, info.st_size - extent.offset);
  }
  if (length > options_.max_record_bytes) {
    return OutOfRange("{}: {} bytes; allowed: up to {} in one read", Where(extent), length, options_.max_record_bytes);
  }
  return length;
}

Status DiskFiles::ReadRest(int32_t file, OpenedFile* opened, int64_t start, int64_t needed, int64_t capacity, int64_t got,
                           std::byte* buffer) const {
  while (got < needed) {
    // A direct read has to begin on a block again; a short one that ended within a block is repeated from the block's start.
    if (opened->direct) got = got / kDiskAlignment * kDiskAlignment;
    const ssize_t n = ::pread(opened->fd.get(), buffer + got, static_cast<size_t>(capacity - got), start + got);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EINVAL && opened->direct) {
      RefuseDirect(opened);
      continue;
    }
    if (n < 0) return ErrnoError(errno, fmt::format("reading '{}' at byte {}", path(file), start + got));
    if (n == 0 || (opened->direct && got + n < needed && (got + n) % kDiskAlignment != 0)) {
      struct stat info;
      const int64_t end = ::fstat(opened->fd.get(), &info) == 0 ? info.st_size : start + got + n;
      return DataLoss("{}: the file ends at byte {}, but what is read goes on to byte {}", path(file), end, start + needed);
    }
    got += n;
  }
  return {};
}

StatusOr<RecordView> DiskFiles::Read(const Extent& extent) const {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::shared_ptr<OpenedFile> opened, Open(extent.file));
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t length, LengthOf(extent, *opened));
  const ReadPlan plan = PlanRead(extent.offset, length, opened->direct);
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<std::byte> buffer, pool_->Get(plan.size));
  TIDEPOOL_RETURN_IF_ERROR(ReadRest(extent.file, opened.get(), plan.start, plan.needed, plan.size, 0, buffer.get()));
  CountRead(plan.needed);
  const std::span<const std::byte> bytes(buffer.get() + plan.skip, static_cast<size_t>(length));
  return RecordView(bytes, std::move(buffer), plan.size);
}

}  // namespace tidepool::data
