#include "model/hugging_face.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>

#include "base/fd.h"
#include "base/json.h"
#include "base/text.h"
#include "base/units.h"

namespace tidepool::model {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int64_t kMaxJsonBytes = 64 * kMiB;

// Whether brackets nest deeper than any honest file's. Parsing is iterative, but comparing and printing are not.
bool NestsTooDeep(std::string_view text) {
  constexpr int kMaxDepth = 32;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

StatusOr<json> ParseObject(std::string_view text, std::string_view what) {
  if (NestsTooDeep(text)) return InvalidArgument("{} nests deeper than 32 levels", what);
  json parsed = json::parse(text.begin(), text.end(), nullptr, false);
  if (parsed.is_discarded() || !parsed.is_object()) return InvalidArgument("{} is not a JSON object", what);
  return parsed;
}

std::string Shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

// Reads config.json key by key and collects what does not fit.
class ConfigReader {
 public:
  ConfigReader(const json& config, std::string family) : config_(config), spec_(std::move(family)) {}

  // A key that becomes an option.
  void Option(const std::string& option, std::initializer_list<const char*> keys) {
    for (const char* key : keys) {
      const auto found = config_.find(key);
      if (found == config_.end() || found->is_null()) continue;
      if (!found->is_number_integer()) {
        faults_.push_back(fmt::format("{} is {}; allowed: an integer", key, Shown(*found)));
        return;
      }
      Set(option, fmt::format("{}", found->get<int64_t>()));
      return;
    }
    faults_.push_back(fmt::format("{} is missing", *keys.begin()));
  }

  void Fraction(const std::string& option, const char* key) {
    const auto found = config_.find(key);
    if (found == config_.end()) return;
    if (!found->is_number()) {
      faults_.push_back(fmt::format("{} is {}; allowed: a number", key, Shown(*found)));
      return;
    }
    Set(option, fmt::format("{}", found->get<double>()));
  }

  // A key that changes what is computed: absent, null where it may be, or exactly this value.
  void Fixed(const char* key, const json& value) {
    const auto found = config_.find(key);
    if (found == config_.end() || found->is_null() || *found == value) return;
    if (found->is_number() && value.is_number() && found->get<double>() == value.get<double>()) return;
    faults_.push_back(fmt::format("{} is {}; allowed: {}", key, Shown(*found), Shown(value)));
  }

  void Set(const std::string& option, const std::string& value) {
    spec_ += (first_ ? ":" : ",") + option + "=" + value;
    first_ = false;
  }

  int64_t Integer(const char* key) const {
    const auto found = config_.find(key);
    return found != config_.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
  }

  StatusOr<std::string> Finish() const {
    if (faults_.empty()) return spec_;
    return InvalidArgument("config.json describes a network that is not supported: {}", JoinText(faults_, "; "));
  }

 private:
  const json& config_;
  std::string spec_;
  bool first_ = true;
  std::vector<std::string> faults_;
};

StatusOr<std::string> Gpt2Spec(const json& config) {
  ConfigReader reader(config, "gpt2");
  reader.Option("layers", {"n_layer"});
  reader.Option("width", {"n_embd"});
  reader.Option("heads", {"n_head"});
  reader.Option("vocab", {"vocab_size"});
  reader.Option("context", {"n_positions", "n_ctx"});
  reader.Fraction("dropout", "resid_pdrop");
  reader.Fixed("n_inner", 4 * std::min<int64_t>(reader.Integer("n_embd"), 1 << 20));
  reader.Fixed("activation_function", "gelu_new");
  reader.Fixed("layer_norm_epsilon", 1e-5);
  reader.Fixed("scale_attn_weights", true);
  reader.Fixed("scale_attn_by_inverse_layer_idx", false);
  reader.Fixed("add_cross_attention", false);
  reader.Fixed("tie_word_embeddings", true);
  return reader.Finish();
}

StatusOr<std::string> BertSpec(const json& config) {
  ConfigReader reader(config, "bert");
  reader.Option("layers", {"num_hidden_layers"});
  reader.Option("width", {"hidden_size"});
  reader.Option("heads", {"num_attention_heads"});
  reader.Option("intermediate", {"intermediate_size"});
  reader.Option("vocab", {"vocab_size"});
  reader.Option("context", {"max_position_embeddings"});
  reader.Fraction("dropout", "hidden_dropout_prob");
  reader.Fixed("type_vocab_size", 2);
  reader.Fixed("hidden_act", "gelu");
  reader.Fixed("layer_norm_eps", 1e-12);
  reader.Fixed("position_embedding_type", "absolute");
  reader.Fixed("is_decoder", false);
  const auto architectures = config.find("architectures");
  if (architectures != config.end() && architectures->is_array() && !architectures->empty() &&
      architectures->front() == "BertForSequenceClassification") {
    // Two classes unless the labels are listed.
    const auto labels = config.find("id2label");
    reader.Set("classes", fmt::format("{}", labels != config.end() && labels->is_object() ? labels->size() : 2));
  }
  return reader.Finish();
}

bool RemovePrefix(std::string_view* text, std::string_view prefix) {
  if (!text->starts_with(prefix)) return false;
  text->remove_prefix(prefix.size());
  return true;
}

}  // namespace

StatusOr<std::string> SpecFromConfig(std::string_view config_json) {
  TIDEPOOL_ASSIGN_OR_RETURN(const json config, ParseObject(config_json, "config.json"));
  const auto type = config.find("model_type");
  if (type == config.end()) return InvalidArgument("config.json has no model_type; allowed: \"gpt2\", \"bert\"");
  if (*type == "gpt2") return Gpt2Spec(config);
  if (*type == "bert") return BertSpec(config);
  return InvalidArgument("model_type in config.json is {}; allowed: \"gpt2\", \"bert\"", Shown(*type));
}

StatusOr<std::vector<std::string>> WeightFiles(const std::string& folder) {
  std::error_code error;
  const std::string single = folder + "/model.safetensors";
  if (fs::exists(single, error)) return std::vector<std::string>{single};
  const std::string index_path = folder + "/model.safetensors.index.json";
  if (!fs::exists(index_path, error)) {
    const bool pickled =
        fs::exists(folder + "/pytorch_model.bin", error) || fs::exists(folder + "/pytorch_model.bin.index.json", error);
    return NotFound(
        "folder '{}' has neither model.safetensors nor model.safetensors.index.json{}", folder,
        pickled ? "; pytorch_model.bin is a pickle, which can run code when it is read: convert it to safetensors first" : "");
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(index_path, kMaxJsonBytes));
  TIDEPOOL_ASSIGN_OR_RETURN(const json index, ParseObject(text, fmt::format("'{}'", index_path)));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) return InvalidArgument("'{}' has no object 'weight_map'", index_path);
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string())
      return InvalidArgument("weight_map of '{}' is {} for '{}'; allowed: a file name", index_path, Shown(file), tensor);
    const std::string name = file.get<std::string>();
    // A shard lies in the folder itself: an index cannot reach for other files.
    if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
      return InvalidArgument("weight_map of '{}' names the file {}; allowed: a file of the same folder", index_path, Shown(file));
    }
    files.insert(folder + "/" + name);
  }
  if (files.empty()) return InvalidArgument("weight_map of '{}' is empty", index_path);
  return std::vector<std::string>(files.begin(), files.end());
}

std::string ParameterName(std::string_view family, std::string_view tensor_name) {
  if (family == "gpt2") RemovePrefix(&tensor_name, "transformer.");
  if (family == "resnet") RemovePrefix(&tensor_name, "module.");
  if (family != "bert") return std::string(tensor_name);
  RemovePrefix(&tensor_name, "bert.");
  std::string name(tensor_name);
  // The first BERT checkpoints name the scale and shift of a norm otherwise.
  for (const auto& [old_end, new_end] :
       {std::pair{"LayerNorm.gamma", "LayerNorm.weight"}, std::pair{"LayerNorm.beta", "LayerNorm.bias"}}) {
    if (name.ends_with(old_end)) name.replace(name.size() - std::string_view(old_end).size(), std::string::npos, new_end);
  }
  return name;
}

bool IsIgnored(std::string_view family, std::string_view name) {
  if (family == "gpt2") {
    return name == "lm_head.weight" ||
           (name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")));
  }
  if (family == "bert") return name == "embeddings.position_ids" || name.starts_with("cls.");
  return false;
}

}  // namespace tidepool::model
