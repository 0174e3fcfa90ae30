// Links between devices, hosts and nodes as a fluid: what is under way on a link divides its bandwidth by max-min fairness
// (Bertsekas and Gallager, Data Networks, section 6.5.2), at every start and end of a transfer. A transfer holds its whole path
// at one rate.
//
// Rates are in bytes/s; times in int64 nanoseconds of the simulation. A transfer of `bytes` alone on its path takes
// ceil(bytes / slowest link) to the nanosecond. Owned by the simulation's thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/simulation.h"

namespace tidepool::device::emulated {

using LinkId = int32_t;

// Told when a transfer has ended: at `end_ns` on the timeline, which may lie before the simulation's time (see Start).
class TransferSink {
 public:
  virtual ~TransferSink() = default;
  virtual void TransferEnded(uint64_t tag, int64_t end_ns) = 0;
};

class LinkNetwork {
 public:
  static constexpr size_t kLongestPath = 8;

  LinkNetwork(Simulation* simulation, Simulation::ActorId actor) : simulation_(simulation), actor_(actor) {}
  LinkNetwork(const LinkNetwork&) = delete;
  LinkNetwork& operator=(const LinkNetwork&) = delete;

  LinkId AddLink(std::string name, double bytes_per_s);

  struct Transfer {
    std::span<const LinkId> path;  // 1 to kLongestPath links
    double bytes = 0;
    double limit_bytes_per_s = 0;  // of this transfer alone; 0: none
    // When it could have begun. Before the simulation's time where real time was noticed late: then the transfer counts as begun
    // at that time, or when its links became free, if nothing used them since.
    int64_t ready_ns = 0;
    TransferSink* sink = nullptr;
    uint64_t tag = 0;
  };
  // `sink` is called by an event of the simulation, never from within Start.
  void Start(const Transfer& transfer);

  int transfers() const { return open_; }
  const std::string& NameOf(LinkId link) const { return links_[Index(link)].name; }
  // Bytes that went over the link in transfers that have ended.
  double BytesOver(LinkId link) const { return links_[Index(link)].bytes; }

 private:
  struct Link {
    std::string name;
    double bytes_per_s = 0;
    double bytes = 0;
    int64_t idle_since_ns = 0;
    std::vector<uint32_t> flows;
    // While rates are computed:
    uint64_t round = 0;
    double left = 0;
    int unfrozen = 0;
  };
  struct Flow {
    std::array<LinkId, kLongestPath> path{};
    uint8_t links = 0;
    double bytes = 0, remaining = 0, rate = 0, limit = 0;
    int64_t updated_ns = 0;
    int64_t end_ns = 0;
    TransferSink* sink = nullptr;
    uint64_t tag = 0;
    Simulation::EventId event;
    uint64_t round = 0;
    double new_rate = -1;  // negative: not frozen yet
  };
  static size_t Index(LinkId link) { return static_cast<size_t>(link); }
  // The flows that share links with `flow`, directly or through others, into component_ and component_links_.
  void FindComponent(uint32_t flow);
  void ComputeRates();
  void ApplyRates(int64_t now_ns);
  void Finish(uint32_t flow);

  Simulation* const simulation_;
  const Simulation::ActorId actor_;
  std::vector<Link> links_;
  std::vector<Flow> flows_;
  std::vector<uint32_t> free_flows_;
  int open_ = 0;
  uint64_t round_ = 0;
  std::vector<uint32_t> component_;
  std::vector<LinkId> component_links_;
  std::vector<uint32_t> full_;  // scratch of ComputeRates
};

}  // namespace tidepool::device::emulated
