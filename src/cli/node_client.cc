#include "cli/node_client.h"

#include <algorithm>
#include <random>

#include "api/http_client.h"
#include "base/json.h"
#include "base/units.h"

namespace tidepool::cli {
namespace {

using nlohmann::json;

// The code that HttpStatusOf turned into this HTTP status.
StatusCode CodeOfHttp(int http_status) {
  switch (http_status) {
    case 400: return StatusCode::kInvalidArgument;
    case 403: return StatusCode::kPermissionDenied;
    case 404: return StatusCode::kNotFound;
    case 401: return StatusCode::kUnauthenticated;
    case 409: return StatusCode::kAborted;
    case 412: return StatusCode::kFailedPrecondition;
    case 429: return StatusCode::kResourceExhausted;
    case 499: return StatusCode::kCancelled;
    case 501: return StatusCode::kUnimplemented;
    case 503: return StatusCode::kUnavailable;
    case 504: return StatusCode::kDeadlineExceeded;
    default: return StatusCode::kUnknown;
  }
}

StatusOr<json> Parse(const std::string& text) {
  json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return DataLoss("the node's answer is not a JSON object: '{}'", text.substr(0, 60));
  return parsed;
}

// Fields that are missing or of another type show as empty or zero: a node of another version must not break the display.
std::string Text(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}
double Number(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : 0;
}
int64_t Whole(const json& object, const char* key) { return static_cast<int64_t>(Number(object, key)); }
std::string Size(const json& object, const char* key) { return FormatBytes(Whole(object, key)); }

StatusOr<json> Leases(const std::string& text) {
  TIDEPOOL_ASSIGN_OR_RETURN(const json status, Parse(text));
  const auto pool = status.find("pool");
  if (pool == status.end() || !pool->is_object() || !pool->contains("leases") || !(*pool)["leases"].is_array()) {
    return DataLoss("the node's status has no list of leases");
  }
  return (*pool)["leases"];
}

std::string ReadyText(const json& object) { return object.value("ready", json(false)) == json(true) ? "ready" : "not ready"; }

// Of a node with several; else empty.
json DevicesOf(const json& status) {
  json devices = json::array();
  const auto found = status.find("devices");
  if (found == status.end() || !found->is_array() || found->size() < 2) return devices;
  for (const json& device : *found) {
    if (device.is_object()) devices.push_back(device);
  }
  return devices;
}

std::string DevicesText(const json& devices) {
  std::string out = fmt::format("\n{:>6} {:<9} {:>8} {:>10} {:>10} {:>10} {:>10}\n", "DEVICE", "STATE", "WORKER", "GRANTED",
                                "FREE", "BUSY s", "COPIES s");
  for (const json& device : devices) {
    const json pool = device.value("pool", json::object()), emulation = device.value("emulation", json::object());
    const int64_t page = Whole(pool, "page_bytes");
    const auto seconds = [&](const char* key) {
      return emulation.contains(key) ? fmt::format("{:.3f}", Number(emulation, key)) : std::string("-");
    };
    out += fmt::format("{:>6} {:<9} {:>8} {:>10} {:>10} {:>10} {:>10}{}\n", Whole(device, "device"), ReadyText(device),
                       Whole(device, "worker_pid"), FormatBytes(Whole(pool, "granted_pages") * page),
                       FormatBytes(Whole(pool, "free_pages") * page), seconds("compute_busy_s"), seconds("host_to_device_busy_s"),
                       device.value("trains", json(false)) == json(true) ? "  trains" : "");
  }
  return out;
}

std::string TrainingText(const json& training) {
  std::string out = fmt::format(
      "train   {} is {} (pid {}){}: step {}, epoch {}, loss {:.4g}, {:.1f} samples/s, micro-batch {}, {} aborts, {} restarts, "
      "holds {}\n",
      Text(training, "name"), Text(training, "state"), Whole(training, "pid"),
      training.contains("device") ? fmt::format(" on device {}", Whole(training, "device")) : "", Whole(training, "step"),
      Whole(training, "epoch"), Number(training, "loss"), Number(training, "samples_per_s"), Whole(training, "micro_batch"),
      Whole(training, "aborts"), Whole(training, "restarts"), Size(training, "held_bytes"));
  if (const double rate = Number(training, "device_samples_per_s"); rate > 0) {
    out += fmt::format("        on the emulated device: {:.1f} samples/s, {:.3f} s of its time\n", rate,
                       Number(training, "device_seconds"));
  }
  if (const std::string error = Text(training, "last_error"); !error.empty()) out += "        last end: " + error + "\n";
  return out;
}

// The devices that hold a model: "0,3".
std::string HoldersOf(const json& model) {
  std::string out;
  const auto devices = model.find("devices");
  if (devices == model.end() || !devices->is_array()) return "-";
  for (const json& device : *devices) {
    if (device.is_number_integer()) out += fmt::format("{}{}", out.empty() ? "" : ",", device.get<int64_t>());
  }
  return out.empty() ? "-" : out;
}

std::string ModelsText(const json& models, bool several) {
  std::string out =
      fmt::format("\n{:<24} {:<9} {:>10} {:>10} {:>10} {:>10} {:>9} {:>8} {:>6} {:>9}{}\n", "MODEL", "STATE", "WEIGHTS",
                  "RESIDENT", "ALONE ms", "SLO ms", "REQUESTS", "SLO met", "LOADS", "EVICTIONS", several ? "  DEVICES" : "");
  for (const json& model : models) {
    if (!model.is_object()) continue;
    const double requests = Number(model, "requests");
    out += fmt::format("{:<24} {:<9} {:>10} {:>10} {:>10.1f} {:>10.1f} {:>9} {:>8} {:>6} {:>9}{}\n", Text(model, "name"),
                       Text(model, "state"), Size(model, "weight_bytes"), Size(model, "resident_bytes"), Number(model, "solo_ms"),
                       Number(model, "slo_ms"), Whole(model, "requests"),
                       requests > 0 ? fmt::format("{:.1f} %", 100 * Number(model, "within_slo") / requests) : "-",
                       Whole(model, "loads"), Whole(model, "evictions"), several ? "  " + HoldersOf(model) : "");
    if (const std::string reason = Text(model, "reason"); !reason.empty()) out += "  " + reason + "\n";
  }
  return out;
}

}  // namespace

std::string EncodePathSegment(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || c == '-' || c == '.' || c == '_' || c == '~') {
      out += c;
    } else {
      out += fmt::format("%{:02X}", byte);
    }
  }
  return out;
}

