#include "base/options.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>

#include "base/fd.h"
#include "base/json.h"
#include "base/text.h"
#include "base/units.h"

namespace tidepool {
namespace {

constexpr int64_t kMaxFileBytes = 16 * kMiB;

template <typename Int>
StatusOr<Int> ParseInteger(std::string_view text) {
  Int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return value;
  return InvalidArgument("'{}' is not a whole number that fits; allowed: {} to {}", text, std::numeric_limits<Int>::min(),
                         std::numeric_limits<Int>::max());
}

StatusOr<double> ParseFloat(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && !std::isnan(value)) return value;
  return InvalidArgument("'{}' is not a number; allowed: for example 3, 0.5, 1e-3", text);
}

StatusOr<bool> ParseBool(std::string_view text) {
  for (const std::string_view yes : {"true", "on", "yes", "1"}) {
    if (text == yes) return true;
  }
  for (const std::string_view no : {"false", "off", "no", "0"}) {
    if (text == no) return false;
  }
  return InvalidArgument("'{}' is neither true nor false; allowed: true, false, on, off, yes, no, 1, 0", text);
}

// "a,b" or, for items that hold commas, a JSON array of strings.
StatusOr<std::vector<std::string>> ParseList(std::string_view text) {
  if (text.starts_with('[')) {
    const auto array = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    std::vector<std::string> items;
    bool strings = array.is_array();
    for (const auto& item : array) {
      if (!strings || !item.is_string()) {
        strings = false;
        break;
      }
      items.push_back(item.get<std::string>());
    }
    if (!strings) return InvalidArgument("'{}' is not a list; allowed: a,b,c or [\"a\", \"b\"]", text);
    return items;
  }
  std::vector<std::string> items;
  for (const std::string& part : SplitText(text, ',')) {
    const std::string_view item = TrimText(part);
    if (!item.empty()) items.emplace_back(item);
  }
  return items;
}

// The texts below are exact: parsing them gives the value back.
std::string ListText(const std::vector<std::string>& items) {
  bool plain = true;
  for (const std::string& item : items) {
    plain = plain && !item.empty() && item.find(',') == std::string::npos && item.front() != '[' && TrimText(item) == item;
  }
  if (plain) return JoinText(items, ",");
  std::string text = "[";
  for (const std::string& item : items) text += (text.size() > 1 ? "," : "") + JsonQuoted(item);
  return text + "]";
}

std::string ExactDuration(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return "inf";
  const int64_t ns = absl::ToInt64Nanoseconds(duration);
  for (const auto& [factor, unit] : {std::pair<int64_t, const char*>{1'000'000'000, "s"}, {1'000'000, "ms"}, {1'000, "us"}}) {
    if (ns % factor == 0) return fmt::format("{}{}", ns / factor, unit);
  }
  return fmt::format("{}ns", ns);
}

std::string ExactBytes(int64_t bytes) {
  for (const auto& [factor, unit] : {std::pair<int64_t, const char*>{kGiB, "GiB"}, {kMiB, "MiB"}, {kKiB, "KiB"}}) {
    if (bytes != 0 && bytes % factor == 0) return fmt::format("{}{}", bytes / factor, unit);
  }
  return fmt::format("{}", bytes);
}

std::string Section(std::string_view key) {
  const size_t dot = key.rfind('.');
  return dot == std::string_view::npos ? "" : std::string(key.substr(0, dot));
}

std::string LastPart(std::string_view key) { return std::string(key.substr(key.rfind('.') + 1)); }

// The value of an entry as JSON; everything that is no number and no boolean is text or a list of texts.
nlohmann::json JsonValue(const OptionTable::Entry& entry) {
  const std::string text = entry.get();
  if (entry.type == "list") return ParseList(text).value_or(std::vector<std::string>{});
  if (entry.type == "bool") return text == "true";
  if (entry.type == "int" || entry.type == "float") {
    const auto number = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (number.is_number()) return number;
  }
  return text;
}

std::string TomlValue(const OptionTable::Entry& entry) {
  if (entry.type == "bool" || entry.type == "int" || entry.type == "float") return entry.get();
  // A JSON string is a TOML basic string, but for the one character that TOML wants escaped and JSON does not.
  std::string text;
  for (const char c : JsonValue(entry).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)) {
    text += c == 0x7f ? std::string("\\u007F") : std::string(1, c);
  }
  return text;
}

// What a TOML value must be for an entry of `type`, as the text that Entry::set takes; nullopt if it is of another kind.
std::optional<std::string> TextOf(const toml::node& node, std::string_view type) {
  if (type == "list") {
    const toml::array* array = node.as_array();
    if (array == nullptr) return std::nullopt;
    std::string text = "[";
    for (const toml::node& item : *array) {
      if (!item.is_string()) return std::nullopt;
      text += (text.size() > 1 ? "," : "") + JsonQuoted(item.as_string()->get());
    }
    return text + "]";
  }
  if (node.is_boolean() && type != "int" && type != "float" && type != "string") {
    return node.as_boolean()->get() ? "true" : "false";
  }
  if (node.is_integer() && type != "bool" && type != "string") return fmt::format("{}", node.as_integer()->get());
  if (node.is_floating_point() && type != "bool" && type != "string" && type != "int") {
    return fmt::format("{}", node.as_floating_point()->get());
  }
  if (node.is_string() && type != "bool" && type != "int" && type != "float") return node.as_string()->get();
  return std::nullopt;
}

