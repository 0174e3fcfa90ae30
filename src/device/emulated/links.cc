#include "device/emulated/links.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/status.h"

namespace tidepool::device::emulated {
namespace {

int64_t NanosFor(double bytes, double bytes_per_s) {
  const double ns = std::ceil(bytes * 1e9 / bytes_per_s - 1e-6);  // what is whole but for rounding stays whole
  if (ns >= 9e18) return Simulation::kNever;
  return std::max<int64_t>(0, static_cast<int64_t>(ns));
}

}  // namespace

LinkId LinkNetwork::AddLink(std::string name, double bytes_per_s) {
  TIDEPOOL_CHECK(bytes_per_s > 0, "link '{}' has {} bytes/s", name, bytes_per_s);
  Link link;
  link.name = std::move(name);
  link.bytes_per_s = bytes_per_s;
  link.idle_since_ns = simulation_->now_ns();
  links_.push_back(std::move(link));
  return static_cast<LinkId>(links_.size() - 1);
}

void LinkNetwork::Start(const Transfer& transfer) {
  TIDEPOOL_CHECK(!transfer.path.empty() && transfer.path.size() <= kLongestPath, "a path of {} links", transfer.path.size());
  const int64_t now_ns = simulation_->now_ns();
  if (free_flows_.empty()) {
    free_flows_.push_back(static_cast<uint32_t>(flows_.size()));
    flows_.emplace_back();
  }
  const uint32_t index = free_flows_.back();
  free_flows_.pop_back();
  Flow& flow = flows_[index];
  flow = Flow{.links = static_cast<uint8_t>(transfer.path.size()),
              .bytes = transfer.bytes,
              .remaining = transfer.bytes,
              .limit = transfer.limit_bytes_per_s > 0 ? transfer.limit_bytes_per_s : std::numeric_limits<double>::infinity(),
              .sink = transfer.sink,
              .tag = transfer.tag};
  bool alone = true;
  int64_t start_ns = std::min(transfer.ready_ns, now_ns);
  for (size_t i = 0; i < transfer.path.size(); ++i) {
    flow.path[i] = transfer.path[i];
    Link& link = links_[Index(transfer.path[i])];
    alone = alone && link.flows.empty();
    start_ns = std::max(start_ns, link.idle_since_ns);
    link.flows.push_back(index);
  }
  flow.updated_ns = alone ? std::min(start_ns, now_ns) : now_ns;
  ++open_;
  FindComponent(index);
  ComputeRates();
  ApplyRates(now_ns);
}

void LinkNetwork::FindComponent(uint32_t first) {
  ++round_;
  component_.assign(1, first);
  component_links_.clear();
  flows_[first].round = round_;
  for (size_t next = 0; next < component_.size(); ++next) {
    Flow& flow = flows_[component_[next]];
    flow.new_rate = -1;
    for (size_t i = 0; i < flow.links; ++i) {
      Link& link = links_[Index(flow.path[i])];
      if (link.round == round_) continue;
      link.round = round_;
      component_links_.push_back(flow.path[i]);
      for (const uint32_t other : link.flows) {
        if (flows_[other].round == round_) continue;
        flows_[other].round = round_;
        component_.push_back(other);
      }
    }
  }
  // The order in which flows were found depends on who asked; the arithmetic must not.
  std::sort(component_.begin(), component_.end());
}

// Progressive filling: all rates grow together; a flow stops growing when a link of its path is full or its own limit is reached.
void LinkNetwork::ComputeRates() {
  for (const LinkId id : component_links_) {
    Link& link = links_[Index(id)];
    link.left = link.bytes_per_s;
    link.unfrozen = static_cast<int>(link.flows.size());
  }
  size_t unfrozen = component_.size();
  while (unfrozen > 0) {
    double level = std::numeric_limits<double>::infinity();
    for (const LinkId id : component_links_) {
      const Link& link = links_[Index(id)];
      if (link.unfrozen > 0) level = std::min(level, link.left / link.unfrozen);
    }
    for (const uint32_t index : component_) {
      if (flows_[index].new_rate < 0) level = std::min(level, flows_[index].limit);
    }
    // Decided before any of them is frozen, so that the order does not matter.
    full_.clear();
    for (const uint32_t index : component_) {
      const Flow& flow = flows_[index];
      if (flow.new_rate >= 0) continue;
      bool stops = flow.limit <= level;
      for (size_t i = 0; i < flow.links && !stops; ++i) {
        const Link& link = links_[Index(flow.path[i])];
        stops = link.left / link.unfrozen <= level * (1 + 1e-12);
      }
      if (stops) full_.push_back(index);
    }
    for (const uint32_t index : full_) {
      Flow& flow = flows_[index];
      flow.new_rate = level;
      --unfrozen;
      for (size_t i = 0; i < flow.links; ++i) {
        Link& link = links_[Index(flow.path[i])];
        link.left = std::max(0.0, link.left - level);
        --link.unfrozen;
      }
    }
  }
}

void LinkNetwork::ApplyRates(int64_t now_ns) {
  for (const uint32_t index : component_) {
    Flow& flow = flows_[index];
    if (flow.new_rate == flow.rate) continue;              // its end stays where it is
    if (flow.rate > 0 && flow.end_ns <= now_ns) continue;  // has ended; its event is about to run
    if (flow.rate > 0) {
      flow.remaining = std::max(0.0, flow.remaining - flow.rate * static_cast<double>(now_ns - flow.updated_ns) * 1e-9);
      flow.updated_ns = now_ns;
      simulation_->Cancel(flow.event);
    }
    flow.rate = flow.new_rate;
    flow.end_ns = flow.rate > 0 ? Simulation::Later(flow.updated_ns, NanosFor(flow.remaining, flow.rate)) : Simulation::kNever;
    flow.event = simulation_->Schedule(std::max(now_ns, flow.end_ns), actor_, [this, index] { Finish(index); });
  }
}

void LinkNetwork::Finish(uint32_t index) {
  const Flow flow = flows_[index];
  // The others of its component: found through it, before it leaves.
  FindComponent(index);
  std::erase(component_, index);
  for (size_t i = 0; i < flow.links; ++i) {
    Link& link = links_[Index(flow.path[i])];
    std::erase(link.flows, index);
    link.bytes += flow.bytes;
    if (link.flows.empty()) link.idle_since_ns = std::max(link.idle_since_ns, flow.end_ns);
  }
  --open_;
  free_flows_.push_back(index);
  if (!component_.empty()) {
    ComputeRates();
    ApplyRates(simulation_->now_ns());
  }
  flow.sink->TransferEnded(flow.tag, flow.end_ns);
}

}  // namespace tidepool::device::emulated
