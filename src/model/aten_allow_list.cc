#include "model/aten_rules.h"
#include "model/graph.h"

namespace tidepool::model {
namespace {

using R = AtenRule;

// Signatures as in ATen 1.13; the same calls exist in 2.x. All are functional: none writes to its arguments, except that
// batch_norm updates the running statistics it is given while training.
constexpr AtenRule kRules[] = {
    {"aten::adaptive_avg_pool2d", "", "TI"},
    {"aten::add", "Scalar", "Tnn"},
    {"aten::add", "Tensor", "TTn"},
    {"aten::addmm", "", "TTTnn", 1, false, R::kKeepsSecond},
    {"aten::batch_norm", "", "TOOOObffb", 1, false, R::kKeepsFirst},
    {"aten::cat", "", "Li"},
    {"aten::conv2d", "", "TTOIIIi", 1, false, R::kKeepsFirst},
    {"aten::div", "Scalar", "Tn"},
    {"aten::div", "Tensor", "TT", 1, false, R::kKeepsFirst | R::kKeepsSecond},
    {"aten::dropout", "", "Tfb", 1, false, R::kKeepsNoise},
    {"aten::embedding", "", "TTibb", 1, false, R::kKeepsSecond},
    {"aten::eq", "Scalar", "Tn"},
    {"aten::expand", "", "TIb", 1, true},
    {"aten::flatten", "using_ints", "Tii", 1, true},
    {"aten::gelu", "", "Ts", 1, false, R::kKeepsFirst},
    {"aten::layer_norm", "", "TIOOfb", 1, false, R::kKeepsFirst | R::kKeepsRowMoments},
    {"aten::linear", "", "TTO", 1, false, R::kKeepsFirst},
    {"aten::masked_fill", "Scalar", "TTn", 1, false, R::kKeepsSecond},
    {"aten::matmul", "", "TT", 1, false, R::kKeepsFirst | R::kKeepsSecond},
    {"aten::max_pool2d", "", "TIIIIb", 1, false, R::kKeepsFirst | R::kKeepsIndices},
    {"aten::mean", "dim", "TJbd"},
    {"aten::mul", "Scalar", "Tn"},
    {"aten::mul", "Tensor", "TT", 1, false, R::kKeepsFirst | R::kKeepsSecond},
    {"aten::new_ones", "", "TIdzzz"},
    {"aten::permute", "", "TI", 1, true},
    {"aten::relu", "", "T", 1, false, R::kKeepsResult},
    {"aten::reshape", "", "TI"},
    {"aten::select", "int", "Tii", 1, true},
    {"aten::slice", "Tensor", "Tijji", 1, true},
    {"aten::softmax", "int", "Tid", 1, false, R::kKeepsResult},
    {"aten::split", "Tensor", "Tii", R::kListResult, true},
    {"aten::sub", "Tensor", "TTn"},
    {"aten::t", "", "T", 1, true},
    {"aten::tanh", "", "T", 1, false, R::kKeepsResult},
    {"aten::transpose", "int", "Tii", 1, true},
    {"aten::tril", "", "Ti"},
    {"aten::triu", "", "Ti"},
    {"aten::unsqueeze", "", "Ti", 1, true},
    {"aten::view", "", "TI", 1, true},
};

}  // namespace

std::span<const AtenRule> AtenRules() { return kRules; }

const AtenRule* FindAtenRule(std::string_view op, std::string_view overload) {
  for (const AtenRule& rule : kRules) {
    if (rule.op == op && rule.overload == overload) return &rule;
  }
  return nullptr;
}

bool IsAllowedAtenCall(std::string_view op, std::string_view overload) { return FindAtenRule(op, overload) != nullptr; }

}  // namespace tidepool::model
