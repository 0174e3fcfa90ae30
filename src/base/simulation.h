// A single-threaded core of discrete events in virtual time. Callbacks are scheduled at absolute nanoseconds and run in the order
// (time, actor, sequence of scheduling), so a run depends on nothing but what was scheduled: same inputs and seed, same run. The
// hash over (time, actor, kind) of every event that ran says whether two runs were the same.
//
//   Simulation simulation({.seed = 7});
//   const Simulation::ActorId disk = simulation.AddActor("disk");
//   simulation.ScheduleAfter(5'000, disk, [&] { done = true; });
//   simulation.Run();
//
// This is virtual time for models, which never block: several million events a second. base/clock.h's VirtualClock is virtual
// time for threads that do. clock() joins the two: code that takes a Clock reads the simulation's time there, and whoever sleeps
// or waits in it, outside of a callback, runs the simulation until then.
//
// Times are int64_t nanoseconds since the simulation's start, which is absl::UnixEpoch() for clock(). A time too far away to be
// written saturates to kNever. Scheduling in the past is a bug and aborts.
//
// Owned by one thread, which may change between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace tidepool {

class Simulation {
 public:
  using ActorId = uint32_t;
  static constexpr ActorId kNobody = std::numeric_limits<ActorId>::max();
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  struct Options {
    uint64_t seed = 0;
    int64_t start_ns = 0;
  };
  // Names one scheduled event; stays harmless after the event has run.
  struct EventId {
    uint32_t slot = std::numeric_limits<uint32_t>::max();
    uint32_t generation = 0;
  };
  enum class Outcome : uint8_t {
    kIdle,      // nothing is scheduled any more
    kDeadline,  // the next event lies after the deadline; the time is the deadline
    kEvents,    // `most_events` have run
    kStopped,   // a callback called Stop
  };

  Simulation() : Simulation(Options()) {}
  explicit Simulation(const Options& options);
  ~Simulation();
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  int64_t now_ns() const { return now_ns_; }
  uint64_t seed() const { return options_.seed; }
  // A seed for the random numbers of one actor, so that they do not depend on what other actors do.
  uint64_t SeedOf(ActorId actor) const;
  Clock* clock() { return &clock_; }

  // Ids count from 0. At one time, the events of a lower id run first.
  ActorId AddActor(std::string name);
  void Rename(ActorId actor, std::string name) { actors_[actor] = std::move(name); }
  const std::string& NameOf(ActorId actor) const;

  // `work` is a callable without arguments; up to kInlineBytes of captures are stored without allocating. `kind` goes into the
  // hash.
  template <typename Work>
  EventId Schedule(int64_t at_ns, ActorId actor, Work&& work, uint32_t kind = 0);
  template <typename Work>
  EventId ScheduleAfter(int64_t delay_ns, ActorId actor, Work&& work, uint32_t kind = 0) {
    return Schedule(Later(now_ns_, delay_ns), actor, std::forward<Work>(work), kind);
  }
  // False if the event has run, is running or was cancelled.
  bool Cancel(EventId event);

  // Runs events until none is left, the next is later than `deadline_ns`, `most_events` have run or Stop was called. Not from
  // inside a callback.
  Outcome Run(int64_t deadline_ns = kNever, int64_t most_events = kNever);
  // Moves the time forward to where no event lies before it; a time that has passed is ignored.
  void AdvanceTo(int64_t at_ns) {
    TIDEPOOL_CHECK(at_ns <= NextEventNs(), "time {} ns lies behind the next event, at {} ns", at_ns, NextEventNs());
    if (at_ns > now_ns_) now_ns_ = at_ns;
  }
  // Ends Run after the callback that runs.
  void Stop() { stopping_ = true; }
  bool running() const { return running_; }

  // The time of the next event; kNever if there is none.
  int64_t NextEventNs();
  int64_t pending() const { return static_cast<int64_t>(heap_.size()) - cancelled_; }
  int64_t events_run() const { return events_run_; }
  uint64_t hash() const { return hash_; }

