#include "plan/plan_json.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "base/json.h"

namespace tidepool::plan {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr size_t kMaxBytes = size_t{64} << 20;
constexpr int64_t kMaxStages = 65536, kMaxOps = 1000000, kMaxWidth = 65536;
constexpr int64_t kMaxGpus = int64_t{1} << 24;    // of all stages together
constexpr int64_t kMaxValues = int64_t{6} << 20;  // four per op, and some
constexpr size_t kMaxKeys = 4096, kMaxLayerCounts = 64;
constexpr int kMaxDepth = 16;

int64_t LineAt(std::string_view text, size_t position) {
  return 1 + std::count(text.begin(), text.begin() + std::min(position, text.size()), '\n');
}

// Reads through a text once to say where it is not JSON, nested too deeply, has too much in it, or has a key of an object twice.
class Scanner : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return Value(); }
  bool boolean(bool) override { return Value(); }
  bool number_integer(number_integer_t) override { return Value(); }
  bool number_unsigned(number_unsigned_t) override { return Value(); }
  bool number_float(number_float_t, const string_t&) override { return Value(); }
  bool string(string_t&) override { return Value(); }
  bool binary(binary_t&) override { return Value(); }
  bool start_object(size_t) override {
    keys_.emplace_back();
    return Enter();
  }
  bool start_array(size_t) override { return Enter(); }
  bool end_object() override {
    keys_.pop_back();
    return Leave();
  }
  bool end_array() override { return Leave(); }
  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second) {
      fault_ = fmt::format("key '{}' appears twice", name.substr(0, 80));
      repeated_ = name;
    } else if (keys_.back().size() > kMaxKeys) {
      fault_ = fmt::format("an object has more than {} keys", kMaxKeys);
    }
    return fault_.empty();
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    position_ = position;
    fault_ = "this is not JSON";
    return false;
  }
  const std::string& fault() const { return fault_; }
  // Of the fault in `text`; 0 if it is not known.
  size_t PositionIn(std::string_view text) const {
    const size_t last = repeated_.empty() ? std::string_view::npos : text.rfind("\"" + repeated_ + "\"");
    return last == std::string_view::npos ? position_ : last;
  }

 private:
  bool Value() {
    if (++values_ > kMaxValues) fault_ = fmt::format("has more than {} values", kMaxValues);
    return fault_.empty();
  }
  bool Enter() {
    if (++depth_ > kMaxDepth) fault_ = fmt::format("nested deeper than {}", kMaxDepth);
    return Value();
  }
  bool Leave() {
    --depth_;
    return true;
  }
  int depth_ = 0;
  int64_t values_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects around
  std::string fault_, repeated_;
  size_t position_ = 0;
};

// Typed access to the keys of the outer object, with errors that say where.
class Reader {
 public:
  Reader(const Json& json, std::string_view text, const std::string& file) : json_(json), text_(text), file_(file) {}

  bool Has(const char* key) const { return json_.contains(key); }

  template <typename... Args>
  Status Fault(const std::string& key, fmt::format_string<Args...> format, Args&&... args) const {
    const size_t at = text_.find("\"" + key + "\"");
    return InvalidArgument("{}:{}: key '{}': {}", file_, at == std::string_view::npos ? 1 : LineAt(text_, at), key,
                           fmt::format(format, std::forward<Args>(args)...));
  }

