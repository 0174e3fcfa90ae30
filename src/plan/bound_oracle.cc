#include "plan/bound_oracle.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "plan/window_walk.h"

namespace tidepool::plan {
namespace {

constexpr double kLeastLambda = 0.01, kLambdaRatio = 1.6;  // us per MiB
constexpr double kMostUses = 0.98;

// `use`: only prices that were useful; null: all.
std::vector<BoundLane> LanesFor(double waiting_lo, double waiting_hi, bool with_weights, const BoundPriceUse* use) {
  std::vector<BoundLane> lanes = {{0, std::min(waiting_hi, 1.0)}};
  for (size_t i = 0; i < std::size(kBoundWaiting) && kBoundWaiting[i] <= waiting_hi; ++i) {
    if (i + 1 < std::size(kBoundWaiting) && kBoundWaiting[i + 1] <= waiting_lo) continue;
    const std::vector<uint8_t> used = use == nullptr ? std::vector<uint8_t>(BoundPriceUse::kPrices, 1) : use->MostUsed(i);
    for (int32_t k = 0; k < kBoundLambdas; ++k) {
      for (int32_t weights = 0; weights <= (with_weights ? 1 : 0); ++weights) {
        const int32_t price = k * 2 + weights;
        if (used[price] == 0) continue;
        lanes.push_back({kLeastLambda * std::pow(kLambdaRatio, k), static_cast<double>(kBoundWaiting[i]), weights != 0,
                         static_cast<int32_t>(i), price});
      }
    }
  }
  return lanes;
}

// The table of WindowWalk.
class BoundTable {
 public:
  struct Ends {
    std::vector<double> us[kLinkClasses], open;  // [lane]: by the link behind; without what leaves
    double reserved_mib = 0, reserved_with_last_mib = 0;
  };

  BoundTable(const StageProgramme& programme, const BoundOracle::Options& options, const OpSplits& splits, double limit_us,
             const BoundFront& front)
      : programme_(programme),
        terms_(options.terms),
        joins_(options.joins),
        splits_(splits),
        limit_us_(limit_us),
        front_(front),
        lanes_(front.lanes()),
        counts_(std::size(kBoundWaiting), std::vector<int64_t>(BoundPriceUse::kPrices, 0)) {}
  const std::vector<std::vector<int64_t>>& counts() const { return counts_; }  // [waiting][price]: best bounds that it gave
  bool joins() const { return joins_; }

  void Read(const BoundFront& front, Ends* ends) const {
    for (int link = 0; link < kLinkClasses; ++link) front.Ends(static_cast<LinkClass>(link), &ends->us[link]);
    if (joins_) front.Open(&ends->open);
    ends->reserved_with_last_mib = front.ReservedWithLast();
    ends->reserved_mib = terms_.last_op_reserves ? ends->reserved_with_last_mib : front.reserved_mib();
  }

  // The two parts may have different splits where they meet, resharding is free there, and recomputation frees what it can:
  // still a bound.
  void Join(const Ends& head, const Ends& tail, int32_t op, Ends* ends) const {
    double freed_mib = 0;
    if (!programme_.model().ops().at(op).starts_layer) {
      for (int32_t split = 0; split < splits_.size(); ++split) {
        freed_mib = std::max(freed_mib, splits_.At(op - 1, split).activation_mib);
      }
    }
    for (int link = 0; link < kLinkClasses; ++link) {
      ends->us[link].resize(lanes_.size());
      for (size_t i = 0; i < lanes_.size(); ++i) {
        ends->us[link][i] = head.open[i] + tail.us[link][i] - lanes_[i].lambda * lanes_[i].waiting * terms_.scale * freed_mib;
      }
    }
    ends->reserved_mib = std::max(head.reserved_with_last_mib, tail.reserved_mib);
  }

  void Shift(const std::vector<double>& shift, double count, Ends* ends) const {
    const auto add = [&](std::vector<double>* us) {
      for (size_t i = 0; i < us->size(); ++i) (*us)[i] += shift[i] * count;
    };
    for (std::vector<double>& us : ends->us) add(&us);
    add(&ends->open);
  }

