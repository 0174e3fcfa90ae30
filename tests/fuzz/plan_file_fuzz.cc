#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "fuzz/check.h"
#include "plan/calibrated_cost_model.h"
#include "plan/estimate.h"
#include "plan/plan_json.h"
#include "plan/verify.h"
#include "profile/builtin.h"

namespace tidepool {
namespace {

// A small network on one node of eight devices, with estimated times.
struct Problem {
  plan::OpList ops;
  plan::ProfileTable table;
  plan::Cluster cluster{.nodes = 1, .gpus_per_node = 8, .memory_limit_mib = 80000};
};

std::unique_ptr<Problem> MakeProblem() {
  auto ops = plan::PublishedOpList("gpt-layers:1");
  const auto bundle = plan::EstimateBundle(*ops, profile::FindBuiltin("h100")->manifest.hardware);
  fuzz::Check(bundle.ok(), "the network has estimates: " + ToString(bundle.status()));
  auto table = plan::ProfileTable::Build(*bundle, *ops);
  fuzz::Check(table.ok(), "the estimates make a table: " + ToString(table.status()));
  return std::make_unique<Problem>(Problem{std::move(*ops), std::move(*table)});
}

// Verbs verify and price what they read.
void CheckPrice(const plan::PlanFile& file) {
  static const std::unique_ptr<Problem> problem = MakeProblem();
  const auto model = plan::MakeCalibratedModel(problem->ops, problem->table, problem->cluster, {},
                                               file.cost_options.value_or(plan::CalibratedOptions{}));
  fuzz::Check(model.ok(), "options that were accepted make a model: " + ToString(model.status()));
  const plan::VerifyOptions lenient{.allow_idle_gpus = true, .allow_dropped_samples = true, .check_skips = false};
  if (!plan::FindFaults(**model, file.plan, lenient).empty()) return;
  const auto cost = (*model)->Price(file.plan);
  fuzz::Check(cost.ok() && !std::isnan(cost->iteration_ms) && cost->iteration_ms >= 0, "a valid plan has a price");
  const auto again = plan::ParsePlan(plan::FormatPlan(file, problem->ops), "again.json");
  fuzz::Check(again.ok() && again->plan.Key() == file.plan.Key() && again->plan.global_batch == file.plan.global_batch,
              "a plan is read back as it was written: " + ToString(again.status()));
}

}  // namespace
}  // namespace tidepool

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tidepool;
  const auto file = plan::ParsePlan(fuzz::TextOf(data, size), "fuzz.json");
  if (!file.ok()) {
    fuzz::CheckRefusal(file.status(), "fuzz.json");
    return 0;
  }
  const plan::Plan& plan = file->plan;
  fuzz::Check(!plan.stages.empty() && plan.micro_batch >= 1 && plan.micro_batches() >= 1, "a plan has stages and micro-batches");
  fuzz::Check(plan.gpus() >= static_cast<int32_t>(plan.stages.size()), "every stage has a device");
  if (file->schema == 0) (void)plan::PublishedOpListOf(*file);
  CheckPrice(*file);
  return 0;
}
