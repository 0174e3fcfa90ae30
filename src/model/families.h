// The model families and the text form that names one: "resnet18", "resnet50:classes=100,image=224",
// "gpt2:layers=4,width=128,heads=4,vocab=256,context=64", "bert:layers=2,width=128,heads=2".
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/graph.h"

namespace tidepool::model {

struct FamilyOption {
  std::string name;
  std::string default_value;
  std::string help;
};

struct FamilyInfo {
  std::string name;  // "resnet"
  std::string help;
  std::vector<std::string> presets;  // "resnet18", ...
  std::vector<FamilyOption> options;
};

// All families, for help texts and error messages.
const std::vector<FamilyInfo>& Families();

struct Spec {
  std::string family;
  std::map<std::string, std::string> config;  // complete: every option of the family with its value
};

// INVALID_ARGUMENT names the family or option, the value seen and what is allowed.
StatusOr<Spec> ParseSpec(std::string_view text);
// The text that ParseSpec reads back as the same spec: the family with every option.
std::string ToText(const Spec& spec);
StatusOr<Graph> BuildGraph(const Spec& spec);
StatusOr<Graph> BuildGraph(std::string_view spec_text);

}  // namespace tidepool::model
