#include "device/host/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/units.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace tidepool::device {
namespace {

constexpr int64_t kSystemPage = 4096;
constexpr int64_t kHugePage = 2 * kMiB;

Status PopulateRange(std::byte* address, int64_t size_bytes) {
  if (::madvise(address, static_cast<size_t>(size_bytes), MADV_POPULATE_WRITE) == 0) return {};
  if (errno != EINVAL && errno != ENOSYS) {
    return ErrnoError(errno, fmt::format("making {} of device memory resident", FormatBytes(size_bytes)));
  }
  // Kernels before 5.14: a write that changes nothing brings each page in, also while another process uses it.
  for (int64_t offset = 0; offset < size_bytes; offset += kSystemPage) {
    __atomic_fetch_or(reinterpret_cast<unsigned char*>(address + offset), 0, __ATOMIC_RELAXED);
  }
  return {};
}

}  // namespace

StatusOr<std::unique_ptr<HostMemory>> HostMemory::Create(UniqueFd fd, int64_t page_bytes, int32_t page_count, Access access) {
  std::unique_ptr<HostMemory> memory(new HostMemory(std::move(fd), page_bytes, page_count, access));
  TIDEPOOL_RETURN_IF_ERROR(memory->MapWhole());
  return memory;
}

Status HostMemory::MapWhole() {
  // The base is aligned to the largest page the kernel may use, which needs some address space to choose from.
  const int64_t alignment = std::max(kHugePage, std::min(page_bytes_, kGiB));
  const size_t reserved = static_cast<size_t>(size_bytes() + alignment);
  void* reservation = ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reservation == MAP_FAILED)
    return ErrnoError(errno, fmt::format("reserving {} of address space", FormatBytes(size_bytes())));
  const size_t before = (-reinterpret_cast<uintptr_t>(reservation)) & (static_cast<uintptr_t>(alignment) - 1);
  std::byte* const aligned = static_cast<std::byte*>(reservation) + before;
  const int protection = access_ == Access::kOwned ? PROT_NONE : PROT_READ | PROT_WRITE;
  void* mapped = ::mmap(aligned, static_cast<size_t>(size_bytes()), protection, MAP_SHARED | MAP_FIXED, fd_.get(), 0);
  const int map_errno = errno;
  const size_t after = reserved - before - static_cast<size_t>(size_bytes());
  if (mapped == MAP_FAILED) {
    ::munmap(reservation, reserved);
    return ErrnoError(map_errno, fmt::format("mapping {} of device memory", FormatBytes(size_bytes())));
  }
  if (before > 0) ::munmap(reservation, before);
  if (after > 0) ::munmap(aligned + size_bytes(), after);
  base_ = static_cast<std::byte*>(mapped);
  // A forked child owns no pages. Large pages are a wish: where the kernel does not allow them the call fails without harm.
  (void)::madvise(base_, static_cast<size_t>(size_bytes()), MADV_DONTFORK);
  (void)::madvise(base_, static_cast<size_t>(size_bytes()), MADV_HUGEPAGE);
  return access_ == Access::kAll ? Populate(base_, size_bytes()) : Status();
}

HostMemory::~HostMemory() {
  if (base_ != nullptr) ::munmap(base_, static_cast<size_t>(size_bytes()));
}

Status HostMemory::Populate(std::byte* address, int64_t size_bytes) {
  constexpr int64_t kPerThread = 64 * kMiB;
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const int64_t threads = std::min({cores, int64_t{8}, CeilDiv(size_bytes, kPerThread)});
  if (threads <= 1) return PopulateRange(address, size_bytes);
  const int64_t share = RoundUp(CeilDiv(size_bytes, threads), kHugePage);
  std::vector<Status> results(static_cast<size_t>(threads));
  std::vector<std::thread> workers;
  for (int64_t i = 0; i < threads; ++i) {
    const int64_t begin = std::min(size_bytes, i * share);
    const int64_t end = std::min(size_bytes, begin + share);
    if (begin == end) continue;
    workers.emplace_back(
        [&results, i, address, begin, end] { results[static_cast<size_t>(i)] = PopulateRange(address + begin, end - begin); });
  }
  for (std::thread& worker : workers) worker.join();
  for (const Status& result : results) TIDEPOOL_RETURN_IF_ERROR(result);
  return {};
}

Status HostMemory::CheckExtent(Extent extent) const {
  if (extent.first >= 0 && extent.count > 0 && extent.first <= page_count_ - extent.count) return {};
  return InvalidArgument("pages {} to {} are not a part of the device; allowed: pages 0 to {}", extent.first,
                         int64_t{extent.first} + extent.count - 1, page_count_ - 1);
}

Status HostMemory::Protect(Extent extent, int protection) {
  std::byte* address = base_ + extent.first * page_bytes_;
  if (::mprotect(address, static_cast<size_t>(extent.count * page_bytes_), protection) != 0) {
    return ErrnoError(errno, fmt::format("changing the protection of pages {} to {}", extent.first, extent.end() - 1));
  }
  return {};
}

Status HostMemory::Map(Extent extent) {
  TIDEPOOL_RETURN_IF_ERROR(CheckExtent(extent));
  if (access_ != Access::kOwned) return {};
  TIDEPOOL_RETURN_IF_ERROR(Protect(extent, PROT_READ | PROT_WRITE));
  return PopulateRange(base_ + extent.first * page_bytes_, extent.count * page_bytes_);
}

Status HostMemory::Unmap(Extent extent) {
  TIDEPOOL_RETURN_IF_ERROR(CheckExtent(extent));
  return access_ == Access::kOwned ? Protect(extent, PROT_NONE) : Status();
}

Status HostMemory::Zero(Extent extent) {
  TIDEPOOL_RETURN_IF_ERROR(CheckExtent(extent));
  if (access_ != Access::kOwned) {
    std::memset(base_ + extent.first * page_bytes_, 0, static_cast<size_t>(extent.count * page_bytes_));
    return {};
  }
  // Through the file, because this process may have no access to the pages.
  static const std::vector<char> zeros(256 * kKiB, 0);
  int64_t offset = extent.first * page_bytes_;
  const int64_t end = extent.end() * page_bytes_;
  while (offset < end) {
    const auto size = static_cast<size_t>(std::min<int64_t>(end - offset, static_cast<int64_t>(zeros.size())));
    const ssize_t put = ::pwrite(fd_.get(), zeros.data(), size, offset);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return ErrnoError(errno, fmt::format("clearing page {}", offset / page_bytes_));
    offset += put;
  }
  return {};
}

}  // namespace tidepool::device
