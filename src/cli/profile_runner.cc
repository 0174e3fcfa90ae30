#include "cli/profile_runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>

#include "base/clock.h"
#include "base/text.h"
#include "engine/inference.h"
#include "engine/training.h"
#include "model/families.h"
#include "model/weights.h"

namespace tidepool::cli {
namespace {

using profile::OpRow;
using profile::Phase;

constexpr absl::Duration kPoolTimeout = absl::Seconds(10);
constexpr uint64_t kSeed = 1;

// A lease that is closed with its arena.
class LeasedArena final : public pool::Arena {
 public:
  LeasedArena(pool::Client* client, pool::LeaseId lease)
      : client_(client), lease_(lease), arena_(pool::Arena::Create(client, lease, {})) {}
  ~LeasedArena() override {
    arena_.reset();
    (void)client_->CloseLease(lease_);
  }
  StatusOr<void*> Allocate(int64_t size_bytes) override { return arena_->Allocate(size_bytes); }
  void Free(void* block) override { arena_->Free(block); }
  StatusOr<int64_t> ReturnCached(int64_t keep_pages) override { return arena_->ReturnCached(keep_pages); }
  pool::LeaseId lease() const override { return lease_; }
  pool::ArenaStats stats() const override { return arena_->stats(); }
  void ResetPeak() override { arena_->ResetPeak(); }

 private:
  pool::Client* client_;
  pool::LeaseId lease_;
  std::unique_ptr<pool::Arena> arena_;
};

std::vector<int64_t> WithBatch(const model::Shape& shape, int64_t batch) {
  std::vector<int64_t> filled(shape.begin(), shape.end());
  if (!filled.empty() && filled[0] == model::kBatchDim) filled[0] = batch;
  return filled;
}

double ValueBytes(const model::Graph& graph, const std::vector<model::ValueId>& ids, int64_t batch) {
  double bytes = 0;
  for (const model::ValueId id : ids) {
    double size = static_cast<double>(SizeOf(graph.values[id].dtype));
    for (const int64_t dim : WithBatch(graph.values[id].shape, batch)) size *= static_cast<double>(dim);
    bytes += size;
  }
  return bytes;
}

int64_t VocabularyOf(const model::Graph& graph) {
  const auto vocab = graph.config.find("vocab");
  return vocab == graph.config.end() ? 2 : std::max(1LL, std::atoll(vocab->second.c_str()));
}

// Measures one network at batch after batch, as far as the time goes.
class NetworkMeasurement {
 public:
  NetworkMeasurement(const MeasureOptions& options, std::string spec, std::shared_ptr<const model::Graph> graph,
                     MeasuringPool* pool, const std::function<void(const std::string&)>& progress, profile::Bundle* bundle)
      : options_(options), spec_(std::move(spec)), graph_(std::move(graph)), pool_(pool), progress_(progress), bundle_(bundle) {}

  Status Forward(absl::Time deadline);
  Status Step(absl::Time deadline);

 private:
  struct StepSamples {
    Samples step, backward, optimizer;
    int64_t peak_bytes = 0;
  };
  using Measure = std::function<StatusOr<double>(int64_t batch, absl::Time deadline)>;  // gives the median in us, 0: left out

  // `runs` of the network make one repeat.
  Status ForEachBatch(std::string_view phase, int runs, absl::Time deadline, const Measure& measure);
  StatusOr<double> ForwardAt(engine::InferenceModule* module, pool::Arena* arena, int64_t batch, absl::Time deadline);
  Status MeasureOpMemory(engine::InferenceModule* module, pool::Arena* arena, std::span<const engine::TensorView> inputs,
                         std::vector<OpRow>* rows);
  StatusOr<double> StepAt(engine::TrainingModule* module, pool::Arena* arena, int64_t batch, absl::Time deadline);
  Status RunStep(engine::TrainingModule* module, const engine::MicroBatch& batch, pool::Arena* arena, bool first,
                 StepSamples* samples);