std::string_view KindOf(const toml::node& node) {
  if (node.is_table()) return "a table";
  if (node.is_array()) return "an array";
  if (node.is_string()) return "a string";
  if (node.is_integer()) return "an integer";
  if (node.is_floating_point()) return "a float";
  if (node.is_boolean()) return "a boolean";
  return "a date or time";
}

struct Leaf {
  std::string key;
  int line = 0;
  const toml::node* node = nullptr;
};

void Flatten(const toml::table& table, const std::string& prefix, std::vector<Leaf>* leaves) {
  for (const auto& [name, node] : table) {
    const std::string key = prefix + std::string(name.str());
    const toml::table* inner = node.as_table();
    if (inner != nullptr && !inner->empty()) {
      Flatten(*inner, key + ".", leaves);
    } else {
      leaves->push_back({.key = key, .line = static_cast<int>(name.source().begin.line), .node = &node});
    }
  }
}

Status AllFaults(const std::vector<std::string>& faults) {
  if (faults.empty()) return {};
  return InvalidArgument("{}", JoinText(faults, "\n"));
}

}  // namespace

std::string_view Name(OptionTable::Source source) {
  switch (source) {
    case OptionTable::Source::kDefault: return "default";
    case OptionTable::Source::kFile: return "file";
    case OptionTable::Source::kEnvironment: return "environment";
    case OptionTable::Source::kFlag: return "flag";
  }
  return "default";
}

std::string EnvironmentName(std::string_view key) {
  std::string name = "TIDEPOOL_";
  for (const char c : key) name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

void OptionTable::Append(OptionInfo info, std::string type, std::function<Status(std::string_view)> set,
                         std::function<std::string()> get) {
  if (info.flag.empty()) {
    info.flag = LastPart(info.key);
    for (char& c : info.flag) c = c == '_' ? '-' : c;
  }
  if (info.metavar.empty()) {
    info.metavar = type == "string" ? "TEXT" : type == "list" ? "A,B" : type == "float" ? "X" : type == "int" ? "N" : type;
    for (char& c : info.metavar) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  TIDEPOOL_CHECK(FindKey(info.key) == nullptr, "option key '{}' is in the table twice", info.key);
  TIDEPOOL_CHECK(FindFlag(info.flag) == nullptr, "flag '--{}' is in the table twice", info.flag);
  Entry entry;
  entry.info = std::move(info);
  entry.type = std::move(type);
  entry.default_value = get();
  entry.set = std::move(set);
  entry.get = std::move(get);
  entries_.push_back(std::move(entry));
}

namespace {

// A setter that parses first and touches the field only if that went well.
template <typename Field, typename Parse>
std::function<Status(std::string_view)> SetterOf(Field* field, Parse parse) {
  return [field, parse](std::string_view text) -> Status {
    TIDEPOOL_ASSIGN_OR_RETURN(*field, parse(text));
    return {};
  };
}

}  // namespace

void OptionTable::Add(OptionInfo info, std::string* field) {
  Append(std::move(info), "string",
         SetterOf(field, [](std::string_view text) { return StatusOr<std::string>(std::string(text)); }),
         [field] { return *field; });
}
void OptionTable::Add(OptionInfo info, bool* field) {
  Append(std::move(info), "bool", SetterOf(field, ParseBool), [field] { return std::string(*field ? "true" : "false"); });
}
void OptionTable::Add(OptionInfo info, int* field) {
  Append(std::move(info), "int", SetterOf(field, ParseInteger<int>), [field] { return fmt::format("{}", *field); });
}
void OptionTable::Add(OptionInfo info, int64_t* field) {
  Append(std::move(info), "int", SetterOf(field, ParseInteger<int64_t>), [field] { return fmt::format("{}", *field); });
}
void OptionTable::Add(OptionInfo info, uint64_t* field) {
  Append(std::move(info), "int", SetterOf(field, ParseInteger<uint64_t>), [field] { return fmt::format("{}", *field); });
}
void OptionTable::Add(OptionInfo info, double* field) {
  Append(std::move(info), "float", SetterOf(field, ParseFloat), [field] { return fmt::format("{}", *field); });
}
void OptionTable::Add(OptionInfo info, absl::Duration* field) {
  Append(std::move(info), "duration", SetterOf(field, ParseDuration), [field] { return ExactDuration(*field); });
}
void OptionTable::Add(OptionInfo info, BytesField field) {
  Append(std::move(info), "size", SetterOf(field.value, ParseBytes), [field] { return ExactBytes(*field.value); });
}
void OptionTable::Add(OptionInfo info, std::vector<std::string>* field) {
  Append(std::move(info), "list", SetterOf(field, ParseList), [field] { return ListText(*field); });
}
void OptionTable::AddCustom(OptionInfo info, std::string type, std::function<Status(std::string_view)> set,
                            std::function<std::string()> get) {
  Append(std::move(info), std::move(type), std::move(set), std::move(get));
}

void OptionTable::MarkAdvanced(std::string_view section) {
  for (Entry& entry : entries_) entry.info.advanced |= Section(entry.info.key) == section;
}

const OptionTable::Entry* OptionTable::FindFlag(std::string_view flag) const {
  for (const Entry& entry : entries_) {
    if (entry.info.flag == flag) return &entry;
  }
  return nullptr;
}

const OptionTable::Entry* OptionTable::FindKey(std::string_view key) const {
  for (const Entry& entry : entries_) {
    if (entry.info.key == key) return &entry;
  }
  return nullptr;
}

Status OptionTable::Set(std::string_view key, std::string_view value, Source source, std::string origin) {
  const Entry* found = FindKey(key);
  if (found == nullptr) found = FindFlag(key);
  if (found == nullptr) return InvalidArgument("{}option '{}' is unknown", origin.empty() ? "" : origin + ": ", key);
  Entry& entry = entries_[static_cast<size_t>(found - entries_.data())];
  const std::string before = entry.get();
  if (const Status set = entry.set(value); !set.ok()) {
    // A flag and a variable name the option; a line of a file does not.
    const bool named = source == Source::kFlag || source == Source::kEnvironment;
    const std::string where = origin.empty() ? entry.info.key : named ? origin : origin + ": " + entry.info.key;
    return Annotate(set, where);
  }
  if (source < entry.source) return entry.set(before);
  entry.source = source;
  entry.origin = std::move(origin);
  return {};
}

Status OptionTable::LoadFile(const std::string& path, const std::set<std::string>& also_known) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  toml::table root;
  try {  // the packaged toml++ reports errors by exceptions
    root = toml::parse(text, path);
  } catch (const toml::parse_error& error) {
    return InvalidArgument("{}:{}: {}", path, error.source().begin.line, error.description());
  }
  std::vector<Leaf> leaves;
  Flatten(root, "", &leaves);
  std::sort(leaves.begin(), leaves.end(), [](const Leaf& a, const Leaf& b) { return a.line < b.line; });
  std::vector<std::string> keys(also_known.begin(), also_known.end());
  for (const Entry& entry : entries_) keys.push_back(entry.info.key);
  std::vector<std::string> faults;
  for (const Leaf& leaf : leaves) {
    const std::string origin = fmt::format("{}:{}", path, leaf.line);
    const Entry* entry = FindKey(leaf.key);
    if (entry == nullptr) {
      if (also_known.contains(leaf.key)) continue;
      const std::string nearest = NearestName(leaf.key, keys);
      faults.push_back(fmt::format("{}: key '{}' is unknown{}", origin, leaf.key,
                                   nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest)));
      continue;
    }
    const std::optional<std::string> value = TextOf(*leaf.node, entry->type);
    if (!value) {
      faults.push_back(fmt::format("{}: {} is {}; allowed: a value of type {}", origin, leaf.key, KindOf(*leaf.node),
                                   entry->type == "list" ? "list of strings" : entry->type));
      continue;
    }
    if (const Status set = Set(leaf.key, *value, Source::kFile, origin); !set.ok()) faults.push_back(MessageOf(set));
  }
  return AllFaults(faults);
}

