#include "plan/hash.h"

#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tidepool::plan {

Key128 KeyOf(std::span<const uint64_t> words) {
  const XXH128_hash_t hash = XXH3_128bits(words.data(), words.size_bytes());
  return {hash.high64, hash.low64};
}

std::string HexHash(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return ToHex({hash.high64, hash.low64});
}

std::string ToHex(const Key128& key) { return fmt::format("{:016x}{:016x}", key.high, key.low); }

}  // namespace tidepool::plan