  StatusOr<const Json*> Get(const std::string& key) const {
    const auto found = json_.find(key);
    if (found == json_.end()) return InvalidArgument("{}: key '{}' is missing", file_, key);
    return &*found;
  }
  StatusOr<std::string> Text(const std::string& key) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(key));
    if (!value->is_string()) return Fault(key, "is {}; allowed: a string", value->type_name());
    return value->get<std::string>();
  }
  StatusOr<int64_t> Integer(const std::string& key, int64_t min, int64_t max) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(key));
    return Integer(*value, key, "", min, max);
  }
  // A finite number that `good` likes; none if the key is not there.
  template <typename Good>
  StatusOr<std::optional<double>> Number(const std::string& key, std::string_view allowed, Good good) const {
    if (!Has(key.c_str())) return std::optional<double>();
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(key));
    if (!value->is_number() || !std::isfinite(value->get<double>()) || !good(value->get<double>())) {
      return Fault(key, "is {}; allowed: {}", Shown(*value), allowed);
    }
    return std::optional<double>(value->get<double>());
  }
  StatusOr<std::optional<double>> Seconds(const std::string& key) const {
    return Number(key, "a number from 0 on", [](double seconds) { return seconds >= 0; });
  }
  // A list of `count` integers; -1: any number of them up to kMaxStages.
  StatusOr<std::vector<int64_t>> Integers(const std::string& key, int64_t count, int64_t min, int64_t max) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(key));
    return Integers(*value, key, "", count, min, max);
  }
  // A list of lists; lengths[i] integers in list i.
  StatusOr<std::vector<std::vector<int64_t>>> Lists(const std::string& key, const std::vector<int64_t>& lengths, int64_t min,
                                                    int64_t max) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, Get(key));
    if (!value->is_array()) return Fault(key, "is {}; allowed: a list with one list per stage", value->type_name());
    if (value->size() != lengths.size())
      return Fault(key, "has {} lists; allowed: {}, the number of stages", value->size(), lengths.size());
    std::vector<std::vector<int64_t>> lists;
    for (size_t i = 0; i < lengths.size(); ++i) {
      TIDEPOOL_ASSIGN_OR_RETURN(auto list, Integers((*value)[i], key, fmt::format("[{}]", i), lengths[i], min, max));
      lists.push_back(std::move(list));
    }
    return lists;
  }

 private:
  static std::string Shown(const Json& value) {
    return value.is_structured() ? value.type_name() : value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80);
  }
  StatusOr<int64_t> Integer(const Json& value, const std::string& key, const std::string& entry, int64_t min, int64_t max) const {
    const std::string where = entry.empty() ? "" : "entry " + entry + " ";
    // Flags are true and false in some files.
    const bool whole = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                                                  : value.is_number_integer() || value.is_boolean();
    const int64_t number = !whole ? 0 : value.is_boolean() ? static_cast<int64_t>(value.get<bool>()) : value.get<int64_t>();
    if (!whole || number < min || number > max) {
      return Fault(key, "{}is {}; allowed: an integer from {} to {}", where, Shown(value), min, max);
    }
    return number;
  }
  StatusOr<std::vector<int64_t>> Integers(const Json& value, const std::string& key, const std::string& entry, int64_t count,
                                          int64_t min, int64_t max) const {
    const std::string where = entry.empty() ? "" : "entry " + entry + " ";
    if (!value.is_array()) return Fault(key, "{}is {}; allowed: a list of integers", where, Shown(value));
    if (count >= 0 ? value.size() != static_cast<size_t>(count) : value.size() > static_cast<size_t>(kMaxStages)) {
      return Fault(key, "{}has {} entries; allowed: {}", where, value.size(),
                   count >= 0 ? fmt::format("{}", count) : "65536 or fewer");
    }
    std::vector<int64_t> list;
    list.reserve(value.size());
    for (size_t i = 0; i < value.size(); ++i) {
      TIDEPOOL_ASSIGN_OR_RETURN(const int64_t number, Integer(value[i], key, fmt::format("{}[{}]", entry, i), min, max));
      list.push_back(number);
    }
    return list;
  }

  const Json& json_;
  std::string_view text_;
  const std::string& file_;
};

// Names and places of the calibrated model's options.
constexpr std::pair<const char*, double CalibratedOptions::*> kNumberOptions[] = {
    {"transfer_overlap", &CalibratedOptions::transfer_overlap}, {"sync_overlap", &CalibratedOptions::sync_overlap},
    {"memory_margin", &CalibratedOptions::memory_margin},       {"noise_factor", &CalibratedOptions::noise_factor},
    {"context_mib", &CalibratedOptions::context_mib},           {"memory_bytes_per_s", &CalibratedOptions::memory_bytes_per_s}};
constexpr std::pair<const char*, bool CalibratedOptions::*> kFlagOptions[] = {
    {"zero1", &CalibratedOptions::zero1}, {"sequence_parallel", &CalibratedOptions::sequence_parallel}};

