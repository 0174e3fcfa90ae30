// Tells ThreadSanitizer about absl::Mutex. The distribution's Abseil is built without it, so that every access a Mutex orders
// would be reported as a race. These functions stand in front of the library's own and describe each of them to the sanitizer.
// Linked into builds with TIDEPOOL_SANITIZE=thread only.
//
// Between the "pre" and the "post" call of an operation the sanitizer ignores the thread: conditions that Abseil evaluates for
// other threads while it unlocks are not checked.
#include <absl/synchronization/mutex.h>
#include <absl/synchronization/notification.h>
#include <absl/time/time.h>
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <atomic>
#include <type_traits>

namespace {

template <typename F>
F* Original(const char* symbol) {
  return reinterpret_cast<F*>(::dlsym(RTLD_NEXT, symbol));
}

// The library's functions call each other; only the outermost one is described.
thread_local bool inside = false;

// One operation that takes the mutex; `release` first where it is held before (Await, CondVar::Wait).
template <typename Call>
auto Locking(void* mutex, unsigned flags, bool held_before, Call&& call) {
  if (inside) return call();
  if (held_before) {
    __tsan_mutex_pre_unlock(mutex, 0);
    __tsan_mutex_post_unlock(mutex, 0);
  }
  __tsan_mutex_pre_lock(mutex, flags);
  inside = true;
  if constexpr (std::is_void_v<decltype(call())>) {
    call();
    inside = false;
    __tsan_mutex_post_lock(mutex, flags, 0);
  } else {
    const auto result = call();
    inside = false;
    const bool failed = (flags & __tsan_mutex_try_lock) != 0 && !result;
    __tsan_mutex_post_lock(mutex, failed ? flags | __tsan_mutex_try_lock_failed : flags, 0);
    return result;
  }
}

template <typename Call>
void Unlocking(void* mutex, unsigned flags, Call&& call) {
  if (inside) return call();
  __tsan_mutex_pre_unlock(mutex, flags);
  inside = true;
  call();
  inside = false;
  __tsan_mutex_post_unlock(mutex, flags);
}

constexpr unsigned kRead = __tsan_mutex_read_lock;
constexpr unsigned kTry = __tsan_mutex_try_lock;

}  // namespace

// TIDEPOOL_STAND_IN(result, name, symbol, parameters): declares `name` to be what the linker knows as `symbol`, and the original
// as `name##Original`.
#define TIDEPOOL_STAND_IN(Result, Name, symbol, ...)                                      \
  extern "C" __attribute__((visibility("default"))) Result Name(__VA_ARGS__) asm(symbol); \
  static Result (*Name##Original())(__VA_ARGS__) {                                        \
    static auto* const original = Original<Result(__VA_ARGS__)>(symbol);                  \
    return original;                                                                      \
  }                                                                                       \
  extern "C" Result Name(__VA_ARGS__)

using Self = absl::Mutex*;
using Condition = const absl::Condition&;

