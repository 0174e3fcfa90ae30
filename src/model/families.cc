#include "model/families.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "model/family.h"

namespace tidepool::model {
namespace {

const std::vector<const Family*>& Registry() {
  static const auto* const kFamilies =
      new std::vector<const Family*>{&ResNetFamily(), &Gpt2Family(), &BertFamily(), &T5Family(), &WideResNetFamily()};
  return *kFamilies;
}

const Family* FindFamily(std::string_view name) {
  for (const Family* family : Registry()) {
    if (family->name == name) return family;
  }
  return nullptr;
}

std::string AllNames() {
  std::vector<std::string> names;
  for (const Family* family : Registry()) {
    names.push_back(family->name);
    for (const auto& [preset, unused] : family->presets) {
      if (preset != family->name) names.push_back(preset);
    }
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string OptionNames(const Family& family) {
  std::vector<std::string> names;
  for (const OptionRule& rule : family.options) names.push_back(rule.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// The whole text as a number, or false.
bool ReadInteger(std::string_view text, int64_t* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

// Checks one value and gives it its canonical form: "08" becomes "8".
StatusOr<std::string> Canonical(const Family& family, const OptionRule& rule, const std::string& text) {
  const auto refuse = [&](const std::string& allowed) {
    return InvalidArgument("option '{}' of {} is '{}'; allowed: {}", rule.name, family.name, text, allowed);
  };
  switch (rule.kind) {
    case OptionRule::Kind::kInteger: {
      int64_t value = 0;
      const bool number = ReadInteger(text, &value);
      if (!rule.allowed.empty()) {
        if (number && std::find(rule.allowed.begin(), rule.allowed.end(), value) != rule.allowed.end())
          return fmt::format("{}", value);
        return refuse(fmt::format("{}", fmt::join(rule.allowed, ", ")));
      }
      if (!number || value < rule.min || value > rule.max) return refuse(fmt::format("{} to {}", rule.min, rule.max));
      return fmt::format("{}", value);
    }
    case OptionRule::Kind::kBool:
      if (text == "true" || text == "false") return text;
      return refuse("true, false");
    case OptionRule::Kind::kFraction: {
      double value = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      if (error != std::errc() || end != text.data() + text.size() || !(value >= 0) || value >= 1) {
        return refuse("a number from 0 up to but not including 1");
      }
      return fmt::format("{}", value);
    }
  }
  return Internal("option '{}' has no kind", rule.name);
}

// Fills in defaults, checks every option, and lets the family relate them.
Status Resolve(const Family& family, Spec* spec) {
  for (const auto& [name, value] : spec->config) {
    if (std::none_of(family.options.begin(), family.options.end(),
                     [&, &key = name](const OptionRule& rule) { return rule.name == key; })) {
      return InvalidArgument("{} has no option '{}'; allowed: {}", family.name, name, OptionNames(family));
    }
  }
  for (const OptionRule& rule : family.options) {
    std::string& value = spec->config.try_emplace(rule.name, rule.default_value).first->second;
    TIDEPOOL_ASSIGN_OR_RETURN(value, Canonical(family, rule, value));
  }
  return family.resolve == nullptr ? Status() : family.resolve(spec);
}

}  // namespace

const std::vector<FamilyInfo>& Families() {
  static const auto* const kInfos = [] {
    auto* infos = new std::vector<FamilyInfo>;
    for (const Family* family : Registry()) {
      FamilyInfo info{family->name, family->help, {}, {}};
      for (const auto& [preset, unused] : family->presets) info.presets.push_back(preset);
      for (const OptionRule& rule : family->options) info.options.push_back({rule.name, rule.default_value, rule.help});
      infos->push_back(std::move(info));
    }
    return infos;
  }();
  return *kInfos;
}

StatusOr<Spec> ParseSpec(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string name(text.substr(0, colon));
  const Family* family = FindFamily(name);
  Spec spec;
  for (const Family* candidate : Registry()) {
    const auto preset = candidate->presets.find(name);
    if (preset == candidate->presets.end()) continue;
    family = candidate;
    spec.config = preset->second;
  }
  if (family == nullptr) return InvalidArgument("model '{}' is unknown; allowed: {}", name, AllNames());
  spec.family = family->name;
  std::string_view rest = colon == std::string_view::npos ? std::string_view() : text.substr(colon + 1);
  if (colon != std::string_view::npos && rest.empty()) {
    return InvalidArgument("spec '{}' ends after ':'; allowed: option=value, more after commas", text);
  }
  std::vector<std::string> seen;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos || equals == 0) {
      return InvalidArgument("'{}' in spec '{}' is not option=value; options of {}: {}", item, text, family->name,
                             OptionNames(*family));
    }
    const std::string option(item.substr(0, equals));
    if (std::find(seen.begin(), seen.end(), option) != seen.end()) {
      return InvalidArgument("option '{}' appears twice in spec '{}'", option, text);
    }
    seen.push_back(option);
    spec.config[option] = std::string(item.substr(equals + 1));
    if (comma != std::string_view::npos && comma + 1 == rest.size()) return InvalidArgument("spec '{}' ends with ','", text);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  TIDEPOOL_RETURN_IF_ERROR(Resolve(*family, &spec));
  return spec;
}

std::string ToText(const Spec& spec) {
  std::vector<std::string> items;
  for (const auto& [name, value] : spec.config) items.push_back(name + "=" + value);
  return items.empty() ? spec.family : fmt::format("{}:{}", spec.family, fmt::join(items, ","));
}

StatusOr<Graph> BuildGraph(const Spec& spec) {
  const Family* family = FindFamily(spec.family);
  if (family == nullptr) return InvalidArgument("model family '{}' is unknown; allowed: {}", spec.family, AllNames());
  Spec resolved = spec;
  TIDEPOOL_RETURN_IF_ERROR(Resolve(*family, &resolved));
  return family->build(resolved);
}

StatusOr<Graph> BuildGraph(std::string_view spec_text) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(spec_text));
  return BuildGraph(spec);
}

int64_t IntegerOf(const Spec& spec, const std::string& option) {
  int64_t value = 0;
  TIDEPOOL_CHECK(spec.config.contains(option) && ReadInteger(spec.config.at(option), &value), "option '{}' was not resolved",
                 option);
  return value;
}

bool BoolOf(const Spec& spec, const std::string& option) {
  TIDEPOOL_CHECK(spec.config.contains(option), "option '{}' was not resolved", option);
  return spec.config.at(option) == "true";
}

double FractionOf(const Spec& spec, const std::string& option) {
  TIDEPOOL_CHECK(spec.config.contains(option), "option '{}' was not resolved", option);
  const std::string& text = spec.config.at(option);
  double value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace tidepool::model
