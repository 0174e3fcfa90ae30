// The model of an emulated system: devices with engines, the links between them, and streams of commands. No threads, no real
// time: a Simulation moves it, in virtual time or, through a Driver, beside real time.
//
// A command begins when the command before it in its stream has ended and its engine is free; ends are computed from durations
// alone. Each command has times on the timeline that may lie a little before the simulation's time, where a command was submitted
// for an earlier moment (`submit_ns`): real time is noticed late, and lateness is not charged.
//
//   command      engine           ends
//   launch       compute          after its cost; see compute_engine.h for several jobs
//   copy         h2d, d2h, peer   when its bytes have gone over its links; one copy at a time per engine
//   collective   links only       on all ranks at once
//   host         none             when the work is done
//   record       none             at once: the point is reached
//   wait         none             when the point is reached
//
// A command with work (`has_work`) asks its sink to run it when it begins, and does not end before WorkDone. Its end on the
// timeline is that of its engine all the same.
//
// Owned by the simulation's thread.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/simulation.h"
#include "base/status.h"
#include "device/emulated/collectives.h"
#include "device/emulated/compute_engine.h"
#include "device/emulated/cost_source.h"
#include "device/emulated/jitter.h"
#include "device/emulated/links.h"
#include "device/emulated/topology.h"
#include "device/emulated/utilisation.h"

namespace tidepool::device::emulated {

inline constexpr int kEngineCount = 4;
using StreamId = int32_t;

// A place in a stream that other streams can wait for.
struct TimelinePoint {
  bool reached = false;
  int64_t at_ns = 0;
  std::vector<StreamId> waiting;
  Simulation::ActorId recorded_by = Simulation::kNobody;
};

struct Command {
  enum class Type : uint8_t { kLaunch, kCopy, kCollective, kHost, kRecord, kWait };
  Type type = Type::kHost;
  bool has_work = false;
  bool pinned = true;                        // copy
  EngineKind engine = EngineKind::kCompute;  // copy
  profile::CollectiveKind collective = profile::CollectiveKind::kAllReduce;
  int32_t peer = 0;                      // copy on kPeer: the other device
  bool receives = false;                 // copy on kPeer: from it, not to it
  int32_t ranks = 1;                     // collective
  int32_t group = 0;                     // collective: from GroupOf
  const OpTime* time = nullptr;          // launch: from Intern; null: fixed_ns
  int64_t fixed_ns = 0;                  // launch
  double bytes = 0;                      // copy, collective
  std::shared_ptr<TimelinePoint> point;  // record, wait
  uint64_t tag = 0;                      // for the sink
  int64_t submit_ns = 0;                 // not later than the simulation's time
};

class EmulationSink {
 public:
  virtual ~EmulationSink() = default;
  // The command's work is to run now.
  virtual void WorkBegins(StreamId stream, uint64_t tag) = 0;
  // Called in the stream's order. `status`: a collective whose ranks do not fit together.
  virtual void Ended(StreamId stream, uint64_t tag, int64_t start_ns, int64_t end_ns, const Status& status) = 0;
};

struct EmulationOptions {
  TopologyOptions topology;
  Sharing sharing = Sharing::kFifo;
  int64_t quantum_ns = 2'000'000;
  int64_t switch_ns = 0;
  Jitter jitter = Jitter::kNone;
  bool warm_up = false;  // the first run of an operation on a device takes the time of a first run
  CollectiveAlgorithm algorithm = CollectiveAlgorithm::kAuto;
  SharedTimeline* shared = nullptr;  // of the one device, if other processes use it too; sharing must be fifo then
};

class Emulation : private TaskSink, private TransferSink {
 public:
  // `costs` outlives it.
  static StatusOr<std::unique_ptr<Emulation>> Create(Simulation* simulation, const CostSource* costs,
                                                     const EmulationOptions& options);
  ~Emulation() override;

  int32_t devices() const { return static_cast<int32_t>(devices_.size()); }
  const CostSource& costs() const { return *costs_; }
  const Topology& topology() const { return topology_; }
  const LinkNetwork& network() const { return network_; }

  // Looks the operation up; the pointer stays good. What was said of a key first holds. NOT_FOUND as CostSource.
  StatusOr<const OpTime*> Intern(const Operation& operation);
  // RESOURCE_EXHAUSTED above 65536 names.
  StatusOr<int32_t> GroupOf(const std::string& name);

  StreamId AddStream(int32_t device, int32_t job, std::string name, EmulationSink* sink);
  // What is queued is dropped; the sink is not called any more.
  void RemoveStream(StreamId stream);
  // INVALID_ARGUMENT for a command that can never run.
  Status Check(StreamId stream, const Command& command) const;
  // A command that passes Check. May call sinks before it returns.
  void Submit(StreamId stream, Command command);
  // The work of the stream's current command is done; it took `ran_ns`, which is what a host command takes.
  void WorkDone(StreamId stream, int64_t ran_ns);
  // Ends the waits for a point that no stream will come to any more.
  void Reach(TimelinePoint* point, int64_t at_ns);
  // Launches, copies, host commands and waits of the stream end at once while it is set.
  void SetSkipping(StreamId stream, bool skipping);
  // When the last command that has ended did; when the one that runs began.
  int64_t LastEndNs(StreamId stream) const { return At(stream).last_end_ns; }
  int64_t StartNs(StreamId stream) const { return At(stream).start_ns; }
  UtilisationMeter& utilisation(int32_t device) { return devices_[static_cast<size_t>(device)].utilisation; }
  ComputeEngine& compute(int32_t device) { return *devices_[static_cast<size_t>(device)].compute; }

