#include "engine/pool_allocator.h"

#include <cstdlib>
#include <exception>

#include "base/clock.h"
#include "base/units.h"
#include "engine/guard.h"
#include "engine/torch_compat.h"

namespace tidepool::engine {
namespace {

constexpr size_t kAlignment = 64;

thread_local pool::Arena* current_arena = nullptr;
thread_local AbortToken* current_token = nullptr;

// The block's own address is its context, as raw_deleter promises: oneDNN frees its scratch memory by address alone. Runs on any
// thread and in destructors, so it never throws.
void FreeBlock(void* block) {
  if (block == nullptr) return;
  if (pool::Arena* arena = pool::Arena::Owner(block)) {
    arena->Free(block);
  } else {
    std::free(block);
  }
}

void* AllocateFromHeap(size_t size_bytes) {
  void* block = std::aligned_alloc(kAlignment, (size_bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (block == nullptr) {
    throw PoolLimitError(
        ResourceExhausted("the process's heap has no room for {}", FormatBytes(static_cast<int64_t>(size_bytes))));
  }
  return block;
}

class PoolAllocator final : public CompatAllocator {
 public:
  c10::DeleterFnPtr raw_deleter() const override { return &FreeBlock; }

 protected:
  c10::DataPtr Allocate(size_t size_bytes) const override {
    // A second exception while one unwinds would end the process.
    if (current_token != nullptr && current_token->Check() && std::uncaught_exceptions() == 0) throw AbortError();
    void* block = nullptr;
    if (size_bytes > 0) {
      if (current_arena == nullptr) {
        block = AllocateFromHeap(size_bytes);
      } else {
        StatusOr<void*> granted = current_arena->Allocate(static_cast<int64_t>(size_bytes));
        if (!granted.ok()) throw PoolLimitError(std::move(granted).status());
        block = *granted;
      }
    }
    return {block, block, &FreeBlock, c10::Device(c10::DeviceType::CPU)};
  }
};

}  // namespace

void InstallPoolAllocator() {
  static const bool installed = [] {
    c10::SetAllocator(c10::DeviceType::CPU, new PoolAllocator, /*priority=*/200);
    return true;
  }();
  (void)installed;
}

MemoryScope::MemoryScope(pool::Arena* arena) : previous_(current_arena) { current_arena = arena; }
MemoryScope::~MemoryScope() { current_arena = previous_; }

AbortScope::AbortScope(AbortToken* token) : token_(token) {
  current_token = token;
  if (token_ != nullptr) token_->BeginScope();
}

AbortScope::~AbortScope() {
  current_token = nullptr;
  if (token_ != nullptr) token_->EndScope();
}

void AbortToken::BeginScope() { last_check_ns_ = MonotonicNanos(); }

void AbortToken::EndScope() { NoteGap(); }

void AbortToken::NoteGap() {
  const int64_t now_ns = MonotonicNanos();
  const int64_t gap_ns = now_ns - last_check_ns_;
  last_check_ns_ = now_ns;
  if (gap_ns > longest_gap_ns_.load(std::memory_order_relaxed)) longest_gap_ns_.store(gap_ns, std::memory_order_relaxed);
}

bool AbortToken::Check() {
  checks_.fetch_add(1, std::memory_order_relaxed);
  NoteGap();
  if (countdown_.load(std::memory_order_relaxed) >= 0 && countdown_.fetch_sub(1, std::memory_order_acq_rel) == 0) return true;
  return requested();
}

}  // namespace tidepool::engine
