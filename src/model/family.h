// What a model family registers: its options with their ranges, its presets, and the function that builds its graph.
// Inside model only; everyone else uses families.h.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/families.h"
#include "model/graph.h"

namespace tidepool::model {

struct OptionRule {
  enum class Kind : uint8_t { kInteger, kBool, kFraction } kind = Kind::kInteger;
  std::string name;
  std::string default_value;
  std::string help;
  int64_t min = 0, max = 0;      // kInteger
  std::vector<int64_t> allowed;  // kInteger: if not empty, instead of the range
};

struct Family {
  std::string name;
  std::string help;
  std::vector<OptionRule> options;
  std::map<std::string, std::map<std::string, std::string>> presets;  // options that differ from the defaults
  // Completes and checks options that depend on each other. Every option is present and in its range.
  Status (*resolve)(Spec* spec) = nullptr;
  // Called with a resolved spec only.
  StatusOr<Graph> (*build)(const Spec& spec) = nullptr;
};

const Family& ResNetFamily();
const Family& Gpt2Family();
const Family& BertFamily();
const Family& T5Family();
const Family& WideResNetFamily();

// Values of a resolved spec.
int64_t IntegerOf(const Spec& spec, const std::string& option);
bool BoolOf(const Spec& spec, const std::string& option);
double FractionOf(const Spec& spec, const std::string& option);

}  // namespace tidepool::model
