// Seeded initial weights. Every element is a function of (seed, parameter name, index) alone, computed with integer arithmetic,
// the four basic operations and square roots, which IEEE 754 fixes to the bit: the same seed gives the same bytes on every
// machine, in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/status.h"
#include "model/graph.h"

namespace tidepool::model {

// Fills `target` with the elements of `param` from index `first_element` on; its size is a whole number of elements.
// INVALID_ARGUMENT for a random rule on a type other than F32.
Status FillSeeded(const Param& param, uint64_t seed, int64_t first_element, std::span<std::byte> target);

// Number of elements and of bytes of a whole parameter.
int64_t ElementsOf(const Param& param);
int64_t BytesOf(const Param& param);

// Standard normal number `index` of the stream `key`.
double NormalAt(uint64_t key, uint64_t index);
// Uniform number in [0, 1).
double UniformAt(uint64_t key, uint64_t index);
uint64_t StreamKey(uint64_t seed, std::string_view name);

}  // namespace tidepool::model
