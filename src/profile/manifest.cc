// manifest.json of a bundle.
#include <algorithm>
#include <cmath>

#include "base/json.h"
#include "profile/bundle_io.h"
#include "profile/table.h"

namespace tidepool::profile {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "tidepool-profile";
// Rates reach 1e18 FLOP/s for the largest machines; more is a slip of units.
constexpr double kLargestRate = 1e21;

// One pass over the text that keeps nothing: finds the place of a syntax error, keys that stand twice, and deep nesting before
// anything is built from them.
class SyntaxCheck : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::string fault;
  size_t fault_at = 0;  // byte, from 1; 0: not known

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override {
    keys_.emplace_back();
    return Descend();
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(size_t) override { return Descend(); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (std::find(keys_.back().begin(), keys_.back().end(), name) != keys_.back().end()) {
      fault = fmt::format("the key '{}' stands twice in one object", Shown(name));
      return false;
    }
    keys_.back().push_back(name);
    if (keys_.back().size() > kMaxKeys) fault = fmt::format("an object has more than {} keys", kMaxKeys);
    return fault.empty();
  }
  bool parse_error(size_t position, const std::string& token, const nlohmann::detail::exception&) override {
    fault = fmt::format("not JSON at '{}'", Shown(token));
    fault_at = position;
    return false;
  }

 private:
  static constexpr size_t kMaxKeys = 256;
  static constexpr int kMaxDepth = 8;
  bool Descend() {
    if (++depth_ > kMaxDepth) fault = fmt::format("nests deeper than {} levels", kMaxDepth);
    return fault.empty();
  }
  int depth_ = 0;
  std::vector<std::vector<std::string>> keys_;
};

std::string Place(std::string_view text, size_t byte) {
  if (byte == 0) return "1:1";
  const std::string_view before = text.substr(0, std::min(byte - 1, text.size()));
  const size_t line_begin = before.rfind('\n');
  return fmt::format("{}:{}", std::count(before.begin(), before.end(), '\n') + 1,
                     before.size() - (line_begin == std::string_view::npos ? 0 : line_begin + 1) + 1);
}

std::string ShownJson(const Json& value) { return Shown(value.dump(-1, ' ', false, Json::error_handler_t::replace)); }

// Takes keys out of an object; what is left at the end is unknown. Faults name the key by its path and by the line where it
// stands.
class ObjectReader {
 public:
  ObjectReader(const Json& object, std::string path, std::string file, std::string_view text, FaultList* faults)
      : object_(object), path_(std::move(path)), file_(std::move(file)), text_(text), faults_(faults) {}

