// Which models are in device memory: what to load next, what to evict for it, what has been idle for too long; and when training
// stops for task-switch mode. Pure: `now` and a picture of the situation come in, decisions go out.
//
// A model is absent, loading, ready, draining (only older requests still run on it) or unloading. One load runs at a time.
// Victims are the coldest models without queued or running work; hotness is the number of requests, halved every
// `hotness_half_life`, ties by last use. A model that is expected to be asked for soon is loaded ahead of its first request if
// there is room without an eviction, and is no idle victim: when a burst begins, its models come back together. If only busy
// models are left and a request has waited for `starvation_limit`, the coldest busy one is drained: what it had accepted until
// then still runs, then it goes.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "serve/types.h"

namespace tidepool::serve {

struct ResidencyOptions {
  // A model that has not been used for so long is evicted while training has less memory than it needs to be fast. Memory that
  // nobody misses stays with its model, however long that is idle. Infinite: never.
  absl::Duration idle_eviction = absl::Seconds(3);
  int64_t serving_limit_pages = -1;  // for models and the workspace together; negative: none
  absl::Duration hotness_half_life = absl::Seconds(30);
  absl::Duration starvation_limit = absl::Seconds(1);
  // A model that has not been used for so long and can be loaded again within its objective is evicted rather than that training
  // has less memory than it needs to be fast.
  absl::Duration spare_idle = absl::Milliseconds(500);
  // A model is expected soon if its share of all requests (by hotness) times the present arrival rate says so many seconds or
  // less until its next request. Zero: never.
  absl::Duration ahead = absl::Seconds(1);
  absl::Duration memory_retry_min = absl::Milliseconds(10), memory_retry_max = absl::Milliseconds(500);
  absl::Duration broken_retry_min = absl::Seconds(1), broken_retry_max = absl::Seconds(30);
};

struct ResidencyDemand {
  ModelId model;
  absl::Time target;  // by when its first request should be answered
  absl::Time waiting_since;
  int queued = 0;
};

struct Situation {
  absl::Time now;
  int64_t available_pages = 0;       // what a new pinned lease could get, reclaiming training's part
  int64_t spare_pages = 0;           // of those, what leaves training the size that it prefers; negative: it misses so much
  int64_t workspace_held_pages = 0;  // by the worker for activations; given back when a load needs it
  std::vector<ResidencyDemand> demands;
  std::set<ModelId> executing;
  std::set<ModelId> cheap_to_reload;  // a request that finds them absent can still be answered in time
  bool may_load = true;
};

struct ResidencyDecision {
  std::optional<ModelId> load;
  std::vector<ModelId> unload;
  std::vector<ModelId> drain;
  struct Impossible {
    ModelId model;
    Status status;
  };
  std::vector<Impossible> impossible;  // does not fit even if every other model went
  absl::Time wake = absl::InfiniteFuture();
};

// Thread-compatible.
class Residency {
 public:
  enum class State : uint8_t { kAbsent, kLoading, kReady, kDraining, kUnloading };

  explicit Residency(const ResidencyOptions& options) : options_(options) {}

  // `pages` for its weights and `workspace_pages` for the activations of its largest batch (estimates until it has run). A model
  // that does not fit with them is loaded if it fits with `least_workspace_pages`, for one sample: its batches are cut then.
  void AddModel(ModelId model, std::string name, int64_t pages, int64_t workspace_pages, int64_t least_workspace_pages);
  void RemoveModel(ModelId model);  // absent ones only
  void OnUse(ModelId model, int requests, absl::Time now);
  void OnWorkspace(ModelId model, int64_t pages);
  // A user unloads it or it is retired: it does not come back ahead of a request.
  void OnUnwanted(ModelId model);

  // Whether there is an absent model that could be loaded ahead: Decide is to know what room there is.
  bool WantsAhead(absl::Time now) const;

  // Decides only; the caller reports what it did with the calls below.
  ResidencyDecision Decide(const Situation& situation);