Status ReadCostOption(const std::string& name, const Json& value, CalibratedOptions* options) {
  const auto fault = [&](const char* allowed) {
    const std::string shown =
        value.is_structured() ? value.type_name() : value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return InvalidArgument("{} is {}; allowed: {}", name.substr(0, 80), shown.substr(0, 80), allowed);
  };
  if (name == "schedule") {
    if (!value.is_string()) return fault("1f1b, interleaved, zero-bubble");
    TIDEPOOL_ASSIGN_OR_RETURN(options->schedule, PipelineScheduleFrom(value.get<std::string>().substr(0, 80)));
    return {};
  }
  if (name == "chunks") {
    if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > 1024)
      return fault("an integer from 1 to 1024");
    options->chunks = static_cast<int32_t>(value.get<int64_t>());
    return {};
  }
  for (const auto& [key, member] : kNumberOptions) {
    if (name != key) continue;
    if (!value.is_number()) return fault("a number");
    options->*member = value.get<double>();
    return {};
  }
  for (const auto& [key, member] : kFlagOptions) {
    if (name != key) continue;
    if (!value.is_boolean()) return fault("true or false");
    options->*member = value.get<bool>();
    return {};
  }
  return InvalidArgument("{} is unknown to this version", name.substr(0, 80));
}

// What is not there has its default.
Status ReadCostOptions(const Reader& reader, PlanFile* file) {
  constexpr char kKey[] = "cost_options";
  if (!reader.Has(kKey)) return {};
  TIDEPOOL_ASSIGN_OR_RETURN(const Json* value, reader.Get(kKey));
  if (!value->is_object()) return reader.Fault(kKey, "is {}; allowed: an object", value->type_name());
  if (file->cost_model != "calibrated") {
    return reader.Fault(kKey, "is there with cost_model '{}'; allowed: with 'calibrated'", file->cost_model.substr(0, 80));
  }
  CalibratedOptions options;
  for (const auto& [name, entry] : value->items()) {
    const Status read = ReadCostOption(name, entry, &options);
    if (!read.ok()) return reader.Fault(kKey, "{}", MessageOf(read));
  }
  const Status valid = Validate(options);
  if (!valid.ok()) return reader.Fault(kKey, "{}", MessageOf(valid));
  file->cost_options = options;
  return {};
}

Status ReadModel(const Reader& reader, PlanFile* file) {
  TIDEPOOL_ASSIGN_OR_RETURN(file->model_name, reader.Text("model_name"));
  TIDEPOOL_ASSIGN_OR_RETURN(file->model_size, reader.Text("model_size"));
  TIDEPOOL_ASSIGN_OR_RETURN(const Json* layers, reader.Get("num_layers"));
  if (layers->is_array()) {
    if (layers->size() > kMaxLayerCounts) {
      return reader.Fault("num_layers", "has {} entries; allowed: {} or fewer", layers->size(), kMaxLayerCounts);
    }
    TIDEPOOL_ASSIGN_OR_RETURN(file->num_layers, reader.Integers("num_layers", -1, 1, kMaxOps));
  } else {
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t number, reader.Integer("num_layers", 1, kMaxOps));
    file->num_layers = {number};
  }
  if (!reader.Has("schema")) return {};
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t schema, reader.Integer("schema", 1, INT32_MAX));
  if (schema > kPlanSchema) return reader.Fault("schema", "is {}; this version reads up to {}", schema, kPlanSchema);
  file->schema = static_cast<int32_t>(schema);
  TIDEPOOL_ASSIGN_OR_RETURN(file->model, reader.Text("model"));
  for (const auto& [key, value] : {std::pair{"cost_model", &file->cost_model}, std::pair{"model_hash", &file->model_hash},
                                   std::pair{"database_hash", &file->database_hash}}) {
    if (!reader.Has(key)) continue;
    TIDEPOOL_ASSIGN_OR_RETURN(*value, reader.Text(key));
  }
  TIDEPOOL_RETURN_IF_ERROR(ReadCostOptions(reader, file));
  TIDEPOOL_ASSIGN_OR_RETURN(file->gpu_memory_mib,
                            reader.Number("gpu_memory_mib", fmt::format("a number above 0, up to {:.0f}", kMostMemoryMib),
                                          [](double mib) { return mib > 0 && mib <= kMostMemoryMib; }));
  TIDEPOOL_ASSIGN_OR_RETURN(file->upper_bound_seconds, reader.Seconds("upper_bound_seconds"));
  TIDEPOOL_ASSIGN_OR_RETURN(file->lower_bound_seconds, reader.Seconds("lower_bound_seconds"));
  return {};
}