  OpRow RowOf(Phase phase, int64_t batch) const {
    return {.key = {.model = spec_, .phase = phase, .batch = batch},
            .memory = {.input_bytes = ValueBytes(*graph_, graph_->inputs, batch),
                       .output_bytes = ValueBytes(*graph_, graph_->outputs, batch),
                       .weight_bytes = static_cast<double>(graph_->parameter_bytes())}};
  }
  // Whether all repeats of what took `us` fit before the deadline.
  bool Fits(double us, absl::Time deadline) const {
    return Clock::Real()->Now() + absl::Microseconds(us * (options_.repeats + 1)) <= deadline;
  }

  const MeasureOptions& options_;
  const std::string spec_;
  const std::shared_ptr<const model::Graph> graph_;
  MeasuringPool* const pool_;
  const std::function<void(const std::string&)>& progress_;
  profile::Bundle* const bundle_;
};

Status NetworkMeasurement::ForEachBatch(std::string_view phase, int runs, absl::Time deadline, const Measure& measure) {
  double last_us = 0;
  int64_t last_batch = 0;
  for (const int64_t batch : options_.Batches()) {
    if (last_batch > 0 && !Fits(runs * last_us * static_cast<double>(batch) / static_cast<double>(last_batch), deadline)) {
      progress_(fmt::format("{} {}: batches from {} on are left out: the time limit", spec_, phase, batch));
      return {};
    }
    const StatusOr<double> us = measure(batch, deadline);
    // A single block larger than the device is refused as an argument; a smaller batch has shown that nothing else is wrong.
    const StatusCode code = us.status().code();
    if (code == StatusCode::kResourceExhausted || (code == StatusCode::kInvalidArgument && last_batch > 0)) {
      progress_(fmt::format("{} {}: batches from {} on are left out: {}", spec_, phase, batch, MessageOf(us.status())));
      return {};
    }
    if (!us.ok()) return Annotate(us.status(), fmt::format("{} {} batch {}", spec_, phase, batch));
    if (*us == 0) {
      progress_(fmt::format("{} {}: batches from {} on are left out: the time limit", spec_, phase, batch));
      return {};
    }
    progress_(fmt::format("{} {} batch {}: {}", spec_, phase, batch, tidepool::FormatDuration(absl::Microseconds(*us))));
    last_us = *us;
    last_batch = batch;
  }
  return {};
}

Status NetworkMeasurement::Forward(absl::Time deadline) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto arena, pool_->MakeArena());
  ArenaTensors weights(arena.get());
  const Status room = weights.AddParams(*graph_);
  if (!room.ok()) return Annotate(room, spec_);
  TIDEPOOL_ASSIGN_OR_RETURN(const auto module, engine::InferenceModule::Bind(graph_, weights.views()));
  return ForEachBatch("forward", options_.ops ? 2 : 1, deadline,
                      [&](int64_t batch, absl::Time until) { return ForwardAt(module.get(), arena.get(), batch, until); });
}

