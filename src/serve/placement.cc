#include "serve/placement.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "base/status.h"

namespace tidepool::serve {

Placement::Placement(int devices, int train_device)
    : train_device_(train_device), devices_(static_cast<size_t>(std::max(1, devices))) {}

bool Placement::Usable(absl::Span<const View> views, size_t device) {
  return views[device].takes_requests || std::none_of(views.begin(), views.end(), [](const View& v) { return v.takes_requests; });
}

bool Placement::TooLong(const Device& device, const Model& model) const {
  if (model.solo_latency <= absl::ZeroDuration() || model.slo <= absl::ZeroDuration()) return device.outstanding > kLongQueue;
  return device.backlog > model.slo / 2;
}

Placement::Choice Placement::Choose(const Model& model, absl::Span<const View> views) const {
  TIDEPOOL_CHECK(views.size() == devices_.size(), "{} views of {} devices", views.size(), devices_.size());
  int ready = -1, coming = -1;
  bool idle = false;
  const auto better = [&](size_t device, int than) {
    return than < 0 || devices_[device].outstanding < devices_[static_cast<size_t>(than)].outstanding;
  };
  for (size_t i = 0; i < devices_.size(); ++i) {
    if (!Usable(views, i)) continue;
    idle = idle || devices_[i].outstanding == 0;
    const auto counted = devices_[i].by_model.find(model.key);
    const bool awaited = views[i].state == ModelState::kAbsent && counted != devices_[i].by_model.end();
    if (views[i].state == ModelState::kReady) {
      // The device that trains is asked last of equal ones.
      const bool tie =
          ready >= 0 && ready == train_device_ && devices_[i].outstanding == devices_[static_cast<size_t>(ready)].outstanding;
      if (better(i, ready) || tie) ready = static_cast<int>(i);
    } else if ((views[i].state == ModelState::kLoading || awaited) && better(i, coming)) {
      coming = static_cast<int>(i);
    }
  }
  if (ready >= 0) {
    const bool replica = idle && TooLong(devices_[static_cast<size_t>(ready)], model);
    return {.device = ready, .place = replica, .idle = true};
  }
  if (coming >= 0) return {.device = coming};
  return {.place = true};
}

int Placement::FindPlace(const Model& model, absl::Span<const View> views, bool idle) const {
  const auto cost = [&](size_t i) {
    const Device& device = devices_[i];
    const bool fits = views[i].free_bytes >= model.weight_bytes;
    const bool trains = static_cast<int>(i) == train_device_;
    return std::tuple(device.outstanding, !fits, trains, fits ? -views[i].free_bytes : device.placed, i);
  };
  int best = -1;
  for (size_t i = 0; i < devices_.size(); ++i) {
    if (!Usable(views, i) || (idle && devices_[i].outstanding > 0)) continue;
    if (best < 0 || cost(i) < cost(static_cast<size_t>(best))) best = static_cast<int>(i);
  }
  return best;
}

bool Placement::WantsMemory(const Model& model, absl::Span<const View> views) const { return Choose(model, views).place; }

Placement::Ticket Placement::Begin(const Model& model, absl::Span<const View> views) {
  const Choice choice = Choose(model, views);
  int chosen = choice.device;
  if (choice.place) {
    chosen = FindPlace(model, views, choice.idle);
    TIDEPOOL_CHECK(chosen >= 0, "no place among {} devices", devices_.size());
    devices_[static_cast<size_t>(chosen)].placed = ++last_placed_;
  }
  Device& device = devices_[static_cast<size_t>(chosen)];
  ++device.outstanding;
  ++device.by_model[model.key];
  device.backlog += model.solo_latency;
  return {.device = chosen, .key = model.key, .expected = model.solo_latency};
}

void Placement::End(const Ticket& ticket) {
  Device& device = devices_[static_cast<size_t>(ticket.device)];
  const auto counted = device.by_model.find(ticket.key);
  TIDEPOOL_CHECK(counted != device.by_model.end(), "request to '{}' on device {} ended twice", ticket.key, ticket.device);
  if (--counted->second == 0) device.by_model.erase(counted);
  device.backlog = --device.outstanding == 0 ? absl::ZeroDuration() : device.backlog - ticket.expected;
}

int Placement::outstanding() const {
  return std::accumulate(devices_.begin(), devices_.end(), 0,
                         [](int sum, const Device& device) { return sum + device.outstanding; });
}

}  // namespace tidepool::serve