TIDEPOOL_STAND_IN(void, TsanDestroy1, "_ZN4absl7debian35MutexD1Ev", Self self) {
  __tsan_mutex_destroy(self, __tsan_mutex_not_static);
  TsanDestroy1Original()(self);
}
TIDEPOOL_STAND_IN(void, TsanDestroy2, "_ZN4absl7debian35MutexD2Ev", Self self) {
  __tsan_mutex_destroy(self, __tsan_mutex_not_static);
  TsanDestroy2Original()(self);
}
TIDEPOOL_STAND_IN(void, TsanLock, "_ZN4absl7debian35Mutex4LockEv", Self self) {
  Locking(self, 0, false, [&] { TsanLockOriginal()(self); });
}
TIDEPOOL_STAND_IN(void, TsanUnlock, "_ZN4absl7debian35Mutex6UnlockEv", Self self) {
  Unlocking(self, 0, [&] { TsanUnlockOriginal()(self); });
}
TIDEPOOL_STAND_IN(bool, TsanTryLock, "_ZN4absl7debian35Mutex7TryLockEv", Self self) {
  return Locking(self, kTry, false, [&] { return TsanTryLockOriginal()(self); });
}
TIDEPOOL_STAND_IN(void, TsanReaderLock, "_ZN4absl7debian35Mutex10ReaderLockEv", Self self) {
  Locking(self, kRead, false, [&] { TsanReaderLockOriginal()(self); });
}
TIDEPOOL_STAND_IN(void, TsanReaderUnlock, "_ZN4absl7debian35Mutex12ReaderUnlockEv", Self self) {
  Unlocking(self, kRead, [&] { TsanReaderUnlockOriginal()(self); });
}
TIDEPOOL_STAND_IN(bool, TsanReaderTryLock, "_ZN4absl7debian35Mutex13ReaderTryLockEv", Self self) {
  return Locking(self, kRead | kTry, false, [&] { return TsanReaderTryLockOriginal()(self); });
}
TIDEPOOL_STAND_IN(void, TsanLockWhen, "_ZN4absl7debian35Mutex8LockWhenERKNS0_9ConditionE", Self self, Condition condition) {
  Locking(self, 0, false, [&] { TsanLockWhenOriginal()(self, condition); });
}
TIDEPOOL_STAND_IN(bool, TsanLockWhenWithTimeout, "_ZN4absl7debian35Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE",
                  Self self, Condition condition, absl::Duration timeout) {
  return Locking(self, 0, false, [&] { return TsanLockWhenWithTimeoutOriginal()(self, condition, timeout); });
}
TIDEPOOL_STAND_IN(bool, TsanLockWhenWithDeadline, "_ZN4absl7debian35Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE",
                  Self self, Condition condition, absl::Time deadline) {
  return Locking(self, 0, false, [&] { return TsanLockWhenWithDeadlineOriginal()(self, condition, deadline); });
}
TIDEPOOL_STAND_IN(void, TsanReaderLockWhen, "_ZN4absl7debian35Mutex14ReaderLockWhenERKNS0_9ConditionE", Self self,
                  Condition condition) {
  Locking(self, kRead, false, [&] { TsanReaderLockWhenOriginal()(self, condition); });
}
TIDEPOOL_STAND_IN(void, TsanAwait, "_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE", Self self, Condition condition) {
  Locking(self, 0, true, [&] { TsanAwaitOriginal()(self, condition); });
}
TIDEPOOL_STAND_IN(bool, TsanAwaitWithTimeout, "_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE",
                  Self self, Condition condition, absl::Duration timeout) {
  return Locking(self, 0, true, [&] { return TsanAwaitWithTimeoutOriginal()(self, condition, timeout); });
}
TIDEPOOL_STAND_IN(bool, TsanAwaitWithDeadline, "_ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE", Self self,
                  Condition condition, absl::Time deadline) {
  return Locking(self, 0, true, [&] { return TsanAwaitWithDeadlineOriginal()(self, condition, deadline); });
}
TIDEPOOL_STAND_IN(void, TsanWait, "_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE", absl::CondVar* self, Self mutex) {
  Locking(mutex, 0, true, [&] { TsanWaitOriginal()(self, mutex); });
}
TIDEPOOL_STAND_IN(bool, TsanWaitWithTimeout, "_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE",
                  absl::CondVar* self, Self mutex, absl::Duration timeout) {
  return Locking(mutex, 0, true, [&] { return TsanWaitWithTimeoutOriginal()(self, mutex, timeout); });
}
TIDEPOOL_STAND_IN(bool, TsanWaitWithDeadline, "_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE",
                  absl::CondVar* self, Self mutex, absl::Time deadline) {
  return Locking(mutex, 0, true, [&] { return TsanWaitWithDeadlineOriginal()(self, mutex, deadline); });
}

// A Notification is a mutex and a flag; who sees the flag does not always take the mutex.
using Event = absl::Notification*;

TIDEPOOL_STAND_IN(void, TsanNotify, "_ZN4absl7debian312Notification6NotifyEv", Event self) {
  __tsan_release(self);
  TsanNotifyOriginal()(self);
}
TIDEPOOL_STAND_IN(bool, TsanHasBeenNotified, "_ZN4absl7debian312Notification23HasBeenNotifiedInternalEPKSt6atomicIbE",
                  const std::atomic<bool>* flag) {
  const bool notified = TsanHasBeenNotifiedOriginal()(flag);
  if (notified) __tsan_acquire(const_cast<char*>(reinterpret_cast<const char*>(flag)) - sizeof(absl::Mutex));
  return notified;
}
TIDEPOOL_STAND_IN(void, TsanWaitForNotification, "_ZNK4absl7debian312Notification19WaitForNotificationEv", Event self) {
  TsanWaitForNotificationOriginal()(self);
  __tsan_acquire(self);
}
TIDEPOOL_STAND_IN(bool, TsanWaitForNotificationWithTimeout,
                  "_ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE", Event self,
                  absl::Duration timeout) {
  const bool notified = TsanWaitForNotificationWithTimeoutOriginal()(self, timeout);
  if (notified) __tsan_acquire(self);
  return notified;
}
TIDEPOOL_STAND_IN(bool, TsanWaitForNotificationWithDeadline,
                  "_ZNK4absl7debian312Notification31WaitForNotificationWithDeadlineENS0_4TimeE", Event self,
                  absl::Time deadline) {
  const bool notified = TsanWaitForNotificationWithDeadlineOriginal()(self, deadline);
  if (notified) __tsan_acquire(self);
  return notified;
}