StatusOr<double> NetworkMeasurement::ForwardAt(engine::InferenceModule* module, pool::Arena* arena, int64_t batch,
                                               absl::Time deadline) {
  ArenaTensors inputs(arena);
  TIDEPOOL_RETURN_IF_ERROR(inputs.AddInputs(*graph_, batch));
  const engine::MemoryScope memory(arena);
  Samples whole;
  std::vector<Samples> ops(graph_->ops.size());
  bool first = true;
  int64_t begin_ns = 0;
  engine::RunOptions hooks;
  if (options_.ops) {
    hooks.before_op = [&](int) -> Status {
      begin_ns = MonotonicNanos();
      return {};
    };
    hooks.after_op = [&](int op) { ops[op].Add(MonotonicNanos() - begin_ns, first); };
  }
  arena->ResetPeak();
  for (int run = 0; run <= options_.repeats; ++run, first = false) {
    // The network as one unit is timed without the hooks of its ops.
    const int64_t start_ns = MonotonicNanos();
    TIDEPOOL_RETURN_IF_ERROR(module->Run(inputs.views(), {}).status());
    whole.Add(MonotonicNanos() - start_ns, first);
    if (options_.ops) TIDEPOOL_RETURN_IF_ERROR(module->Run(inputs.views(), hooks).status());
    if (first && !Fits(whole.first_us * (options_.ops ? 2 : 1), deadline)) return 0.0;
  }
  OpRow row = RowOf(Phase::kForward, batch);
  row.memory.peak_bytes = static_cast<double>(arena->stats().peak_live_bytes);
  whole.Fill(&row);
  bundle_->ops.push_back(row);
  if (!options_.ops) return row.median_us;

  std::vector<OpRow> rows;
  for (size_t i = 0; i < ops.size(); ++i) {
    const model::Op& op = graph_->ops[i];
    OpRow& added = rows.emplace_back(OpRow{.key = {.model = spec_, .op = op.name, .phase = Phase::kForward, .batch = batch}});
    ops[i].Fill(&added);
    added.memory.input_bytes = ValueBytes(*graph_, op.inputs, batch);
    added.memory.output_bytes = ValueBytes(*graph_, op.outputs, batch);
    for (const model::ParamId id : op.params)
      added.memory.weight_bytes += static_cast<double>(model::BytesOf(graph_->params[id]));
    added.memory.activation_bytes = static_cast<double>(op.activation_bytes_per_sample) * static_cast<double>(batch);
  }
  TIDEPOOL_RETURN_IF_ERROR(MeasureOpMemory(module, arena, inputs.views(), &rows));
  bundle_->ops.insert(bundle_->ops.end(), rows.begin(), rows.end());
  return row.median_us;
}

// One run more, in which the arena's high-water mark is read around each op.
Status NetworkMeasurement::MeasureOpMemory(engine::InferenceModule* module, pool::Arena* arena,
                                           std::span<const engine::TensorView> inputs, std::vector<OpRow>* rows) {
  double live_before = 0;
  engine::RunOptions hooks;
  hooks.before_op = [&](int) -> Status {
    arena->ResetPeak();
    live_before = static_cast<double>(arena->stats().live_bytes);
    return {};
  };
  hooks.after_op = [&](int op) {
    profile::OpMemory& memory = (*rows)[op].memory;
    memory.peak_bytes = static_cast<double>(arena->stats().peak_live_bytes);
    memory.reserved_bytes = std::max(0.0, memory.peak_bytes - live_before - memory.output_bytes);
  };
  return module->Run(inputs, hooks).status();
}

Status NetworkMeasurement::Step(absl::Time deadline) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto arena, pool_->MakeArena());
  std::unique_ptr<engine::TrainingModule> module;
  {
    // The module copies the weights into the pool.
    std::vector<std::vector<std::byte>> storage;
    std::vector<engine::TensorView> views;
    for (const model::Param& param : graph_->params) {
      std::vector<std::byte>& bytes = storage.emplace_back(model::BytesOf(param));
      TIDEPOOL_RETURN_IF_ERROR(model::FillSeeded(param, kSeed, 0, bytes));
      views.push_back({bytes.data(), param.dtype, param.shape});
    }
    auto made = engine::TrainingModule::Create(graph_, views, arena.get(), {});
    if (!made.ok()) return Annotate(made.status(), spec_);
    module = std::move(*made);
  }
  return ForEachBatch("step", 1, deadline,
                      [&](int64_t batch, absl::Time until) { return StepAt(module.get(), arena.get(), batch, until); });
}

