#include "serve/worker_models.h"

#include <algorithm>
#include <mutex>
#include <numeric>

#include "base/log.h"
#include "base/units.h"
#include "model/cost.h"
#include "model/direct_reader.h"
#include "model/families.h"
#include "serve/packer.h"

namespace tidepool::serve {
namespace {

constexpr size_t kCachedGraphs = 64;
constexpr int kPlacingRounds = 4;
// A wait for memory is cut into pieces, so that a cancelled load ends soon.
constexpr absl::Duration kGrowPiece = absl::Seconds(1);

Status CancelledLoad(const std::string& name) { return Cancelled("the load of model '{}' was cancelled", name); }

// Null, and said once, where the file system has no direct reads.
StatusOr<std::unique_ptr<model::DirectReader>> OpenDirect(const std::string& path) {
  auto reader = model::DirectReader::Open(path);
  if (reader.ok() || reader.status().code() != StatusCode::kUnimplemented) return reader;
  static std::once_flag said;
  std::call_once(said, [&] {
    Log(LogLevel::kWarning, "weights are read through the page cache", {{"reason", reader.status()}});
  });
  return std::unique_ptr<model::DirectReader>();
}

}  // namespace

WorkerModels::~WorkerModels() {
  std::vector<JobId> ids;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [id, instance] : instances_) ids.push_back(id);
  }
  for (JobId id : ids) (void)Unload(id);
}

StatusOr<std::shared_ptr<const model::Graph>> WorkerModels::GraphOf(const std::string& spec) {
  const auto found = graphs_.find(spec);
  if (found != graphs_.end()) return found->second;
  TIDEPOOL_ASSIGN_OR_RETURN(model::Graph graph, model::BuildGraph(spec));
  if (graphs_.size() >= kCachedGraphs) graphs_.clear();
  return graphs_[spec] = std::make_shared<const model::Graph>(std::move(graph));
}

StatusOr<std::vector<pool::Extent>> WorkerModels::Grow(pool::LeaseId lease, int64_t pages, int64_t min_run, absl::Duration slack,
                                                       absl::Time limit, const std::atomic<bool>& cancelled) {
  absl::Duration piece = slack;
  bool trimmed = false;
  while (true) {
    if (cancelled.load()) return Cancelled("cancelled while waiting for memory");
    const absl::Time now = Clock::Real()->Now();
    auto extents = client_->Grow(lease, {.pages = pages, .min_run_pages = min_run}, std::min(limit, now + piece));
    if (extents.ok()) return extents;
    const StatusCode code = extents.status().code();
    const bool lacks = code == StatusCode::kResourceExhausted || code == StatusCode::kDeadlineExceeded;
    if (!lacks) return extents;
    if (!trimmed) {
      trim_();
      trimmed = true;
    } else if (code == StatusCode::kResourceExhausted || Clock::Real()->Now() >= limit) {
      return extents;
    }
    piece = kGrowPiece;
  }
}

// Gets pages and gives every tensor its place. Scattered runs may leave tensors over; then more is asked for, and what ends up
// empty goes back.
StatusOr<std::vector<int64_t>> WorkerModels::Place(pool::LeaseId lease, const WeightList& weights, const LoadMessage& order,
                                                   absl::Time limit, const std::atomic<bool>& cancelled) {
  const int64_t page_bytes = client_->device().info().page_bytes;
  const auto pages_for = [&](int64_t bytes) { return std::max<int64_t>(1, CeilDiv(bytes, page_bytes)); };
  std::vector<pool::Extent> extents;
  std::vector<int64_t> missing = weights.sizes_bytes;
  for (int round = 0; round < kPlacingRounds; ++round) {
    const int64_t largest = missing.empty() ? 0 : *std::max_element(missing.begin(), missing.end());
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<pool::Extent> more,
                              Grow(lease, pages_for(PackedBytes(missing)), pages_for(RoundUp(largest, kTensorAlignment)),
                                   absl::Nanoseconds(order.grow_slack_ns), limit, cancelled));
    extents.insert(extents.end(), more.begin(), more.end());
    Packing packing = Pack(weights.sizes_bytes, extents, page_bytes);
    if (packing.left_over.empty()) {
      if (!packing.unused.empty()) TIDEPOOL_RETURN_IF_ERROR(client_->Return(lease, packing.unused));
      return packing.offsets;
    }
    missing.clear();
    for (size_t tensor : packing.left_over) missing.push_back(weights.sizes_bytes[tensor]);
  }
  return ResourceExhausted("the weights of model '{}' found no place in {} runs of pages; the device memory is too scattered",
                           order.name, extents.size());
}

