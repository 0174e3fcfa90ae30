// Distinct integer id types: a LeaseId is not a TenantId, and neither is an int.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <ostream>

namespace tidepool {

template <typename Tag, typename Rep = uint64_t>
class StrongId {
 public:
  using rep = Rep;
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(const StrongId&, const StrongId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const StrongId& id) {
    return H::combine(std::move(h), id.value_);
  }
  friend std::ostream& operator<<(std::ostream& out, const StrongId& id) { return out << id.value_; }

 private:
  Rep value_ = 0;
};

}  // namespace tidepool

template <typename Tag, typename Rep>
struct std::hash<tidepool::StrongId<Tag, Rep>> {
  size_t operator()(const tidepool::StrongId<Tag, Rep>& id) const { return std::hash<Rep>()(id.value()); }
};

template <typename Tag, typename Rep>
struct fmt::formatter<tidepool::StrongId<Tag, Rep>> : fmt::formatter<Rep> {
  template <typename Context>
  auto format(const tidepool::StrongId<Tag, Rep>& id, Context& context) const {
    return fmt::formatter<Rep>::format(id.value(), context);
  }
};