Status ReadStages(const Reader& reader, Plan* plan) {
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t stages, reader.Integer("num_stages", 1, kMaxStages));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto lengths, reader.Integers("num_ops_in_each_stage", stages, 1, kMaxOps));
  int64_t total = 0;
  for (const int64_t length : lengths) total += length;
  if (total > kMaxOps) return reader.Fault("num_ops_in_each_stage", "sums up to {}; allowed: at most {}", total, kMaxOps);
  TIDEPOOL_ASSIGN_OR_RETURN(const auto widths, reader.Lists("model_parallel_size_of_each_op", lengths, 1, kMaxWidth));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto replicas, reader.Lists("data_parallel_size_of_each_op", lengths, 1, kMaxWidth));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto recompute, reader.Lists("recompute_ops", lengths, 0, 1));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto algorithms, reader.Lists("algo_of_each_op", lengths, 0, 7));
  std::vector<int64_t> gpus;
  if (reader.Has("num_gpus")) {
    TIDEPOOL_ASSIGN_OR_RETURN(gpus, reader.Integers("num_gpus", stages, 1, kMaxWidth));
  }
  int32_t first = 0;
  int64_t all_devices = 0;
  for (size_t s = 0; s < lengths.size(); ++s) {
    std::vector<OpChoice> choices;
    choices.reserve(lengths[s]);
    const int64_t devices = gpus.empty() ? widths[s][0] * replicas[s][0] : gpus[s];
    all_devices += devices;
    if (devices > kMaxWidth || all_devices > kMaxGpus) {
      return reader.Fault("model_parallel_size_of_each_op",
                          "entry [{}] gives the stage {} devices, and all to here {}; allowed: {} and {}", s, devices,
                          all_devices, kMaxWidth, kMaxGpus);
    }
    for (int64_t i = 0; i < lengths[s]; ++i) {
      if (widths[s][i] * replicas[s][i] != devices) {
        return reader.Fault("model_parallel_size_of_each_op",
                            "entry [{}][{}] is {} with data-parallel {}; the stage has {} devices", s, i, widths[s][i],
                            replicas[s][i], devices);
      }
      choices.push_back({static_cast<int32_t>(widths[s][i]), static_cast<int32_t>(replicas[s][i]),
                         static_cast<uint8_t>(algorithms[s][i]), recompute[s][i] != 0});
    }
    plan->stages.push_back(Stage::Make(first, choices));
    first += static_cast<int32_t>(lengths[s]);
  }
  return {};
}

// One key per line, and one line per stage in lists of lists.
std::string ToLines(const OrderedJson& json) {
  std::string text = "{\n";
  bool first = true;
  for (const auto& [key, value] : json.items()) {
    text += fmt::format("{}  {}: ", first ? "" : ",\n", OrderedJson(key).dump());
    first = false;
    if (!value.is_array() || value.empty() || !value[0].is_array()) {
      text += value.dump();
      continue;
    }
    for (size_t i = 0; i < value.size(); ++i) text += (i == 0 ? "[\n    " : ",\n    ") + value[i].dump();
    text += "\n  ]";
  }
  return text + "\n}\n";
}

void AddStages(const Plan& plan, OrderedJson* json) {
  OrderedJson gpus = OrderedJson::array(), checkpoint = gpus, reshards = gpus, lengths = gpus, widths = gpus, replicas = gpus,
              recompute = gpus, algorithms = gpus;
  for (const StagePtr& stage : plan.stages) {
    gpus.push_back(stage->gpus());
    checkpoint.push_back(stage->recomputes());
    reshards.push_back(!stage->is_uniform());
    lengths.push_back(stage->count());
    OrderedJson w = OrderedJson::array(), r = OrderedJson::array(), c = OrderedJson::array(), a = OrderedJson::array();
    for (const ChoiceRun& run : stage->runs()) {
      for (int32_t i = 0; i < run.count; ++i) {
        w.push_back(run.choice.tensor_parallel);
        r.push_back(run.choice.data_parallel);
        c.push_back(run.choice.recompute ? 1 : 0);
        a.push_back(run.choice.algorithm);
      }
    }
    widths.push_back(std::move(w));
    replicas.push_back(std::move(r));
    recompute.push_back(std::move(c));
    algorithms.push_back(std::move(a));
  }
  (*json)["num_stages"] = plan.stages.size();
  (*json)["num_gpus"] = std::move(gpus);
  (*json)["checkpoint_activations"] = std::move(checkpoint);
  (*json)["resharding_stages"] = std::move(reshards);
  (*json)["num_ops_in_each_stage"] = std::move(lengths);
  (*json)["model_parallel_size_of_each_op"] = std::move(widths);
  (*json)["data_parallel_size_of_each_op"] = std::move(replicas);
  (*json)["recompute_ops"] = std::move(recompute);
  (*json)["algo_of_each_op"] = std::move(algorithms);
}

}  // namespace