Status WorkerModels::Fill(Instance* instance, const LoadMessage& order, const WeightList& weights,
                          const model::SafetensorsFile& file, std::shared_ptr<const model::Graph> graph,
                          const std::atomic<bool>& cancelled, LoadReport* report) {
  const absl::Time start = Clock::Real()->Now();
  TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<int64_t> offsets,
                            Place(instance->lease, weights, order, start + absl::Nanoseconds(order.limit_ns), cancelled));
  const absl::Time placed = Clock::Real()->Now();
  report->grow = placed - start;

  // In the order of the file: the kernel reads ahead.
  std::vector<size_t> by_offset(weights.tensors.size());
  std::iota(by_offset.begin(), by_offset.end(), size_t{0});
  std::sort(by_offset.begin(), by_offset.end(),
            [&](size_t a, size_t b) { return weights.tensors[a].offset_bytes < weights.tensors[b].offset_bytes; });
  std::unique_ptr<model::DirectReader> direct;
  if (order.direct_io) {
    TIDEPOOL_ASSIGN_OR_RETURN(direct, OpenDirect(file.path()));
  }
  std::byte* base = client_->device().memory().base();
  std::vector<engine::TensorView> views(weights.tensors.size());
  for (size_t i : by_offset) {
    if (cancelled.load()) return CancelledLoad(order.name);
    const model::TensorEntry& tensor = weights.tensors[i];
    views[i] = {base + offsets[i], tensor.dtype, tensor.shape};
    const std::span<std::byte> target{base + offsets[i], static_cast<size_t>(tensor.size_bytes)};
    TIDEPOOL_RETURN_IF_ERROR(direct ? direct->Read(tensor.offset_bytes, target) : file.Read(tensor, target));
    report->bytes += tensor.size_bytes;
  }
  report->read = Clock::Real()->Now() - placed;
  TIDEPOOL_ASSIGN_OR_RETURN(instance->module, engine::InferenceModule::Bind(std::move(graph), views));
  instance->pages = client_->held_pages(instance->lease);
  return {};
}

StatusOr<LoadReport> WorkerModels::Load(const LoadMessage& order, const std::atomic<bool>& cancelled) {
  if (cancelled.load()) return CancelledLoad(order.name);
  TIDEPOOL_ASSIGN_OR_RETURN(const std::shared_ptr<const model::Graph> graph, GraphOf(order.spec));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto file, model::SafetensorsFile::Open(order.path));
  TIDEPOOL_ASSIGN_OR_RETURN(const WeightList weights, MatchWeights(*graph, *file));

  LoadReport report;
  auto instance = std::make_shared<Instance>();
  instance->name = order.name;
  instance->spec = order.spec;
  instance->cost = model::CostOf(*graph, profile::Phase::kForward);
  for (model::ValueId id : graph->inputs) {
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t bytes, BytesPerSample(graph->values[static_cast<size_t>(id)]));
    instance->input_sample_bytes.push_back(bytes);
  }
  for (model::ValueId id : graph->outputs) {
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t bytes, BytesPerSample(graph->values[static_cast<size_t>(id)]));
    instance->output_sample_bytes.push_back(bytes);
  }
  const device::DeviceInfo& info = client_->device().info();
  const int64_t pages = std::max<int64_t>(1, CeilDiv(PackedBytes(weights.sizes_bytes), info.page_bytes));
  const int64_t total = info.capacity_bytes / info.page_bytes;
  const absl::Time limit = Clock::Real()->Now() + absl::Nanoseconds(order.limit_ns);
  // Scattered runs may need more than the sum of the sizes before the empty ones go back.
  TIDEPOOL_ASSIGN_OR_RETURN(instance->lease, client_->OpenLease({.name = "model:" + order.name,
                                                                 .lease_class = pool::LeaseClass::kPinned,
                                                                 .burst_pages = std::min(total, 2 * pages + 1),
                                                                 .placement = pool::Placement::kLow,
                                                                 .trust_label = "serve"},
                                                                limit));
  const Status filled = Fill(instance.get(), order, weights, *file, graph, cancelled, &report);
  if (!filled.ok()) {
    instance->module.reset();
    (void)client_->CloseLease(instance->lease);
    return filled;
  }
  report.instance = std::move(instance);
  return report;
}

void WorkerModels::Add(JobId id, std::shared_ptr<Instance> instance) {
  absl::MutexLock lock(&mu_);
  instances_[id] = std::move(instance);
}

StatusOr<std::shared_ptr<Instance>> WorkerModels::Find(JobId id) {
  absl::MutexLock lock(&mu_);
  const auto found = instances_.find(id);
  if (found == instances_.end()) return FailedPrecondition("no model is loaded as instance {}", id.value());
  return found->second;
}

StatusOr<int64_t> WorkerModels::Unload(JobId id) {
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<Instance> instance, Find(id));
  if (instance->executions.load() > 0) {
    return FailedPrecondition("model '{}' runs {} batches; it can be unloaded when they are done", instance->name,
                              instance->executions.load());
  }
  {
    absl::MutexLock lock(&mu_);
    instances_.erase(id);
  }
  instance->module.reset();
  const int64_t freed = client_->held_pages(instance->lease) * client_->device().info().page_bytes;
  TIDEPOOL_RETURN_IF_ERROR(client_->CloseLease(instance->lease));
  return freed;
}

}  // namespace tidepool::serve