Status OptionTable::LoadEnvironment(std::string_view section) {
  std::vector<std::string> faults;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!section.empty() && Section(entries_[i].info.key) != section) continue;
    const std::string name = EnvironmentName(entries_[i].info.key);
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) continue;
    const Status set = Set(entries_[i].info.key, value, Source::kEnvironment, name);
    if (!set.ok()) faults.push_back(MessageOf(set));
  }
  return AllFaults(faults);
}

std::string OptionTable::PrintToml() const {
  std::vector<std::string> sections = {""};  // keys without a section must come first
  for (const Entry& entry : entries_) {
    const std::string section = Section(entry.info.key);
    if (std::find(sections.begin(), sections.end(), section) == sections.end()) sections.push_back(section);
  }
  std::string text;
  for (const std::string& section : sections) {
    bool opened = false;
    for (const Entry& entry : entries_) {
      if (Section(entry.info.key) != section) continue;
      if (!opened && !section.empty()) text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", section);
      opened = true;
      text += fmt::format("{} = {}  # {}{}\n", LastPart(entry.info.key), TomlValue(entry), Name(entry.source),
                          entry.origin.empty() ? "" : " " + entry.origin);
    }
  }
  return text;
}

std::string OptionTable::PrintJson() const {
  auto options = nlohmann::ordered_json::array();
  for (const Entry& entry : entries_) {
    options.push_back({{"key", entry.info.key},
                       {"value", JsonValue(entry)},
                       {"type", entry.type},
                       {"default", entry.default_value},
                       {"source", std::string(Name(entry.source))},
                       {"origin", entry.origin},
                       {"flag", "--" + entry.info.flag},
                       {"environment", EnvironmentName(entry.info.key)},
                       {"help", entry.info.help}});
  }
  return nlohmann::ordered_json{{"options", options}}.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace tidepool
