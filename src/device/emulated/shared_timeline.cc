#include "device/emulated/shared_timeline.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

namespace tidepool::device::emulated {
namespace {

constexpr char kMagic[9] = "TPEMUTL1";

}  // namespace

StatusOr<std::unique_ptr<SharedTimeline>> SharedTimeline::Map(int fd, int64_t offset) {
  struct stat file {};
  if (::fstat(fd, &file) != 0) return ErrnoError(errno, "reading the size of an emulated device's memory");
  if (file.st_size < offset + kBytes) {
    return InvalidArgument("the memory of an emulated device has {} bytes; {} and a timeline of {} were announced", file.st_size,
                           offset, kBytes);
  }
  void* page = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
  if (page == MAP_FAILED) return ErrnoError(errno, "mapping the timeline of an emulated device");
  return std::unique_ptr<SharedTimeline>(new SharedTimeline(static_cast<Page*>(page)));
}

StatusOr<std::unique_ptr<SharedTimeline>> SharedTimeline::Create(int fd, int64_t offset, int64_t epoch_ns) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto timeline, Map(fd, offset));
  Page* page = new (timeline->page_) Page{};
  page->epoch_ns = epoch_ns;
  std::memcpy(page->magic, kMagic, sizeof(page->magic));
  return timeline;
}

StatusOr<std::unique_ptr<SharedTimeline>> SharedTimeline::Open(int fd, int64_t offset) {
  TIDEPOOL_ASSIGN_OR_RETURN(auto timeline, Map(fd, offset));
  if (std::memcmp(timeline->page_->magic, kMagic, sizeof(timeline->page_->magic)) != 0) {
    return InvalidArgument("the memory of the emulated device has no timeline of this version ({})", std::string(kMagic));
  }
  return timeline;
}

SharedTimeline::~SharedTimeline() { ::munmap(page_, kBytes); }

void SharedTimeline::NoteBehind(int64_t ns) {
  int64_t seen = page_->behind_max_ns.load(std::memory_order_relaxed);
  while (ns > seen && !page_->behind_max_ns.compare_exchange_weak(seen, ns, std::memory_order_relaxed)) {
  }
}

int64_t SharedTimeline::Reserve(int engine, int64_t ready_ns, int64_t duration_ns) {
  std::atomic<int64_t>& free_ns = page_->free_ns[engine];
  int64_t seen = free_ns.load(std::memory_order_relaxed);
  int64_t start;
  do {
    start = std::max(seen, ready_ns);
  } while (!free_ns.compare_exchange_weak(seen, start + duration_ns, std::memory_order_acq_rel));
  page_->busy_ns[engine].fetch_add(duration_ns, std::memory_order_relaxed);
  return start;
}

}  // namespace tidepool::device::emulated