std::optional<double> PlanFile::gap() const {
  if (!upper_bound_seconds || !lower_bound_seconds || *lower_bound_seconds <= 0) return std::nullopt;
  return (*upper_bound_seconds - *lower_bound_seconds) / *lower_bound_seconds;
}

StatusOr<PlanFile> ParsePlan(std::string_view text, const std::string& file) {
  if (text.size() > kMaxBytes) return InvalidArgument("{}: {} bytes; allowed for a plan: {}", file, text.size(), kMaxBytes);
  Scanner scanner;
  if (!Json::sax_parse(text, &scanner))
    return InvalidArgument("{}:{}: {}", file, LineAt(text, scanner.PositionIn(text)), scanner.fault());
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return InvalidArgument("{}:1: the file holds {}; allowed: an object", file, json.type_name());
  const Reader reader(json, text, file);
  PlanFile result;
  TIDEPOOL_RETURN_IF_ERROR(ReadModel(reader, &result));
  TIDEPOOL_ASSIGN_OR_RETURN(result.plan.global_batch, reader.Integer("global_batch_size", 1, int64_t{1} << 40));
  TIDEPOOL_ASSIGN_OR_RETURN(const int64_t micro_batch, reader.Integer("micro_batch_size", 1, int64_t{1} << 24));
  result.plan.micro_batch = static_cast<int32_t>(micro_batch);
  if (micro_batch > result.plan.global_batch) {
    return reader.Fault("micro_batch_size", "is {}; allowed: up to the global batch, {}", micro_batch, result.plan.global_batch);
  }
  TIDEPOOL_RETURN_IF_ERROR(ReadStages(reader, &result.plan));
  return result;
}

StatusOr<PlanFile> ReadPlan(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return NotFound("cannot read the plan '{}': {}", path, error.message());
  if (size > kMaxBytes) return InvalidArgument("{}: {} bytes; allowed for a plan: {}", path, size, kMaxBytes);
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) return Unavailable("cannot read the plan '{}'", path);
  return ParsePlan(text.str(), path);
}

OrderedJson CalibratedOptionsJson(const CalibratedOptions& options) {
  OrderedJson json = {{"schedule", NameOf(options.schedule)}, {"chunks", options.chunks}};
  for (const auto& [key, member] : kNumberOptions) json[key] = options.*member;
  for (const auto& [key, member] : kFlagOptions) json[key] = options.*member;
  return json;
}

std::string FormatPlan(const PlanFile& file, const OpList& ops) {
  OrderedJson json;
  json["schema"] = kPlanSchema;
  json["model"] = file.model.empty() ? ops.name : file.model;
  if (!file.cost_model.empty()) json["cost_model"] = file.cost_model;
  if (file.cost_options) json["cost_options"] = CalibratedOptionsJson(*file.cost_options);
  json["model_hash"] = ops.hash;
  if (!file.database_hash.empty()) json["database_hash"] = file.database_hash;
  if (file.gpu_memory_mib) json["gpu_memory_mib"] = *file.gpu_memory_mib;
  if (file.upper_bound_seconds) json["upper_bound_seconds"] = *file.upper_bound_seconds;
  if (file.lower_bound_seconds) json["lower_bound_seconds"] = *file.lower_bound_seconds;
  if (file.gap()) json["gap"] = *file.gap();
  json["model_name"] = ops.file_model_name;
  json["model_size"] = ops.file_model_size;
  if (ops.file_num_layers.size() == 1) {
    json["num_layers"] = ops.file_num_layers[0];
  } else {
    json["num_layers"] = ops.file_num_layers;
  }
  for (const auto& [key, value] : ops.file_numbers) json[key] = value;
  json["global_batch_size"] = file.plan.global_batch;
  json["micro_batch_size"] = file.plan.micro_batch;
  AddStages(file.plan, &json);
  return ToLines(json);
}

Status WritePlan(const PlanFile& file, const OpList& ops, const std::string& path) {
  const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    out << FormatPlan(file, ops);
    out.flush();
    if (!out) {
      std::error_code ignored;
      std::filesystem::remove(temporary, ignored);
      return Unavailable("cannot write the plan '{}'", path);
    }
  }
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (!error) return {};
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);
  return Unavailable("cannot write the plan '{}': {}", path, error.message());
}

StatusOr<OpList> PublishedOpListOf(const PlanFile& file) {
  return file.schema > 0 ? PublishedOpList(file.model) : OpListOfFile(file.model_name, file.model_size, file.num_layers);
}

}  // namespace tidepool::plan
