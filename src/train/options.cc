#include "device/device.h"
#include "model/families.h"
#include "train/job.h"
#include "train/replica_time.h"

namespace tidepool::train {

void TrainOptions::Register(OptionTable* table, bool with_device) {
  table->Add({.key = "train.name", .flag = "name", .help = "Name of the job in leases, metrics and messages"}, &name);
  table->Add({.key = "train.model", .help = "Network to train, as a spec (resnet18:classes=10,image=64)", .metavar = "SPEC"},
             &model);
  table->Add({.key = "train.initial_weights", .help = "Safetensors file to start from; empty: seeded weights", .metavar = "FILE"},
             &initial_weights);
  table->Add({.key = "train.data",
              .help = "Training data: imagefolder:, webdataset:, tfrecord:, packed: or text:PATH, or PATH",
              .metavar = "DATA"},
             &data);
  table->Add({.key = "train.evaluation_data", .help = "Data evaluated before the first and after every epoch", .metavar = "DATA"},
             &evaluation_data);
  table->Add({.key = "train.evaluation_steps", .help = "Steps between evaluations; 0: at epochs only"}, &evaluation_steps);
  table->Add({.key = "train.global_batch", .help = "Samples per optimizer step"}, &global_batch);
  table->Add({.key = "train.max_micro_batch",
              .help = "Most samples computed at once; of several devices none computes more than its share of the global batch"},
             &max_micro_batch);
  table->Add({.key = "train.epochs", .help = "Passes over the training data"}, &epochs);
  table->Add({.key = "train.max_steps", .help = "Optimizer steps after which training ends; 0: no limit"}, &max_steps);
  table->Add({.key = "train.optimizer", .help = "sgd or adamw", .metavar = "NAME"}, &optimizer);
  table->Add({.key = "train.learning_rate", .help = "Learning rate"}, &learning_rate);
  table->Add({.key = "train.momentum", .help = "Momentum of sgd"}, &momentum);
  table->Add({.key = "train.weight_decay", .help = "Weight decay"}, &weight_decay);
  table->Add({.key = "train.seed", .help = "Seed of weights, order, augmentation and dropout"}, &seed);
  table->Add({.key = "train.threads", .help = "Threads of one operator; 0: all cores"}, &threads);
  table->Add({.key = "train.loader_threads", .help = "Threads that read and decode samples"}, &loader_threads);
  table->Add({.key = "train.prefetch_bytes", .help = "Decoded samples kept in memory"}, BytesField{&prefetch_bytes});
  data::AddWrapOptions("train", table, &wrap);
  data::AddPartitionOptions("train", table, &wrap.partition, /*advanced=*/true);
  table->Add({.key = "train.skip_broken_samples", .help = "Replace a sample that cannot be read by the next one"},
             &skip_broken_samples);
  table->Add({.key = "train.yield_cpu", .help = "Run in the idle scheduling class, so that inference has the cores first"},
             &yield_cpu);
  table->Add({.key = "train.protected_after_aborts",
              .help = "Aborts in a row after which a micro-batch runs to its end; 0: never",
              .advanced = true},
             &protected_after_aborts);
  table->Add(
      {.key = "train.pool_socket", .help = "Socket of the node's page broker; empty: a pool of its own", .metavar = "PATH"},
      &pool_socket);
  if (with_device)
    table->Add({.key = "train.device",
                .help = fmt::format("{}; several train side by side (data parallel)", device::kNodeDevicesHelp),
                .metavar = "DEVICE"},
               &device);
  table->Add(
      {.key = "train.pool_bytes", .help = "Size of a pool of its own, on each device; 0: what the device's name says, or 2 GiB"},
      BytesField{&pool_bytes});
  table->Add({.key = "train.burst_bytes", .help = "Most device memory it may hold; 0: all"}, BytesField{&burst_bytes});
  table->Add({.key = "train.journal", .help = "Write the partition journal to this file", .metavar = "FILE"}, &journal);
  table->Add({.key = "train.replay", .help = "Follow this partition journal exactly", .metavar = "FILE"}, &replay);
  table->Add({.key = "train.checkpoint", .help = "Checkpoint directory; resumes from it if it holds one", .metavar = "DIR"},
             &checkpoint);
  table->Add({.key = "train.checkpoint_steps", .help = "Steps between checkpoints; 0: at epoch ends and when stopped"},
             &checkpoint_steps);
  table->Add({.key = "train.final_weights", .help = "Write the trained model to this safetensors file", .metavar = "FILE"},
             &final_weights);
}

Status TrainOptions::Validate() const {
  std::vector<std::string> faults;
  auto require = [&](bool holds, const std::string& fault) {
    if (!holds) faults.push_back(fault);
  };
  require(!data.empty(), "train.data is empty; give imagefolder:PATH, text:PATH or PATH");
  if (auto spec = model::ParseSpec(model); !spec.ok()) faults.push_back(fmt::format("train.model: {}", MessageOf(spec.status())));
  require(global_batch >= 1 && global_batch <= 1 << 20,
          fmt::format("train.global_batch is {}; allowed: 1 to {}", global_batch, 1 << 20));
  require(max_micro_batch >= 1, fmt::format("train.max_micro_batch is {}; allowed: 1 and above", max_micro_batch));
  require(epochs >= 1, fmt::format("train.epochs is {}; allowed: 1 and above", epochs));
  require(max_steps >= 0, fmt::format("train.max_steps is {}; allowed: 0 and above", max_steps));
  require(optimizer == "sgd" || optimizer == "adamw", fmt::format("train.optimizer is '{}'; allowed: sgd, adamw", optimizer));
  require(learning_rate >= 0, fmt::format("train.learning_rate is {}; allowed: 0 and above", learning_rate));
  require(momentum >= 0 && momentum < 1, fmt::format("train.momentum is {}; allowed: 0 to below 1", momentum));
  require(weight_decay >= 0, fmt::format("train.weight_decay is {}; allowed: 0 and above", weight_decay));
  require(threads >= 0 && threads <= 1024, fmt::format("train.threads is {}; allowed: 0 to 1024", threads));
  require(loader_threads >= 1 && loader_threads <= 256,
          fmt::format("train.loader_threads is {}; allowed: 1 to 256", loader_threads));
  require(prefetch_bytes >= 1, fmt::format("train.prefetch_bytes is {}; allowed: 1 and above", prefetch_bytes));
  if (const Status status = wrap.Validate(); !status.ok()) faults.push_back(MessageOf(status));
  require(protected_after_aborts >= 0,
          fmt::format("train.protected_after_aborts is {}; allowed: 0 and above", protected_after_aborts));
  if (pool_socket.empty()) {
    const auto settled = CheckReplicas({.name = device, .capacity_bytes = pool_bytes}, kUsualPoolBytes);
    require(settled.ok(), fmt::format("train.device: {}", MessageOf(settled.status())));
    require(
        !settled.ok() || settled->computes,
        fmt::format("train.device is '{}', which only keeps time, and training computes its results; allowed: mode=functional",
                    device));
    const int count = settled.ok() ? settled->count : 1;
    require(
        count == 1 || global_batch >= count,
        fmt::format("train.global_batch is {}, and train.device '{}' means {} devices; allowed: {} and above, a sample for each",
                    global_batch, device, count, count));
  }
  require(burst_bytes >= 0, fmt::format("train.burst_bytes is {}; allowed: 0 and above", burst_bytes));
  require(evaluation_steps >= 0, fmt::format("train.evaluation_steps is {}; allowed: 0 and above", evaluation_steps));
  require(checkpoint_steps >= 0, fmt::format("train.checkpoint_steps is {}; allowed: 0 and above", checkpoint_steps));
  require(checkpoint_steps == 0 || !checkpoint.empty(), "train.checkpoint_steps is given, but train.checkpoint is empty");
  require(journal.empty() || journal != replay, fmt::format("train.journal and train.replay are both '{}'", journal));
  if (!faults.empty()) return InvalidArgument("{}", fmt::join(faults, "; "));
  return {};
}

}  // namespace tidepool::train
