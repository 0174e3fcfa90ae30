#include "device/emulated/emulation.h"

#include <algorithm>

namespace tidepool::device::emulated {
namespace {

constexpr size_t kMostTimes = 1 << 20;
constexpr size_t kMostGroups = 1 << 16;

// What a transfer of the link network belongs to: a copy engine or a round of a collective.
constexpr uint64_t kCollectiveTag = uint64_t{1} << 63;
uint64_t CopyTag(int32_t device, EngineKind engine) { return static_cast<uint64_t>(device) << 8 | static_cast<uint64_t>(engine); }

size_t Index(EngineKind engine) { return static_cast<size_t>(engine); }

}  // namespace

StatusOr<std::unique_ptr<Emulation>> Emulation::Create(Simulation* simulation, const CostSource* costs,
                                                       const EmulationOptions& options) {
  if (options.quantum_ns < 1 || options.switch_ns < 0) {
    return InvalidArgument("a quantum of {} ns and a switch of {} ns; allowed: 1 or more, and 0 or more", options.quantum_ns,
                           options.switch_ns);
  }
  if (options.shared != nullptr && options.sharing != Sharing::kFifo) {
    return InvalidArgument("an emulated device that several processes use is shared first come, first served; '{}' was asked for",
                           NameOf(options.sharing));
  }
  std::unique_ptr<Emulation> emulation(new Emulation(simulation, costs, options));
  TIDEPOOL_ASSIGN_OR_RETURN(emulation->topology_, Topology::Build(options.topology, *costs, &emulation->network_));
  // A copy from pageable memory is limited by its bounce copy too, alone and beside others.
  emulation->pageable_[0] = costs->TimeOf(profile::LinkKind::kHostToDevice, false).value_or(LinkTime());
  emulation->pageable_[1] = costs->TimeOf(profile::LinkKind::kDeviceToHost, false).value_or(emulation->pageable_[0]);
  emulation->devices_.resize(static_cast<size_t>(emulation->topology_.devices()));
  for (size_t i = 0; i < emulation->devices_.size(); ++i) {
    DeviceState& device = emulation->devices_[i];
    device.actor = simulation->AddActor(fmt::format("device{}", i));
    device.compute = std::make_unique<ComputeEngine>(simulation, device.actor,
                                                     ComputeEngine::Options{.sharing = options.sharing,
                                                                            .quantum_ns = options.quantum_ns,
                                                                            .switch_ns = options.switch_ns,
                                                                            .shared = options.shared,
                                                                            .sink = emulation.get()});
    device.sampler = DurationSampler(options.jitter, simulation->SeedOf(device.actor));
    for (CopyEngine& engine : device.copies) engine.idle_since_ns = simulation->now_ns();
  }
  return emulation;
}

Emulation::~Emulation() = default;

StatusOr<const OpTime*> Emulation::Intern(const Operation& operation) {
  if (const auto found = times_.find(operation.key); found != times_.end()) return &found->second;
  if (times_.size() >= kMostTimes) {
    return ResourceExhausted("an emulated device met {} kinds of operations; allowed: {}", kMostTimes, kMostTimes);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const OpTime time, costs_->TimeOf(operation));
  return &times_.emplace(operation.key, time).first->second;
}

StatusOr<int32_t> Emulation::GroupOf(const std::string& name) {
  if (groups_.size() >= kMostGroups && !groups_.contains(name)) {
    return ResourceExhausted("an emulated system met {} groups of collectives; allowed: {}", kMostGroups, kMostGroups);
  }
  const auto [group, added] = groups_.emplace(name, static_cast<int32_t>(groups_.size()));
  if (added) group_waits_.push_back(fmt::format("the other ranks of a collective of group '{}'", name));
  return group->second;
}

StreamId Emulation::AddStream(int32_t device, int32_t job, std::string name, EmulationSink* sink) {
  if (free_streams_.empty()) {
    free_streams_.push_back(static_cast<StreamId>(streams_.size()));
    streams_.emplace_back();
    streams_.back().actor = simulation_->AddActor("");
  }
  const StreamId id = free_streams_.back();
  free_streams_.pop_back();
  Stream& stream = At(id);
  stream.device = device;
  stream.job = job;
  stream.sink = sink;
  simulation_->Rename(stream.actor, std::move(name));
  return id;
}

void Emulation::RemoveStream(StreamId id) {
  LeaveCollective(id);
  StopWaiting(id);
  Stream& stream = At(id);
  const Simulation::ActorId actor = stream.actor;
  const uint32_t generation = stream.generation + 1;
  stream = Stream();
  stream.actor = actor;
  stream.generation = generation;
  free_streams_.push_back(id);
}

StreamId Emulation::StreamOf(uint64_t key) const {
  const auto id = static_cast<StreamId>(key & 0xffffffff);
  const Stream& stream = At(id);
  return stream.sink != nullptr && stream.generation == key >> 32 ? id : -1;
}

Status Emulation::Check(StreamId id, const Command& command) const {
  const Stream& stream = At(id);
  const std::string& name = simulation_->NameOf(stream.actor);
  if (command.bytes < 0) return InvalidArgument("stream '{}': {} bytes; allowed: 0 or more", name, command.bytes);
  if (command.type == Command::Type::kCopy && command.engine == EngineKind::kPeer &&
      (command.peer < 0 || command.peer >= devices() || command.peer == stream.device)) {
    return InvalidArgument("stream '{}' of device {}: a copy to device {}; allowed: another one of 0 to {}", name, stream.device,
                           command.peer, devices() - 1);
  }
  if (command.type == Command::Type::kCollective && (command.ranks < 1 || command.ranks > devices())) {
    return InvalidArgument("stream '{}': a collective of {} ranks; allowed: 1 to {}", name, command.ranks, devices());
  }
  return {};
}

void Emulation::Submit(StreamId id, Command command) {
  Stream& stream = At(id);
  if (command.type == Command::Type::kRecord) command.point->recorded_by = stream.actor;
  command.submit_ns = std::min(command.submit_ns, simulation_->now_ns());
  stream.queue.push_back(std::move(command));
  Advance(id);
}

void Emulation::SetSkipping(StreamId id, bool skipping) { At(id).skipping = skipping; }

// Runs the stream's commands until one takes time. Sinks may submit more from within; then the loop goes on with it.
void Emulation::Advance(StreamId id) {
  if (At(id).advancing || At(id).running) return;
  const uint32_t generation = At(id).generation;
  At(id).advancing = true;
  while (At(id).generation == generation && !At(id).running && !At(id).queue.empty()) {
    if (Begin(id)) End(id);
  }
  if (At(id).generation == generation) At(id).advancing = false;
}

bool Emulation::Begin(StreamId id) {
  Stream& stream = At(id);
  stream.running = true;
  stream.start_ns = stream.end_ns = std::max(stream.queue.front().submit_ns, stream.last_end_ns);
  if (stream.start_ns <= simulation_->now_ns()) return BeginNow(id);
  // Host work before it took time that is still to pass.
  const uint64_t key = KeyOf(id);
  simulation_->Schedule(stream.start_ns, stream.actor, [this, key] {
    const StreamId stream_id = StreamOf(key);
    if (stream_id < 0 || !BeginNow(stream_id)) return;
    End(stream_id);
    Advance(stream_id);
  });
  return false;
}

bool Emulation::BeginNow(StreamId id) {
  Stream& stream = At(id);
  const Command& command = stream.queue.front();
  stream.status = Status();
  const bool skipped = stream.skipping && command.type != Command::Type::kRecord && command.type != Command::Type::kCollective;
  if (skipped) return true;
  stream.work_pending = command.has_work && command.type != Command::Type::kCollective;
  stream.engine_pending = false;
  DeviceState& device = devices_[static_cast<size_t>(stream.device)];
  switch (command.type) {
    case Command::Type::kLaunch: {
      ++device.operations;
      int64_t duration_ns = command.fixed_ns;
      if (const OpTime* time = command.time; time != nullptr) {
        if (time->origin == profile::Origin::kEstimated) ++device.estimated;
        duration_ns = device.sampler.Draw(*time);
        if (options_.warm_up && time->first_ns > 0 && !std::exchange(device.warm[time], true)) duration_ns = time->first_ns;
      }
      stream.engine_pending = true;
      device.compute->Submit(stream.job, KeyOf(id), duration_ns, stream.start_ns);
      return false;
    }
    case Command::Type::kCopy:
      ++device.operations;
      stream.engine_pending = true;
      BeginCopy(id);
      return false;
    case Command::Type::kCollective:
      ++device.operations;
      stream.engine_pending = true;
      JoinCollective(id);
      return false;
    case Command::Type::kHost:
      stream.work_pending = true;
      BeginWork(id);
      return false;
    case Command::Type::kRecord: return true;
    case Command::Type::kWait:
      if (command.point->reached) {
        stream.end_ns = std::max(stream.end_ns, command.point->at_ns);
        return true;
      }
      command.point->waiting.push_back(id);
      stream.waiting = true;
      stream.wait = simulation_->BeginWait(stream.actor, "an event", command.point->recorded_by);
      return false;
  }
  return true;
}

void Emulation::StopWaiting(StreamId id) {
  Stream& stream = At(id);
  if (!stream.waiting) return;
  stream.waiting = false;
  simulation_->EndWait(stream.wait);
  if (!stream.queue.empty() && stream.queue.front().point != nullptr) std::erase(stream.queue.front().point->waiting, id);
}

void Emulation::BeginWork(StreamId id) {
  Stream& stream = At(id);
  if (stream.work_pending) stream.sink->WorkBegins(id, stream.queue.front().tag);
}

void Emulation::WorkDone(StreamId id, int64_t ran_ns) {
  Stream& stream = At(id);
  stream.work_pending = false;
  if (stream.engine_pending) return;
  if (stream.queue.front().type == Command::Type::kHost) {
    stream.end_ns = stream.start_ns + ran_ns;
  } else if (const int64_t over_ns = ran_ns - (stream.end_ns - stream.start_ns); over_ns > 0) {
    devices_[static_cast<size_t>(stream.device)].overrun_ns += over_ns;
    if (options_.shared != nullptr) options_.shared->AddOverrun(over_ns);
  }
  End(id);
  Advance(id);
}

void Emulation::EngineEnded(StreamId id, int64_t end_ns) {
  Stream& stream = At(id);
  stream.engine_pending = false;
  stream.end_ns = end_ns;
  if (stream.work_pending) return;
  End(id);
  Advance(id);
}

void Emulation::End(StreamId id) {
  Stream& stream = At(id);
  const Command command = std::move(stream.queue.front());
  stream.queue.pop_front();
  stream.running = false;
  stream.last_end_ns = std::max(stream.last_end_ns, stream.end_ns);
  const int64_t start_ns = stream.start_ns, end_ns = stream.last_end_ns;
  if (command.type == Command::Type::kLaunch && !stream.skipping) {
    devices_[static_cast<size_t>(stream.device)].utilisation.AddBusy(start_ns, end_ns);
  }
  // The sink first: who waits for the point may ask it how the point was reached.
  stream.sink->Ended(id, command.tag, start_ns, end_ns, std::exchange(stream.status, Status()));
  if (command.type == Command::Type::kRecord) Reach(command.point.get(), end_ns);
}

void Emulation::Reach(TimelinePoint* point, int64_t at_ns) {
  point->reached = true;
  point->at_ns = at_ns;
  std::vector<StreamId> waiting;
  waiting.swap(point->waiting);
  for (const StreamId id : waiting) {
    StopWaiting(id);
    At(id).end_ns = std::max(At(id).end_ns, at_ns);
    // Its queue's end is reached through the loop of Advance, as if it had just begun.
    End(id);
    Advance(id);
  }
}

// --- compute -------------------------------------------------------------------------------------------------------------

void Emulation::TaskStarted(uint64_t key, int64_t start_ns) {
  const StreamId id = StreamOf(key);
  if (id < 0) return;
  At(id).start_ns = start_ns;
  BeginWork(id);
}

void Emulation::TaskEnded(uint64_t key, int64_t end_ns) {
  const StreamId id = StreamOf(key);
  if (id >= 0) EngineEnded(id, end_ns);
}

// --- copies --------------------------------------------------------------------------------------------------------------

Topology::Path Emulation::PathOf(int32_t device, const Command& command) const {
  if (command.engine == EngineKind::kHostToDevice) return topology_.ToDevice(device);
  if (command.engine == EngineKind::kDeviceToHost) return topology_.FromDevice(device);
  return command.receives ? topology_.Between(command.peer, device) : topology_.Between(device, command.peer);
}

double Emulation::LimitOf(const Command& command) const {
  if (command.pinned || command.engine == EngineKind::kPeer) return 0;
  return pageable_[command.engine == EngineKind::kDeviceToHost].bytes_per_s;
}

void Emulation::BeginCopy(StreamId id) {
  const EngineKind kind = At(id).queue.front().engine;
  const int32_t device = At(id).device;
  CopyEngine& engine = devices_[static_cast<size_t>(device)].copies[Index(kind)];
  engine.queue.push_back(KeyOf(id));
  if (engine.queue.size() == 1) StartCopy(device, kind);
}

void Emulation::StartCopy(int32_t device, EngineKind kind) {
  DeviceState& state = devices_[static_cast<size_t>(device)];
  CopyEngine& engine = state.copies[Index(kind)];
  while (!engine.queue.empty() && StreamOf(engine.queue.front()) < 0) engine.queue.pop_front();
  if (engine.queue.empty()) return;
  const uint64_t key = engine.queue.front();
  const StreamId id = StreamOf(key);
  Stream& stream = At(id);
  const Command& command = stream.queue.front();
  stream.start_ns = engine.start_ns = std::max(stream.start_ns, engine.idle_since_ns);
  const Topology::Path path = PathOf(device, command);
  const int64_t now_ns = simulation_->now_ns();
  if (options_.shared != nullptr) {
    // Other processes' copies are reservations, not flows.
    const double limit = LimitOf(command);
    const double rate = limit > 0 ? std::min(limit, path.bytes_per_s) : path.bytes_per_s;
    const auto alone_ns = path.latency_ns + static_cast<int64_t>(command.bytes * 1e9 / rate);
    engine.start_ns = options_.shared->Reserve(static_cast<int>(kind), engine.start_ns, alone_ns);
    const int64_t end_ns = engine.start_ns + alone_ns;
    simulation_->Schedule(std::max(now_ns, end_ns), state.actor,
                          [this, device, kind, end_ns] { CopyEnded(device, kind, end_ns); });
  } else {
    const int64_t flows_ns = engine.start_ns + path.latency_ns;
    if (flows_ns > now_ns) {
      simulation_->Schedule(flows_ns, state.actor,
                            [this, device, kind, key, flows_ns] { StartFlow(device, kind, key, flows_ns); });
    } else {
      StartFlow(device, kind, key, flows_ns);
    }
  }
  BeginWork(id);
}

void Emulation::StartFlow(int32_t device, EngineKind kind, uint64_t key, int64_t ready_ns) {
  const StreamId id = StreamOf(key);
  if (id < 0) {  // the stream has ended meanwhile
    CopyEnded(device, kind, ready_ns);
    return;
  }
  const Command& command = At(id).queue.front();
  const Topology::Path path = PathOf(device, command);
  network_.Start({.path = path.links,
                  .bytes = command.bytes,
                  .limit_bytes_per_s = LimitOf(command),
                  .ready_ns = ready_ns,
                  .sink = this,
                  .tag = CopyTag(device, kind)});
}

void Emulation::CopyEnded(int32_t device, EngineKind kind, int64_t end_ns) {
  CopyEngine& engine = devices_[static_cast<size_t>(device)].copies[Index(kind)];
  const StreamId id = StreamOf(engine.queue.front());
  engine.queue.pop_front();
  engine.busy_ns += end_ns - engine.start_ns;
  engine.idle_since_ns = end_ns;
  StartCopy(device, kind);
  if (id >= 0) EngineEnded(id, end_ns);
}

// --- collectives ---------------------------------------------------------------------------------------------------------

void Emulation::JoinCollective(StreamId id) {
  Stream& stream = At(id);
  const Command& command = stream.queue.front();
  uint32_t index;
  if (const auto open = gathering_of_group_.find(command.group); open != gathering_of_group_.end()) {
    index = open->second;
  } else {
    if (free_gatherings_.empty()) {
      free_gatherings_.push_back(static_cast<uint32_t>(gatherings_.size()));
      gatherings_.emplace_back();
    }
    index = free_gatherings_.back();
    free_gatherings_.pop_back();
    gatherings_[index] = Gathering{.kind = command.collective, .bytes = command.bytes, .ranks = command.ranks};
    gathering_of_group_[command.group] = index;
  }
  Gathering& gathering = gatherings_[index];
  Status fits;
  if (gathering.kind != command.collective || gathering.bytes != command.bytes || gathering.ranks != command.ranks) {
    fits = InvalidArgument("the ranks of a collective do not agree: {} of {} bytes on {} ranks, and {} of {} bytes on {} ranks",
                           NameOf(gathering.kind), gathering.bytes, gathering.ranks, NameOf(command.collective), command.bytes,
                           command.ranks);
  } else if (std::find(gathering.devices.begin(), gathering.devices.end(), stream.device) != gathering.devices.end()) {
    fits = InvalidArgument("device {} takes part in a collective twice; allowed: once per device", stream.device);
  }
  gathering.streams.push_back(KeyOf(id));
  gathering.devices.push_back(stream.device);
  gathering.ready_ns = std::max(gathering.ready_ns, stream.start_ns);
  if (!fits.ok()) {
    gathering_of_group_.erase(command.group);
    EndCollective(index, std::max(gathering.ready_ns, simulation_->now_ns()), fits);
    return;
  }
  if (static_cast<int32_t>(gathering.streams.size()) < gathering.ranks) {
    stream.waiting = true;
    stream.wait = simulation_->BeginWait(stream.actor, group_waits_[static_cast<size_t>(command.group)]);
    return;
  }
  gathering_of_group_.erase(command.group);
  std::vector<int32_t> order = gathering.devices;
  std::sort(order.begin(), order.end());
  gathering.rounds = PlanCollective(gathering.kind, gathering.bytes, order, options_.algorithm, topology_);
  for (const uint64_t key : gathering.streams) {
    const StreamId rank = StreamOf(key);
    if (rank < 0) continue;
    StopWaiting(rank);
    At(rank).start_ns = gathering.ready_ns;
  }
  StartRound(index, gathering.ready_ns);
}

void Emulation::LeaveCollective(StreamId id) {
  const Stream& stream = At(id);
  if (!stream.running || stream.queue.empty() || stream.queue.front().type != Command::Type::kCollective) return;
  const auto open = gathering_of_group_.find(stream.queue.front().group);
  if (open == gathering_of_group_.end()) return;
  Gathering& gathering = gatherings_[open->second];
  const auto rank = std::find(gathering.streams.begin(), gathering.streams.end(), KeyOf(id));
  if (rank == gathering.streams.end()) return;
  gathering.devices.erase(gathering.devices.begin() + (rank - gathering.streams.begin()));
  gathering.streams.erase(rank);
  if (!gathering.streams.empty()) return;
  free_gatherings_.push_back(open->second);
  gathering_of_group_.erase(open);
}

void Emulation::StartRound(uint32_t index, int64_t ready_ns) {
  Gathering& gathering = gatherings_[index];
  const int64_t now_ns = simulation_->now_ns();
  if (gathering.round == gathering.rounds.size()) {
    // Never from within JoinCollective: the streams' state is not settled there.
    simulation_->Schedule(std::max(now_ns, ready_ns), devices_[0].actor,
                          [this, index, ready_ns] { EndCollective(index, ready_ns, Status()); });
    return;
  }
  const CollectiveRound& round = gathering.rounds[gathering.round];
  gathering.open_sends = static_cast<int64_t>(round.sends.size());
  gathering.round_end_ns = ready_ns;
  for (const auto& send : round.sends) {
    const Topology::Path path = topology_.Between(send.from, send.to);
    network_.Start({.path = path.links, .bytes = send.bytes, .ready_ns = ready_ns, .sink = this, .tag = kCollectiveTag | index});
  }
}

void Emulation::EndCollective(uint32_t index, int64_t end_ns, const Status& status) {
  Gathering gathering = std::move(gatherings_[index]);
  free_gatherings_.push_back(index);
  for (size_t i = 0; i < gathering.streams.size(); ++i) {
    CopyEngine& engine = devices_[static_cast<size_t>(gathering.devices[i])].copies[Index(EngineKind::kPeer)];
    if (status.ok()) engine.busy_ns += end_ns - gathering.ready_ns;
  }
  for (const uint64_t key : gathering.streams) {
    const StreamId id = StreamOf(key);
    if (id < 0) continue;
    StopWaiting(id);
    At(id).status = status;
    EngineEnded(id, end_ns);
  }
}

void Emulation::TransferEnded(uint64_t tag, int64_t end_ns) {
  if ((tag & kCollectiveTag) == 0) {
    CopyEnded(static_cast<int32_t>(tag >> 8), static_cast<EngineKind>(tag & 0xff), end_ns);
    return;
  }
  const auto index = static_cast<uint32_t>(tag & ~kCollectiveTag);
  Gathering& gathering = gatherings_[index];
  gathering.round_end_ns = std::max(gathering.round_end_ns, end_ns);
  if (--gathering.open_sends > 0) return;
  const int64_t next_ns = gathering.round_end_ns + gathering.rounds[gathering.round].latency_ns;
  ++gathering.round;
  if (next_ns <= simulation_->now_ns()) {
    StartRound(index, next_ns);
  } else {
    simulation_->Schedule(next_ns, devices_[0].actor, [this, index, next_ns] { StartRound(index, next_ns); });
  }
}

int64_t Emulation::BusyNs(int32_t device, EngineKind engine) const {
  const DeviceState& state = devices_[static_cast<size_t>(device)];
  return engine == EngineKind::kCompute ? state.compute->busy_ns() : state.copies[Index(engine)].busy_ns;
}

}  // namespace tidepool::device::emulated
