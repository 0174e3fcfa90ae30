#include <algorithm>
#include <vector>

#include "base/process.h"
#include "base/text.h"
#include "base/units.h"
#include "cluster/node.h"

namespace tidepool::cluster {
namespace {

std::string_view Name(device::MappingMode mode) { return mode == device::MappingMode::kStrict ? "strict" : "fast"; }

}  // namespace

std::string DefaultWorkerBinary() { return ExecutableDirectory() + "/tidepool-worker"; }

void NodeOptions::Register(OptionTable* table, bool with_training) {
  table->Add({.key = "node.device", .help = std::string(device::kNodeDevicesHelp), .metavar = "DEVICE"}, &device.name);
  if (with_training) {
    table->Add({.key = "node.train_device", .help = "Of several devices the one that trains", .metavar = "INDEX"}, &train_device);
  }
  table->Add({.key = "node.capacity",
              .help = "Memory of each device, for models and training; 0: what the device's name says, or 2 GiB"},
             BytesField{&device.capacity_bytes});
  table->Add({.key = "node.page_size", .help = "Unit in which memory changes hands", .advanced = true},
             BytesField{&device.page_bytes});
  table->AddCustom(
      {.key = "node.mapping",
       .help = "fast: every page stays mapped; strict: a page is inaccessible while not owned",
       .metavar = "MODE"},
      "string",
      [this](std::string_view text) -> Status {
        if (text != "fast" && text != "strict") return InvalidArgument("the mapping is '{}'; allowed: fast, strict", text);
        device.mapping = text == "strict" ? device::MappingMode::kStrict : device::MappingMode::kFast;
        return {};
      },
      [this] { return std::string(Name(device.mapping)); });
  table->Add({.key = "node.runtime_directory",
              .help = "Sockets and checkpoint; default: a private one, removed at the end",
              .metavar = "DIR"},
             &runtime_directory);

  table->AddCustom(
      {.key = "pool.fit_policy",
       .help = "Where free pages are looked for: first-fit, best-fit or next-fit",
       .metavar = "POLICY",
       .advanced = true},
      "string",
      [this](std::string_view text) -> Status {
        TIDEPOOL_ASSIGN_OR_RETURN(fit, pool::ParseFitPolicy(text));
        return {};
      },
      [this] { return std::string(pool::Name(fit)); });
  table->Add({.key = "pool.reserve", .help = "Memory kept free of training, so that small loads do not disturb it"},
             BytesField{&reserve_bytes});
  table->Add({.key = "pool.fence_after", .help = "A tenant that has not given back by then is killed", .advanced = true},
             &fence_after);

  table->Add({.key = "serve.repository", .flag = "model-repository", .help = "Directory of models", .metavar = "DIR"},
             &server.repository);
  table->AddCustom(
      {.key = "serve.mode",
       .help = "colocate, static (fixed split) or task-switch (training stops while serving)",
       .metavar = "MODE"},
      "string",
      [this](std::string_view text) -> Status {
        TIDEPOOL_ASSIGN_OR_RETURN(server.mode, serve::ParseMode(text));
        return {};
      },
      [this] { return std::string(serve::Name(server.mode)); });
  table->Add({.key = "serve.static_train_fraction", .help = "Mode static: the part of the device that training has"},
             &static_train_fraction);
  table->Add({.key = "serve.worker_binary",
              .help = "tidepool-worker; default: beside this program",
              .metavar = "PATH",
              .advanced = true},
             &server.worker_binary);
  table->Add({.key = "serve.worker_threads", .help = "Threads of each device worker; 0: all cores, shared among the devices"},
             &server.worker_threads);
  table->Add({.key = "serve.direct_io", .help = "Read weights past the page cache: for repositories larger than memory"},
             &server.direct_io);
  table->Add({.key = "serve.idle_eviction", .help = "A model idle for this long leaves if training misses its memory"},
             &server.idle_eviction);
  table->Add({.key = "serve.task_switch_idle", .help = "Mode task-switch: training goes on after this long without requests"},
             &server.task_switch_idle);
  table->Add({.key = "serve.shared_memory", .help = "Memory for requests and results in flight", .advanced = true},
             BytesField{&server.shared_memory_bytes});
  table->Add({.key = "serve.load_deadline", .help = "Longest that loading a model may take", .advanced = true},
             &server.load_deadline);
  table->Add({.key = "serve.drain_limit", .help = "When stopping: longest that accepted requests may take"}, &server.drain_limit);
  table->Add({.key = "serve.queue_limit", .help = "Requests that may wait per model"}, &server.queue_limit);
  table->Add(
      {.key = "serve.slo_factor", .help = "SLO of a model = this factor times its latency alone, where model.toml gives none"},
      &server.slo_factor);
  table->Add({.key = "serve.measure_solo", .help = "Measure each model alone at start"}, &measure_solo);
  table->Add({.key = "serve.measure_limit", .help = "Longest that measuring may take", .advanced = true}, &measure_limit);

  if (!with_training) return;
  table->Add({.key = "train.restarts", .flag = "train-restarts", .help = "Restarts of a killed job in a row without progress"},
             &train_restarts);
  table->Add({.key = "train.backoff",
              .flag = "train-backoff",
              .help = "Wait before the first restart; doubles up to 10 s",
              .advanced = true},
             &train_backoff);
  table->Add({.key = "train.stop_limit",
              .flag = "train-stop-limit",
              .help = "When stopping: longest that writing a checkpoint may take"},
             &train_stop_limit);
  train.Register(table, /*with_device=*/false);
}

Status NodeOptions::Validate() const {
  std::vector<std::string> faults;
  const auto fault = [&](bool wrong, std::string text) {
    if (wrong) faults.push_back(std::move(text));
  };
  fault(device.page_bytes < 4096 || (device.page_bytes & (device.page_bytes - 1)) != 0,
        fmt::format("node.page_size is {}; allowed: a power of two of at least 4 KiB", FormatBytes(device.page_bytes)));
  int64_t capacity = device.capacity_bytes;
  if (const auto settled = device::CheckNodeDevices(device, kUsualCapacityBytes); settled.ok()) {
    capacity = settled->options.capacity_bytes;
    fault(train_device < 0 || train_device >= settled->count,
          fmt::format("node.train_device is {}; allowed: 0 to {}", train_device, settled->count - 1));
    fault(has_training() && !settled->computes,
          fmt::format(
              "node.device is '{}', which only keeps time; a training job computes its results. Allowed here: mode=functional",
              device.name));
  } else {
    faults.push_back("node.device: " + MessageOf(settled.status()));
  }
  fault(capacity != 0 && capacity < device.page_bytes, fmt::format("node.capacity is {}; allowed: at least one page of {}",
                                                                   FormatBytes(capacity), FormatBytes(device.page_bytes)));
  fault(reserve_bytes < 0 || (capacity > 0 && reserve_bytes > capacity),
        fmt::format("pool.reserve is {}; allowed: 0 B to the capacity of {}", FormatBytes(reserve_bytes), FormatBytes(capacity)));
  fault(fence_after <= absl::ZeroDuration(),
        fmt::format("pool.fence_after is {}; allowed: more than 0 s", tidepool::FormatDuration(fence_after)));
  fault(!(static_train_fraction > 0 && static_train_fraction < 1),
        fmt::format("serve.static_train_fraction is {}; allowed: between 0 and 1", static_train_fraction));
  fault(measure_limit <= absl::ZeroDuration(),
        fmt::format("serve.measure_limit is {}; allowed: more than 0 s", tidepool::FormatDuration(measure_limit)));
  fault(train_restarts < 0 || train_restarts > 1000, fmt::format("train.restarts is {}; allowed: 0 to 1000", train_restarts));
  fault(train_backoff < absl::ZeroDuration(),
        fmt::format("train.backoff is {}; allowed: 0 s or more", tidepool::FormatDuration(train_backoff)));
  fault(train_stop_limit < absl::ZeroDuration(),
        fmt::format("train.stop_limit is {}; allowed: 0 s or more", tidepool::FormatDuration(train_stop_limit)));
  fault(sample_interval < absl::Milliseconds(1),
        fmt::format("the sample interval is {}; allowed: at least 1 ms", tidepool::FormatDuration(sample_interval)));
  serve::ServerOptions serving = server;
  if (serving.worker_binary.empty()) serving.worker_binary = DefaultWorkerBinary();
  if (const Status status = serving.Validate(); !status.ok()) faults.push_back(MessageOf(status));
  if (has_training()) {
    if (const Status status = train.Validate(); !status.ok()) faults.push_back(MessageOf(status));
  }
  if (faults.empty()) return {};
  return InvalidArgument("{}", JoinText(faults, "\n"));
}

}  // namespace tidepool::cluster
