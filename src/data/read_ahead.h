// Reads of units (records or groups) that are started before they are asked for, within a budget of bytes.
//
// WillNeed announces a unit; the announcements of one unit are counted. Take gives the bytes to one of those who announced it and
// waits for them if need be; when all have taken it or given it up, the unit is forgotten. A unit nobody announced, or for which
// the budget had no room, is not held here: the caller reads what it needs by itself.
//
// With an io_uring the reads run while nobody waits: WillNeed submits them, and whoever waits collects completions for all (there
// is no thread). Without one, WillNeed asks the kernel to read the part of an open file into its cache, and the first Take of a
// unit that is wanted more than once reads it in its own thread for all.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "data/disk_files.h"
#include "data/record_source.h"
#include "data/uring.h"

namespace tidepool::data {

struct ReadAheadStats {
  bool ring = false;          // reads go through an io_uring
  std::string why_no_ring;    // if kAuto had to do without
  int64_t announced = 0;      // calls of WillNeed
  int64_t started_ahead = 0;  // units whose read began before a Take
  int64_t waited = 0;         // Takes that waited for the disk or read the unit themselves
  int64_t declined = 0;       // Takes of a unit that was not announced, had no room or failed
  int64_t held_bytes = 0;
  int64_t peak_held_bytes = 0;
};

// Thread-safe.
class ReadAhead {
 public:
  // `locate` gives the place of a unit; it and `files` outlive this object. Fails if the options ask for a ring that cannot be
  // made.
  static StatusOr<std::unique_ptr<ReadAhead>> Create(const DiskFiles* files, std::function<Extent(int64_t unit)> locate);
  // Waits for the reads that are under way, for at most the time limit of one read; then their memory is left to the kernel.
  ~ReadAhead();

  void WillNeed(int64_t unit);
  void WontNeed(int64_t unit);
  // All bytes of the unit. Nothing: the caller reads what it needs by itself, and so finds out what is wrong with the file if
  // anything is. DEADLINE_EXCEEDED if a read that was started does not end within the time limit.
  StatusOr<std::optional<RecordView>> Take(int64_t unit);
  ReadAheadStats stats() const;

 private:
  enum class State : uint8_t { kPending, kOpening, kOpened, kReading, kReadingHere, kDone, kFailed };
  struct Unit {
    int64_t id = 0;
    Extent extent;
    State state = State::kPending;
    int64_t wanted = 0;      // announcements that neither Take nor WontNeed has answered
    int takers = 0;          // threads that are in Take for it
    bool forgotten = false;  // no longer in units_
    std::string path;        // of an open that is under way
    bool direct = false;
    std::shared_ptr<OpenedFile> opened;
    ReadPlan plan;
    std::shared_ptr<std::byte> buffer;
    int64_t held_bytes = 0;  // counted for it
    RecordView view;         // once done
    bool ended() const { return state == State::kDone || state == State::kFailed; }
  };
  using UnitPtr = std::shared_ptr<Unit>;

  ReadAhead(const DiskFiles* files, std::function<Extent(int64_t unit)> locate) : files_(*files), locate_(std::move(locate)) {}
  void StartPending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartOpening(const UnitPtr& unit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Once the file is open: a buffer and the read, or back to the front of the queue if there is no room.
  void StartReading(const UnitPtr& unit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Launch(const UnitPtr& unit, bool pushed, uint64_t tag) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReadHere(const UnitPtr& unit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // False if the time limit passed first.
  bool AwaitEnd(const UnitPtr& unit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Collects completions, waiting for the first up to `timeout` without the lock. Only if nobody else does.
  void Reap(absl::Duration timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Handle(const UnitPtr& unit, int result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void End(Unit* unit, State state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Answered(const UnitPtr& unit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Lets go of the memory if nobody can ask for it any more and nothing is under way.
  void ReleaseIfUnwanted(Unit* unit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Release(Unit* unit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Hold(Unit* unit, int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasRoom(int64_t bytes) const ABSL_SHARED_LOCKS_REQUIRED(mu_);

  const DiskFiles& files_;
  const std::function<Extent(int64_t unit)> locate_;
  std::unique_ptr<Ring> ring_;  // null: none

  mutable absl::Mutex mu_;
  bool reaping_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;                            // the ring failed; nothing new goes through it
  absl::flat_hash_map<int64_t, UnitPtr> units_ ABSL_GUARDED_BY(mu_);    // those that somebody still wants
  absl::flat_hash_map<uint64_t, UnitPtr> flying_ ABSL_GUARDED_BY(mu_);  // by tag of the operation under way
  std::deque<UnitPtr> pending_ ABSL_GUARDED_BY(mu_);                    // in the order of their announcement
  uint64_t next_tag_ ABSL_GUARDED_BY(mu_) = 0;
  ReadAheadStats stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace tidepool::data
