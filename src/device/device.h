// The one device interface. Backends: host (this real arithmetic on the CPU), cuda and emulated.
//
// A device is memory in pages, and streams that execute work in order. Memory is addressed by page index; who may use which page is
// the business of pool/. An asynchronous failure is kept on its stream and returned by the next Synchronize or Event wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <absl/time/time.h>

#include "base/fd.h"
#include "base/status.h"

namespace tidepool::device {

using PageIndex = int32_t;

// A run of neighbouring pages.
struct Extent {
  PageIndex first = 0;
  int32_t count = 0;
  PageIndex end() const { return first + count; }
  friend bool operator==(const Extent&, const Extent&) = default;
};

// Whether a page that a process does not own is reachable in it at all.
enum class MappingMode : uint8_t {
  kFast,    // every page stays mapped; ownership is a ledger entry
  kStrict,  // a page is inaccessible in a process while the process does not own it: a stray access faults
};

struct DeviceInfo {
  std::string name;  // "host", "cuda:0"
  std::string kind;  // "host", "cuda", "emulated"
  int64_t capacity_bytes = 0;  // whole pages
  int64_t page_bytes = 0;
  MappingMode mapping = MappingMode::kFast;  // how other processes attach; the process that made the device reaches every page
};

// The pages of one device as one process sees them: page i lives at base() + i * page_bytes() for ever. Thread-safe.
class PageMemory {
 public:
  virtual ~PageMemory() = default;
  virtual std::byte* base() const = 0;
  virtual int64_t page_bytes() const = 0;
  virtual int32_t page_count() const = 0;
  // Makes owned pages accessible, or given-back pages inaccessible. Does nothing in fast mode.
  virtual Status Map(Extent extent) = 0;
  virtual Status Unmap(Extent extent) = 0;
  // Fills pages with zero bytes, whether or not they are mapped for use.
  virtual Status Zero(Extent extent) = 0;
  // The descriptor to hand to another process of this machine, which opens it with ImportPageMemory. -1 if pages cannot be shared.
  virtual int shared_fd() const = 0;
};

// A point in a stream. Copyable handle. Thread-safe.
class Event {
 public:
  struct State;
  Event() = default;
  explicit Event(std::shared_ptr<State> state) : state_(std::move(state)) {}
  bool Done() const;
  // The stream's error if work before the event failed; DEADLINE_EXCEEDED if it is not reached in time.
  Status Wait(absl::Time deadline) const;
  std::shared_ptr<State> state() const { return state_; }

 private:
  std::shared_ptr<State> state_;
};

// Executes in order what is enqueued. The queue has a limit: Enqueue is RESOURCE_EXHAUSTED above it. After a failure, later work of
// the stream is skipped until Synchronize has returned the error. Thread-safe.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual Status Enqueue(std::string_view name, std::function<Status()> work) = 0;
  virtual Status CopyAsync(void* target, const void* source, int64_t size_bytes) = 0;
  virtual StatusOr<Event> Record() = 0;
  // Later work of this stream waits for `event` of any stream.
  virtual Status WaitFor(const Event& event) = 0;
  virtual Status Synchronize(absl::Time deadline) = 0;
};

struct StreamOptions {
  std::string name = "stream";
  int32_t queue_limit = 1024;
};

// Thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  virtual PageMemory& memory() = 0;
  virtual StatusOr<std::unique_ptr<Stream>> CreateStream(const StreamOptions& options) = 0;
};

struct DeviceOptions {
  std::string name = "host";  // "host", "cuda:0", "emulated:h200"
  int64_t capacity_bytes = 0;  // rounded down to whole pages
  int64_t page_bytes = 2 * 1024 * 1024;
  MappingMode mapping = MappingMode::kFast;
};

// Makes the device and its memory (host: a pre-faulted memfd). UNIMPLEMENTED for a backend that is not built.
StatusOr<std::unique_ptr<Device>> OpenDevice(const DeviceOptions& options);
// The same device in another process: its memory comes from `memory_fd`, which is taken over.
StatusOr<std::unique_ptr<Device>> AttachDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd);

}  // namespace tidepool::device
