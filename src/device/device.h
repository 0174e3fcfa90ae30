// The one device interface. Backends: host (real arithmetic on the CPU), emulated (time and capacity of another device, from a
// profile bundle) and cuda.
//
// A device is memory in pages, and streams that execute work in order on its engines: compute, and copies from the host, to the
// host and to a peer. Work of different engines overlaps; work of one engine does not. Memory is addressed by page index; who may
// use which page is the business of pool/, or, for a device that has no broker, of Allocate. An asynchronous failure is kept on
// its stream and returned by the next Synchronize or Event wait.
#pragma once

#include <absl/time/time.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/dtype.h"
#include "base/fd.h"
#include "base/status.h"
#include "device/allocator.h"
#include "device/pinned.h"
#include "profile/bundle.h"
#include "profile/lookup.h"

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
  std::string name;            // "host", "cuda:0", "emulated:h200"
  std::string kind;            // "host", "cuda", "emulated"
  int64_t capacity_bytes = 0;  // whole pages
  int64_t page_bytes = 0;
  MappingMode mapping = MappingMode::kFast;  // how other processes attach; the process that made the device reaches every page
  int32_t index = 0;                         // among the devices that were opened together
};

// What the device is able to do. Zero and empty where it is not known.
struct DeviceProperties {
  std::string model;                      // "H200"
  std::map<DType, double> peak_flops;     // dense, FLOP/s
  double memory_bytes_per_s = 0;          // of the device's own memory
  double host_to_device_bytes_per_s = 0;  // each link per direction
  double device_to_host_bytes_per_s = 0;
  double peer_bytes_per_s = 0;
  bool computes = true;    // false: work is only timed, results are not computed (emulated, mode=timing)
  bool estimated = false;  // emulated from a description of the hardware instead of measured times
  // Emulated: the bundle that times come from, and who measured it or which datasheet it was made from.
  std::string profile, profile_source;
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
  // The descriptor to hand to another process of this machine, which opens it with AttachDevice. -1 if pages cannot be shared.
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
  // When it was reached, on the device's timeline: differences are what the device took. An emulated device gives the time at
  // which the emulated work ended, not that at which this machine noticed. FAILED_PRECONDITION while it is not reached.
  StatusOr<absl::Time> ReachedAt() const;
  std::shared_ptr<State> state() const { return state_; }

 private:
  std::shared_ptr<State> state_;
};

// The engines of a device. Copies within the device's own memory run on kCompute.
enum class EngineKind : uint8_t { kCompute, kHostToDevice, kDeviceToHost, kPeer };
std::string_view NameOf(EngineKind engine);

// A piece of arithmetic for the compute engine. The key names it in profiles; the cost describes it where no profile has the key.
// A device may keep what it was told with a key's first launch.
struct Operation {
  profile::OpKey key;
  profile::OpCost cost;
};

// A copy of which only the time is wanted.
struct TransferOptions {
  EngineKind engine = EngineKind::kHostToDevice;  // not kCompute
  int64_t size_bytes = 0;
  bool pinned = true;  // the host's side is pinned memory
  int32_t peer = 0;    // kPeer: index of the device that receives
};

struct CollectiveOptions {
  profile::CollectiveKind kind = profile::CollectiveKind::kAllReduce;
  int64_t size_bytes = 0;  // of the whole, unsharded buffer
  std::string group;       // operations of one name meet; each of `ranks` streams, of different devices, calls once per round
  int32_t ranks = 1;
};

// Executes in order what is enqueued. The queue has a limit: all of these are RESOURCE_EXHAUSTED above it. After a failure, later
// work of the stream is skipped until Synchronize has returned the error. Thread-safe.
class Stream {
 public:
  virtual ~Stream() = default;
  // A host function in the stream's order.
  virtual Status Enqueue(std::string_view name, std::function<Status()> work) = 0;
  // Arithmetic. `work` computes its result on the CPU; a device that computes by itself, or only keeps time, does not call it.
  // May be null on emulated devices: then only time passes. NOT_FOUND if an emulated device's profile has no time for it.
  virtual Status Launch(const Operation& operation, std::function<Status()> work) = 0;
  // Direction and engine follow from the addresses: memory of this device, of a device that was opened with it, or of the host.
  virtual Status CopyAsync(void* target, const void* source, int64_t size_bytes) = 0;
  // Takes the time of a copy and moves nothing. UNIMPLEMENTED on devices that are not emulated.
  virtual Status Transfer(const TransferOptions& transfer) = 0;
  // Takes the time of a collective on the links between devices and moves nothing; ends on all ranks at once. UNIMPLEMENTED on
  // devices that are not emulated.
  virtual Status Collective(const CollectiveOptions& collective) = 0;
  virtual StatusOr<Event> Record() = 0;
  // Later work of this stream waits for `event` of any stream.
  virtual Status WaitFor(const Event& event) = 0;
  virtual Status Synchronize(absl::Time deadline) = 0;
};

struct StreamOptions {
  std::string name = "stream";
  int32_t queue_limit = 1024;
  int32_t job = 0;  // streams of one job share its part of the compute engine, where the device divides its time among jobs
};

