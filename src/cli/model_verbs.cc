// Verbs of the model repository: model create, import, list, show, check.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "base/json.h"
#include "base/text.h"
#include "base/units.h"
#include "cli/print.h"
#include "cli/verb.h"
#include "model/families.h"
#include "model/graph_json.h"
#include "model/repository.h"

namespace tidepool::cli {
namespace {

namespace fs = std::filesystem;
using model::Graph;
using model::RepositoryModel;
using Json = nlohmann::ordered_json;

// Names only, so that a help text fits a screen; `model families` explains each option.
std::string FamilyHelp() {
  std::string text =
      "Presets and options of a spec (family or preset, ':', option=value, more after commas); 'tidepool model families' "
      "explains:\n";
  for (const model::FamilyInfo& family : model::Families()) {
    std::vector<std::string> options;
    for (const model::FamilyOption& option : family.options)
      options.push_back(fmt::format("{}={}", option.name, option.default_value));
    text += fmt::format("  {}: {}\n    {}\n", family.name, JoinText(family.presets, ", "), JoinText(options, ","));
  }
  return text;
}

Json ServingJson(const model::ServingConfig& serving) {
  return {{"max_batch_size", serving.max_batch_size},
          {"queue_limit", serving.queue_limit},
          {"slo_ms", absl::ToDoubleMilliseconds(serving.slo)},
          {"batch_delay_ms", absl::ToDoubleMilliseconds(serving.batch_delay)},
          {"replicas", serving.replicas}};
}

Json StatusJson(const Status& status) {
  if (status.ok()) return {{"code", "OK"}};
  return {{"code", CodeName(status.code())}, {"message", MessageOf(status)}};
}

int64_t FileBytes(const std::string& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

// The repository, for every verb of this file.
class RepositoryVerb : public Verb {
 public:
  void Register(OptionTable* table) override {
    table->Add({.key = "model.repository", .flag = "model-repository", .help = "Directory of models", .metavar = "DIR"},
               &repository_);
  }

 protected:
  std::string repository_ = "models";
};

class FamiliesVerb : public Verb {
 public:
  std::string path() const override { return "model families"; }
  std::string summary() const override { return "List the families of networks, with their presets and options"; }
  Status Run(const VerbContext& context) override {
    Json json = Json::array();
    for (const model::FamilyInfo& family : model::Families()) {
      Json options = Json::array();
      for (const model::FamilyOption& option : family.options) {
        options.push_back({{"name", option.name}, {"default", option.default_value}, {"help", option.help}});
      }
      json.push_back(
          {{"name", family.name}, {"help", family.help}, {"presets", family.presets}, {"options", std::move(options)}});
      if (context.output == OutputFormat::kJson) continue;
      fmt::print("{}: {}\n  presets: {}\n", family.name, family.help, JoinText(family.presets, ", "));
      for (const model::FamilyOption& option : family.options) {
        fmt::print("  {:<13} {} (default {})\n", option.name, option.help, option.default_value);
      }
    }
    if (context.output == OutputFormat::kJson) PrintJson(json);
    return {};
  }
};

class CreateVerb : public RepositoryVerb {
 public:
  std::string path() const override { return "model create"; }
  std::string summary() const override { return "Make a model with seeded weights"; }
  std::string details() const override {
    return "NAME[N] serves the one file under N names: NAME, NAME-1, ... The same seed gives the same bytes on every machine.\n"
           "Example: tidepool model create small resnet18:image=32,small_stem=true,classes=10\n\n" +
           FamilyHelp();
  }
  void Register(OptionTable* table) override {
    RepositoryVerb::Register(table);
    table->Add({.key = "model.seed", .help = "Seed of the weights"}, &options_.seed);
    table->Add({.key = "model.version", .help = "Version to make"}, &options_.version);
    table->Add({.key = "model.overwrite", .help = "Replace the version and model.toml"}, &options_.overwrite);
    table->Add({.key = "model.replicas", .help = "Names under which the one file is served"}, &options_.serving.replicas);
    table->Add({.key = "model.max_batch_size", .help = "Most samples in one run"}, &options_.serving.max_batch_size);
    table->Add({.key = "model.queue_limit", .help = "Most requests that wait"}, &options_.serving.queue_limit);
    table->Add({.key = "model.slo", .help = "Latency objective; 0: 4 times the model's solo latency"}, &options_.serving.slo);
    table->Add({.key = "model.batch_delay", .help = "The longest a request waits for company"}, &options_.serving.batch_delay);
  }
  std::vector<Positional> positionals() override {
    return {
        {.name = "NAME", .help = "Name of the model, or NAME[N]", .values = &name_, .min = 1, .max = 1},
        {.name = "SPEC", .help = "What network it is, for example resnet18:classes=10", .values = &spec_, .min = 1, .max = 1}};
  }
  Status Run(const VerbContext& context) override {
    options_.repository = repository_;
    options_.name = name_[0];
    options_.spec = spec_[0];
    TIDEPOOL_RETURN_IF_ERROR(model::CreateModel(options_));
    TIDEPOOL_ASSIGN_OR_RETURN(const model::ReplicaName name, model::ParseReplicaName(options_.name));
    TIDEPOOL_ASSIGN_OR_RETURN(const RepositoryModel made, model::FindModel(repository_, name.name));
    TIDEPOOL_ASSIGN_OR_RETURN(const Graph graph, model::BuildGraph(options_.spec));
    const std::string file = made.WeightsPath(repository_, options_.version);
    if (context.output == OutputFormat::kJson) {
      PrintJson({{"name", made.name},
                 {"version", options_.version},
                 {"spec", made.spec},
                 {"seed", options_.seed},
                 {"path", file},
                 {"bytes", FileBytes(file)},
                 {"parameters", graph.trainable_parameters()},
                 {"serving", ServingJson(made.serving)}});
    } else {
      fmt::print("{} version {}: {} parameters, {} in {}\n", made.name, options_.version, graph.trainable_parameters(),
                 FormatBytes(FileBytes(file)), file);
    }
    return {};
  }

 private:
  model::CreateOptions options_;
  std::vector<std::string> name_, spec_;
};

class ImportVerb : public RepositoryVerb {
 public:
  std::string path() const override { return "model import"; }
  std::string summary() const override { return "Take weights from a safetensors file or a Hugging Face folder"; }
  std::string details() const override {
    return "A folder holds config.json and safetensors, sharded or not; its families are gpt2 and bert. A bare file needs "
           "--spec.\n"
           "Half and double precision become single precision. Pickles are not read.\n"
           "Example: tidepool model import vision resnet50.safetensors --spec resnet50";
  }
  void Register(OptionTable* table) override {
    RepositoryVerb::Register(table);
    table->Add({.key = "model.spec", .help = "What network it is; for a folder in place of config.json", .metavar = "SPEC"},
               &options_.spec);
    table->Add({.key = "model.version", .help = "Version to make"}, &options_.version);
    table->Add({.key = "model.overwrite", .help = "Replace the version and model.toml"}, &options_.overwrite);
    table->Add({.key = "model.allow_partial", .help = "Keep seeded values for missing and mismatched tensors"},
               &options_.allow_partial);
    table->Add({.key = "model.seed", .help = "Seed of those values"}, &options_.seed);
  }
  std::vector<Positional> positionals() override {
    return {{.name = "NAME", .help = "Name of the model, or NAME[N]", .values = &name_, .min = 1, .max = 1},
            {.name = "SOURCE", .help = "Safetensors file or Hugging Face folder", .values = &source_, .min = 1, .max = 1}};
  }
  Status Run(const VerbContext& context) override {
    options_.repository = repository_;
    options_.name = name_[0];
    options_.source = source_[0];
    model::ImportReport report;
    const Status status = model::ImportModel(options_, &report);
    if (context.output == OutputFormat::kJson) {
      PrintJson({{"name", options_.name},
                 {"version", options_.version},
                 {"spec", report.spec},
                 {"status", StatusJson(status)},
                 {"loaded", report.loaded},
                 {"missing", report.missing},
                 {"unexpected", report.unexpected},
                 {"mismatched", report.mismatched},
                 {"ignored", report.ignored}});
      return status;
    }
    const auto list = [](const char* what, const std::vector<std::string>& names) {
      for (const std::string& name : names) fmt::print("{:<10}  {}\n", what, name);
    };
    list("missing", report.missing);
    list("unexpected", report.unexpected);
    list("mismatched", report.mismatched);
    list("ignored", report.ignored);
    TIDEPOOL_RETURN_IF_ERROR(status);
    fmt::print("{} version {}: {} tensors of {}\n", options_.name, options_.version, report.loaded.size(), report.spec);
    return {};
  }

 private:
  model::ImportOptions options_;
  std::vector<std::string> name_, source_;
};

// The text of a status for a table cell: one line.
std::string OneLine(const Status& status) { return status.ok() ? "ok" : JoinText(SplitText(MessageOf(status), '\n'), "; "); }

std::string VersionsText(const std::vector<int64_t>& versions) {
  std::vector<std::string> parts;
  for (const int64_t version : versions) parts.push_back(fmt::format("{}", version));
  return parts.empty() ? "-" : JoinText(parts, ",");
}

class ListVerb : public RepositoryVerb {
 public:
  std::string path() const override { return "model list"; }
  std::string summary() const override { return "List the models of a repository"; }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<RepositoryModel> models, model::ScanRepository(repository_));
    Json json = Json::array();
    std::vector<std::vector<std::string>> rows = {{"NAME", "SPEC", "VERSIONS", "PARAMETERS", "WEIGHTS", "STATUS"}};
    for (const RepositoryModel& model : models) {
      const int64_t bytes = model.versions.empty() ? 0 : FileBytes(model.WeightsPath(repository_, model.versions.back()));
      const StatusOr<Graph> graph = model.spec.empty() ? NotFound("no spec") : model::BuildGraph(model.spec);
      const int64_t parameters = graph.ok() ? graph->trainable_parameters() : 0;
      json.push_back({{"name", model.name},
                      {"base_name", model.base_name},
                      {"spec", model.spec},
                      {"description", model.description},
                      {"versions", model.versions},
                      {"parameters", parameters},
                      {"weights_bytes", bytes},
                      {"serving", ServingJson(model.serving)},
                      {"status", StatusJson(model.status)}});
      rows.push_back({model.name, model.spec.empty() ? "-" : model.spec, VersionsText(model.versions),
                      graph.ok() ? fmt::format("{}", parameters) : "-", bytes > 0 ? FormatBytes(bytes) : "-",
                      OneLine(model.status)});
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson(json);
    } else {
      PrintTable(rows, "lllrrl");
    }
    return {};
  }
};

std::string ShapeText(const model::Shape& shape) {
  std::vector<std::string> dims;
  for (const int64_t dim : shape) dims.push_back(dim == model::kBatchDim ? "B" : fmt::format("{}", dim));
  return "[" + JoinText(dims, ",") + "]";
}

class ShowVerb : public RepositoryVerb {
 public:
  std::string path() const override { return "model show"; }
  std::string summary() const override { return "Show a model of the repository, or what a spec describes, op by op"; }
  std::string details() const override {
    return "GFLOP counts a multiply and an add as two, of convolutions and matrix products; KEPT is what the forward pass keeps "
           "for the\n"
           "backward pass. Both are per sample. With -o json the whole graph, ATen calls included.";
  }
  std::vector<Positional> positionals() override {
    return {{.name = "MODEL",
             .help = "Name in the repository, or a spec such as resnet50:classes=100",
             .values = &model_,
             .min = 1,
             .max = 1}};
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string spec, SpecOf(model_[0]));
    TIDEPOOL_ASSIGN_OR_RETURN(const Graph graph, model::BuildGraph(spec));
    if (context.output == OutputFormat::kJson) {
      fmt::print("{}\n", model::ToJson(graph, 1));
      return {};
    }
    Print(graph);
    return {};
  }