StatusOr<double> NetworkMeasurement::StepAt(engine::TrainingModule* module, pool::Arena* arena, int64_t batch,
                                            absl::Time deadline) {
  ArenaTensors tensors(arena);
  TIDEPOOL_RETURN_IF_ERROR(tensors.AddInputs(*graph_, batch));
  engine::MicroBatch micro_batch{.inputs = tensors.views(), .global_batch_size = batch, .abortable = false};
  const std::vector<int64_t> output = WithBatch(graph_->values[graph_->outputs[0]].shape, batch);
  const bool tokens = model::DefaultLoss(*graph_) == model::LossKind::kNextTokenCrossEntropy;
  TIDEPOOL_ASSIGN_OR_RETURN(micro_batch.target, tensors.Add(DType::kI64, tokens ? std::vector<int64_t>{batch, output[1]}
                                                                                : std::vector<int64_t>{batch}));
  auto* classes = reinterpret_cast<int64_t*>(micro_batch.target.data);
  for (int64_t i = 0; i < micro_batch.target.elements(); ++i) classes[i] = i % output.back();

  StepSamples samples;
  for (int run = 0; run <= options_.repeats; ++run) {
    TIDEPOOL_RETURN_IF_ERROR(RunStep(module, micro_batch, arena, run == 0, &samples));
    if (run == 0 && !Fits(samples.step.first_us, deadline)) return 0.0;
  }
  const std::pair<Phase, const Samples*> measured[] = {
      {Phase::kStep, &samples.step}, {Phase::kBackward, &samples.backward}, {Phase::kOptimizer, &samples.optimizer}};
  for (const auto& [phase, times] : measured) {
    OpRow row = RowOf(phase, batch);
    times->Fill(&row);
    if (phase == Phase::kStep) {
      row.memory.peak_bytes = static_cast<double>(samples.peak_bytes);
      row.memory.activation_bytes = static_cast<double>(graph_->activation_bytes_per_sample()) * static_cast<double>(batch);
    }
    bundle_->ops.push_back(std::move(row));
  }
  return samples.step.Percentile(0.5);
}

Status NetworkMeasurement::RunStep(engine::TrainingModule* module, const engine::MicroBatch& batch, pool::Arena* arena,
                                   bool first, StepSamples* samples) {
  const int64_t start_ns = MonotonicNanos();
  TIDEPOOL_RETURN_IF_ERROR(module->BeginGlobalBatch());
  const StatusOr<engine::MicroBatchResult> result = module->RunMicroBatch(batch);
  if (!result.ok()) {
    TIDEPOOL_RETURN_IF_ERROR(module->AbortMicroBatch());
    return result.status();
  }
  TIDEPOOL_RETURN_IF_ERROR(module->CommitMicroBatch());
  const int64_t optimizer_ns = MonotonicNanos();
  // So small that the weights stay as they are for any number of steps.
  TIDEPOOL_RETURN_IF_ERROR(module->OptimizerStep(1e-9));
  const int64_t end_ns = MonotonicNanos();
  samples->step.Add(end_ns - start_ns, first);
  samples->optimizer.Add(end_ns - optimizer_ns, first);
  samples->backward.Add(std::llround(result->backward_seconds * 1e9), first);
  samples->peak_bytes = std::max(samples->peak_bytes, arena->stats().peak_live_bytes);
  return {};
}

// Rows of the optimizer do not depend on the batch; what noise makes of them at one batch is not to look as if they did.
void PoolOptimizerRows(profile::Bundle* bundle) {
  std::map<std::string, std::vector<OpRow*>> by_model;
  for (OpRow& row : bundle->ops) {
    if (row.key.phase == Phase::kOptimizer) by_model[row.key.model].push_back(&row);
  }
  for (auto& [model, rows] : by_model) {
    std::sort(rows.begin(), rows.end(), [](const OpRow* a, const OpRow* b) { return a->median_us < b->median_us; });
    const OpRow middle = *rows[rows.size() / 2];
    double low = middle.p10_us, high = middle.p90_us;
    for (const OpRow* row : rows) {
      low = std::min(low, row->p10_us);
      high = std::max(high, row->p90_us);
    }
    for (OpRow* row : rows) {
      row->median_us = middle.median_us;
      row->p10_us = low;
      row->p90_us = high;
    }
  }
}

