#include "data/stalls/workloads.h"

#include "base/text.h"
#include "profile/networks.h"

namespace tidepool::data::stalls {

const std::vector<Workload>& Workloads() {
  static const auto* workloads = new std::vector<Workload>{
      {"resnet50-a100", 400, 0.435, 114'660, 0, 0.90},        {"resnet50-h100", 400, 0.224, 114'660, 0, 0.90},
      {"unet3d-a100", 7, 0.636, 146'600'628, 0.466, 0.90},    {"unet3d-h100", 7, 0.323, 146'600'628, 0.466, 0.90},
      {"cosmoflow-a100", 1, 0.00551, 2'828'486, 0.025, 0.70}, {"cosmoflow-h100", 1, 0.00350, 2'828'486, 0.025, 0.70},
  };
  return *workloads;
}

StatusOr<Workload> FindWorkload(std::string_view name) {
  std::vector<std::string> names;
  for (const Workload& workload : Workloads()) {
    if (workload.name == name) return workload;
    names.emplace_back(workload.name);
  }
  return InvalidArgument("workload '{}'; allowed: {}", name, JoinText(names, ", "));
}

StatusOr<StepTimes> FindStepTimes(const profile::Lookup& lookup, const StepQuestion& question) {
  if (question.devices < 1 || question.batch < question.devices) {
    return InvalidArgument("a batch of {} on {} devices; needed: one device, and a sample for each", question.batch,
                           question.devices);
  }
  const int64_t part = (question.batch + question.devices - 1) / question.devices;
  TIDEPOOL_ASSIGN_OR_RETURN(
      const profile::OpTimes step,
      lookup.Find({.model = question.model, .phase = profile::Phase::kStep, .batch = part, .dtype = question.dtype}));
  const profile::TimeEstimate compute = step.At(part);
  StepTimes times{.compute_seconds = compute.median_us * 1e-6,
                  .estimated = compute.origin == profile::Origin::kEstimated,
                  .error = compute.error};
  times.source = fmt::format("{} step of {} on {}, batch {} a device ({})", question.model, SafetensorsName(question.dtype),
                             lookup.bundle().manifest.name, part, profile::NameOf(compute.origin));
  TIDEPOOL_ASSIGN_OR_RETURN(const profile::SizeTimes link, lookup.FindLink(profile::LinkKind::kHostToDevice));
  times.copy_seconds = link.At(question.sample_bytes * static_cast<double>(part)).median_us * 1e-6;
  const profile::KnownNetwork* network = profile::FindNetwork(question.model);
  if (question.devices > 1 && network != nullptr) {
    const auto reduce = lookup.FindCollective(profile::CollectiveKind::kAllReduce, question.devices, question.model);
    if (reduce.ok()) {
      times.compute_seconds += reduce->At(network->parameters * static_cast<double>(SizeOf(question.dtype))).median_us * 1e-6;
      times.source += fmt::format(", gradients reduced over {} devices", question.devices);
    } else {
      times.source += fmt::format(", {} devices without the time of reducing gradients", question.devices);
    }
  }
  return times;
}

}  // namespace tidepool::data::stalls
