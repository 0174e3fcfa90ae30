#include "serve/device_group.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <map>
#include <thread>
#include <utility>

namespace tidepool::serve {
namespace {

int Readiness(ModelState state) {
  switch (state) {
    case ModelState::kReady: return 3;
    case ModelState::kLoading: return 2;
    case ModelState::kDraining: return 1;
    case ModelState::kAbsent: return 0;
  }
  return 0;
}

// Adds what one more device says. What does not differ between devices is the first one's.
void Merge(const ModelStatus& other, int device, ModelStatus* sum) {
  if (other.resident_bytes > 0) sum->devices.push_back(device);
  if (Readiness(other.state) > Readiness(sum->state)) {
    sum->state = other.state;
    sum->reason = other.reason;
    sum->servable = other.servable;
  }
  sum->resident_bytes += other.resident_bytes;
  sum->requests += other.requests;
  sum->failures += other.failures;
  sum->executions += other.executions;
  sum->batched_requests += other.batched_requests;
  sum->loads += other.loads;
  sum->evictions += other.evictions;
  sum->rejected += other.rejected;
  sum->within_slo += other.within_slo;
  sum->queue_time += other.queue_time;
  sum->compute_time += other.compute_time;
  sum->load_time += other.load_time;
  sum->last_used_ago = std::min(sum->last_used_ago, other.last_used_ago);
}

ModelStatus First(ModelStatus status, int device) {
  status.devices.clear();
  if (status.resident_bytes > 0) status.devices.push_back(device);
  return status;
}

// Calls `work` for each index on a thread of its own and waits for all.
void OnAll(size_t count, const std::function<void(size_t)>& work) {
  std::vector<std::thread> threads;
  for (size_t i = 1; i < count; ++i) threads.emplace_back(work, i);
  if (count > 0) work(0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

struct DeviceGroup::State {
  State(int devices, int train_device) : placement(devices, train_device) {}
  void End(const Placement::Ticket& ticket) {
    absl::MutexLock lock(&mu);
    placement.End(ticket);
  }
  absl::Mutex mu;
  Placement placement ABSL_GUARDED_BY(mu);
};

DeviceGroup::DeviceGroup(std::vector<Member> members, const Options& options)
    : options_(options),
      state_(std::make_shared<State>(static_cast<int>(members.size()), options.train_device)),
      members_(std::move(members)) {
  TIDEPOOL_CHECK(!members_.empty(), "a group of no devices");
}

DeviceGroup::~DeviceGroup() {
  // Each waits for its worker to end.
  OnAll(members_.size(), [&](size_t i) { members_[i].server.reset(); });
}

std::optional<Placement::Ticket> DeviceGroup::Route(const std::string& name, const std::string& version) {
  Placement::Model model{.key = version.empty() ? name : name + ":" + version};
  bool known = false;
  std::vector<Placement::View> views(members_.size());
  for (size_t i = 0; i < members_.size(); ++i) {
    const auto presence = members_[i].server->Presence(name, version);
    // One that does not know the model while the repository is read again is no choice if another does.
    views[i].takes_requests = presence.ok() && presence->weight_bytes <= members_[i].limit_bytes && members_[i].server->Ready();
    if (!presence.ok()) continue;
    known = true;
    views[i].state = presence->state;
    model.weight_bytes = presence->weight_bytes;
    model.solo_latency = presence->solo_latency;
    model.slo = presence->slo;
  }
  if (!known) return std::nullopt;
  {
    absl::MutexLock lock(&state_->mu);
    if (!state_->placement.WantsMemory(model, views)) return state_->placement.Begin(model, views);
  }
  for (size_t i = 0; i < members_.size(); ++i) {
    if (members_[i].free_bytes) views[i].free_bytes = members_[i].free_bytes();
  }
  absl::MutexLock lock(&state_->mu);
  return state_->placement.Begin(model, views);
}

std::shared_ptr<InferHandle> DeviceGroup::Infer(InferRequest request, InferCallback done) {
  const auto ticket = Route(request.model, request.version);
  if (!ticket.has_value()) return members_[0].server->Infer(std::move(request), std::move(done));  // which says what is wrong
  return members_[static_cast<size_t>(ticket->device)].server->Infer(
      std::move(request), [state = state_, ticket = *ticket, done = std::move(done)](StatusOr<InferResponse> response) {
        state->End(ticket);
        done(std::move(response));
      });
}

bool DeviceGroup::Live() {
  return std::all_of(members_.begin(), members_.end(), [](const Member& member) { return member.server->Live(); });
}

bool DeviceGroup::Ready() {
  return std::any_of(members_.begin(), members_.end(), [](const Member& member) { return member.server->Ready(); });
}

StatusOr<ModelStatus> DeviceGroup::Model(const std::string& name) {
  StatusOr<ModelStatus> sum = members_[0].server->Model(name);
  if (sum.ok()) sum = First(*std::move(sum), 0);
  for (size_t i = 1; i < members_.size(); ++i) {
    auto other = members_[i].server->Model(name);
    if (!other.ok()) continue;
    if (sum.ok()) {
      Merge(*other, static_cast<int>(i), &*sum);
    } else {
      sum = First(*std::move(other), static_cast<int>(i));
    }
  }
  return sum;
}

std::vector<ModelStatus> DeviceGroup::Models() {
  std::map<std::string, ModelStatus> sums;
  for (size_t i = 0; i < members_.size(); ++i) {
    for (ModelStatus& status : members_[i].server->Models()) {
      const auto found = sums.find(status.name);
      if (found == sums.end()) {
        const std::string name = status.name;
        sums.emplace(name, First(std::move(status), static_cast<int>(i)));
      } else {
        Merge(status, static_cast<int>(i), &found->second);
      }
    }
  }
  std::vector<ModelStatus> models;
  for (auto& [name, status] : sums) models.push_back(std::move(status));
  return models;
}

StatusOr<ModelPresence> DeviceGroup::Presence(const std::string& model, const std::string& version) {
  StatusOr<ModelPresence> best = members_[0].server->Presence(model, version);
  for (size_t i = 1; i < members_.size(); ++i) {
    const auto other = members_[i].server->Presence(model, version);
    if (other.ok() && (!best.ok() || Readiness(other->state) > Readiness(best->state))) best = other;
  }
  return best;
}

Status DeviceGroup::Rescan() {
  std::vector<Status> results(members_.size());
  OnAll(members_.size(), [&](size_t i) { results[i] = members_[i].server->Rescan(); });
  for (const Status& result : results) TIDEPOOL_RETURN_IF_ERROR(result);
  return {};
}

Status DeviceGroup::Load(const std::string& model, absl::Time deadline) {
  const auto ticket = Route(model, "");
  if (!ticket.has_value()) return members_[0].server->Load(model, deadline);
  const Status loaded = members_[static_cast<size_t>(ticket->device)].server->Load(model, deadline);
  state_->End(*ticket);
  return loaded;
}

StatusOr<int64_t> DeviceGroup::Unload(const std::string& model, absl::Time deadline) {
  std::vector<StatusOr<int64_t>> results(members_.size(), int64_t{0});
  OnAll(members_.size(), [&](size_t i) { results[i] = members_[i].server->Unload(model, deadline); });
  int64_t freed = 0;
  for (const auto& result : results) {
    if (!result.ok()) return result.status();
    freed += *result;
  }
  return freed;
}

Status DeviceGroup::MeasureSoloLatencies(absl::Time deadline) {
  // Not on the device that trains, if there is another: what was measured last stays in its memory.
  const size_t measured = options_.train_device == 0 && members_.size() > 1 ? 1 : 0;
  TIDEPOOL_RETURN_IF_ERROR(members_[measured].server->MeasureSoloLatencies(deadline));
  return SetSoloLatencies(members_[measured].server->solo_latencies(), options_.clock->Now() + options_.ask_limit);
}

SoloLatencies DeviceGroup::solo_latencies() {
  SoloLatencies latencies;
  for (const Member& member : members_) latencies.merge(member.server->solo_latencies());
  return latencies;
}

Status DeviceGroup::SetSoloLatencies(const SoloLatencies& latencies, absl::Time deadline) {
  for (const Member& member : members_) TIDEPOOL_RETURN_IF_ERROR(member.server->SetSoloLatencies(latencies, deadline));
  return {};
}

void DeviceGroup::Drain() {
  OnAll(members_.size(), [&](size_t i) { members_[i].server->Drain(); });
}

int DeviceGroup::worker_pid() { return members_[0].server->worker_pid(); }

void DeviceGroup::SetEventListener(std::function<void(const ServeEvent&)> listener) {
  for (size_t i = 0; i < members_.size(); ++i) {
    if (!listener) {
      members_[i].server->SetEventListener(nullptr);
      continue;
    }
    members_[i].server->SetEventListener([listener, device = static_cast<int>(i)](const ServeEvent& event) {
      ServeEvent with_device = event;
      with_device.device = device;
      listener(with_device);
    });
  }
}

int DeviceGroup::outstanding(int device) {
  absl::MutexLock lock(&state_->mu);
  return state_->placement.outstanding(device);
}

StatusOr<std::vector<std::unique_ptr<Server>>> StartServers(const std::vector<std::pair<pool::Broker*, ServerOptions>>& servers) {
  std::vector<StatusOr<std::unique_ptr<Server>>> started(servers.size());
  OnAll(servers.size(), [&](size_t i) { started[i] = Server::Start(servers[i].first, servers[i].second); });
  std::vector<std::unique_ptr<Server>> out;
  for (auto& server : started) {
    if (!server.ok()) return server.status();
    out.push_back(std::move(*server));
  }
  return out;
}

}  // namespace tidepool::serve
