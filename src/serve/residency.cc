#include "serve/residency.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "base/units.h"

namespace tidepool::serve {
namespace {

// Long enough for some requests of a burst, short against its length.
constexpr double kArrivalWindowSeconds = 0.25;

double Faded(double rate, absl::Duration since) {
  return rate * std::exp(-std::max(0.0, absl::ToDoubleSeconds(since)) / kArrivalWindowSeconds);
}

}  // namespace

bool IsMemoryShortage(const Status& status) {
  switch (status.code()) {
    case StatusCode::kResourceExhausted:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kCancelled:
    case StatusCode::kAborted:
    case StatusCode::kUnavailable: return true;
    default: return false;
  }
}

void Residency::AddModel(ModelId model, std::string name, int64_t pages, int64_t workspace_pages, int64_t least_workspace_pages) {
  Model& entry = models_[model];
  entry.name = std::move(name);
  entry.pages = pages;
  entry.workspace_pages = workspace_pages;
  entry.least_workspace_pages = std::min(workspace_pages, least_workspace_pages);
}

void Residency::RemoveModel(ModelId model) { models_.erase(model); }

double Residency::hotness(ModelId model, absl::Time now) const {
  const Model& entry = models_.at(model);
  if (entry.heat == 0) return 0;
  const double half_lives = absl::FDivDuration(now - entry.heat_at, options_.hotness_half_life);
  return entry.heat * std::exp2(-std::max(0.0, half_lives));
}

void Residency::OnUse(ModelId model, int requests, absl::Time now) {
  Model& entry = models_.at(model);
  entry.heat = hotness(model, now) + requests;
  entry.heat_at = now;
  entry.used = std::max(entry.used, now);
  if (arrivals_at_ != absl::InfinitePast()) arrivals_ = Faded(arrivals_, now - arrivals_at_);
  arrivals_ += requests / kArrivalWindowSeconds;
  arrivals_at_ = now;
}

void Residency::OnUnwanted(ModelId model) { models_.at(model).heat = 0; }

// The newest request is not counted: an average seen at arrivals is right without the arrival itself, and one request alone is no
// rate.
double Residency::ExpectedHotness(absl::Time now) const {
  const double rate = Faded(std::max(0.0, arrivals_ - 1 / kArrivalWindowSeconds), now - arrivals_at_);
  const double requests = rate * absl::ToDoubleSeconds(options_.ahead);  // of all models, while one is to be expected
  if (requests < 1) return std::numeric_limits<double>::infinity();
  double sum = 0;
  for (const auto& [id, model] : models_) sum += hotness(id, now);
  return std::max(sum / requests, std::numeric_limits<double>::min());
}

bool Residency::WantsAhead(absl::Time now) const {
  const double expected = ExpectedHotness(now);
  if (std::isinf(expected)) return false;
  return std::any_of(models_.begin(), models_.end(), [&](const auto& entry) {
    return entry.second.state == State::kAbsent && entry.second.failure.ok() && hotness(entry.first, now) >= expected;
  });
}

void Residency::OnWorkspace(ModelId model, int64_t pages) {
  Model& entry = models_.at(model);
  entry.workspace_pages = std::max(entry.workspace_pages, pages);
}

int64_t Residency::WorkspaceNeed(const Model& candidate) const {
  int64_t need = candidate.workspace_pages;
  for (const auto& [id, model] : models_) {
    if (model.state != State::kAbsent) need = std::max(need, model.workspace_pages);
  }
  return need;
}

std::vector<ModelId> Residency::ColdestFirst(absl::Time now) const {
  std::vector<ModelId> ready;
  for (const auto& [id, model] : models_) {
    if (model.state == State::kReady) ready.push_back(id);
  }
  std::sort(ready.begin(), ready.end(), [&](ModelId a, ModelId b) {
    const double heat_a = hotness(a, now), heat_b = hotness(b, now);
    return std::tie(heat_a, models_.at(a).used, a) < std::tie(heat_b, models_.at(b).used, b);
  });
  return ready;
}

int64_t Residency::PagesOnTheirWay() const {
  int64_t pages = 0;
  for (const auto& [id, model] : models_) {
    if (model.state == State::kUnloading || model.state == State::kDraining) pages += model.pages;
  }
  return pages;
}

std::set<ModelId> Residency::BusyModels(const Situation& situation) {
  std::set<ModelId> busy = situation.executing;
  for (const ResidencyDemand& demand : situation.demands) {
    if (demand.queued > 0) busy.insert(demand.model);
  }
  return busy;
}

std::vector<ModelId> Residency::SpareVictims(const Situation& situation, bool idle_too, int64_t* missing,
                                             ResidencyDecision* decision) const {
  *missing -= PagesOnTheirWay();
  const std::set<ModelId> busy = BusyModels(situation);
  const double expected = ExpectedHotness(situation.now);
  std::vector<ModelId> victims;
  for (ModelId id : ColdestFirst(situation.now)) {
    if (*missing <= 0) break;
    if (busy.contains(id) || hotness(id, situation.now) >= expected) continue;
    const Model& model = models_.at(id);
    absl::Time free = idle_too ? model.used + options_.idle_eviction : absl::InfiniteFuture();
    if (situation.cheap_to_reload.contains(id)) free = std::min(free, model.used + options_.spare_idle);
    if (free > situation.now) {
      decision->wake = std::min(decision->wake, free);
      continue;
    }
    victims.push_back(id);
    *missing -= model.pages;
  }
  return victims;
}

// The hottest one that fits beside what is there.
std::optional<ModelId> Residency::LoadAhead(const Situation& situation) const {
  int64_t total = resident_pages() + situation.available_pages + situation.workspace_held_pages;
  if (options_.serving_limit_pages >= 0) total = std::min(total, options_.serving_limit_pages);
  double least = ExpectedHotness(situation.now);
  std::optional<ModelId> best;
  for (const auto& [id, model] : models_) {
    if (model.state != State::kAbsent || !model.failure.ok() || hotness(id, situation.now) < least) continue;
    if (resident_pages() + model.pages + WorkspaceNeed(model) > total) continue;
    best = id;
    least = hotness(id, situation.now);
  }
  return best;
}

void Residency::MakeRoom(const ResidencyDemand& demand, const Situation& situation, ResidencyDecision* decision) {
  Model& wanted = models_.at(demand.model);
  const int64_t held = resident_pages();
  // What models and activations may hold in all, by the device and by the static split.
  int64_t total = held + situation.available_pages + situation.workspace_held_pages;
  if (options_.serving_limit_pages >= 0) total = std::min(total, options_.serving_limit_pages);
  const int64_t workspace = std::clamp(total - wanted.pages, wanted.least_workspace_pages,
                                       std::max(WorkspaceNeed(wanted), wanted.least_workspace_pages));
  const int64_t room = total - workspace;
  if (wanted.pages > room) {
    // Pages that a dead worker held may still be on their way back.
    const absl::Time certain = demand.waiting_since + options_.starvation_limit;
    if (situation.now < certain) {
      decision->wake = std::min(decision->wake, certain);
      return;
    }
    decision->impossible.push_back(
        {demand.model,
         ResourceExhausted(
             "model '{}' needs {} pages for its weights and {} for its activations; at most {} pages can be had for "
             "models at this moment",
             wanted.name, wanted.pages, workspace, total)});
    return;
  }
  // First without pressing training below the size that it prefers. A load that failed does not look at wishes any more.
  const int64_t pressed = situation.available_pages - situation.spare_pages;
  int64_t missing_spare = held + wanted.pages - (room - pressed);
  if (pressed > 0 && missing_spare > 0 && !wanted.short_of_memory) {
    const std::vector<ModelId> victims = SpareVictims(situation, /*idle_too=*/false, &missing_spare, decision);
    if (missing_spare <= 0) {
      decision->unload.insert(decision->unload.end(), victims.begin(), victims.end());
      return;
    }
  }

  int64_t missing = held + wanted.pages - room;
  const bool going = std::any_of(models_.begin(), models_.end(), [](const auto& entry) {
    return entry.second.state == State::kUnloading || entry.second.state == State::kDraining;
  });
  if (missing <= 0 && (!wanted.short_of_memory || (wanted.made_room && !going))) {
    decision->load = demand.model;
    return;
  }
  missing -= PagesOnTheirWay();
  // The pages were there by count and the load still failed: they lie too scattered, or the trainer kept them. One more must go
  // before each further try.
  if (wanted.short_of_memory && !going) missing = std::max<int64_t>(missing, 1);

  const std::set<ModelId> busy = BusyModels(situation);
  const std::vector<ModelId> coldest = ColdestFirst(situation.now);
  std::vector<ModelId> victims;
  int64_t freed = 0;
  for (ModelId id : coldest) {
    if (freed >= missing) break;
    if (busy.contains(id) || id == demand.model) continue;
    victims.push_back(id);
    freed += models_.at(id).pages;
  }
  if (freed >= missing || (wanted.short_of_memory && !victims.empty())) {
    decision->unload.insert(decision->unload.end(), victims.begin(), victims.end());
    wanted.made_room = wanted.made_room || !victims.empty();
    if (victims.empty() && !going) decision->load = demand.model;
    return;
  }
  if (wanted.short_of_memory && missing == 1 && held + wanted.pages <= room) {
    decision->load = demand.model;  // nothing to evict: the count says yes, so try again
    return;
  }
  const absl::Time starves = demand.waiting_since + options_.starvation_limit;
  if (situation.now < starves) {
    decision->wake = std::min(decision->wake, starves);
    return;
  }
  decision->unload.insert(decision->unload.end(), victims.begin(), victims.end());
  for (ModelId id : coldest) {
    if (freed >= missing) break;
    if (!busy.contains(id) || id == demand.model) continue;
    decision->drain.push_back(id);
    freed += models_.at(id).pages;
  }
}

ResidencyDecision Residency::Decide(const Situation& situation) {
  ResidencyDecision decision;
  const bool loading =
      std::any_of(models_.begin(), models_.end(), [](const auto& entry) { return entry.second.state == State::kLoading; });
  std::vector<const ResidencyDemand*> wanted;
  for (const ResidencyDemand& demand : situation.demands) {
    const Model& model = models_.at(demand.model);
    if (model.state != State::kAbsent) continue;
    if (model.retry_at > situation.now) {
      decision.wake = std::min(decision.wake, model.retry_at);
      continue;
    }
    wanted.push_back(&demand);
  }
  if (!loading && situation.may_load) {
    std::sort(wanted.begin(), wanted.end(),
              [](const auto* a, const auto* b) { return std::tie(a->target, a->model) < std::tie(b->target, b->model); });
    // The most urgent model that can be had at all; those behind it wait their turn, so it is not starved by smaller ones.
    for (const ResidencyDemand* demand : wanted) {
      const size_t impossible = decision.impossible.size();
      MakeRoom(*demand, situation, &decision);
      if (decision.impossible.size() == impossible) break;
    }
  }
  if (wanted.empty() && !loading && situation.may_load) decision.load = LoadAhead(situation);
  if (int64_t missing = -situation.spare_pages; missing > 0 && wanted.empty() && !loading && !decision.load) {
    decision.unload = SpareVictims(situation, /*idle_too=*/true, &missing, &decision);
  }
  return decision;
}

void Residency::OnLoadStarted(ModelId model) { models_.at(model).state = State::kLoading; }

void Residency::OnLoaded(ModelId model, int64_t pages, absl::Time now) {
  Model& entry = models_.at(model);
  entry.state = State::kReady;
  entry.pages = pages;
  entry.used = std::max(entry.used, now);
  ClearFailure(model);
}

void Residency::ClearFailure(ModelId model) {
  Model& entry = models_.at(model);
  entry.failure = Status();
  entry.failures = 0;
  entry.short_of_memory = false;
  entry.made_room = false;
  entry.retry_at = absl::InfinitePast();
}

void Residency::OnLoadFailed(ModelId model, const Status& status, absl::Time now) {
  Model& entry = models_.at(model);
  entry.state = State::kAbsent;
  entry.failure = status;
  const bool memory = IsMemoryShortage(status);
  entry.short_of_memory = status.code() == StatusCode::kResourceExhausted || status.code() == StatusCode::kDeadlineExceeded;
  entry.made_room = false;
  const absl::Duration least = memory ? options_.memory_retry_min : options_.broken_retry_min;
  const absl::Duration most = memory ? options_.memory_retry_max : options_.broken_retry_max;
  entry.retry_at = now + std::min(most, least * static_cast<double>(1 << std::min(entry.failures, 20)));
  ++entry.failures;
}

void Residency::OnDrain(ModelId model, absl::Time now) {
  Model& entry = models_.at(model);
  entry.state = State::kDraining;
  entry.drain_cutoff = now;
}

std::optional<ModelId> Residency::Victim(absl::Time now, const std::set<ModelId>& busy) const {
  for (ModelId id : ColdestFirst(now)) {
    if (!busy.contains(id)) return id;
  }
  return std::nullopt;
}

void Residency::OnUnloadStarted(ModelId model) { models_.at(model).state = State::kUnloading; }
void Residency::OnUnloaded(ModelId model) { models_.at(model).state = State::kAbsent; }

void Residency::OnWorkerLost() {
  for (auto& [id, model] : models_) model.state = State::kAbsent;
}

Residency::State Residency::state(ModelId model) const {
  const auto found = models_.find(model);
  return found == models_.end() ? State::kAbsent : found->second.state;
}

absl::Time Residency::cutoff(ModelId model) const {
  const auto found = models_.find(model);
  if (found == models_.end()) return absl::InfinitePast();
  if (found->second.state == State::kReady) return absl::InfiniteFuture();
  return found->second.state == State::kDraining ? found->second.drain_cutoff : absl::InfinitePast();
}

int64_t Residency::pages(ModelId model) const { return models_.at(model).pages; }

int64_t Residency::resident_pages() const {
  int64_t pages = 0;
  for (const auto& [id, model] : models_) {
    if (model.state != State::kAbsent) pages += model.pages;
  }
  return pages;
}

bool Residency::anything_resident() const {
  return std::any_of(models_.begin(), models_.end(), [](const auto& entry) { return entry.second.state != State::kAbsent; });
}

absl::Time Residency::last_used(ModelId model) const { return models_.at(model).used; }

Status Residency::broken(ModelId model, absl::Time now) const {
  const Model& entry = models_.at(model);
  if (entry.failure.ok() || IsMemoryShortage(entry.failure) || entry.retry_at <= now) return {};
  return Annotate(entry.failure, fmt::format("model '{}' could not be loaded (next try in {})", entry.name,
                                             tidepool::FormatDuration(entry.retry_at - now)));
}

const Status& Residency::last_failure(ModelId model) const { return models_.at(model).failure; }

TaskSwitch::Action TaskSwitch::Step(absl::Time now, bool work, bool resident) {
  if (phase_ == Phase::kServing || phase_ == Phase::kClearing) {
    if (work) {  // also when clearing: staying is cheaper than to let training start and stop it again
      phase_ = Phase::kServing;
      idle_since_ = absl::InfiniteFuture();
      return Action::kNone;
    }
    idle_since_ = std::min(idle_since_, now);
    if (now < idle_since_ + idle_) return Action::kNone;
    phase_ = Phase::kClearing;
    if (resident) return Action::kEvictAll;
    if (now < retry_at_) return Action::kNone;
    phase_ = Phase::kResuming;
    return Action::kResume;
  }
  if (phase_ == Phase::kTraining && work && now >= retry_at_) {
    phase_ = Phase::kPausing;
    return Action::kPause;
  }
  return Action::kNone;
}

void TaskSwitch::OnPaused(const Status& status, absl::Time now) {
  if (phase_ != Phase::kPausing) return;
  phase_ = status.ok() ? Phase::kServing : Phase::kTraining;
  retry_at_ = status.ok() ? absl::InfinitePast() : now + kRetry;
  idle_since_ = absl::InfiniteFuture();
}

void TaskSwitch::OnResumed(const Status& status, absl::Time now) {
  if (phase_ != Phase::kResuming) return;
  phase_ = status.ok() ? Phase::kTraining : Phase::kClearing;
  retry_at_ = status.ok() ? absl::InfinitePast() : now + kRetry;
}

absl::Time TaskSwitch::wake() const {
  switch (phase_) {
    case Phase::kServing: return idle_since_ + idle_;
    case Phase::kTraining:
    case Phase::kClearing: return retry_at_ == absl::InfinitePast() ? absl::InfiniteFuture() : retry_at_;
    default: return absl::InfiniteFuture();
  }
}

}  // namespace tidepool::serve