  void OnLoadStarted(ModelId model);
  void OnLoaded(ModelId model, int64_t pages, absl::Time now);
  void OnLoadFailed(ModelId model, const Status& status, absl::Time now);
  void OnDrain(ModelId model, absl::Time now);
  void OnUnloadStarted(ModelId model);
  void OnUnloaded(ModelId model);
  void OnWorkerLost();

  // The coldest ready model outside `busy`, if there is one.
  std::optional<ModelId> Victim(absl::Time now, const std::set<ModelId>& busy) const;

  State state(ModelId model) const;
  // Requests received before this may run: all for a ready model, older ones for a draining one, none otherwise.
  absl::Time cutoff(ModelId model) const;
  int64_t pages(ModelId model) const;
  int64_t resident_pages() const;  // of everything that is not absent
  bool anything_resident() const;
  double hotness(ModelId model, absl::Time now) const;
  absl::Time last_used(ModelId model) const;
  // Why the last load failed, while loads are held back for it; OK otherwise. Memory shortages are no such reason.
  Status broken(ModelId model, absl::Time now) const;
  const Status& last_failure(ModelId model) const;
  void ClearFailure(ModelId model);

 private:
  struct Model {
    std::string name;
    int64_t pages = 0, workspace_pages = 0, least_workspace_pages = 0;
    State state = State::kAbsent;
    absl::Time drain_cutoff = absl::InfiniteFuture();
    double heat = 0;
    absl::Time heat_at = absl::InfinitePast(), used = absl::InfinitePast();
    Status failure;
    int failures = 0;
    bool short_of_memory = false;  // the last load failed although the pages seemed to be there
    bool made_room = false;        // a model was evicted for it since
    absl::Time retry_at = absl::InfinitePast();
  };
  int64_t WorkspaceNeed(const Model& candidate) const;
  double ExpectedHotness(absl::Time now) const;  // models at least as hot are expected soon
  std::optional<ModelId> LoadAhead(const Situation& situation) const;
  std::vector<ModelId> ColdestFirst(absl::Time now) const;
  void MakeRoom(const ResidencyDemand& demand, const Situation& situation, ResidencyDecision* decision);
  // Cold models that training's wish may evict, until `missing` pages are free or on their way; what is still missing is left in
  // it: those cheap to load again, and if `idle_too` those idle for `idle_eviction`. Sets when the next one is free to go.
  std::vector<ModelId> SpareVictims(const Situation& situation, bool idle_too, int64_t* missing,
                                    ResidencyDecision* decision) const;
  int64_t PagesOnTheirWay() const;
  static std::set<ModelId> BusyModels(const Situation& situation);

  const ResidencyOptions options_;
  std::map<ModelId, Model> models_;
  // Requests per second for all models over the last quarter of a second or so, with the newest.
  double arrivals_ = 0;
  absl::Time arrivals_at_ = absl::InfinitePast();
};

// Whether a failed load may succeed later without anybody mending the model.
bool IsMemoryShortage(const Status& status);

// Task-switch mode: training is stopped on the first request and goes on after `idle` without work, when every model has been
// evicted. Thread-compatible.
class TaskSwitch {
 public:
  enum class Phase : uint8_t { kTraining, kPausing, kServing, kClearing, kResuming };
  enum class Action : uint8_t { kNone, kPause, kEvictAll, kResume };

  explicit TaskSwitch(absl::Duration idle) : idle_(idle) {}
  // `work`: requests wait or run, or models are to be loaded. `resident`: a model is not absent.
  Action Step(absl::Time now, bool work, bool resident);
  // The end of a pause or resume that Step asked for. A failed pause is tried again.
  void OnPaused(const Status& status, absl::Time now);
  void OnResumed(const Status& status, absl::Time now);

  bool may_serve() const { return phase_ == Phase::kServing; }
  Phase phase() const { return phase_; }
  absl::Time wake() const;

 private:
  static constexpr absl::Duration kRetry = absl::Milliseconds(100);
  const absl::Duration idle_;
  Phase phase_ = Phase::kTraining;
  absl::Time idle_since_ = absl::InfiniteFuture();
  absl::Time retry_at_ = absl::InfinitePast();  // after a pause or resume that failed
};

}  // namespace tidepool::serve
