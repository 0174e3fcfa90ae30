#include "device/host/host_stream.h"

#include <absl/synchronization/mutex.h>

#include <cstring>
#include <deque>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "device/event_state.h"

namespace tidepool::device {
namespace {

class HostEvent final : public Event::State {
 public:
  bool Done() override {
    absl::MutexLock lock(&mu_);
    return done_;
  }

  Status Wait(absl::Time deadline) override {
    absl::MutexLock lock(&mu_);
    if (!Clock::Real()->Await(
            &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return done_; }, deadline)) {
      return DeadlineExceeded("the event was not reached in time");
    }
    return status_;
  }

  void OnDone(std::function<void(const Status&)> reached) override {
    {
      absl::MutexLock lock(&mu_);
      if (!done_) {
        watchers_.push_back(std::move(reached));
        return;
      }
    }
    reached(status_);  // constant once done
  }

  StatusOr<absl::Time> ReachedAt() override {
    absl::MutexLock lock(&mu_);
    if (!done_) return FailedPrecondition("the event is not reached yet");
    return reached_at_;
  }

  void Reach(const Status& status) {
    std::vector<std::function<void(const Status&)>> watchers;
    {
      absl::MutexLock lock(&mu_);
      status_ = status;
      reached_at_ = Clock::Real()->Now();
      done_ = true;
      watchers.swap(watchers_);
    }
    for (const auto& watcher : watchers) watcher(status);
  }

 private:
  absl::Mutex mu_;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  Status status_;
  absl::Time reached_at_;
  std::vector<std::function<void(const Status&)>> watchers_ ABSL_GUARDED_BY(mu_);
};

struct Item {
  std::string name;
  std::function<Status()> work;      // one of these three is set
  std::shared_ptr<HostEvent> event;  // to be reached
  Event wait;                        // to be waited for
};

// Shared with the watchers of foreign events, which may call after the stream is gone.
struct Queue {
  absl::Mutex mu;
  std::deque<Item> items ABSL_GUARDED_BY(mu);
  bool stopping ABSL_GUARDED_BY(mu) = false;
  int64_t accepted ABSL_GUARDED_BY(mu) = 0;
  int64_t completed ABSL_GUARDED_BY(mu) = 0;
  Status error ABSL_GUARDED_BY(mu);
};

class HostStream final : public Stream {
 public:
  explicit HostStream(const StreamOptions& options)
      : options_(options), queue_(std::make_shared<Queue>()), thread_([this] { Run(); }) {}

  ~HostStream() override {
    std::deque<Item> dropped;
    {
      absl::MutexLock lock(&queue_->mu);
      queue_->stopping = true;
      dropped.swap(queue_->items);
    }
    thread_.join();
    for (Item& item : dropped) {
      if (item.event != nullptr) item.event->Reach(Cancelled("stream '{}' ended before it reached the event", options_.name));
    }
  }

  Status Enqueue(std::string_view name, std::function<Status()> work) override {
    if (!work) return InvalidArgument("stream '{}': operation '{}' has no function", options_.name, name);
    return Push({.name = std::string(name), .work = std::move(work)});
  }

  Status Launch(const Operation& operation, std::function<Status()> work) override {
    if (!work)
      return InvalidArgument("stream '{}': {} has no function; the host computes what it is given", options_.name,
                             ToText(operation.key));
    return Push({.name = ToText(operation.key), .work = std::move(work)});
  }

  Status Transfer(const TransferOptions&) override { return OnlyEmulated("a transfer without memory"); }

  Status Collective(const CollectiveOptions&) override { return OnlyEmulated("a collective"); }

  Status CopyAsync(void* target, const void* source, int64_t size_bytes) override {
    if (size_bytes < 0) return InvalidArgument("stream '{}': copy of {} bytes; allowed: 0 or more", options_.name, size_bytes);
    return Push({.name = "copy", .work = [target, source, size_bytes] {
                   if (size_bytes > 0) std::memmove(target, source, static_cast<size_t>(size_bytes));
                   return Status();
                 }});
  }

  StatusOr<Event> Record() override {
    auto event = std::make_shared<HostEvent>();
    TIDEPOOL_RETURN_IF_ERROR(Push({.name = "event", .event = event}));
    return Event(event);
  }

  Status WaitFor(const Event& event) override {
    if (event.state() == nullptr) return {};
    return Push({.name = "wait", .wait = event});
  }

  Status Synchronize(absl::Time deadline) override {
    absl::MutexLock lock(&queue_->mu);
    const int64_t target = queue_->accepted;
    auto reached = [this, target]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return queue_->completed >= target; };
    if (!Clock::Real()->Await(&queue_->mu, reached, deadline)) {
      return DeadlineExceeded("stream '{}' has {} operations to go", options_.name, target - queue_->completed);
    }
    return std::exchange(queue_->error, Status());
  }

 private:
  Status OnlyEmulated(std::string_view what) const {
    return Unimplemented("stream '{}': {} takes time on emulated devices only; this is a stream of the host", options_.name,
                         what);
  }

  Status Push(Item item) {
    absl::MutexLock lock(&queue_->mu);
    if (static_cast<int64_t>(queue_->items.size()) >= options_.queue_limit) {
      return ResourceExhausted("stream '{}' has {} operations queued; allowed: {}", options_.name, queue_->items.size(),
                               options_.queue_limit);
    }
    queue_->items.push_back(std::move(item));
    ++queue_->accepted;
    return {};
  }

  void Run() {
    auto wake = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return queue_->stopping || !queue_->items.empty(); };
    while (true) {
      Item item;
      Status error;
      {
        absl::MutexLock lock(&queue_->mu);
        Clock::Real()->Await(&queue_->mu, wake, absl::InfiniteFuture());
        if (queue_->stopping) return;
        item = std::move(queue_->items.front());
        queue_->items.pop_front();
        error = queue_->error;
      }
      Status result;
      if (item.event != nullptr) {
        item.event->Reach(error);
      } else if (error.ok()) {
        result = item.work ? item.work() : Await(item.wait);
        if (!result.ok()) result = Annotate(result, fmt::format("stream '{}', operation '{}'", options_.name, item.name));
      }
      // The operation's captures end here, before the count says that it is over.
      item = Item();
      absl::MutexLock lock(&queue_->mu);
      ++queue_->completed;
      if (!result.ok()) queue_->error = result;
    }
  }

  // Waits for an event of any stream; the stream's own end breaks the wait.
  Status Await(const Event& event) {
    struct Gate {
      bool open = false;
      Status status;
    };
    auto gate = std::make_shared<Gate>();
    event.state()->OnDone([queue = queue_, gate](const Status& status) {
      absl::MutexLock lock(&queue->mu);
      gate->status = status;
      gate->open = true;
    });
    absl::MutexLock lock(&queue_->mu);
    auto passed = [this, &gate]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return gate->open || queue_->stopping; };
    Clock::Real()->Await(&queue_->mu, passed, absl::InfiniteFuture());
    return gate->open ? gate->status : Cancelled("stream '{}' ended while it waited for an event", options_.name);
  }

  const StreamOptions options_;
  std::shared_ptr<Queue> queue_;
  std::thread thread_;
};

}  // namespace

StatusOr<std::unique_ptr<Stream>> CreateHostStream(const StreamOptions& options) {
  if (options.queue_limit < 1) {
    return InvalidArgument("stream '{}': queue limit is {}; allowed: 1 or more", options.name, options.queue_limit);
  }
  return std::make_unique<HostStream>(options);
}

}  // namespace tidepool::device
