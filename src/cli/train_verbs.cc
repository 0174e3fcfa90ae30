// train: runs one training job, in a pool of its own or, with --elastic, in the pool of a running node.
#include <absl/synchronization/mutex.h>

#include <cstdio>

#include "base/clock.h"
#include "base/json.h"
#include "base/units.h"
#include "cli/node_client.h"
#include "cli/verb.h"
#include "train/job.h"

namespace tidepool::cli {
namespace {

constexpr absl::Duration kStopGrace = absl::Seconds(30);  // to write a checkpoint

std::string StepText(const train::TrainProgress& p) {
  return fmt::format("step {:>6}  loss {:7.4f}  {:8.1f} samples/s  micro-batch {:>4}  aborts {:>4}  memory {}", p.step, p.loss,
                     p.samples_per_s, p.micro_batch, p.aborts, FormatBytes(p.held_bytes)) +
         (p.device_samples_per_s > 0
              ? fmt::format("  on {} {:.1f} samples/s",
                            p.devices == 1 ? "the emulated device" : fmt::format("{} emulated devices", p.devices),
                            p.device_samples_per_s)
              : "");
}

std::string EventText(const train::TrainProgress& p) {
  if (p.event == "evaluation")
    return fmt::format("epoch {}: evaluation loss {:.4f}, accuracy {:.1f} %", p.epoch, p.loss, 100 * p.accuracy);
  if (p.event == "checkpoint") return fmt::format("checkpoint at step {}", p.step);
  if (p.event == "finished") {
    std::string text =
        fmt::format("finished: {} samples in {} steps{}", p.samples, p.step, p.message.empty() ? "" : ", " + p.message);
    if (p.devices > 1) {
      text += fmt::format("; {} devices for {}, of which {} were all-reduces", p.devices,
                          tidepool::FormatDuration(absl::Seconds(p.device_seconds)),
                          tidepool::FormatDuration(absl::Seconds(p.communication_seconds)));
    }
    if (!p.host_limited.empty()) text += "; host-limited: " + p.host_limited;
    return text;
  }
  return p.message.empty() ? p.event : fmt::format("{}: {}", p.event, p.message);
}

class TrainVerb : public Verb {
 public:
  std::string path() const override { return "train"; }
  std::string summary() const override { return "Train a network on a folder of JPEG files or on text"; }
  std::string details() const override {
    return "  tidepool train --model resnet18:classes=10,image=64 --data imagefolder:pictures --epochs 5\n"
           "  tidepool train --elastic --model gpt2:layers=4,width=128,heads=4 --data text:books\n"
           "  tidepool train --device emulated:v100 --model resnet18:classes=10,image=64 --data imagefolder:pictures\n"
           "  tidepool train --device emulated:v100x4 --global-batch 64 --model resnet18:classes=10,image=64 --data "
           "imagefolder:pictures\n"
           "Several devices are data-parallel replicas: each computes its share of every global batch, then they add up "
           "gradients.\n"
           "--elastic trains in the device memory that a running node leaves over. Ctrl-C: the job writes its checkpoint and "
           "ends;\n"
           "the same command goes on from it.";
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "client.elastic", .flag = "elastic", .help = "Train in the memory of a running node"}, &elastic_);
    table->Add({.key = "client.url", .help = "REST address of the node (with --elastic)", .metavar = "URL"}, &client_.url);
    table->Add({.key = "client.timeout", .help = "Longest that a call to the node may take"}, &client_.timeout);
    table->Add({.key = "client.worker_binary",
                .help = "tidepool-worker; default: beside this program",
                .metavar = "PATH",
                .advanced = true},
               &worker_binary_);
    options_.Register(table);
  }
  bool reads_config() const override { return true; }
  Status Run(const VerbContext& context) override;

 private:
  Status FindPool();
  void Show(const VerbContext& context, const train::TrainProgress& progress);

  train::TrainOptions options_;
  NodeClient client_;
  bool elastic_ = false;
  std::string worker_binary_;
  bool on_progress_line_ = false;  // the terminal's last line is a step that the next one replaces
};

Status TrainVerb::FindPool() {
  if (!elastic_ || !options_.pool_socket.empty()) return {};
  auto status = client_.Status();
  if (!status.ok()) return Annotate(status.status(), fmt::format("--elastic needs a running node at {}", client_.url));
  const auto object = nlohmann::json::parse(*status, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("runtime_directory") || !object["runtime_directory"].is_string()) {
    return FailedPrecondition("the node at {} does not say where its sockets are; give --pool-socket", client_.url);
  }
  options_.pool_socket = object["runtime_directory"].get<std::string>() + "/pool.sock";
  return {};
}

// Steps replace each other on a terminal; everything else gets a line of its own.
void TrainVerb::Show(const VerbContext& context, const train::TrainProgress& progress) {
  if (context.output == OutputFormat::kJson) {
    fmt::print("{}\n", train::ToJson(progress));
    std::fflush(stdout);
    return;
  }
  if (progress.event == "failed") return;  // the verb's own error says it
  const bool step = progress.event == "step";
  if (context.progress) {
    if (on_progress_line_) fmt::print(stderr, "\r\033[K");
    fmt::print(stderr, "{}{}", step ? StepText(progress) : EventText(progress), step ? "" : "\n");
    std::fflush(stderr);
    on_progress_line_ = step;
  } else {
    fmt::print("{}\n", step ? StepText(progress) : EventText(progress));
    std::fflush(stdout);
  }
}

Status TrainVerb::Run(const VerbContext& context) {
  if ((elastic_ || !options_.pool_socket.empty()) && options_.device != "host") {
    return InvalidArgument("--device is '{}', but the node's device is used (--elastic); allowed: one of the two",
                           options_.device);
  }
  TIDEPOOL_RETURN_IF_ERROR(options_.Validate());
  TIDEPOOL_RETURN_IF_ERROR(FindPool());
  const std::string worker = worker_binary_.empty() ? ExecutableDirectory() + "/tidepool-worker" : worker_binary_;
  TIDEPOOL_ASSIGN_OR_RETURN(const auto job,
                            train::TrainJob::Start(options_, worker, [&](const auto& progress) { Show(context, progress); }));
  Status ended;
  do {
    if (context.stopped()) {
      fmt::print(stderr, "{}stopping: the job has {} to write its checkpoint\n", on_progress_line_ ? "\n" : "",
                 tidepool::FormatDuration(kStopGrace));
      on_progress_line_ = false;
      return job->Stop(kStopGrace);
    }
    ended = job->Wait(Clock::Real()->Now() + absl::Milliseconds(200));
  } while (ended.code() == StatusCode::kDeadlineExceeded);
  if (on_progress_line_) fmt::print(stderr, "\n");
  return ended;
}

}  // namespace

void AddTrainVerbs(VerbList* verbs) { verbs->push_back(std::make_unique<TrainVerb>()); }

}  // namespace tidepool::cli
