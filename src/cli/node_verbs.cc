// up and serve run a node; status, ps, load, unload and infer ask a running one over REST.
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "api/api.h"
#include "base/log.h"
#include "base/text.h"
#include "base/units.h"
#include "cli/node_client.h"
#include "cli/verb.h"
#include "cluster/node.h"
#include "device/emulated/emulated_device.h"

namespace tidepool::cli {
namespace {

constexpr absl::Duration kShutdownLimit = absl::Seconds(5);

class RunNodeVerb : public Verb {
 public:
  void RegisterNode(OptionTable* table, bool with_training) {
    options_.Register(table, with_training);
    api_.Register(table);
  }
  bool reads_config() const override { return true; }

 protected:
  Status RunNode(const VerbContext& context);
  static void Say(const std::string& text) { fmt::print(stderr, "{}\n", text); }
  void Announce(cluster::Node& node, const api::Api& front, const VerbContext& context);

  cluster::NodeOptions options_;
  api::ApiOptions api_;
};

void RunNodeVerb::Announce(cluster::Node& node, const api::Api& front, const VerbContext& context) {
  const device::DeviceOptions& device = node.options().device;
  const std::string memory = FormatBytes(device.capacity_bytes);
  const std::string devices = node.device_count() > 1 ? fmt::format("{} devices with {} each", node.device_count(), memory)
                                                      : fmt::format("{} of device memory", memory);
  Say(fmt::format("ready: {}, mode {}", devices, serve::Name(options_.server.mode)));
  if (const auto emulation = node.emulation(); emulation.has_value()) {
    Say(fmt::format("  device   {}: {}", device.name, device::emulated::Describe(emulation->properties)));
  }
  if (options_.has_training() && node.device_count() > 1) {
    Say(fmt::format("  training on device {}", options_.train_device));
  }
  if (!front.http_url().empty()) Say("  REST     " + front.http_url());
  if (!front.grpc_target().empty()) Say("  gRPC     " + front.grpc_target());
  if (!front.metrics_url().empty()) Say("  metrics  " + front.metrics_url());
  if (context.output == OutputFormat::kJson) {
    fmt::print("{{\"event\":\"ready\",\"pid\":{},\"http\":{},\"grpc\":{},\"metrics\":{}}}\n", ::getpid(),
               JsonQuoted(front.http_url()), JsonQuoted(front.grpc_target()), JsonQuoted(front.metrics_url()));
    std::fflush(stdout);
  }
}

Status RunNodeVerb::RunNode(const VerbContext& context) {
  // Faults of both parts are reported together.
  std::vector<std::string> faults;
  for (const Status& status : {options_.Validate(), api_.Validate()}) {
    if (!status.ok()) faults.push_back(MessageOf(status));
  }
  if (!faults.empty()) return InvalidArgument("{}", JoinText(faults, "\n"));
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::Node> node, cluster::Node::Start(options_));
  api_.status_json = [&node] { return node->StatusJson(); };
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<api::Api> front, api::Api::Start(&node->server(), node->brokers(), api_));
  if (options_.has_training()) TIDEPOOL_RETURN_IF_ERROR(node->StartTraining());
  Announce(*node, *front, context);
  while (!context.wait_for_stop(Clock::Real()->Now() + absl::Hours(1))) {
  }
  Say(fmt::format("stopping: requests have {} to end{}", tidepool::FormatDuration(options_.server.drain_limit),
                  options_.has_training()
                      ? fmt::format(", training {} to write its checkpoint", tidepool::FormatDuration(options_.train_stop_limit))
                      : ""));
  front->BeginDrain();
  const Status stopped = node->Stop();
  front->Shutdown(Clock::Real()->Now() + kShutdownLimit);
  return stopped;
}

class ServeVerb : public RunNodeVerb {
 public:
  std::string path() const override { return "serve"; }
  std::string summary() const override { return "Serve the models of a repository over gRPC and REST"; }
  std::string details() const override {
    return "  tidepool serve --model-repository models --capacity 2GiB\n"
           "  tidepool serve --model-repository models --device emulated:v100,mode=timing\n"
           "  tidepool serve --model-repository models --device emulated:h200x8,mode=timing\n"
           "An emulated device takes the times of a profile ('tidepool profile list'): mode=functional computes results on this\n"
           "machine, mode=timing answers zeros at the device's pace. Of several devices (x8) each has a worker process and "
           "holds\n"
           "the models that its requests need.\n"
           "SIGTERM or Ctrl-C: readiness fails, accepted requests end, then the process does.";
  }
  void Register(OptionTable* table) override { RegisterNode(table, /*with_training=*/false); }
  Status Run(const VerbContext& context) override { return RunNode(context); }
};