  void Write(const Ends& ends, int32_t last_op, int32_t length, WindowBlock* block) {
    (void)last_op;
    const int32_t first_op = programme_.OpAt(block->first);
    const double messages = front_.Receives(first_op) ? terms_.messages : 0;
    for (int32_t kind = 0; kind < programme_.kinds(); ++kind) {
      const StagePlace& place = programme_.kind(kind);
      double in_us = kNever;  // what the link before adds to a transfer within a node, at least
      for (int32_t split = 0; split < splits_.size(); ++split) {
        const OpSplitCost& first = splits_.At(first_op, split);
        in_us = std::min(in_us, messages * (first.in_us[static_cast<int>(place.in_link)] - first.in_us[0]));
      }
      const std::vector<double>& bounds = ends.us[static_cast<int>(place.out_link)];
      const double free_mib = programme_.limit_mib(kind) - terms_.context_mib;
      double best = 0;
      size_t lane = 0, best_lane = 0;
      for (int32_t q = 0; q <= block->q_hi; ++q) {
        // Lanes ascend by waiting micro-batches; fewer of them give a bound too.
        for (; lane < lanes_.size() && lanes_[lane].waiting <= terms_.held[q]; ++lane) {
          const double room = free_mib - (lanes_[lane].with_weights ? 0 : terms_.scale * ends.reserved_mib);
          const double bound = bounds[lane] - lanes_[lane].lambda * room;
          if (bound <= best) continue;
          best = bound;
          best_lane = lane;
        }
        if (q < block->q_lo || best + in_us > limit_us_) continue;
        if (lanes_[best_lane].price >= 0) ++counts_[lanes_[best_lane].waiting_index][lanes_[best_lane].price];
        block->us[(static_cast<size_t>(q - block->q_lo) * programme_.kinds() + kind) * block->lengths() + (length - block->lo)] =
            best + in_us;
      }
    }
  }

 private:
  const StageProgramme& programme_;
  const BoundTerms& terms_;
  bool joins_;
  const OpSplits& splits_;
  double limit_us_;
  const BoundFront& front_;
  const std::vector<BoundLane>& lanes_;
  std::vector<std::vector<int64_t>> counts_;
};

}  // namespace

void BoundPriceUse::Count(size_t waiting, const std::vector<int64_t>& counts) {
  for (size_t i = 0; i < kPrices; ++i) counts_[waiting * kPrices + i].fetch_add(counts[i], std::memory_order_relaxed);
}

std::vector<uint8_t> BoundPriceUse::MostUsed(size_t waiting) const {
  std::vector<std::pair<int64_t, size_t>> order;
  int64_t all = 0;
  for (size_t i = 0; i < kPrices; ++i) {
    const int64_t count = counts_[waiting * kPrices + i].load(std::memory_order_relaxed);
    order.emplace_back(-count, i);
    all += count;
  }
  std::sort(order.begin(), order.end());
  std::vector<uint8_t> used(kPrices, 0);
  int64_t sum = 0;
  for (const auto& [count, index] : order) {
    if (count == 0 || static_cast<double>(sum) >= kMostUses * static_cast<double>(all)) break;
    used[index] = 1;
    sum -= count;
  }
  return used;
}

BoundOracle::BoundOracle(const StageProgramme& programme, Options options) : options_(std::move(options)) {
  const OpList& ops = programme.model().ops();
  for (const int32_t size : programme.sizes()) {
    splits_.emplace_back(programme.model(), size, programme.micro_batch(), options_.micro_batches);
    std::vector<double>& reserved = least_reserved_mib_.emplace_back(ops.distinct.size(), kNever);
    for (size_t op = 0; op < ops.distinct.size(); ++op) {
      const auto places = ops.PlacesOf(static_cast<uint16_t>(op));
      if (places.empty()) continue;
      for (int32_t split = 0; split < splits_.back().size(); ++split) {
        reserved[op] = std::min(reserved[op], options_.reserved_mib(splits_.back(), split, places.front()));
      }
    }
  }
}

void BoundOracle::Fill(const StageProgramme& programme, int32_t size, double limit_us, StartClass* blocks) const {
  const ClassExtent extent = ExtentOf(*blocks);
  const std::vector<double>& held = options_.terms.held;
  const BoundFront front(programme.model(), options_.terms, splits_[size], least_reserved_mib_[size],
                         LanesFor(held[extent.q_lo], held[extent.q_hi], options_.with_weights, options_.use));
  BoundTable table(programme, options_, splits_[size], limit_us, front);
  WindowWalk<BoundFront, BoundTable>(programme, blocks, &table).Run(front);
  if (options_.learned == nullptr) return;
  for (size_t i = 0; i < table.counts().size(); ++i) options_.learned->Count(i, table.counts()[i]);
}

}  // namespace tidepool::plan
