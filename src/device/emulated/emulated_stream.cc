#include "device/emulated/emulated_stream.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "device/event_state.h"

namespace tidepool::device::emulated {
namespace {

// Fields are guarded by the driver's mutex.
class EmulatedEvent final : public Event::State {
 public:
  explicit EmulatedEvent(std::shared_ptr<System> system)
      : system_(std::move(system)), point_(std::make_shared<TimelinePoint>()) {}

  bool Done() override {
    absl::MutexLock lock(system_->driver().mu());
    system_->driver().CatchUp();
    return done_;
  }

  Status Wait(absl::Time deadline) override {
    Driver& driver = system_->driver();
    const int64_t called_ns = driver.ThreadNs();
    {
      absl::MutexLock lock(driver.mu());
      const auto done = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return done_; };
      if (!driver.Await(done, deadline)) {
        const Status deadlock = driver.simulation()->CheckDeadlock();
        return DeadlineExceeded("the event was not reached in time{}", deadlock.ok() ? "" : "; " + MessageOf(deadlock));
      }
    }
    driver.Woken(called_ns, point_->at_ns);
    return status_;
  }

  void OnDone(std::function<void(const Status&)> reached) override {
    {
      absl::MutexLock lock(system_->driver().mu());
      if (!done_) {
        watchers_.push_back(std::move(reached));
        return;
      }
    }
    reached(status_);  // constant once done
  }

  StatusOr<absl::Time> ReachedAt() override {
    absl::MutexLock lock(system_->driver().mu());
    system_->driver().CatchUp();
    if (!done_) return FailedPrecondition("the event is not reached yet");
    return system_->driver().TimeOf(point_->at_ns);
  }

  void Reach(const Status& status) {
    done_ = true;
    status_ = status;
    for (auto& watcher : watchers_) {
      system_->driver().Defer([watcher = std::move(watcher), status] { watcher(status); });
    }
    watchers_.clear();
  }

  const std::shared_ptr<System>& system() const { return system_; }
  const std::shared_ptr<TimelinePoint>& point() const { return point_; }
  const Status& status() const { return status_; }

 private:
  const std::shared_ptr<System> system_;
  const std::shared_ptr<TimelinePoint> point_;
  bool done_ = false;
  Status status_;
  std::vector<std::function<void(const Status&)>> watchers_;
};

// What belongs to a command beside its time, in the stream's order.
struct Item {
  std::string name;
  std::function<Status()> work;
  std::shared_ptr<EmulatedEvent> record;
  std::shared_ptr<EmulatedEvent> wait;    // of this system
  std::shared_ptr<Event::State> foreign;  // to be waited for
  bool timed = false;                     // its end says something about lateness
};

// Shared with callbacks of foreign events, which may come after the stream is gone. Guarded by the driver's mutex.
class StreamCore final : public EmulationSink, public std::enable_shared_from_this<StreamCore> {
 public:
  StreamCore(std::shared_ptr<System> system, int32_t device, const StreamOptions& options)
      : system_(std::move(system)), device_(device), options_(options) {}

  void Open() {
    absl::MutexLock lock(system_->driver().mu());
    id_ = system_->emulation().AddStream(device_, options_.job, options_.name, this);
  }

  void Close() {
    {
      absl::MutexLock lock(system_->driver().mu());
      stopping_ = true;
      system_->emulation().RemoveStream(id_);
    }
    if (thread_.joinable()) thread_.join();
    std::deque<Item> dropped;  // what they hold ends without the lock
    absl::MutexLock lock(system_->driver().mu());
    const auto asked = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return asking_ == 0; };
    system_->clock()->Await(system_->driver().mu(), asked, absl::InfiniteFuture());
    dropped.swap(items_);
    for (Item& item : dropped) {
      if (item.record == nullptr) continue;
      item.record->Reach(Cancelled("stream '{}' ended before it reached the event", options_.name));
      system_->emulation().Reach(item.record->point().get(), system_->driver().simulation()->now_ns());
    }
    system_->driver().CatchUp();
    system_->driver().Changed();
  }

