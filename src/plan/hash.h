// Stable 128-bit keys for stages, plans, op lists and tables: XXH3 of the bytes given to it. Equal on every machine of the same
// byte order.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace tidepool::plan {

struct Key128 {
  uint64_t high = 0, low = 0;
  friend auto operator<=>(const Key128&, const Key128&) = default;
};
struct Key128Hash {
  size_t operator()(const Key128& key) const { return static_cast<size_t>(key.low ^ (key.high * 0x9E3779B97F4A7C15ull)); }
};

Key128 KeyOf(std::span<const uint64_t> words);
// 32 hex digits.
std::string HexHash(std::string_view bytes);
std::string ToHex(const Key128& key);

}  // namespace tidepool::plan
