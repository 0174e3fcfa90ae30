// What the searches find on the settings that the published search was measured on, beside what that search found there under the
// same cost model. Needs the reference data.
//   plan_aceso_bench KIND [BUDGET [THREADS [SETTING...]]]     KIND: aceso, grid, random, inter-intra
// One line of JSON per setting; search_s is wall time, search_cpu_s that of all threads; the peer's CPU seconds are as
// recorded with the data.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "plan/reference_problems.h"
#include "plan/search.h"

namespace {

using namespace tidepool;        // NOLINT
using namespace tidepool::plan;  // NOLINT

StatusOr<SearchResult> Find(const std::string& kind, const CostModel& model, const SearchRequest& request) {
  if (kind == "aceso") return SearchAceso(model, request);
  if (kind == "grid") return SearchGrid(model, request);
  if (kind == "random") return SearchRandom(model, request);
  if (kind == "inter-intra") return SearchInterIntra(model, request);
  return InvalidArgument("search '{}'; allowed: aceso, grid, random, inter-intra", kind);
}

void Print(const std::string& kind, const plan::testing::ReferenceProblem& problem, const SearchResult& result, double cpu_s) {
  const Plan& best = result.plans.front().plan;
  std::vector<int32_t> devices;
  for (const StagePtr& stage : best.stages) devices.push_back(stage->gpus());
  std::vector<std::string> by_stages;
  for (const RankedPlan& ranked : result.plans) {
    by_stages.push_back(fmt::format(R"("{}": {:.3f})", ranked.plan.stages.size(), ranked.cost.iteration_ms / 1000));
  }
  const double ours = result.best_ms() / 1000;
  fmt::print(
      R"({{"setting": "{}", "search": "{}", "iteration_s": {:.4f}, "published_s": {:.4f}, "change_percent": {:.3f}, )"
      R"("search_s": {:.3f}, "search_cpu_s": {:.3f}, "published_cpu_s_to_best": {:.2f}, "published_cpu_s": {:.1f}, "evaluations": {}, "micro_batch": {}, )"
      R"("devices": [{}], "published_grid_s": {:.3f}, "lower_bound_s": {:.3f}, "by_stages": {{{}}}}})"
      "\n",
      problem.name, kind, ours, problem.published_seconds,
      problem.published_seconds > 0 ? 100 * (ours / problem.published_seconds - 1) : 0.0, result.seconds, cpu_s,
      problem.published_found_cpu_s, problem.published_total_cpu_s, result.evaluations, best.micro_batch,
      fmt::join(devices, ", "), problem.grid_seconds, problem.lower_bound_seconds, fmt::join(by_stages, ", "));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const std::string kind = arguments.empty() ? "aceso" : arguments[0];
  std::vector<std::string> names(arguments.begin() + std::min<size_t>(3, arguments.size()), arguments.end());
  if (names.empty()) names = plan::testing::ReferenceProblemNames(TIDEPOOL_SOURCE_DIR);
  if (names.empty()) fmt::print(stderr, "no reference data; set TIDEPOOL_REFERENCE_DIR\n");
  bool good = true;
  for (const std::string& name : names) {
    const auto problem = plan::testing::LoadReferenceProblem(TIDEPOOL_SOURCE_DIR, name);
    Status status = problem.status();
    if (problem.ok()) {
      SearchRequest request = (*problem)->request;
      request.top_k = 5;
      if (arguments.size() > 1) request.budget = std::atoll(arguments[1].c_str());
      if (arguments.size() > 2) request.threads = std::atoi(arguments[2].c_str());
      const std::clock_t before = std::clock();  // of all threads
      const auto result = Find(kind, *(*problem)->model, request);
      status = result.status();
      if (result.ok()) Print(kind, **problem, *result, static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC);
    }
    if (!status.ok()) fmt::print(stderr, "{}: {}\n", name, ToString(status));
    good = good && status.ok();
  }
  return good ? 0 : 1;
}
