// What the project knows of each ATen call that a body may use: its arguments, how many results it has, which results are
// views, and what autograd keeps of it. One row per call, in aten_allow_list.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace tidepool::model {

struct AtenRule {
  std::string_view op;
  std::string_view overload;
  // One letter per argument of the schema, in order:
  //   T tensor     O tensor or None   L list of tensors
  //   I list of integers (or a list of one per dimension)   J list of integers or None
  //   i integer    j integer or None  f float   b bool   n number   s string   d dtype or None
  //   z always None (layout, device, memory format: the engine's business, not the model's)
  std::string_view signature;
  // Results, or kListResult: as many as the call's list has.
  int results = 1;
  // The result shares the memory of argument 0.
  bool view = false;
  // What autograd keeps for the backward pass; see kept_bytes.cc.
  uint8_t keeps = 0;

  static constexpr int kListResult = -1;
  static constexpr uint8_t kKeepsFirst = 1;   // argument 0
  static constexpr uint8_t kKeepsSecond = 2;  // argument 1
  static constexpr uint8_t kKeepsResult = 4;
  static constexpr uint8_t kKeepsIndices = 8;      // an int64 per element of the result
  static constexpr uint8_t kKeepsRowMoments = 16;  // two f32 per row of the last dimension
  static constexpr uint8_t kKeepsNoise = 32;       // a tensor as large as the result
};

std::span<const AtenRule> AtenRules();
// Null if the call is not allowed.
const AtenRule* FindAtenRule(std::string_view op, std::string_view overload);

}  // namespace tidepool::model