class UpVerb : public RunNodeVerb {
 public:
  std::string path() const override { return "up"; }
  std::string summary() const override { return "Run a node: serving, and a training job in the memory that serving leaves"; }
  std::string details() const override {
    return "  tidepool up examples/cluster.toml\n"
           "A file with train.data starts a training job; it is started again from its checkpoint when it is killed.\n"
           "'tidepool train --help' explains the options of training.";
  }
  void Register(OptionTable* table) override {
    RegisterNode(table, /*with_training=*/true);
    table->MarkAdvanced("train");  // a file is the place for them
  }
  std::vector<Positional> positionals() override {
    return {{.name = "CONFIG",
             .help = "A configuration file, the same as --config",
             .values = &files_,
             .min = 0,
             .max = 1,
             .is_config = true}};
  }
  Status Run(const VerbContext& context) override { return RunNode(context); }

 private:
  std::vector<std::string> files_;
};

// What every verb that asks a node shares.
class AskNodeVerb : public Verb {
 public:
  void Register(OptionTable* table) override {
    table->Add({.key = "client.url", .help = "REST address of the node", .metavar = "URL"}, &client_.url);
    table->Add({.key = "client.timeout", .help = "Longest that one call may take"}, &client_.timeout);
  }

 protected:
  NodeClient client_;
};

class StatusVerb : public AskNodeVerb {
 public:
  std::string path() const override { return "status"; }
  std::string summary() const override { return "Show a running node: memory, models, training"; }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string json, client_.Status());
    if (context.output == OutputFormat::kJson) {
      fmt::print("{}\n", json);
      return {};
    }
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, StatusText(json));
    fmt::print("{}", text);
    return {};
  }
};

class PsVerb : public AskNodeVerb {
 public:
  std::string path() const override { return "ps"; }
  std::string summary() const override { return "List the tenants of a running node's device memory"; }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string json, client_.Status());
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string text,
                              context.output == OutputFormat::kJson ? TenantsJson(json) : TenantsText(json));
    fmt::print("{}", text);
    return {};
  }
};

class ModelVerb : public AskNodeVerb {
 public:
  std::vector<Positional> positionals() override {
    return {{.name = "MODEL", .help = "Name of the model", .values = &names_, .min = 1, .max = 1}};
  }

 protected:
  std::vector<std::string> names_;
};

class LoadVerb : public ModelVerb {
 public:
  std::string path() const override { return "load"; }
  std::string summary() const override { return "Make a model of a running node resident"; }
  Status Run(const VerbContext&) override { return client_.Load(names_[0]); }
};

class UnloadVerb : public ModelVerb {
 public:
  std::string path() const override { return "unload"; }
  std::string summary() const override { return "Give the memory of a model of a running node back"; }
  Status Run(const VerbContext&) override { return client_.Unload(names_[0]); }
};

class InferVerb : public ModelVerb {
 public:
  std::string path() const override { return "infer"; }
  std::string summary() const override { return "Send one request to a model of a running node"; }
  std::string details() const override {
    return "Without --input the tensors are filled with random numbers.\n"
           "  tidepool infer resnet18-a\n"
           "  tidepool infer resnet18-a --input request.json -o json";
  }
  void Register(OptionTable* table) override {
    AskNodeVerb::Register(table);
    table->Add({.key = "infer.input", .help = "A request body of the Open Inference Protocol, as JSON", .metavar = "FILE"},
               &input_);
    table->Add({.key = "infer.batch", .help = "Samples per random request"}, &batch_);
    table->Add({.key = "infer.seed", .help = "Seed of the random numbers"}, &seed_);
  }
  Status Run(const VerbContext& context) override {
    if (batch_ < 1 || batch_ > 4096) return InvalidArgument("--batch is {}; allowed: 1 to 4096", batch_);
    std::string body;
    if (input_.empty()) {
      TIDEPOOL_ASSIGN_OR_RETURN(const std::string metadata, client_.Metadata(names_[0]));
      TIDEPOOL_ASSIGN_OR_RETURN(body, RandomRequest(metadata, batch_, seed_));
    } else {
      TIDEPOOL_ASSIGN_OR_RETURN(body, ReadFile(input_, 64 * kMiB));
    }
    const absl::Time start = Clock::Real()->Now();
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string answer, client_.Infer(names_[0], body));
    const absl::Duration took = Clock::Real()->Now() - start;
    if (context.output == OutputFormat::kJson) {
      fmt::print("{}\n", answer);
      return {};
    }
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, AnswerText(answer));
    fmt::print("{}", text);
    fmt::print(stderr, "answered in {}\n", tidepool::FormatDuration(took));
    return {};
  }

 private:
  std::string input_;
  int batch_ = 1;
  uint64_t seed_ = 1;
};

}  // namespace

void AddNodeVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<UpVerb>());
  verbs->push_back(std::make_unique<ServeVerb>());
  verbs->push_back(std::make_unique<StatusVerb>());
  verbs->push_back(std::make_unique<PsVerb>());
  verbs->push_back(std::make_unique<LoadVerb>());
  verbs->push_back(std::make_unique<UnloadVerb>());
  verbs->push_back(std::make_unique<InferVerb>());
}

}  // namespace tidepool::cli
