// The pages of the host device in one process: a shared mapping of its memfd.
#pragma once

#include "device/device.h"

namespace tidepool::device {

enum class Access : uint8_t {
  kAll,    // every page readable and writable, page tables filled
  kLazy,   // every page readable and writable, real memory when it is touched
  kOwned,  // nothing until Map
};

// Thread-safe: extents are independent of each other.
class HostMemory final : public PageMemory {
 public:
  static StatusOr<std::unique_ptr<HostMemory>> Create(UniqueFd fd, int64_t page_bytes, int32_t page_count, Access access);
  ~HostMemory() override;

  std::byte* base() const override { return base_; }
  int64_t page_bytes() const override { return page_bytes_; }
  int32_t page_count() const override { return page_count_; }
  Status Map(Extent extent) override;
  Status Unmap(Extent extent) override;
  Status Zero(Extent extent) override;
  int shared_fd() const override { return fd_.get(); }

 private:
  HostMemory(UniqueFd fd, int64_t page_bytes, int32_t page_count, Access access)
      : fd_(std::move(fd)), page_bytes_(page_bytes), page_count_(page_count), access_(access) {}
  Status MapWhole();
  // Fills the page tables of [address, address + size_bytes), making pages that do not exist yet.
  static Status Populate(std::byte* address, int64_t size_bytes);
  Status CheckExtent(Extent extent) const;
  Status Protect(Extent extent, int protection);
  int64_t size_bytes() const { return page_bytes_ * page_count_; }

  UniqueFd fd_;
  const int64_t page_bytes_;
  const int32_t page_count_;
  const Access access_;
  std::byte* base_ = nullptr;
};

}  // namespace tidepool::device
