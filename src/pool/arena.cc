#include "pool/arena.h"

#include <algorithm>
#include <vector>

#include <absl/synchronization/mutex.h>

#include "base/log.h"
#include "base/units.h"
#include "pool/space.h"

namespace tidepool::pool {
namespace {

// Which arena owns which page of which mapping of device memory. Read at every free, written when pages come and go.
class OwnerTable {
 public:
  static OwnerTable& Instance() {
    static auto* table = new OwnerTable;
    return *table;
  }

  Arena* Owner(const void* address) {
    const auto* byte = static_cast<const std::byte*>(address);
    absl::ReaderMutexLock lock(&mu_);
    for (const Mapping& mapping : mappings_) {
      if (byte < mapping.base || byte >= mapping.end) continue;
      return mapping.owners[static_cast<size_t>((byte - mapping.base) / mapping.page_bytes)];
    }
    return nullptr;
  }

  void Enter(const device::PageMemory& memory) {
    absl::MutexLock lock(&mu_);
    for (Mapping& mapping : mappings_) {
      if (mapping.base != memory.base()) continue;
      ++mapping.arenas;
      return;
    }
    mappings_.push_back({.base = memory.base(),
                         .end = memory.base() + memory.page_bytes() * memory.page_count(),
                         .page_bytes = memory.page_bytes(),
                         .arenas = 1,
                         .owners = std::vector<Arena*>(static_cast<size_t>(memory.page_count()))});
  }

  void Leave(const device::PageMemory& memory) {
    absl::MutexLock lock(&mu_);
    std::erase_if(mappings_, [&](Mapping& mapping) { return mapping.base == memory.base() && --mapping.arenas == 0; });
  }

  void Set(const device::PageMemory& memory, std::span<const Extent> extents, Arena* owner) {
    absl::MutexLock lock(&mu_);
    for (Mapping& mapping : mappings_) {
      if (mapping.base != memory.base()) continue;
      for (const Extent& extent : extents) {
        std::fill(mapping.owners.begin() + extent.first, mapping.owners.begin() + extent.end(), owner);
      }
    }
  }

 private:
  struct Mapping {
    const std::byte* base;
    const std::byte* end;
    int64_t page_bytes;
    int arenas;
    std::vector<Arena*> owners;
  };
  absl::Mutex mu_;
  std::vector<Mapping> mappings_ ABSL_GUARDED_BY(mu_);
};

class ArenaImpl final : public Arena {
 public:
  ArenaImpl(Client* client, LeaseId lease, const ArenaOptions& options)
      : client_(client),
        lease_(lease),
        name_(client->lease_name(lease)),
        options_(options),
        memory_(client->device().memory()),
        page_bytes_(memory_.page_bytes()),
        space_(page_bytes_, memory_.page_count()) {
    OwnerTable::Instance().Enter(memory_);
  }

  ~ArenaImpl() override {
    {
      absl::MutexLock lock(&mu_);
      if (space_.blocks() > 0) {
        Log(LogLevel::kError, "arena ends with live blocks",
            {{"lease", name_}, {"blocks", space_.blocks()}, {"bytes", space_.live_bytes()}});
      }
    }
    if (auto returned = ReturnCached(0); !returned.ok() && client_->connected()) {
      Log(LogLevel::kWarning, "arena could not return its pages", {{"lease", name_}, {"error", returned.status()}});
    }
    OwnerTable::Instance().Leave(memory_);
  }

  StatusOr<void*> Allocate(int64_t size_bytes) override {
    const int64_t capacity = page_bytes_ * memory_.page_count();
    if (size_bytes < 1 || size_bytes > capacity) {
      return InvalidArgument("lease '{}': block of {} bytes; allowed: 1 to {}", name_, size_bytes, capacity);
    }
    const int64_t rounded = RoundUp(size_bytes, kBlockAlignment);
    {
      absl::MutexLock lock(&mu_);
      if (void* block = TakeBlock(rounded)) return block;
    }
    return AllocateSlowly(rounded);
  }

  void Free(void* block) override {
    const int64_t offset = static_cast<std::byte*>(block) - memory_.base();
    absl::MutexLock lock(&mu_);
    space_.Free(offset);
  }

  StatusOr<int64_t> ReturnCached(int64_t keep_pages) override {
    std::vector<Extent> extents;
    {
      absl::MutexLock lock(&mu_);
      extents = space_.TakeCachedPages(std::max<int64_t>(0, space_.held_pages() - std::max<int64_t>(0, keep_pages)));
      leaving_pages_ += PagesIn(extents);
    }
    if (extents.empty()) return 0;
    // Before the pages are anybody else's: another arena of this process may be the next to have them.
    OwnerTable::Instance().Set(memory_, extents, nullptr);
    const Status returned = client_->Return(lease_, extents);
    absl::MutexLock lock(&mu_);
    leaving_pages_ -= PagesIn(extents);
    if (returned.ok()) return PagesIn(extents);
    // They are ours still.
    OwnerTable::Instance().Set(memory_, extents, this);
    for (const Extent& extent : extents) space_.AddPages(extent);
    return returned;
  }

  LeaseId lease() const override { return lease_; }