StatusOr<std::string> NodeClient::Call(const std::string& method, const std::string& path, const std::string& body) const {
  std::string base = url;
  while (base.ends_with('/')) base.pop_back();
  auto called = api::CallHttp({.url = base + path,
                               .method = method,
                               .headers = {{"Content-Type", "application/json"}},
                               .body = body,
                               .timeout = timeout});
  if (absl::IsUnavailable(called.status())) {
    return Unavailable("{}; is a node running there? (--url, 'tidepool up')", MessageOf(called.status()));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(api::HttpAnswer answer, std::move(called));
  if (answer.status >= 200 && answer.status < 300) return std::move(answer.body);
  const json parsed = json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
  std::string message = parsed.is_object() ? Text(parsed, "error") : "";
  if (message.empty()) message = fmt::format("{} {} was answered with HTTP {}", method, path, answer.status);
  return absl::Status(CodeOfHttp(answer.status), message);
}

StatusOr<std::string> NodeClient::Status() const { return Call("GET", "/v2/tidepool/status", ""); }
StatusOr<std::string> NodeClient::Metadata(const std::string& model) const {
  return Call("GET", "/v2/models/" + EncodePathSegment(model), "");
}
absl::Status NodeClient::Load(const std::string& model) const {
  return Call("POST", "/v2/repository/models/" + EncodePathSegment(model) + "/load", "{}").status();
}
absl::Status NodeClient::Unload(const std::string& model) const {
  return Call("POST", "/v2/repository/models/" + EncodePathSegment(model) + "/unload", "{}").status();
}
StatusOr<std::string> NodeClient::Infer(const std::string& model, const std::string& body) const {
  return Call("POST", "/v2/models/" + EncodePathSegment(model) + "/infer", body);
}

StatusOr<std::string> StatusText(const std::string& text) {
  TIDEPOOL_ASSIGN_OR_RETURN(const json status, Parse(text));
  const json devices = DevicesOf(status);
  const json pool = status.value("pool", json::object());
  const int64_t page = Whole(pool, "page_bytes");
  const std::string runs =
      devices.empty() ? fmt::format("worker {}", Whole(status, "worker_pid")) : fmt::format("{} devices", devices.size());
  std::string out = fmt::format("node    mode {}, {}, {}\n", Text(status, "mode"), ReadyText(status), runs);
  out += fmt::format("memory  {} of {} granted, {} free, {} returning, {} dirty; peak {}; {} violations\n",
                     FormatBytes(Whole(pool, "granted_pages") * page), FormatBytes(Whole(pool, "total_pages") * page),
                     FormatBytes(Whole(pool, "free_pages") * page), FormatBytes(Whole(pool, "returning_pages") * page),
                     FormatBytes(Whole(pool, "dirty_pages") * page), FormatBytes(Whole(pool, "peak_granted_pages") * page),
                     Whole(pool, "violations"));
  if (const auto emulation = status.find("emulation"); emulation != status.end() && emulation->is_object()) {
    out += fmt::format("device  {}: {}\n        emulated {:.0f} s: compute busy {:.3f} s, copies to it {:.3f} s{}\n",
                       Text(status, "device"), Text(*emulation, "description"), Number(*emulation, "elapsed_s"),
                       Number(*emulation, "compute_busy_s"), Number(*emulation, "host_to_device_busy_s"),
                       devices.empty() ? "" : ", all together");
    if (emulation->value("host_limited", json(false)) == json(true)) {
      out += fmt::format("        HOST-LIMITED: latencies and rates are this machine's, not the device's: {}\n",
                         Text(*emulation, "host_limited_reason"));
    }
  }
  if (const auto training = status.find("training"); training != status.end() && training->is_object()) {
    out += TrainingText(*training);
  }
  if (!devices.empty()) out += DevicesText(devices);
  return out + ModelsText(status.value("models", json::array()), !devices.empty());
}

StatusOr<std::string> TenantsText(const std::string& text) {
  TIDEPOOL_ASSIGN_OR_RETURN(const json leases, Leases(text));
  const bool several = std::any_of(leases.begin(), leases.end(), [](const json& lease) { return lease.contains("device"); });
  std::string out = fmt::format("{:<28} {:<12} {:>8} {:>12} {:>12} {:>12}{}\n", "TENANT", "CLASS", "PID", "HELD", "GUARANTEED",
                                "LIMIT", several ? "  DEVICE" : "");
  for (const json& lease : leases) {
    if (!lease.is_object()) continue;
    out += fmt::format("{:<28} {:<12} {:>8} {:>12} {:>12} {:>12}{}\n", Text(lease, "name"), Text(lease, "class"),
                       Whole(lease, "pid"), Size(lease, "held_bytes"), Size(lease, "guaranteed_bytes"),
                       Size(lease, "limit_bytes"), several ? fmt::format("{:>8}", Whole(lease, "device")) : "");
  }
  return out;
}

StatusOr<std::string> TenantsJson(const std::string& text) {
  TIDEPOOL_ASSIGN_OR_RETURN(const json leases, Leases(text));
  return leases.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

StatusOr<std::string> RandomRequest(const std::string& metadata_json, int batch, uint64_t seed) {
  TIDEPOOL_ASSIGN_OR_RETURN(const json metadata, Parse(metadata_json));
  const auto inputs = metadata.find("inputs");
  if (inputs == metadata.end() || !inputs->is_array() || inputs->empty()) return DataLoss("the model's metadata names no inputs");
  std::mt19937_64 random(seed);
  json request = {{"inputs", json::array()}};
  for (const json& input : *inputs) {
    if (!input.is_object() || !input.contains("shape") || !input["shape"].is_array())
      return DataLoss("the model's metadata has an input without a shape");
    const std::string type = Text(input, "datatype");
    int64_t count = 1;
    json shape = json::array();
    for (const json& dimension : input["shape"]) {
      const int64_t size = dimension.is_number_integer() && dimension.get<int64_t>() >= 0 ? dimension.get<int64_t>() : batch;
      shape.push_back(size);
      count = size > 0 && count > (int64_t{1} << 26) / size ? int64_t{1} << 27 : count * size;
    }
    if (count > int64_t{1} << 26)
      return InvalidArgument("input '{}' would have more than {} numbers", Text(input, "name"), int64_t{1} << 26);
    json values = json::array();
    for (int64_t i = 0; i < count; ++i) {
      if (type.starts_with("FP") || type == "BF16") {
        values.push_back(static_cast<double>(random() % 4001) / 1000.0 - 2.0);
      } else if (type.starts_with("INT") || type.starts_with("UINT")) {
        values.push_back(random() % 100);
      } else if (type == "BOOL") {
        values.push_back(random() % 2 == 1);
      } else {
        return Unimplemented("input '{}' has the type '{}', which has no random values; give a request with --input",
                             Text(input, "name"), type);
      }
    }
    request["inputs"].push_back(
        {{"name", Text(input, "name")}, {"datatype", type}, {"shape", shape}, {"data", std::move(values)}});
  }
  return request.dump();
}

StatusOr<std::string> AnswerText(const std::string& answer_json) {
  TIDEPOOL_ASSIGN_OR_RETURN(const json answer, Parse(answer_json));
  const auto outputs = answer.find("outputs");
  if (outputs == answer.end() || !outputs->is_array()) return DataLoss("the answer has no outputs");
  std::string out;
  for (const json& output : *outputs) {
    if (!output.is_object()) return DataLoss("the answer has a broken output");
    std::string values;
    size_t shown = 0, total = 0;
    if (const auto data = output.find("data"); data != output.end() && data->is_array()) {
      total = data->size();
      for (; shown < std::min<size_t>(total, 8); ++shown) values += (shown == 0 ? "" : ", ") + (*data)[shown].dump();
    }
    out += fmt::format("{} {} {}: {}{}\n", Text(output, "name"), Text(output, "datatype"),
                       output.value("shape", json::array()).dump(), values,
                       shown < total ? fmt::format(", ... {} more", total - shown) : "");
  }
  return out;
}

}  // namespace tidepool::cli
