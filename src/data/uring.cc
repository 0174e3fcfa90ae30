#include "data/uring.h"

#include <fcntl.h>
#include <liburing.h>

#include <cerrno>

namespace tidepool::data {
namespace {

class KernelRing : public Ring {
 public:
  KernelRing() = default;
  ~KernelRing() override {
    if (made_) io_uring_queue_exit(&ring_);
  }

  Status Init(int entries) {
    io_uring_params params = {};
    if (const int error = io_uring_queue_init_params(static_cast<unsigned>(entries), &ring_, &params); error < 0) {
      return ErrnoError(-error, "making an io_uring");
    }
    made_ = true;
    // Without it waiting with a time limit would touch the submission queue, which another thread may be filling.
    if ((params.features & IORING_FEAT_EXT_ARG) == 0) return Unavailable("this kernel's io_uring cannot wait with a time limit");
    return {};
  }

  bool PushOpen(const char* path, int flags, uint64_t tag) override {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return false;
    io_uring_prep_openat(sqe, AT_FDCWD, path, flags, 0);
    io_uring_sqe_set_data64(sqe, tag);
    return true;
  }

  bool PushRead(int fd, void* buffer, uint32_t length, int64_t offset, uint64_t tag) override {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return false;
    io_uring_prep_read(sqe, fd, buffer, length, static_cast<uint64_t>(offset));
    io_uring_sqe_set_data64(sqe, tag);
    return true;
  }

  Status Submit() override {
    int submitted = io_uring_submit(&ring_);
    while (submitted == -EINTR) submitted = io_uring_submit(&ring_);
    // Busy: the operations stay queued and go with the next Submit.
    if (submitted < 0 && submitted != -EAGAIN && submitted != -EBUSY) return ErrnoError(-submitted, "submitting to an io_uring");
    return {};
  }

  StatusOr<size_t> Wait(absl::Duration timeout, std::span<Completion> completions) override {
    io_uring_cqe* first = nullptr;
    int error = 0;
    if (timeout <= absl::ZeroDuration()) {
      error = io_uring_peek_cqe(&ring_, &first);
    } else {
      __kernel_timespec limit = {.tv_sec = absl::ToInt64Seconds(timeout),
                                 .tv_nsec = absl::ToInt64Nanoseconds(timeout - absl::Seconds(absl::ToInt64Seconds(timeout)))};
      error = io_uring_wait_cqe_timeout(&ring_, &first, &limit);
    }
    if (error == -ETIME || error == -EAGAIN || error == -EINTR) return 0;
    if (error < 0) return ErrnoError(-error, "waiting for an io_uring");
    size_t count = 0;
    unsigned head = 0;
    io_uring_cqe* cqe = nullptr;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      if (count == completions.size()) break;
      completions[count++] = {.tag = io_uring_cqe_get_data64(cqe), .result = cqe->res};
    }
    io_uring_cq_advance(&ring_, static_cast<unsigned>(count));
    return count;
  }

 private:
  io_uring ring_ = {};
  bool made_ = false;
};

}  // namespace

StatusOr<std::unique_ptr<Ring>> Ring::Create(int entries) {
  auto ring = std::make_unique<KernelRing>();
  TIDEPOOL_RETURN_IF_ERROR(ring->Init(entries));
  return ring;
}

}  // namespace tidepool::data