  ArenaStats stats() const override {
    absl::MutexLock lock(&mu_);
    return {.live_bytes = space_.live_bytes(),
            .peak_live_bytes = peak_live_bytes_,
            .held_pages = space_.held_pages() + leaving_pages_,
            .peak_held_pages = peak_held_pages_,
            .cached_pages = space_.cached_pages(),
            .allocations = allocations_,
            .blocks = space_.blocks()};
  }

  void ResetPeak() override {
    absl::MutexLock lock(&mu_);
    peak_live_bytes_ = space_.live_bytes();
    peak_held_pages_ = space_.held_pages() + leaving_pages_;
  }

 private:
  static int64_t PagesIn(const std::vector<Extent>& extents) {
    int64_t pages = 0;
    for (const Extent& extent : extents) pages += extent.count;
    return pages;
  }

  void* TakeBlock(int64_t rounded) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const int64_t offset = space_.Allocate(rounded);
    if (offset < 0) return nullptr;
    ++allocations_;
    peak_live_bytes_ = std::max(peak_live_bytes_, space_.live_bytes());
    return memory_.base() + offset;
  }

  // One thread at a time gets more pages for the arena; the others wait and look again for what it got.
  StatusOr<void*> AllocateSlowly(int64_t rounded) {
    const absl::Time deadline = Clock::Real()->Now() + options_.grow_timeout;
    {
      absl::MutexLock lock(&mu_);
      auto free_to_grow = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !growing_; };
      if (!Clock::Real()->Await(&mu_, free_to_grow, deadline)) {
        return DeadlineExceeded("lease '{}': another allocation waited for pages for {}", name_, tidepool::FormatDuration(options_.grow_timeout));
      }
      if (void* block = TakeBlock(rounded)) return block;
      growing_ = true;
    }
    StatusOr<void*> block = GrowFor(rounded, deadline);
    absl::MutexLock lock(&mu_);
    growing_ = false;
    return block;
  }

  StatusOr<void*> GrowFor(int64_t rounded, absl::Time deadline) {
    const int64_t needed = CeilDiv(rounded, page_bytes_);
    // More than needed saves requests, but is not worth a refusal or a reclaim's second round.
    const int64_t held = client_->held_pages(lease_);
    const int64_t room = client_->limit_pages(lease_) - held;
    const int64_t wished = std::max(needed, std::min(options_.grow_step_pages, room));
    Status refusal;
    if (wished > needed) {
      if (auto block = GrowBy(wished, needed, rounded, deadline); block.ok() || block.status().code() != StatusCode::kResourceExhausted) {
        return block;
      }
    }
    if (room >= needed) {
      auto block = GrowBy(needed, needed, rounded, deadline);
      if (block.ok() || block.status().code() != StatusCode::kResourceExhausted) return block;
      refusal = block.status();
    }
    // Whole free pages that lie in the wrong places can be exchanged for pages that lie together.
    const int64_t cached = stats().cached_pages;
    const int64_t give = room >= needed ? cached : needed - room;
    if (cached > 0 && give <= cached) {
      auto returned = ReturnCached(held - give);
      if (!returned.ok()) return returned.status();
      auto block = GrowBy(needed, needed, rounded, deadline);
      if (block.ok() || block.status().code() != StatusCode::kResourceExhausted) return block;
      refusal = block.status();
    }
    // Memory may have been freed meanwhile.
    {
      absl::MutexLock lock(&mu_);
      if (void* block = TakeBlock(rounded)) return block;
    }
    return ResourceExhausted("lease '{}': no room for a block of {}: it needs {} pages in one run, {} pages are held and {} allowed{}", name_,
                             FormatBytes(rounded), needed, client_->held_pages(lease_), client_->limit_pages(lease_),
                             refusal.ok() ? "" : fmt::format(" ({})", MessageOf(refusal)));
  }

  StatusOr<void*> GrowBy(int64_t pages, int64_t run, int64_t rounded, absl::Time deadline) {
    auto extents = client_->Grow(lease_, {.pages = pages, .min_run_pages = run}, deadline);
    if (!extents.ok()) return extents.status();
    OwnerTable::Instance().Set(memory_, *extents, this);
    absl::MutexLock lock(&mu_);
    for (const Extent& extent : *extents) space_.AddPages(extent);
    peak_held_pages_ = std::max(peak_held_pages_, space_.held_pages() + leaving_pages_);
    if (void* block = TakeBlock(rounded)) return block;
    return ResourceExhausted("lease '{}': other threads took the pages that came", name_);
  }

  Client* const client_;
  const LeaseId lease_;
  const std::string name_;
  const ArenaOptions options_;
  device::PageMemory& memory_;
  const int64_t page_bytes_;

  mutable absl::Mutex mu_;
  Space space_ ABSL_GUARDED_BY(mu_);
  bool growing_ ABSL_GUARDED_BY(mu_) = false;
  int64_t leaving_pages_ ABSL_GUARDED_BY(mu_) = 0;  // taken out of the space, not yet returned
  int64_t peak_live_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t peak_held_pages_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t allocations_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

std::unique_ptr<Arena> Arena::Create(Client* client, LeaseId lease, const ArenaOptions& options) {
  return std::make_unique<ArenaImpl>(client, lease, options);
}

Arena* Arena::Owner(const void* address) { return OwnerTable::Instance().Owner(address); }

}  // namespace tidepool::pool
