#include "data/order.h"

#include <algorithm>
#include <numeric>

#include "data/augment.h"
#include "data/dataset.h"

namespace tidepool::data {
namespace {

// Streams of RandomBits that belong to the order and to augmentation.
constexpr uint64_t kOrderStream = 0x6f72646572;
constexpr uint64_t kGroupStream = 0x67726f7570;
constexpr uint64_t kWindowStream = 0x77696e646f77;
constexpr uint64_t kAugmentStream = 0x6175676d656e74;

// Fisher and Yates, from the end; draw i of `key` decides about entry i. `first_draw` lets several shuffles share a key.
void Shuffle(std::span<int64_t> entries, uint64_t key, uint64_t first_draw) {
  for (size_t i = entries.size(); i-- > 1;) {
    // Multiply and shift: the bias is below size / 2^64.
    const auto wide = static_cast<unsigned __int128>(RandomBits(key, first_draw + i, 0)) * (i + 1);
    std::swap(entries[i], entries[static_cast<size_t>(wide >> 64)]);
  }
}

}  // namespace

uint64_t AugmentKey(uint64_t seed, int64_t epoch) { return RandomBits(seed, static_cast<uint64_t>(epoch), kAugmentStream); }

std::vector<int64_t> EpochOrder(int64_t size, uint64_t seed, int64_t epoch) {
  std::vector<int64_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  Shuffle(order, RandomBits(seed, static_cast<uint64_t>(epoch), kOrderStream), 0);
  return order;
}

std::vector<int64_t> GroupedEpochOrder(std::span<const int64_t> groups, int64_t window, uint64_t seed, int64_t epoch) {
  const int64_t count = static_cast<int64_t>(groups.size()) - 1;
  std::vector<int64_t> shuffled(count);
  std::iota(shuffled.begin(), shuffled.end(), 0);
  Shuffle(shuffled, RandomBits(seed, static_cast<uint64_t>(epoch), kGroupStream), 0);
  const uint64_t key = RandomBits(seed, static_cast<uint64_t>(epoch), kWindowStream);
  std::vector<int64_t> order;
  order.reserve(groups.back());
  for (int64_t begin = 0; begin < count; begin += window) {
    const size_t first = order.size();
    for (int64_t i = begin; i < std::min(begin + window, count); ++i) {
      for (int64_t sample = groups[shuffled[i]]; sample < groups[shuffled[i] + 1]; ++sample) order.push_back(sample);
    }
    Shuffle(std::span(order).subspan(first), key, first);
  }
  return order;
}

std::vector<int64_t> GroupsOf(const Dataset& dataset) {
  std::vector<int64_t> groups;
  for (int64_t first = 0; first < dataset.size(); first = dataset.Group(first).end) groups.push_back(first);
  if (static_cast<int64_t>(groups.size()) == dataset.size()) return {};
  groups.push_back(dataset.size());
  return groups;
}

}  // namespace tidepool::data