  void Text(const char* key, std::string* value, bool required) {
    const Json* found = Take(key, required);
    if (found == nullptr) return;
    if (!found->is_string()) return Wrong(key, *found, "a text");
    *value = found->get<std::string>();
    if (const std::string fault = TextFault(*value); !fault.empty()) Fault(key, fault);
  }
  void Bool(const char* key, bool* value) {
    const Json* found = Take(key, true);
    if (found == nullptr) return;
    if (!found->is_boolean()) return Wrong(key, *found, "true or false");
    *value = found->get<bool>();
  }
  void Number(const char* key, double* value, double smallest, double largest, bool required) {
    if (const Json* found = Take(key, required); found != nullptr) Store(key, *found, smallest, largest, value);
  }
  // Calls read(name, value) for each entry of an object.
  template <typename Read>
  void Entries(const char* key, const Read& read) {
    const Json* found = Take(key, false);
    if (found == nullptr) return;
    if (!found->is_object()) return Wrong(key, *found, "an object");
    for (const auto& [name, value] : found->items()) read(name, value);
  }
  template <typename Kind>
  void Rates(const char* key, StatusOr<Kind> (*parse)(std::string_view), double smallest, std::map<Kind, double>* values) {
    Entries(key, [&](const std::string& name, const Json& value) {
      const StatusOr<Kind> kind = parse(name);
      if (!kind.ok()) return Fault(key, MessageOf(kind.status()));
      double rate = 0;
      if (Store(fmt::format("{}.{}", key, name), value, smallest, kLargestRate, &rate)) (*values)[*kind] = rate;
    });
  }
  const Json* Object(const char* key) {
    const Json* found = Take(key, true);
    if (found == nullptr || found->is_object()) return found;
    Wrong(key, *found, "an object");
    return nullptr;
  }
  void RefuseTheRest() {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(taken_.begin(), taken_.end(), key) == taken_.end()) Fault(key, "is an unknown key");
    }
  }
  void Fault(const std::string& key, std::string_view problem) {
    // The first place where the last part of the key stands as a key: near enough to find it.
    const std::string name = key.substr(key.rfind('.') + 1);
    const size_t at = text_.find("\"" + name + "\"");
    faults_->Add(fmt::format("{}:{}: {}{} {}", file_, Place(text_, at == std::string_view::npos ? 0 : at + 1), path_, Shown(key),
                             problem));
  }

 private:
  const Json* Take(const char* key, bool required) {
    taken_.push_back(key);
    const auto found = object_.find(key);
    if (found != object_.end()) return &*found;
    if (required) Fault(key, "is missing");
    return nullptr;
  }
  void Wrong(const std::string& key, const Json& value, std::string_view allowed) {
    Fault(key, fmt::format("is {}; allowed: {}", ShownJson(value), allowed));
  }
  bool Store(const std::string& key, const Json& value, double smallest, double largest, double* target) {
    const double number = value.is_number() ? value.get<double>() : -1;
    if (!(number >= smallest && number <= largest)) {
      Wrong(key, value, fmt::format("a number from {} to {}", smallest, largest));
      return false;
    }
    *target = number;
    return true;
  }

  const Json& object_;
  std::string path_, file_;
  std::string_view text_;
  FaultList* faults_;
  std::vector<std::string> taken_;
};

void ReadHardware(const Json& json, const std::string& file, std::string_view text, Hardware* hardware, FaultList* faults) {
  ObjectReader reader(json, "hardware.", file, text, faults);
  reader.Text("name", &hardware->name, true);
  if (const Status name = CheckName("name", hardware->name); !name.ok()) reader.Fault("name", MessageOf(name));
  reader.Number("memory_bytes", &hardware->memory_bytes, 0, kLargest, true);
  reader.Number("memory_bytes_per_s", &hardware->memory_bytes_per_s, 0, kLargestRate, true);
  reader.Rates("peak_flops", DTypeFromSafetensors, 1, &hardware->peak_flops);
  reader.Number("tf32_flops", &hardware->tf32_flops, 0, kLargestRate, false);
  reader.Rates("link_bytes_per_s", ParseLinkKind, 1, &hardware->link_bytes_per_s);
  reader.Rates("link_latency_us", ParseLinkKind, 0, &hardware->link_latency_us);
  reader.Number("launch_us", &hardware->launch_us, 0, 1e9, false);
  reader.Entries("efficiency", [&](const std::string& name, const Json& value) {
    double* target = name == "compute"  ? &hardware->efficiency.compute
                     : name == "memory" ? &hardware->efficiency.memory
                     : name == "link"   ? &hardware->efficiency.link
                                        : nullptr;
    if (target == nullptr) return reader.Fault("efficiency." + name, "is an unknown key");
    const double share = value.is_number() ? value.get<double>() : -1;
    if (!(share >= 1e-4 && share <= 1)) {
      return reader.Fault("efficiency." + name, fmt::format("is {}; allowed: a number from 0.0001 to 1", ShownJson(value)));
    }
    *target = share;
  });
  reader.RefuseTheRest();
}

}  // namespace