  Status Push(Item item, Command command) {
    if (item.work && !thread_started_.exchange(true)) {
      thread_ = StartClockThread(system_->clock(), [this] { RunWork(); });
    }
    Driver& driver = system_->driver();
    const int64_t submit_ns = driver.ThreadNs();
    absl::MutexLock lock(driver.mu());
    driver.CatchUp();
    // The first of them runs; the others are queued.
    const int64_t queued = static_cast<int64_t>(items_.size()) - 1;
    if (queued >= options_.queue_limit) {
      return ResourceExhausted("stream '{}' has {} operations queued; allowed: {}", options_.name, queued, options_.queue_limit);
    }
    command.has_work = item.work != nullptr || item.foreign != nullptr;
    command.submit_ns = submit_ns;
    TIDEPOOL_RETURN_IF_ERROR(system_->emulation().Check(id_, command));
    items_.push_back(std::move(item));
    ++accepted_;
    driver.NoteSubmit();
    if (system_->shared() != nullptr) system_->shared()->NoteBehind(driver.behind_max_ns());
    if (submit_ns < driver.simulation()->NextEventNs()) driver.simulation()->AdvanceTo(submit_ns);
    system_->emulation().Submit(id_, std::move(command));
    driver.CatchUp();
    driver.Changed();
    return {};
  }

  Status Synchronize(absl::Time deadline) {
    Driver& driver = system_->driver();
    const int64_t called_ns = driver.ThreadNs();
    int64_t reached_ns;
    Status error;
    {
      absl::MutexLock lock(driver.mu());
      const int64_t target = accepted_;
      const auto reached = [this, target]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return completed_ >= target; };
      if (!driver.Await(reached, deadline)) {
        const Status deadlock = driver.simulation()->CheckDeadlock();
        return DeadlineExceeded("stream '{}' has {} operations to go{}", options_.name, target - completed_,
                                deadlock.ok() ? "" : "; " + MessageOf(deadlock));
      }
      reached_ns = system_->emulation().LastEndNs(id_);
      error = std::exchange(error_, Status());
      system_->emulation().SetSkipping(id_, false);
    }
    driver.Woken(called_ns, reached_ns);
    return error;
  }

  // Called by the emulation, under the lock.
  void WorkBegins(StreamId, uint64_t) override {
    Item& item = items_.front();
    if (item.foreign == nullptr) {
      work_ready_ = true;
      return;
    }
    // The callback may come at once, so it is not asked for under the lock. Close waits until it was asked for: the driver's
    // thread must not be the last to hold the system.
    ++asking_;
    system_->driver().Defer([this, event = item.foreign] {
      event->OnDone([self = shared_from_this()](const Status& status) { self->ForeignReached(status); });
      absl::MutexLock lock(system_->driver().mu());
      --asking_;
    });
  }

  void Ended(StreamId, uint64_t, int64_t, int64_t end_ns, const Status& status) override {
    Item item = std::move(items_.front());
    items_.pop_front();
    ++completed_;
    if (item.timed) system_->driver().NoteEnd(end_ns);
    if (!status.ok()) Fail(status, item);
    if (item.wait != nullptr && error_.ok() && !item.wait->status().ok()) Fail(item.wait->status(), item);
    if (item.record != nullptr) item.record->Reach(error_);
  }

  const StreamOptions& options() const { return options_; }
  int32_t device() const { return device_; }
  System& system() { return *system_; }
  const std::shared_ptr<System>& system_pointer() const { return system_; }

 private:
  void Fail(const Status& status, const Item& item) {
    if (!error_.ok()) return;
    error_ = Annotate(status, fmt::format("stream '{}', operation '{}'", options_.name, item.name));
    system_->emulation().SetSkipping(id_, true);
  }

  void ForeignReached(const Status& status) {
    Driver& driver = system_->driver();
    absl::MutexLock lock(driver.mu());
    if (stopping_) return;
    driver.CatchUp();
    if (!status.ok()) Fail(status, items_.front());
    system_->emulation().WorkDone(id_, std::max<int64_t>(0, driver.NowNs() - system_->emulation().StartNs(id_)));
    driver.CatchUp();
    driver.Changed();
  }

  void RunWork() {
    Driver& driver = system_->driver();
    absl::MutexLock lock(driver.mu());
    const auto wake = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return stopping_ || work_ready_; };
    while (true) {
      system_->clock()->Await(driver.mu(), wake, absl::InfiniteFuture());
      if (stopping_) return;
      work_ready_ = false;
      std::function<Status()> work = std::move(items_.front().work);
      driver.mu()->Unlock();
      const int64_t began_ns = driver.NowNs();
      const Status status = work();
      work = nullptr;  // what it captured ends before the operation does
      driver.mu()->Lock();
      if (stopping_) return;
      driver.CatchUp();
      if (!status.ok()) Fail(status, items_.front());
      system_->emulation().WorkDone(id_, driver.NowNs() - began_ns);
      driver.CatchUp();
      driver.Changed();
    }
  }

  const std::shared_ptr<System> system_;
  const int32_t device_;
  const StreamOptions options_;
  StreamId id_ = -1;
  std::deque<Item> items_;  // not ended yet
  int asking_ = 0;          // foreign events that are about to be asked for a callback
  int64_t accepted_ = 0, completed_ = 0;
  Status error_;
  bool stopping_ = false;
  bool work_ready_ = false;  // of the first item
  std::atomic<bool> thread_started_{false};
  std::thread thread_;
};