 private:
  // A name of the repository, if there is such a model; else the text itself is a spec.
  StatusOr<std::string> SpecOf(const std::string& text) const {
    const StatusOr<RepositoryModel> model = model::FindModel(repository_, text);
    if (model.ok()) {
      if (model->spec.empty()) return model->status;
      return model->spec;
    }
    const StatusOr<model::Spec> spec = model::ParseSpec(text);
    if (spec.ok()) return text;
    if (text.find(':') != std::string::npos) return spec.status();
    return NotFound("'{}' is neither a model nor a spec: {}; {}", text, MessageOf(model.status()), MessageOf(spec.status()));
  }

  static void Print(const Graph& graph) {
    fmt::print("spec         {}\n", model::ToText({graph.family, graph.config}));
    const auto values = [&](const char* what, const std::vector<model::ValueId>& ids) {
      for (const model::ValueId id : ids) {
        const model::Value& value = graph.values[id];
        fmt::print("{:<11}  {} {} {}\n", what, value.name, SafetensorsName(value.dtype), ShapeText(value.shape));
      }
    };
    values("input", graph.inputs);
    values("output", graph.outputs);
    fmt::print("parameters   {} trained, {} with buffers\n", graph.trainable_parameters(), FormatBytes(graph.parameter_bytes()));
    fmt::print("forward      {:.3f} GFLOP per sample\n", static_cast<double>(graph.forward_flops_per_sample()) / 1e9);
    fmt::print("kept         {} per sample in training\n\n", FormatBytes(graph.activation_bytes_per_sample()));
    std::vector<std::vector<std::string>> rows = {{"OP", "KIND", "OUTPUT", "PARAMETERS", "GFLOP", "KEPT", "SPLIT"}};
    for (const model::Op& op : graph.ops) {
      int64_t parameters = 0;
      for (const model::ParamId id : op.params) {
        int64_t elements = graph.params[id].kind == model::ParamKind::kWeight ? 1 : 0;
        for (const int64_t dim : graph.params[id].shape) elements *= dim;
        parameters += elements;
      }
      rows.push_back(
          {op.name, op.kind, ShapeText(graph.values[op.outputs[0]].shape), parameters > 0 ? fmt::format("{}", parameters) : "",
           op.forward_flops_per_sample > 0 ? fmt::format("{:.3f}", static_cast<double>(op.forward_flops_per_sample) / 1e9) : "",
           op.activation_bytes_per_sample > 0 ? FormatBytes(op.activation_bytes_per_sample) : "",
           std::string(Name(op.partition_axis))});
    }
    PrintTable(rows, "lllrrrl");
  }