Status CheckName(std::string_view what, std::string_view name) {
  const bool good =
      !name.empty() && name.size() <= 64 && name[0] != '.' && name[0] != '-' && std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
      });
  if (good) return {};
  return InvalidArgument(
      "{} '{}' is not allowed; allowed: 1 to 64 letters, digits, '.', '_' and '-', a letter, digit or '_' first", what,
      Shown(name));
}

StatusOr<Manifest> ParseManifest(const std::string& file, std::string_view text) {
  SyntaxCheck syntax;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &syntax)) {
    return InvalidArgument("{}:{}: {}", file, Place(text, syntax.fault_at), syntax.fault);
  }
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("{}:1:1: the manifest is {}; allowed: an object", file, ShownJson(json));

  FaultList faults;
  ObjectReader reader(json, "", file, text, &faults);
  std::string format;
  double version = 0;
  reader.Text("format", &format, true);
  if (faults.empty() && format != kFormat) reader.Fault("format", fmt::format("is '{}'; allowed: '{}'", Shown(format), kFormat));
  reader.Number("version", &version, 1, 1e9, true);
  TIDEPOOL_RETURN_IF_ERROR(faults.ToStatus());
  // A bundle of another version may look different in every other respect.
  if (version != kBundleVersion) {
    return FailedPrecondition("{}: the bundle has version {}; this program reads version {}", file, version, kBundleVersion);
  }

  Manifest manifest;
  reader.Text("name", &manifest.name, true);
  if (const Status name = CheckName("name", manifest.name); !name.ok()) reader.Fault("name", MessageOf(name));
  reader.Bool("measured", &manifest.measured);
  reader.Text("source", &manifest.source, true);
  reader.Text("licence", &manifest.licence, false);
  reader.Text("date", &manifest.date, false);
  reader.Entries("software", [&](const std::string& name, const Json& value) {
    const std::string key = "software." + name;
    if (!value.is_string()) return reader.Fault(key, fmt::format("is {}; allowed: a text", ShownJson(value)));
    std::string& entry = manifest.software[name] = value.get<std::string>();
    for (const std::string& part : {name, entry}) {
      if (const std::string fault = TextFault(part); !fault.empty()) reader.Fault(key, fault);
    }
  });
  if (const Json* hardware = reader.Object("hardware"); hardware != nullptr)
    ReadHardware(*hardware, file, text, &manifest.hardware, &faults);
  reader.RefuseTheRest();
  TIDEPOOL_RETURN_IF_ERROR(faults.ToStatus());
  return manifest;
}

std::string ManifestText(const Manifest& manifest) {
  const Hardware& hardware = manifest.hardware;
  Json peaks = Json::object(), links = Json::object(), latencies = Json::object();
  for (const auto& [dtype, rate] : hardware.peak_flops) peaks[std::string(SafetensorsName(dtype))] = rate;
  for (const auto& [kind, rate] : hardware.link_bytes_per_s) links[std::string(NameOf(kind))] = rate;
  for (const auto& [kind, time] : hardware.link_latency_us) latencies[std::string(NameOf(kind))] = time;
  const Json json = {{"format", kFormat},
                     {"version", kBundleVersion},
                     {"name", manifest.name},
                     {"measured", manifest.measured},
                     {"source", manifest.source},
                     {"licence", manifest.licence},
                     {"date", manifest.date},
                     {"software", manifest.software},
                     {"hardware",
                      {{"name", hardware.name},
                       {"memory_bytes", hardware.memory_bytes},
                       {"memory_bytes_per_s", hardware.memory_bytes_per_s},
                       {"peak_flops", peaks},
                       {"tf32_flops", hardware.tf32_flops},
                       {"link_bytes_per_s", links},
                       {"link_latency_us", latencies},
                       {"launch_us", hardware.launch_us},
                       {"efficiency",
                        {{"compute", hardware.efficiency.compute},
                         {"memory", hardware.efficiency.memory},
                         {"link", hardware.efficiency.link}}}}}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace tidepool::profile