class EmulatedStream final : public Stream {
 public:
  EmulatedStream(std::shared_ptr<StreamCore> core, const PinnedPool* pinned) : core_(std::move(core)), pinned_(pinned) {}
  ~EmulatedStream() override { core_->Close(); }

  Status Enqueue(std::string_view name, std::function<Status()> work) override {
    if (!work) return InvalidArgument("stream '{}': operation '{}' has no function", core_->options().name, name);
    return core_->Push({.name = std::string(name), .work = std::move(work)}, {.type = Command::Type::kHost});
  }

  Status Launch(const Operation& operation, std::function<Status()> work) override {
    const OpTime* time;
    {
      absl::MutexLock lock(core_->system().driver().mu());
      TIDEPOOL_ASSIGN_OR_RETURN(time, core_->system().emulation().Intern(operation));
    }
    return core_->Push({.name = ToText(operation.key), .work = Functional(std::move(work)), .timed = true},
                       {.type = Command::Type::kLaunch, .time = time});
  }

  Status CopyAsync(void* target, const void* source, int64_t size_bytes) override {
    if (size_bytes < 0) {
      return InvalidArgument("stream '{}': copy of {} bytes; allowed: 0 or more", core_->options().name, size_bytes);
    }
    std::function<Status()> work;
    if (size_bytes > 0) {
      work = [target, source, size_bytes] {
        std::memmove(target, source, static_cast<size_t>(size_bytes));
        return Status();
      };
    }
    const System& system = core_->system();
    const int32_t to = system.DeviceAt(target), from = system.DeviceAt(source);
    Command command{.type = Command::Type::kCopy, .bytes = static_cast<double>(size_bytes)};
    if (to < 0 && from < 0) {
      // Host memory to host memory is no business of the device; an empty host command would have nothing to run.
      if (!work) work = [] { return Status(); };
      return core_->Push({.name = "copy", .work = std::move(work)}, {.type = Command::Type::kHost});
    }
    if (to != core_->device() && from != core_->device()) {
      return InvalidArgument(
          "stream '{}' of device {}: a copy from device {} to device {} (-1: the host); allowed: its own device on one side",
          core_->options().name, core_->device(), from, to);
    }
    if (to == from) return CopyWithin(size_bytes, std::move(work));
    if (to >= 0 && from >= 0) {
      command.engine = EngineKind::kPeer;
      command.receives = to == core_->device();
      command.peer = command.receives ? from : to;
    } else {
      command.engine = to >= 0 ? EngineKind::kHostToDevice : EngineKind::kDeviceToHost;
      command.pinned = pinned_->Contains(to >= 0 ? source : target, size_bytes);
    }
    return core_->Push({.name = "copy", .work = Functional(std::move(work)), .timed = true}, std::move(command));
  }