  // Who waits for what, for the report of a deadlock. `what` is kept by reference, usually a literal. `whom`: the actor that can
  // end the wait, if it is known.
  using WaitId = uint32_t;
  WaitId BeginWait(ActorId who, std::string_view what, ActorId whom = kNobody);
  void EndWait(WaitId wait);
  // OK unless somebody waits while nothing is scheduled. Else FAILED_PRECONDITION that names every waiting actor, what it waits
  // for and since when, and the cycle of actors that wait for each other if there is one.
  Status CheckDeadlock();

  // a + b, or kNever.
  static int64_t Later(int64_t a_ns, int64_t b_ns) {
    int64_t sum;
    return __builtin_add_overflow(a_ns, b_ns, &sum) ? kNever : sum;
  }

  static constexpr size_t kInlineBytes = 48;

 private:
  struct Slot {
    alignas(std::max_align_t) std::byte work[kInlineBytes];
    void (*run)(void*) = nullptr;   // calls the work and destroys it; null: cancelled
    void (*drop)(void*) = nullptr;  // destroys it
    uint32_t generation = 0;
    uint32_t kind = 0;
  };
  // Entries are small and carry the whole order, so that sifting touches nothing else.
  struct Entry {
    int64_t at_ns;
    uint64_t sequence;
    ActorId actor;
    uint32_t slot;
    bool Before(const Entry& other) const {
      if (at_ns != other.at_ns) return at_ns < other.at_ns;
      if (actor != other.actor) return actor < other.actor;
      return sequence < other.sequence;
    }
  };
  struct Wait {
    ActorId who = kNobody, whom = kNobody;  // who == kNobody: unused
    std::string_view what;
    int64_t since_ns = 0;
  };
  class View final : public Clock {
   public:
    explicit View(Simulation* simulation) : simulation_(simulation) {}
    absl::Time Now() override;
    void SleepUntil(absl::Time wake) override;
    bool Await(absl::Mutex* mu, const std::function<bool()>& condition, absl::Time deadline) override;

   private:
    Simulation* simulation_;
  };

  static constexpr uint32_t kSlotsPerChunk = 512;
  Slot& At(uint32_t slot) { return chunks_[slot / kSlotsPerChunk][slot % kSlotsPerChunk]; }
  uint32_t TakeSlot();
  void Push(const Entry& entry);
  void PopFirst();
  void SiftDown(size_t hole, const Entry& entry);
  void DropCancelledAtTop();
  void Compact();
  void RunFirst();
  EventId Insert(int64_t at_ns, ActorId actor, uint32_t slot, uint32_t kind);

  const Options options_;
  int64_t now_ns_;
  uint64_t next_sequence_ = 0;
  int64_t events_run_ = 0;
  uint64_t hash_;
  bool running_ = false, stopping_ = false;
  int64_t cancelled_ = 0;    // entries of the heap whose slot was cancelled
  std::vector<Entry> heap_;  // four children each
  std::vector<std::unique_ptr<Slot[]>> chunks_;
  std::vector<uint32_t> free_slots_;
  std::vector<std::string> actors_;
  std::vector<Wait> waits_;
  std::vector<WaitId> free_waits_;
  View clock_{this};
};

template <typename Work>
Simulation::EventId Simulation::Schedule(int64_t at_ns, ActorId actor, Work&& work, uint32_t kind) {
  using Stored = std::decay_t<Work>;
  static_assert(std::is_invocable_v<Stored&>, "an event is a callable without arguments");
  const uint32_t index = TakeSlot();
  Slot& slot = At(index);
  if constexpr (sizeof(Stored) <= kInlineBytes && alignof(Stored) <= alignof(std::max_align_t)) {
    new (slot.work) Stored(std::forward<Work>(work));
    slot.run = [](void* place) {
      Stored* stored = std::launder(static_cast<Stored*>(place));
      (*stored)();
      stored->~Stored();
    };
    slot.drop = [](void* place) { std::launder(static_cast<Stored*>(place))->~Stored(); };
  } else {
    new (slot.work) Stored*(new Stored(std::forward<Work>(work)));
    slot.run = [](void* place) {
      const std::unique_ptr<Stored> stored(*std::launder(static_cast<Stored**>(place)));
      (*stored)();
    };
    slot.drop = [](void* place) { delete *std::launder(static_cast<Stored**>(place)); };
  }
  return Insert(at_ns, actor, index, kind);
}

}  // namespace tidepool
