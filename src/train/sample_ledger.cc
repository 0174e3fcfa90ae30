#include "train/sample_ledger.h"

#include <algorithm>
#include <iterator>

namespace tidepool::train {

int64_t SampleLedger::Ticket::size() const {
  int64_t count = 0;
  for (const PositionRange& range : ranges) count += range.size();
  return count;
}

std::string Describe(const std::vector<PositionRange>& ranges) {
  std::string text;
  for (const PositionRange& range : ranges) text += fmt::format("{}[{}, {})", text.empty() ? "" : " ", range.begin, range.end);
  return text;
}

SampleLedger::SampleLedger(PositionRange global_batch) : whole_(global_batch) {
  if (whole_.size() > 0) unprocessed_[whole_.begin] = whole_.end;
  unprocessed_count_ = whole_.size();
}

StatusOr<SampleLedger::Ticket> SampleLedger::Get(int64_t count) {
  if (count < 1) return InvalidArgument("a micro-batch of {} samples; allowed: 1 and above", count);
  if (unprocessed_count_ == 0) {
    return OutOfRange("no sample of [{}, {}) is left: {} processing, {} processed", whole_.begin, whole_.end, processing_count_,
                      processed());
  }
  std::vector<PositionRange> ranges;
  int64_t left = count;
  for (auto it = unprocessed_.begin(); it != unprocessed_.end() && left > 0; ++it) {
    const int64_t end = std::min(it->second, it->first + left);
    ranges.push_back({it->first, end});
    left -= end - it->first;
  }
  return GetExactly(ranges);
}

StatusOr<SampleLedger::Ticket> SampleLedger::GetExactly(const std::vector<PositionRange>& ranges) {
  int64_t count = 0, previous_end = INT64_MIN;
  for (const PositionRange& range : ranges) {
    if (range.size() < 1 || range.begin < previous_end) {
      return InvalidArgument("ranges {} are not sorted, disjoint and non-empty", Describe(ranges));
    }
    previous_end = range.end;
    count += range.size();
    auto after = unprocessed_.upper_bound(range.begin);
    const bool inside = after != unprocessed_.begin() && std::prev(after)->second > range.begin;
    if (!inside || std::prev(after)->second < range.end) {
      const int64_t first_bad = inside ? std::prev(after)->second : range.begin;
      return FailedPrecondition("position {} of range [{}, {}) is not unprocessed in the global batch [{}, {})", first_bad,
                                range.begin, range.end, whole_.begin, whole_.end);
    }
  }
  if (count == 0) return InvalidArgument("a micro-batch of 0 samples; allowed: 1 and above");
  for (const PositionRange& range : ranges) {
    auto holder = std::prev(unprocessed_.upper_bound(range.begin));
    const PositionRange old{holder->first, holder->second};
    unprocessed_.erase(holder);
    if (old.begin < range.begin) unprocessed_[old.begin] = range.begin;
    if (range.end < old.end) unprocessed_[range.end] = old.end;
  }
  unprocessed_count_ -= count;
  processing_count_ += count;
  Ticket ticket{next_ticket_++, ranges};
  processing_[ticket.id] = ranges;
  return ticket;
}

Status SampleLedger::Finish(const Ticket& ticket) { return End(ticket, true); }
Status SampleLedger::Abort(const Ticket& ticket) { return End(ticket, false); }

Status SampleLedger::End(const Ticket& ticket, bool finished) {
  const auto found = processing_.find(ticket.id);
  if (found == processing_.end()) return NotFound("ticket {} over {} has ended or never was", ticket.id, Describe(ticket.ranges));
  for (const PositionRange& range : found->second) {
    processing_count_ -= range.size();
    if (!finished) Insert(range);
  }
  processing_.erase(found);
  return {};
}

void SampleLedger::Insert(PositionRange range) {
  unprocessed_count_ += range.size();
  auto after = unprocessed_.lower_bound(range.begin);
  if (after != unprocessed_.end() && after->first == range.end) {
    range.end = after->second;
    after = unprocessed_.erase(after);
  }
  if (after != unprocessed_.begin() && std::prev(after)->second == range.begin) {
    std::prev(after)->second = range.end;
  } else {
    unprocessed_[range.begin] = range.end;
  }
}

}  // namespace tidepool::train