// What an emulated device has done since it was opened. Times are of its timeline. Where several processes have the device, the
// times of engines other than kPeer, `behind_max` and `overrun` are of all of them; the rest is of this process.
struct TimelineReport {
  absl::Duration elapsed;
  std::map<EngineKind, absl::Duration> busy;
  std::map<EngineKind, absl::Duration> own_busy;  // by this process alone
  int64_t operations = 0;
  // How much later than on the timeline this machine noticed that an operation had ended. It is never added to the timeline.
  absl::Duration lateness_p50, lateness_p99, lateness_max;
  // How far real time ran ahead of the timeline at worst, because this machine could not keep up.
  absl::Duration behind_max;
  // By how much results took longer to compute on this machine than on the device, in sum.
  absl::Duration overrun;
  // The machine could not keep up: what was measured in real time beside the device does not fit the device's speed.
  bool host_limited = false;
  std::string host_limited_reason;
  int64_t estimated_operations = 0;  // whose time is no measured one
  // Time between operations of the compute engine, by what the host did meanwhile: waited for data (NoteDataWait), or anything
  // else.
  absl::Duration storage_idle, host_idle;
  double utilisation = 1;  // busy / (busy + storage_idle): the host's own overhead is not charged to the storage
};

// Thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  virtual const DeviceProperties& properties() const = 0;
  // The clock whose time passes on this device; deadlines are in it.
  virtual Clock* clock() const = 0;
  virtual PageMemory& memory() = 0;
  virtual StatusOr<std::unique_ptr<Stream>> CreateStream(const StreamOptions& options) = 0;

  // Bytes of the device's memory, for programs that use a whole device without a pool. Never mixed with a broker on one device. A
  // buffer may outlive nothing of the device.
  virtual Allocator& allocator() = 0;
  // Host memory that copies may use directly; see pinned.h. On an emulated device a new buffer takes the time that pinning takes.
  virtual PinnedPool& pinned() = 0;

  // The calling thread's moment on the device's timeline. On an emulated device that is the time of the event that the thread
  // waited for last, and what it did since; elsewhere, and for who never waited, the clock's.
  virtual absl::Time HostNow() { return clock()->Now(); }
  // The calling thread waited for input data between these two moments of HostNow; for TimelineReport.
  virtual void NoteDataWait(absl::Time begin, absl::Time end) { (void)begin, (void)end; }
  // Nothing on a device that is not emulated.
  virtual std::optional<TimelineReport> timeline() { return std::nullopt; }
};

struct DeviceOptions {
  std::string name = "host";   // "host", "cuda:0", "emulated:h200" (docs/device.md has the options that may follow)
  int64_t capacity_bytes = 0;  // rounded down to whole pages; emulated: 0 is what the name says, or the hardware has
  int64_t page_bytes = int64_t{2} << 20;
  MappingMode mapping = MappingMode::kFast;
  PinnedOptions pinned;
  Clock* clock = Clock::Real();  // emulated: the time that its timelines follow, unless the name asks for a virtual one
};

// Makes the device and its memory (host: a pre-faulted memfd). UNIMPLEMENTED for a backend that is not built; INVALID_ARGUMENT
// for a name that means several devices.
StatusOr<std::unique_ptr<Device>> OpenDevice(const DeviceOptions& options);
// All devices that the name means ("emulated:h200x8": eight with links between them), each with the capacity of `options`.
StatusOr<std::vector<std::unique_ptr<Device>>> OpenDevices(const DeviceOptions& options);
// The equal devices of a node or of a training job, which several processes use in real time. Each is opened by itself, `count`
// times.
struct NodeDevices {
  // Of each one: the name is that of one device, the capacity one device's. A profile's path is absolute, because other processes
  // have other working folders.
  DeviceOptions options;
  int count = 1;
  bool computes = true;  // false: mode=timing
};
inline constexpr int kMostNodeDevices = 16;
// For the help of an option that takes them.
inline constexpr std::string_view kNodeDevicesHelp =
    "Device: host, cuda:N, or emulated:PROFILE[xCOUNT][,key=value]... (emulated:v100, emulated:h200x8)";
// What can be said before anything is opened: "emulated:h200x8,seed=3" is eight times "emulated:h200,seed=3". The capacity is
// that of `options` or, if that is 0, what the name says, or `usual_bytes` (never more than the emulated hardware has).
// INVALID_ARGUMENT for an unknown name, for more than kMostNodeDevices, for a timeline that other processes cannot follow, and
// for two sizes that differ; NOT_FOUND for an unknown profile; RESOURCE_EXHAUSTED if those that compute results take more memory
// than the machine has available.
StatusOr<NodeDevices> CheckNodeDevices(const DeviceOptions& options, int64_t usual_bytes);
// The same device in another process: its memory comes from `memory_fd`, which is taken over.
StatusOr<std::unique_ptr<Device>> AttachDevice(const DeviceInfo& info, MappingMode mapping, UniqueFd memory_fd);

}  // namespace tidepool::device