  std::vector<std::string> model_;
};

class CheckVerb : public RepositoryVerb {
 public:
  std::string path() const override { return "model check"; }
  std::string summary() const override { return "Open the files of models and compare every tensor with the network"; }
  std::string details() const override {
    return "Without names, every model of the repository. Exits with 1 if anything is wrong.";
  }
  std::vector<Positional> positionals() override {
    return {{.name = "MODEL", .help = "Names to check; none: all", .values = &names_, .min = 0, .max = -1}};
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(std::vector<RepositoryModel> models, model::ScanRepository(repository_));
    if (!names_.empty()) {
      std::vector<RepositoryModel> chosen;
      for (const std::string& name : names_) {
        TIDEPOOL_ASSIGN_OR_RETURN(chosen.emplace_back(), model::FindModel(repository_, name));
      }
      models = std::move(chosen);
    }
    Json json = Json::array();
    std::vector<std::vector<std::string>> rows = {{"NAME", "VERSIONS", "STATUS"}};
    std::string faults;
    int bad = 0;
    for (const RepositoryModel& model : models) {
      // Replicas share their folder's files.
      if (names_.empty() && model.name != model.base_name) continue;
      const Status status = model::CheckModel(repository_, model);
      bad += !status.ok();
      json.push_back({{"name", model.name}, {"versions", model.versions}, {"status", StatusJson(status)}});
      rows.push_back({model.name, VersionsText(model.versions), status.ok() ? "ok" : "bad"});
      if (!status.ok()) faults += MessageOf(status) + "\n";
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson(json);
    } else {
      PrintTable(rows, "lll");
      if (!faults.empty()) fmt::print("\n{}", faults);
    }
    if (bad > 0) return FailedPrecondition("{} of {} models cannot be served", bad, rows.size() - 1);
    return {};
  }

 private:
  std::vector<std::string> names_;
};

}  // namespace

void AddModelVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<FamiliesVerb>());
  verbs->push_back(std::make_unique<CreateVerb>());
  verbs->push_back(std::make_unique<ImportVerb>());
  verbs->push_back(std::make_unique<ListVerb>());
  verbs->push_back(std::make_unique<ShowVerb>());
  verbs->push_back(std::make_unique<CheckVerb>());
}

}  // namespace tidepool::cli
