#include "base/simulation.h"

#include <algorithm>

namespace tidepool {
namespace {

// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

constexpr size_t kChildren = 4;

}  // namespace

Simulation::Simulation(const Options& options) : options_(options), now_ns_(options.start_ns), hash_(Mix(options.seed)) {}

Simulation::~Simulation() {
  for (const Entry& entry : heap_) {
    Slot& slot = At(entry.slot);
    if (slot.run != nullptr) slot.drop(slot.work);
  }
}

uint64_t Simulation::SeedOf(ActorId actor) const { return Mix(Mix(options_.seed) ^ actor); }

Simulation::ActorId Simulation::AddActor(std::string name) {
  actors_.push_back(std::move(name));
  return static_cast<ActorId>(actors_.size() - 1);
}

const std::string& Simulation::NameOf(ActorId actor) const {
  static const std::string nobody = "nobody";
  return actor < actors_.size() ? actors_[actor] : nobody;
}

uint32_t Simulation::TakeSlot() {
  if (free_slots_.empty()) {
    const auto first = static_cast<uint32_t>(chunks_.size()) * kSlotsPerChunk;
    chunks_.push_back(std::make_unique<Slot[]>(kSlotsPerChunk));
    for (uint32_t i = kSlotsPerChunk; i-- > 0;) free_slots_.push_back(first + i);
  }
  const uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

Simulation::EventId Simulation::Insert(int64_t at_ns, ActorId actor, uint32_t index, uint32_t kind) {
  TIDEPOOL_CHECK(at_ns >= now_ns_, "event of '{}' at {} ns; the time is {} ns", NameOf(actor), at_ns, now_ns_);
  Slot& slot = At(index);
  slot.kind = kind;
  Push({.at_ns = at_ns, .sequence = next_sequence_++, .actor = actor, .slot = index});
  return {.slot = index, .generation = slot.generation};
}

void Simulation::Push(const Entry& entry) {
  size_t hole = heap_.size();
  heap_.push_back(entry);
  while (hole > 0) {
    const size_t parent = (hole - 1) / kChildren;
    if (!entry.Before(heap_[parent])) break;
    heap_[hole] = heap_[parent];
    hole = parent;
  }
  heap_[hole] = entry;
}

void Simulation::SiftDown(size_t hole, const Entry& entry) {
  const size_t size = heap_.size();
  while (true) {
    const size_t first = hole * kChildren + 1;
    if (first >= size) break;
    const size_t last = std::min(first + kChildren, size);
    size_t least = first;
    for (size_t child = first + 1; child < last; ++child) {
      if (heap_[child].Before(heap_[least])) least = child;
    }
    if (!heap_[least].Before(entry)) break;
    heap_[hole] = heap_[least];
    hole = least;
  }
  heap_[hole] = entry;
}

void Simulation::PopFirst() {
  const Entry last = heap_.back();
  heap_.pop_back();
  if (!heap_.empty()) SiftDown(0, last);
}

bool Simulation::Cancel(EventId event) {
  if (event.slot >= chunks_.size() * kSlotsPerChunk) return false;
  Slot& slot = At(event.slot);
  if (slot.generation != event.generation || slot.run == nullptr) return false;
  slot.drop(slot.work);
  slot.run = nullptr;
  ++slot.generation;
  ++cancelled_;
  // The entry stays in the heap until it comes up; they must not outnumber the living.
  if (cancelled_ > 64 && cancelled_ * 2 > static_cast<int64_t>(heap_.size())) Compact();
  return true;
}

void Simulation::Compact() {
  std::erase_if(heap_, [this](const Entry& entry) {
    if (At(entry.slot).run != nullptr) return false;
    free_slots_.push_back(entry.slot);
    return true;
  });
  cancelled_ = 0;
  for (size_t i = heap_.size() / kChildren + 1; i-- > 0;) {
    if (i < heap_.size()) SiftDown(i, Entry(heap_[i]));
  }
}

void Simulation::DropCancelledAtTop() {
  while (!heap_.empty() && At(heap_[0].slot).run == nullptr) {
    free_slots_.push_back(heap_[0].slot);
    --cancelled_;
    PopFirst();
  }
}

int64_t Simulation::NextEventNs() {
  DropCancelledAtTop();
  return heap_.empty() ? kNever : heap_[0].at_ns;
}

void Simulation::RunFirst() {
  const Entry entry = heap_[0];
  PopFirst();
  Slot& slot = At(entry.slot);  // chunks stay where they are while the work schedules more
  now_ns_ = entry.at_ns;
  hash_ = Mix(Mix(hash_ ^ static_cast<uint64_t>(entry.at_ns)) ^ (uint64_t{entry.actor} << 32 | slot.kind));
  ++events_run_;
  ++slot.generation;  // the event can no longer be cancelled
  void (*run)(void*) = slot.run;
  slot.run = nullptr;
  run(slot.work);
  free_slots_.push_back(entry.slot);
}

Simulation::Outcome Simulation::Run(int64_t deadline_ns, int64_t most_events) {
  TIDEPOOL_CHECK(!running_, "a callback of the simulation must not run or wait for the simulation");
  running_ = true;
  stopping_ = false;
  Outcome outcome = Outcome::kIdle;
  for (int64_t run = 0;; ++run) {
    const int64_t next_ns = NextEventNs();
    if (stopping_) {
      outcome = Outcome::kStopped;
      break;
    }
    // An event at kNever is one that will not come.
    if (next_ns == kNever) break;
    if (next_ns > deadline_ns) {
      now_ns_ = std::max(now_ns_, deadline_ns);
      outcome = Outcome::kDeadline;
      break;
    }
    if (run >= most_events) {
      outcome = Outcome::kEvents;
      break;
    }
    RunFirst();
  }
  running_ = false;
  return outcome;
}

Simulation::WaitId Simulation::BeginWait(ActorId who, std::string_view what, ActorId whom) {
  if (free_waits_.empty()) {
    free_waits_.push_back(static_cast<WaitId>(waits_.size()));
    waits_.emplace_back();
  }
  const WaitId id = free_waits_.back();
  free_waits_.pop_back();
  waits_[id] = {.who = who, .whom = whom, .what = what, .since_ns = now_ns_};
  return id;
}

void Simulation::EndWait(WaitId wait) {
  TIDEPOOL_CHECK(wait < waits_.size() && waits_[wait].who != kNobody, "wait {} is not open", wait);
  waits_[wait] = Wait();
  free_waits_.push_back(wait);
}

Status Simulation::CheckDeadlock() {
  if (NextEventNs() != kNever) return {};
  std::string text;
  std::vector<ActorId> waits_for(actors_.size(), kNobody);
  for (const Wait& wait : waits_) {
    if (wait.who == kNobody) continue;
    if (wait.who < waits_for.size()) waits_for[wait.who] = wait.whom;
    text += fmt::format("{}'{}' waits for {}", text.empty() ? "" : "; ", NameOf(wait.who), wait.what);
    if (wait.whom != kNobody) text += fmt::format(" of '{}'", NameOf(wait.whom));
    text += fmt::format(" since {} ns", wait.since_ns);
  }
  if (text.empty()) return {};
  std::vector<int> seen(actors_.size(), 0);
  for (ActorId start = 0; start < actors_.size(); ++start) {
    ActorId at = start;
    while (at < actors_.size() && seen[at] == 0) {
      seen[at] = static_cast<int>(start) + 1;
      at = waits_for[at];
    }
    if (at >= actors_.size() || seen[at] != static_cast<int>(start) + 1) continue;
    text += "; they wait for each other: ";
    for (ActorId on = waits_for[at]; on != at; on = waits_for[on]) text += fmt::format("'{}' ", NameOf(on));
    text += fmt::format("'{}'", NameOf(at));
    break;
  }
  return FailedPrecondition("deadlock at {} ns: nothing is scheduled any more, but {}", now_ns_, text);
}

absl::Time Simulation::View::Now() { return absl::FromUnixNanos(simulation_->now_ns_); }

void Simulation::View::SleepUntil(absl::Time wake) {
  if (wake <= Now()) return;
  const int64_t wake_ns = absl::ToUnixNanos(wake);
  // Sleeping ends at `wake` also when nothing happens before.
  if (simulation_->Run(wake_ns) == Outcome::kIdle) simulation_->now_ns_ = wake_ns;
}

bool Simulation::View::Await(absl::Mutex* mu, const std::function<bool()>& condition, absl::Time deadline) {
  const int64_t deadline_ns = deadline == absl::InfiniteFuture() ? kNever : absl::ToUnixNanos(deadline);
  while (!condition()) {
    const int64_t next_ns = simulation_->NextEventNs();
    if (next_ns == kNever || next_ns > deadline_ns) {
      if (deadline_ns != kNever) simulation_->now_ns_ = std::max(simulation_->now_ns_, deadline_ns);
      return false;
    }
    mu->Unlock();
    simulation_->Run(deadline_ns, 1);
    mu->Lock();
  }
  return true;
}

}  // namespace tidepool