  Status Transfer(const TransferOptions& transfer) override {
    if (transfer.engine == EngineKind::kCompute) {
      return InvalidArgument("stream '{}': a transfer on the compute engine; allowed: a copy engine", core_->options().name);
    }
    return core_->Push({.name = "transfer", .timed = true}, {.type = Command::Type::kCopy,
                                                             .pinned = transfer.pinned,
                                                             .engine = transfer.engine,
                                                             .peer = transfer.peer,
                                                             .bytes = static_cast<double>(transfer.size_bytes)});
  }

  Status Collective(const CollectiveOptions& collective) override {
    int32_t group;
    {
      absl::MutexLock lock(core_->system().driver().mu());
      TIDEPOOL_ASSIGN_OR_RETURN(group, core_->system().emulation().GroupOf(collective.group));
    }
    return core_->Push({.name = std::string(NameOf(collective.kind)), .timed = true},
                       {.type = Command::Type::kCollective,
                        .collective = collective.kind,
                        .ranks = collective.ranks,
                        .group = group,
                        .bytes = static_cast<double>(collective.size_bytes)});
  }

  StatusOr<Event> Record() override {
    auto event = std::make_shared<EmulatedEvent>(core_->system_pointer());
    TIDEPOOL_RETURN_IF_ERROR(
        core_->Push({.name = "event", .record = event}, {.type = Command::Type::kRecord, .point = event->point()}));
    return Event(event);
  }

  Status WaitFor(const Event& event) override {
    if (event.state() == nullptr) return {};
    auto own = std::dynamic_pointer_cast<EmulatedEvent>(event.state());
    if (own != nullptr && own->system() == core_->system_pointer()) {
      return core_->Push({.name = "wait", .wait = own}, {.type = Command::Type::kWait, .point = own->point()});
    }
    return core_->Push({.name = "wait", .foreign = event.state()}, {.type = Command::Type::kHost});
  }

  Status Synchronize(absl::Time deadline) override { return core_->Synchronize(deadline); }

 private:
  std::function<Status()> Functional(std::function<Status()> work) {
    return core_->system().spec().functional ? std::move(work) : nullptr;
  }

  // Every byte is read and written once.
  Status CopyWithin(int64_t size_bytes, std::function<Status()> work) {
    const double rate = core_->system().costs().manifest().hardware.memory_bytes_per_s;
    const double seconds = rate > 0 ? 2 * static_cast<double>(size_bytes) / rate : 0;
    return core_->Push({.name = "copy", .work = Functional(std::move(work)), .timed = true},
                       {.type = Command::Type::kLaunch, .fixed_ns = static_cast<int64_t>(seconds * 1e9)});
  }

  const std::shared_ptr<StreamCore> core_;
  const PinnedPool* const pinned_;
};

}  // namespace

StatusOr<std::unique_ptr<Stream>> CreateEmulatedStream(std::shared_ptr<System> system, int32_t device, const PinnedPool* pinned,
                                                       const StreamOptions& options) {
  if (options.queue_limit < 1) {
    return InvalidArgument("stream '{}': queue limit is {}; allowed: 1 or more", options.name, options.queue_limit);
  }
  auto core = std::make_shared<StreamCore>(std::move(system), device, options);
  core->Open();
  return std::make_unique<EmulatedStream>(std::move(core), pinned);
}

}  // namespace tidepool::device::emulated
