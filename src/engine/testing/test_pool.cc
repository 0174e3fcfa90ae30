#include "engine/testing/test_pool.h"

#include "base/clock.h"
#include "base/units.h"
#include "pool/broker.h"

namespace tidepool::engine {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(10);

template <typename T>
T Take(StatusOr<T> value) {
  TIDEPOOL_CHECK(value.ok(), "{}", ToString(value.status()));
  return std::move(value).value();
}

// An arena that closes its lease when it goes.
class LeasedArena final : public pool::Arena {
 public:
  LeasedArena(pool::Client* client, pool::LeaseId lease)
      : client_(client), lease_(lease), arena_(pool::Arena::Create(client, lease, {})) {}
  ~LeasedArena() override {
    arena_.reset();
    const Status closed = client_->CloseLease(lease_);
    TIDEPOOL_CHECK(closed.ok(), "{}", ToString(closed));
  }
  StatusOr<void*> Allocate(int64_t size_bytes) override { return arena_->Allocate(size_bytes); }
  void Free(void* block) override { arena_->Free(block); }
  StatusOr<int64_t> ReturnCached(int64_t keep_pages) override { return arena_->ReturnCached(keep_pages); }
  pool::LeaseId lease() const override { return lease_; }
  pool::ArenaStats stats() const override { return arena_->stats(); }
  void ResetPeak() override { arena_->ResetPeak(); }

 private:
  pool::Client* const client_;
  const pool::LeaseId lease_;
  std::unique_ptr<pool::Arena> arena_;
};

class RealPool final : public TestPool {
 public:
  RealPool(int64_t capacity_bytes, int64_t page_bytes) : page_bytes_(page_bytes) {
    device_ = Take(device::OpenDevice({.capacity_bytes = capacity_bytes, .page_bytes = page_bytes}));
    broker_ = Take(pool::Broker::Start(device_.get(), {}));
    pool::ClientOptions options{.name = "engine_test"};
    options.connected_socket = Take(broker_->Connect());
    client_ = Take(pool::Client::Attach(std::move(options)));
  }

  std::unique_ptr<pool::Arena> MakeArena(int64_t burst_bytes) override {
    const pool::LeaseOptions options{.name = fmt::format("test:{}", ++leases_), .burst_pages = CeilDiv(burst_bytes, page_bytes_)};
    const auto lease = Take(client_->OpenLease(options, Clock::Real()->Now() + kPatience));
    return std::make_unique<LeasedArena>(client_.get(), lease);
  }

 private:
  const int64_t page_bytes_;
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<pool::Broker> broker_;
  std::unique_ptr<pool::Client> client_;
  int leases_ = 0;
};

}  // namespace

std::unique_ptr<TestPool> TestPool::Make(int64_t capacity_bytes, int64_t page_bytes) {
  return std::make_unique<RealPool>(capacity_bytes, page_bytes);
}

}  // namespace tidepool::engine
