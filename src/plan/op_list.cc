#include "plan/op_list.h"

#include <algorithm>
#include <functional>
#include <set>

#include "base/text.h"
#include "plan/hash.h"

namespace tidepool::plan {
namespace {

constexpr size_t kMaxOps = 1000000;
constexpr size_t kMaxDistinct = 65535;
constexpr size_t kFaultsShown = 20;

void AppendLayout(const Layout& layout, std::string* text) {
  fmt::format_to(std::back_inserter(*text), "{}/{}{}{} ", static_cast<int>(layout.replicas), static_cast<int>(layout.dims[0]),
                 static_cast<int>(layout.dims[1]), static_cast<int>(layout.dims[2]));
}

std::string HashOf(const OpList& list) {
  std::string text = fmt::format("{} {} {} {} {} {}\n", list.profile_model, static_cast<int>(list.dtype), list.gradient_factor,
                                 list.master_factor, list.optimizer_factor, list.resharding_has_price);
  for (const DistinctOp& op : list.distinct) {
    fmt::format_to(std::back_inserter(text), "{} {}{}{} {} {} {} {} {} {} ", op.name, op.tunable, op.recompute_seed,
                   op.starts_layer, op.activation_factor, op.parameters, op.forward_flops_per_sample, op.input_bytes_per_sample,
                   op.output_bytes_per_sample, op.activation_bytes_per_sample);
    if (op.live_factor != 1) fmt::format_to(std::back_inserter(text), "{} ", op.live_factor);
    for (const SplitAlgorithm& algorithm : op.algorithms) {
      AppendLayout(algorithm.input, &text);
      AppendLayout(algorithm.output, &text);
    }
    text += '\n';
  }
  for (const uint16_t op : list.ops) fmt::format_to(std::back_inserter(text), "{},", op);
  for (const SkipTensor& skip : list.skips) fmt::format_to(std::back_inserter(text), "{}-{},", skip.producer, skip.consumer);
  for (const TiedWeight& weight : list.tied) {
    fmt::format_to(std::back_inserter(text), "\n{}", weight.parameters);
    for (const int32_t op : weight.ops) fmt::format_to(std::back_inserter(text), "={}", op);
  }
  return HexHash(text);
}

}  // namespace

int64_t OpList::parameters() const {
  int64_t sum = 0;
  for (const uint16_t op : ops) sum += distinct[op].parameters;
  return sum;
}

int32_t OpList::CanonicalFirst(int32_t first, int32_t count) const {
  for (const Segment& segment : segments) {
    if (first >= segment.first && first + count <= segment.end()) {
      const int32_t canonical = segment.first + (first - segment.first) % segment.period;
      // The ops are the same, but the place of a tied weight matters.
      for (const TiedWeight& weight : tied) {
        for (const int32_t op : weight.ops) {
          if ((op >= first && op < first + count) || (op >= canonical && op < canonical + count)) return first;
        }
      }
      return canonical;
    }
  }
  return first;
}

void OpList::FirstPlaces(int32_t first, int32_t last, std::vector<int32_t>* places) const {
  places->clear();
  size_t next = 0;  // segment
  for (int32_t i = first; i < last; ++i) {
    while (next < segments.size() && segments[next].end() <= i) ++next;
    if (next < segments.size()) {
      const Segment& segment = segments[next];
      if (i - std::max(first, segment.first) >= segment.period) {  // a whole period was seen
        i = segment.end() - 1;
        continue;
      }
    }
    if (previous_[i] < first) places->push_back(i);
  }
}

Status OpList::Finish() {
  if (ops.empty() || ops.size() > kMaxOps) return InvalidArgument("{} has {} ops; allowed: 1 to {}", name, ops.size(), kMaxOps);
  if (distinct.size() > kMaxDistinct) {
    return InvalidArgument("{} has {} distinct ops; allowed: at most {}", name, distinct.size(), kMaxDistinct);
  }
  std::sort(segments.begin(), segments.end(), [](const Segment& a, const Segment& b) { return a.first < b.first; });
  std::vector<std::string> faults;
  std::set<std::string> names;
  for (const DistinctOp& op : distinct) {
    if (!names.insert(op.name).second) faults.push_back(fmt::format("two distinct ops are called '{}'", op.name));
    if (op.algorithms.empty()) faults.push_back(fmt::format("op '{}' has no split algorithm", op.name));
  }
  int64_t total = 0;
  for (const uint16_t op : ops) {
    if (op >= distinct.size()) return InvalidArgument("{}: op id {}; allowed: below {}", name, op, distinct.size());
    if (__builtin_add_overflow(total, distinct[op].parameters, &total)) {
      return InvalidArgument("{}: the ops have more than {} parameters together", name, INT64_MAX);
    }
  }
  int32_t free_from = 0;
  for (const Segment& segment : segments) {
    bool good = segment.first >= free_from && segment.period >= 1 && segment.repeats >= 1 && segment.end() <= size();
    for (int32_t i = segment.first + segment.period; good && i < segment.end(); ++i) good = ops[i] == ops[i - segment.period];
    if (!good) {
      faults.push_back(fmt::format("segment at op {} of {} times {} ops does not repeat, or overlaps", segment.first,
                                   segment.repeats, segment.period));
    }
    free_from = good ? segment.end() : free_from;
  }
  skip_reach_.assign(ops.size() + 1, -1);
  for (const SkipTensor& skip : skips) {
    if (skip.producer < 0 || skip.consumer >= size() || skip.producer >= skip.consumer) {
      faults.push_back(
          fmt::format("skip tensor from op {} to op {}; allowed: forwards within {} ops", skip.producer, skip.consumer, size()));
      continue;
    }
    skip_reach_[skip.producer + 1] = std::max(skip_reach_[skip.producer + 1], skip.consumer);
  }
  for (const TiedWeight& weight : tied) {
    const bool ascending = std::is_sorted(weight.ops.begin(), weight.ops.end(), std::less_equal<>());
    if (weight.ops.size() < 2 || !ascending || weight.ops.front() < 0 || weight.ops.back() >= size() || weight.parameters < 0) {
      faults.push_back(fmt::format("a tied weight of {} parameters and {} ops; allowed: 2 or more of the {} ops, ascending",
                                   weight.parameters, weight.ops.size(), size()));
    }
  }
  if (faults.size() > kFaultsShown) {
    const size_t more = faults.size() - kFaultsShown;
    faults.resize(kFaultsShown);
    faults.push_back(fmt::format("and {} more", more));
  }
  if (!faults.empty()) return InvalidArgument("{}: {}", name, JoinText(faults, "; "));
  for (size_t i = 1; i < skip_reach_.size(); ++i) skip_reach_[i] = std::max(skip_reach_[i], skip_reach_[i - 1]);
  places_begin_.assign(distinct.size() + 1, 0);
  for (const uint16_t op : ops) ++places_begin_[op + 1];
  for (size_t i = 1; i < places_begin_.size(); ++i) places_begin_[i] += places_begin_[i - 1];
  places_.resize(ops.size());
  previous_.resize(ops.size());
  std::vector<int32_t> next(places_begin_.begin(), places_begin_.end() - 1);
  for (int32_t i = 0; i < size(); ++i) {
    int32_t& slot = next[ops[i]];
    previous_[i] = slot == places_begin_[ops[i]] ? -1 : places_[slot - 1];
    places_[slot++] = i;
  }
  layer_starts.clear();
  for (int32_t i = 0; i < size(); ++i) {
    if (at(i).starts_layer) layer_starts.push_back(i);
  }
  hash = HashOf(*this);
  return {};
}

}  // namespace tidepool::plan