  int64_t BusyNs(int32_t device, EngineKind engine) const;
  int64_t operations(int32_t device) const { return devices_[static_cast<size_t>(device)].operations; }
  int64_t estimated_operations(int32_t device) const { return devices_[static_cast<size_t>(device)].estimated; }
  // By how much the work of commands took longer on this machine than the commands did on the device, in sum.
  int64_t overrun_ns(int32_t device) const { return devices_[static_cast<size_t>(device)].overrun_ns; }

 private:
  struct Stream {
    int32_t device = 0, job = 0;
    Simulation::ActorId actor = Simulation::kNobody;
    EmulationSink* sink = nullptr;  // null: the slot is free
    uint32_t generation = 0;
    std::deque<Command> queue;
    int64_t last_end_ns = 0;
    bool running = false;    // the first of the queue has begun
    bool advancing = false;  // Advance is on the stack
    bool skipping = false;
    bool engine_pending = false, work_pending = false;
    bool waiting = false;
    int64_t start_ns = 0, end_ns = 0;
    Simulation::WaitId wait = 0;
    Status status;
  };
  struct CopyEngine {
    std::deque<uint64_t> queue;  // keys of streams; the first one copies
    int64_t idle_since_ns = 0;
    int64_t start_ns = 0;  // of the copy that runs
    int64_t busy_ns = 0;
  };
  struct DeviceState {
    Simulation::ActorId actor = Simulation::kNobody;
    std::unique_ptr<ComputeEngine> compute;
    std::array<CopyEngine, kEngineCount> copies;  // by EngineKind
    DurationSampler sampler{Jitter::kNone, 0};
    std::map<const OpTime*, bool> warm;
    UtilisationMeter utilisation;
    int64_t operations = 0, estimated = 0;
    int64_t overrun_ns = 0;
  };
  // One collective that has begun or gathers its ranks.
  struct Gathering {
    std::vector<uint64_t> streams;
    std::vector<int32_t> devices;
    profile::CollectiveKind kind = profile::CollectiveKind::kAllReduce;
    double bytes = 0;
    int32_t ranks = 0;
    int64_t ready_ns = 0;
    std::vector<CollectiveRound> rounds;
    size_t round = 0;
    int64_t open_sends = 0;
    int64_t round_end_ns = 0;
  };

  Emulation(Simulation* simulation, const CostSource* costs, const EmulationOptions& options)
      : simulation_(simulation), costs_(costs), options_(options), network_(simulation, simulation->AddActor("links")) {}

  Stream& At(StreamId stream) { return streams_[static_cast<size_t>(stream)]; }
  const Stream& At(StreamId stream) const { return streams_[static_cast<size_t>(stream)]; }
  // Names a stream's current occupant in callbacks of engines and links.
  uint64_t KeyOf(StreamId stream) const { return uint64_t{At(stream).generation} << 32 | static_cast<uint32_t>(stream); }
  // Negative if the stream that the key names is gone.
  StreamId StreamOf(uint64_t key) const;

  void Advance(StreamId stream);
  bool Begin(StreamId stream);     // true: the command can end at once
  bool BeginNow(StreamId stream);  // the same; its time has come
  void BeginWork(StreamId stream);
  void EngineEnded(StreamId stream, int64_t end_ns);
  void End(StreamId stream);
  void StopWaiting(StreamId stream);

  void BeginCopy(StreamId stream);
  void StartCopy(int32_t device, EngineKind engine);
  void StartFlow(int32_t device, EngineKind engine, uint64_t key, int64_t ready_ns);
  void CopyEnded(int32_t device, EngineKind engine, int64_t end_ns);
  Topology::Path PathOf(int32_t device, const Command& command) const;
  double LimitOf(const Command& command) const;  // of a pageable copy, in bytes/s; 0: none

  void JoinCollective(StreamId stream);
  void LeaveCollective(StreamId stream);  // that still waits for ranks
  void StartRound(uint32_t gathering, int64_t ready_ns);
  void EndCollective(uint32_t gathering, int64_t end_ns, const Status& status);

  void TaskStarted(uint64_t tag, int64_t start_ns) override;
  void TaskEnded(uint64_t tag, int64_t end_ns) override;
  void TransferEnded(uint64_t tag, int64_t end_ns) override;

  Simulation* const simulation_;
  const CostSource* const costs_;
  const EmulationOptions options_;
  LinkNetwork network_;
  Topology topology_;
  LinkTime pageable_[2];  // to the device, from it
  std::vector<DeviceState> devices_;
  std::deque<Stream> streams_;
  std::vector<StreamId> free_streams_;
  std::map<profile::OpKey, OpTime> times_;
  std::map<std::string, int32_t> groups_;
  std::deque<std::string> group_waits_;             // by group: what a rank waits for
  std::map<int32_t, uint32_t> gathering_of_group_;  // that still waits for ranks
  std::deque<Gathering> gatherings_;
  std::vector<uint32_t> free_gatherings_;
};

}  // namespace tidepool::device::emulated