// The share of the peak that the networks reach at their largest batch: what an estimate for another network should expect.
void Calibrate(const std::map<std::string, std::shared_ptr<const model::Graph>>& graphs, profile::Bundle* bundle) {
  profile::Hardware& hardware = bundle->manifest.hardware;
  double& peak = hardware.peak_flops[DType::kF32];
  std::map<std::string, std::pair<int64_t, double>> largest;  // model -> batch, FLOP/s
  for (const OpRow& row : bundle->ops) {
    const model::Graph& graph = *graphs.at(row.key.model);
    if (row.key.phase != Phase::kForward) continue;
    double flops = static_cast<double>(graph.forward_flops_per_sample());
    if (!row.key.op.empty()) {
      const auto op = std::find_if(graph.ops.begin(), graph.ops.end(), [&](const model::Op& o) { return o.name == row.key.op; });
      flops = op == graph.ops.end() ? 0 : static_cast<double>(op->forward_flops_per_sample);
    }
    const double rate = flops * static_cast<double>(row.key.batch) / row.p10_us * 1e6;
    // Convolutions have kernels of their own, which may be faster than the matrix product that was measured.
    peak = std::max(peak, rate);
    auto& [batch, seen] = largest[row.key.model];
    if (row.key.op.empty() && row.key.batch >= batch) {
      batch = row.key.batch;
      seen = flops * static_cast<double>(batch) / row.median_us * 1e6;
    }
  }
  std::vector<double> shares;
  for (const auto& [model, reached] : largest) shares.push_back(reached.second / peak);
  if (shares.empty()) return;
  std::sort(shares.begin(), shares.end());
  hardware.efficiency.compute = std::clamp(shares[shares.size() / 2], 1e-3, 1.0);
}

std::string CpuName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return std::string(TrimText(std::string_view(line).substr(line.find(':') + 1)));
  }
  return "an unknown CPU";
}

}  // namespace

StatusOr<std::unique_ptr<MeasuringPool>> MeasuringPool::Open(int64_t memory_bytes) {
  auto pool = std::make_unique<MeasuringPool>();
  TIDEPOOL_ASSIGN_OR_RETURN(pool->device_, device::OpenDevice({.name = "host", .capacity_bytes = memory_bytes}));
  TIDEPOOL_ASSIGN_OR_RETURN(pool->broker_, pool::Broker::Start(pool->device_.get(), {}));
  pool::ClientOptions attach{.name = "profile"};
  TIDEPOOL_ASSIGN_OR_RETURN(attach.connected_socket, pool->broker_->Connect());
  TIDEPOOL_ASSIGN_OR_RETURN(pool->client_, pool::Client::Attach(std::move(attach)));
  return pool;
}

StatusOr<std::unique_ptr<pool::Arena>> MeasuringPool::MakeArena() {
  const int64_t pages = client_->device().memory().page_count();
  TIDEPOOL_ASSIGN_OR_RETURN(const pool::LeaseId lease,
                            client_->OpenLease({.name = "profile", .burst_pages = pages}, Clock::Real()->Now() + kPoolTimeout));
  return std::make_unique<LeasedArena>(client_.get(), lease);
}

ArenaTensors::~ArenaTensors() {
  for (void* block : blocks_) arena_->Free(block);
}

StatusOr<engine::TensorView> ArenaTensors::Add(DType dtype, std::vector<int64_t> shape) {
  engine::TensorView view{.dtype = dtype, .shape = std::move(shape)};
  TIDEPOOL_ASSIGN_OR_RETURN(void* block, arena_->Allocate(std::max<int64_t>(view.size_bytes(), 1)));
  blocks_.push_back(block);
  view.data = static_cast<std::byte*>(block);
  views_.push_back(view);
  return view;
}

Status ArenaTensors::AddParams(const model::Graph& graph) {
  for (const model::Param& param : graph.params) {
    TIDEPOOL_ASSIGN_OR_RETURN(const engine::TensorView view, Add(param.dtype, param.shape));
    TIDEPOOL_RETURN_IF_ERROR(model::FillSeeded(param, kSeed, 0, {view.data, static_cast<size_t>(view.size_bytes())}));
  }
  return {};
}

