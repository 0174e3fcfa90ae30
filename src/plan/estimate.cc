#include "plan/estimate.h"

#include <algorithm>
#include <cmath>

#include "base/units.h"

namespace tidepool::plan {
namespace {

using profile::CollectiveKind;
using profile::LinkKind;

constexpr int kLargestLinkExponent = 12;  // transfers of 1 MiB to 4 GiB

class Estimator {
 public:
  Estimator(const OpList& list, const profile::Hardware& hardware, const EstimateOptions& options)
      : list_(list), hardware_(hardware), options_(options) {}

  Status Check() const {
    const auto peak = hardware_.peak_flops.find(list_.dtype);
    if (peak == hardware_.peak_flops.end() || !(peak->second > 0)) {
      return InvalidArgument("hardware '{}' has no peak_flops of {}, the type of {}", hardware_.name,
                             SafetensorsName(list_.dtype), list_.name);
    }
    if (!(hardware_.memory_bytes_per_s > 0)) return InvalidArgument("hardware '{}' has no memory bandwidth", hardware_.name);
    const bool wide = std::any_of(options_.widths.begin(), options_.widths.end(), [](int32_t width) { return width > 1; });
    if (wide && !(LinkSpeed(LinkKind::kPeer) > 0)) {
      return InvalidArgument("hardware '{}' has no peer links; allowed without them: width 1 only", hardware_.name);
    }
    for (const int32_t value : options_.batches) {
      if (value < 1 || value > 65536) return InvalidArgument("batch {}; allowed: 1 to 65536", value);
    }
    for (const int32_t value : options_.widths) {
      if (value < 1 || value > 1024) return InvalidArgument("width {}; allowed: 1 to 1024", value);
    }
    for (const double value : {options_.compute_efficiency, options_.memory_efficiency, options_.link_efficiency}) {
      if (!(value > 0 && value <= 1)) return InvalidArgument("efficiency {}; allowed: above 0 to 1", value);
    }
    return {};
  }

  void AddOps(profile::Bundle* bundle) const {
    size_t algorithms = 1;
    for (const DistinctOp& op : list_.distinct) algorithms = std::max(algorithms, op.algorithms.size());
    for (const DistinctOp& op : list_.distinct) {
      for (const int32_t batch : options_.batches) {
        for (const int32_t width : options_.widths) {
          for (size_t algorithm = 0; algorithm < algorithms; ++algorithm) AddOp(op, batch, width, algorithm, bundle);
        }
      }
    }
    std::sort(bundle->ops.begin(), bundle->ops.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
  }

  void AddCollectives(profile::Bundle* bundle) const {
    for (const int32_t width : options_.widths) {
      if (width < 2) continue;
      for (const auto kind :
           {CollectiveKind::kAllReduce, CollectiveKind::kAllGather, CollectiveKind::kReduceScatter, CollectiveKind::kAllToAll}) {
        for (int exponent = 0; exponent <= kLargestLinkExponent; ++exponent) {
          const double bytes = std::ldexp(kMiB, exponent);
          bundle->collectives.push_back({list_.profile_model, kind, width, bytes, CollectiveUs(kind, width, bytes)});
        }
      }
    }
  }

  void AddLinks(profile::Bundle* bundle) const {
    for (const LinkKind kind : {LinkKind::kPeer, LinkKind::kNetwork}) {
      const double speed = LinkSpeed(kind);
      for (int exponent = 0; speed > 0 && exponent <= kLargestLinkExponent; ++exponent) {
        const double bytes = std::ldexp(kMiB, exponent);
        bundle->links.push_back({.kind = kind, .bytes = bytes, .median_us = options_.link_latency_us + bytes / speed * 1e6});
      }
    }
  }

 private:
  double LinkSpeed(LinkKind kind) const {
    const auto found = hardware_.link_bytes_per_s.find(kind);
    return found == hardware_.link_bytes_per_s.end() ? 0 : found->second * options_.link_efficiency;
  }
  // `bytes` is the whole tensor.
  double CollectiveUs(CollectiveKind kind, int32_t ranks, double bytes) const {
    const double rounds = kind == CollectiveKind::kAllReduce ? 2.0 * (ranks - 1) : ranks - 1;
    return rounds * (options_.link_latency_us + bytes / ranks / LinkSpeed(LinkKind::kPeer) * 1e6);
  }

  void AddOp(const DistinctOp& op, int32_t batch, int32_t width, size_t algorithm, profile::Bundle* bundle) const {
    const SplitAlgorithm& split = op.algorithms[algorithm < op.algorithms.size() ? algorithm : 0];
    const auto parts = [&](const Layout& layout) { return layout.replicas == Split::kTensor ? 1.0 : static_cast<double>(width); };
    const double input = static_cast<double>(op.input_bytes_per_sample) * batch / parts(split.input);
    const double output = static_cast<double>(op.output_bytes_per_sample) * batch / parts(split.output);
    const double weights =
        static_cast<double>(op.parameters) * static_cast<double>(SizeOf(list_.dtype)) / (op.tunable ? width : 1);
    const double activation = static_cast<double>(op.activation_bytes_per_sample) * batch / parts(split.output);
    const double shared = op.tunable ? width : std::max(parts(split.input), parts(split.output));
    const double flops = static_cast<double>(op.forward_flops_per_sample) * batch / shared;
    const double compute_us = flops / (hardware_.peak_flops.at(list_.dtype) * options_.compute_efficiency) * 1e6;
    const double memory_us = (input + output + weights) / (hardware_.memory_bytes_per_s * options_.memory_efficiency) * 1e6;
    double forward_us = std::max(compute_us, memory_us) + hardware_.launch_us;
    double backward_us = 2 * std::max(compute_us, memory_us) + hardware_.launch_us;
    if (width > 1 && op.tunable) {
      // Whole in, cut out: the gradient of the input is a sum over devices; the other way the output is.
      const bool gathers_input = split.input.replicas == Split::kTensor;
      if (split.output.replicas == Split::kTensor) forward_us += CollectiveUs(CollectiveKind::kAllReduce, width, output);
      if (gathers_input) backward_us += CollectiveUs(CollectiveKind::kAllReduce, width, input);
    }
    profile::OpRow row;
    row.key = {list_.profile_model, op.name, profile::Phase::kForward,       batch,
               list_.dtype,         width,   static_cast<int32_t>(algorithm)};
    row.median_us = forward_us;
    row.memory = {input, output, weights, activation, 0};
    bundle->ops.push_back(row);
    row.key.phase = profile::Phase::kBackward;
    row.median_us = backward_us;
    row.memory = {.reserved_bytes = input + output};  // gradients of both
    bundle->ops.push_back(std::move(row));
  }

  const OpList& list_;
  const profile::Hardware& hardware_;
  const EstimateOptions& options_;
};

}  // namespace

StatusOr<profile::Bundle> EstimateBundle(const OpList& list, const profile::Hardware& hardware, const EstimateOptions& options) {
  const Estimator estimator(list, hardware, options);
  TIDEPOOL_RETURN_IF_ERROR(estimator.Check());
  profile::Bundle bundle;
  bundle.manifest.name = fmt::format("estimate of {} on {}", list.name, hardware.name);
  bundle.manifest.hardware = hardware;
  bundle.manifest.source = "roofline estimate from the hardware's description";
  bundle.manifest.measured = false;
  estimator.AddOps(&bundle);
  estimator.AddCollectives(&bundle);
  estimator.AddLinks(&bundle);
  return bundle;
}

}  // namespace tidepool::plan
