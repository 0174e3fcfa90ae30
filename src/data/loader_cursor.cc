// The text form of a LoaderCursor, which stands in checkpoints.
#include <charconv>

#include "data/batch_loader.h"

namespace tidepool::data {
namespace {

template <typename T>
bool ParseAll(std::string_view text, T* value, int base = 10) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value, base);
  return !text.empty() && error == std::errc() && end == text.data() + text.size();
}

bool ParseRanges(std::string_view text, std::vector<PositionRange>* ranges) {
  while (!text.empty()) {
    const std::string_view one = text.substr(0, text.find(','));
    text.remove_prefix(std::min(one.size() + 1, text.size()));
    const size_t dash = one.find('-');
    PositionRange range;
    if (dash == std::string_view::npos || !ParseAll(one.substr(0, dash), &range.begin) ||
        !ParseAll(one.substr(dash + 1), &range.end)) {
      return false;
    }
    ranges->push_back(range);
  }
  return true;
}

}  // namespace

std::string LoaderCursor::ToText() const {
  std::string text = fmt::format("seed={} fingerprint={:016x} epoch={} offset={}", seed, fingerprint, epoch, offset);
  for (size_t i = 0; i < delivered.size(); ++i) {
    text += fmt::format("{}{}-{}", i == 0 ? " delivered=" : ",", delivered[i].begin, delivered[i].end);
  }
  return text;
}

StatusOr<LoaderCursor> LoaderCursor::FromText(const std::string& text) {
  LoaderCursor cursor;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view word = rest.substr(0, rest.find(' '));
    rest.remove_prefix(std::min(word.size() + 1, rest.size()));
    const size_t equals = word.find('=');
    const std::string_view key = word.substr(0, equals);
    const std::string_view value = equals == std::string_view::npos ? std::string_view() : word.substr(equals + 1);
    const bool good =
        (key == "seed" && ParseAll(value, &cursor.seed)) || (key == "fingerprint" && ParseAll(value, &cursor.fingerprint, 16)) ||
        (key == "epoch" && ParseAll(value, &cursor.epoch)) || (key == "offset" && ParseAll(value, &cursor.offset)) ||
        (key == "delivered" && ParseRanges(value, &cursor.delivered));
    if (!good)
      return InvalidArgument("'{}' in a loader's cursor; allowed: seed, fingerprint, epoch, offset, delivered with numbers",
                             word);
  }
  return cursor;
}

}  // namespace tidepool::data