Status ArenaTensors::AddInputs(const model::Graph& graph, int64_t batch) {
  std::mt19937 random(static_cast<uint32_t>(batch));
  const int64_t vocabulary = VocabularyOf(graph);
  for (const model::ValueId id : graph.inputs) {
    const model::Value& value = graph.values[id];
    TIDEPOOL_ASSIGN_OR_RETURN(const engine::TensorView view, Add(value.dtype, WithBatch(value.shape, batch)));
    if (value.dtype == DType::kF32) {
      std::normal_distribution<float> normal;
      auto* numbers = reinterpret_cast<float*>(view.data);
      std::generate_n(numbers, view.elements(), [&] { return normal(random); });
    } else if (value.dtype == DType::kI64) {
      auto* numbers = reinterpret_cast<int64_t*>(view.data);
      const bool mask = value.name.find("mask") != std::string::npos, types = value.name.find("type") != std::string::npos;
      std::generate_n(numbers, view.elements(), [&]() -> int64_t {
        return mask ? 1 : types ? 0 : static_cast<int64_t>(random()) % vocabulary;
      });
    } else {
      return Unimplemented("input '{}' of '{}' is {}; inputs that can be measured: F32, I64", value.name, graph.name,
                           SafetensorsName(value.dtype));
    }
  }
  return {};
}

void Samples::Add(int64_t nanoseconds, bool first) {
  const double us = std::max(1e-3, static_cast<double>(nanoseconds) / 1e3);
  if (first) {
    first_us = us;
  } else {
    later_us.push_back(us);
  }
}

double Samples::Percentile(double share) const {
  std::vector<double> sorted = later_us;
  std::sort(sorted.begin(), sorted.end());
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

void Samples::Fill(OpRow* row) const {
  row->repeats = static_cast<int32_t>(later_us.size());
  row->median_us = Percentile(0.5);
  row->p10_us = Percentile(0.1);
  row->p90_us = Percentile(0.9);
  row->first_us = first_us;
}

StatusOr<profile::Bundle> MeasureDevice(const MeasureOptions& options, const std::function<void(const std::string&)>& progress) {
  const absl::Time end = Clock::Real()->Now() + options.time_limit;
  std::map<std::string, std::shared_ptr<const model::Graph>> graphs;
  for (const std::string& spec : options.Models()) {
    TIDEPOOL_ASSIGN_OR_RETURN(model::Graph graph, model::BuildGraph(spec));
    graphs[spec] = std::make_shared<const model::Graph>(std::move(graph));
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const auto pool, MeasuringPool::Open(options.memory_bytes));
  const engine::RuntimeInfo runtime = engine::DescribeRuntime();
  profile::Bundle bundle;
  bundle.manifest.name = options.device;
  bundle.manifest.measured = true;
  bundle.manifest.source = fmt::format("measured by tidepool {} on {}, {} threads", TIDEPOOL_VERSION, CpuName(), runtime.threads);
  bundle.manifest.date = absl::FormatTime("%Y-%m-%d", Clock::Real()->Now(), absl::UTCTimeZone());
  bundle.manifest.software = {{"torch", runtime.torch_version},
                              {"blas", runtime.blas},
                              {"tidepool", TIDEPOOL_VERSION},
                              {"optimizer", "SGD with momentum"}};
  bundle.manifest.hardware.name = options.device;
  TIDEPOOL_RETURN_IF_ERROR(MeasureMachine(pool.get(), std::max(options.repeats, 10), progress, &bundle));

  // Each phase of each model gets an equal share of the time that is left, so that what is quick leaves more to the rest.
  size_t left = graphs.size() * options.phases.size();
  for (const auto& [spec, graph] : graphs) {
    NetworkMeasurement network(options, spec, graph, pool.get(), progress, &bundle);
    for (const std::string& phase : options.phases) {
      const absl::Time now = Clock::Real()->Now();
      const absl::Time deadline = now + std::max(end - now, absl::ZeroDuration()) / static_cast<int64_t>(left--);
      TIDEPOOL_RETURN_IF_ERROR(phase == "forward" ? network.Forward(deadline) : network.Step(deadline));
    }
  }
  if (bundle.ops.empty()) return DeadlineExceeded("no row could be measured; give more time, smaller batches or more memory");
  PoolOptimizerRows(&bundle);
  Calibrate(graphs, &bundle);
  return bundle;
}

}  // namespace tidepool::cli
