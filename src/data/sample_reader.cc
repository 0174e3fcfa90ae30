#include "data/sample_reader.h"

#include <algorithm>
#include <utility>

#include "data/order.h"

namespace tidepool::data {

SampleReader::SampleReader(const Dataset* dataset, SampleOptions options, int64_t first_position)
    : dataset_(*dataset),
      options_(options),
      groups_(options.shuffle && options.window_groups > 0 ? GroupsOf(*dataset) : std::vector<int64_t>()),
      announced_(first_position),
      reached_(first_position) {
  int64_t largest = 1;
  for (size_t i = 1; i < groups_.size(); ++i) largest = std::max(largest, groups_[i] - groups_[i - 1]);
  read_ahead_ = groups_.empty() ? options_.read_ahead : std::max(options_.read_ahead, options_.window_groups * largest);
}

SampleReader::~SampleReader() {
  int64_t first = 0, last = 0;
  {
    absl::MutexLock lock(&mu_);
    first = reached_;
    last = announced_;
  }
  for (int64_t position = first; position < last; ++position) dataset_.WontNeed(IndexAt(position));
}

std::shared_ptr<const std::vector<int64_t>> SampleReader::OrderOf(int64_t epoch) {
  absl::MutexLock lock(&mu_);
  auto& order = orders_[epoch];
  if (order == nullptr) {
    order = std::make_shared<const std::vector<int64_t>>(
        groups_.empty() ? EpochOrder(dataset_.size(), options_.seed, epoch)
                        : GroupedEpochOrder(groups_, options_.window_groups, options_.seed, epoch));
  }
  return order;
}

int64_t SampleReader::IndexAt(int64_t position) {
  const int64_t offset = position % dataset_.size();
  return options_.shuffle ? (*OrderOf(position / dataset_.size()))[offset] : offset;
}

void SampleReader::ReleaseBefore(int64_t position) {
  absl::MutexLock lock(&mu_);
  orders_.erase(orders_.begin(), orders_.lower_bound(position / dataset_.size()));
}

void SampleReader::Skip(int64_t first, int64_t last) {
  {
    absl::MutexLock lock(&mu_);
    reached_ = std::max(reached_, last);
    const int64_t announced = std::exchange(announced_, std::max(announced_, last));
    last = std::min(last, announced);
  }
  for (int64_t position = first; position < last; ++position) dataset_.WontNeed(IndexAt(position));
}

void SampleReader::Announce(int64_t position) {
  if (options_.read_ahead <= 0) return;
  int64_t first = 0, last = 0;
  {
    absl::MutexLock lock(&mu_);
    reached_ = std::max(reached_, position + 1);
    const int64_t wanted = position < options_.end - read_ahead_ ? position + read_ahead_ : options_.end;
    first = announced_;
    last = std::max(first, wanted);
    announced_ = last;
  }
  for (int64_t each = first; each < last; ++each) dataset_.WillNeed(IndexAt(each));
}

Status SampleReader::Read(int64_t position, std::span<std::byte> input, std::span<std::byte> target,
                          const std::function<bool()>& cancelled, Outcome* outcome) {
  const int64_t index = IndexAt(position);
  const ReadOptions read{.augment = options_.augment, .augment_key = AugmentKey(options_.seed, position / dataset_.size())};
  const int tries = options_.on_error == OnError::kReplace ? 1 + options_.max_replacements : 1;
  *outcome = {.index = index};
  for (int i = 0; i < tries; ++i) {
    const int64_t candidate = (index + i) % dataset_.size();
    Status status = dataset_.Read(candidate, read, input, target);
    ++outcome->reads;
    if (status.ok()) {
      outcome->index = candidate;
      return {};
    }
    if (i == 0) outcome->replaced = std::move(status);
    if (i + 1 < tries && cancelled()) return Cancelled("the loader was cancelled");
  }
  Status error = std::exchange(outcome->replaced, Status());
  if (tries > 1)
    error = Annotate(error, fmt::format("neither this sample nor the next {} can be read", options_.max_replacements));
  return Annotate(error, fmt::format("sample {} at position {}", index, position));
}

}  // namespace tidepool::data
