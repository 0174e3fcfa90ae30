#include <algorithm>

#include "api/load/load.h"
#include "base/json.h"

namespace tidepool::api {
namespace {

using Json = nlohmann::ordered_json;

double Millis(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

Json LatencyJson(const LatencySummary& summary) {
  return {{"mean_ms", Millis(summary.mean)}, {"p50_ms", Millis(summary.p50)}, {"p90_ms", Millis(summary.p90)},
          {"p95_ms", Millis(summary.p95)},   {"p99_ms", Millis(summary.p99)}, {"p99_9_ms", Millis(summary.p999)},
          {"max_ms", Millis(summary.max)}};
}

Json GroupJson(const LoadGroup& group) {
  Json json;
  if (!group.model.empty()) json["model"] = group.model;
  json["requests"] = group.planned;
  json["sent"] = group.sent;
  json["succeeded"] = group.succeeded;
  json["errors"] = group.errors;
  json["dropped"] = group.dropped;
  json["within_slo"] = group.within_slo;
  json["slo_attainment"] = group.slo_attainment;
  if (!group.model.empty()) {
    json["slo_ms"] = Millis(group.slo);
    json["slo_source"] = group.slo_source;
    json["solo_ms"] = Millis(group.solo);
  }
  json.update(LatencyJson(group.latency));
  json["errors_by_code"] = Json::object();
  for (const auto& [code, count] : group.errors_by_code) {
    const auto example = group.example_by_code.find(code);
    json["errors_by_code"][code] = {{"count", count}, {"example", example == group.example_by_code.end() ? "" : example->second}};
  }
  return json;
}

std::string Row(const LoadGroup& group, size_t name_width) {
  const auto ms = [](absl::Duration duration) { return fmt::format("{:.2f}", Millis(duration)); };
  return fmt::format("{:<{}}  {:>8}  {:>7}  {:>7}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>7.2f}%\n",
                     group.model.empty() ? "all" : group.model, name_width, group.planned, group.errors, group.dropped,
                     ms(group.latency.p50), ms(group.latency.p90), ms(group.latency.p99), ms(group.latency.p999),
                     group.model.empty() ? "" : ms(group.slo), 100 * group.slo_attainment);
}

}  // namespace

std::string ToJson(const LoadOptions& options, const LoadResult& result, bool with_samples) {
  Json json;
  json["options"] = {{"target", options.target},
                     {"arrivals", Name(options.arrivals)},
                     {"rate", options.rate},
                     {"burst_rate", options.burst_rate},
                     {"calm_length_s", absl::ToDoubleSeconds(options.calm_length)},
                     {"burst_length_s", absl::ToDoubleSeconds(options.burst_length)},
                     {"zipf", options.zipf},
                     {"trace_file", options.trace_file},
                     {"seconds", absl::ToDoubleSeconds(options.length)},
                     {"seed", options.seed},
                     {"batch", options.batch},
                     {"slo_factor", options.slo_factor},
                     {"timeout_s", absl::ToDoubleSeconds(options.timeout)},
                     {"max_outstanding", options.max_outstanding}};
  json["elapsed_s"] = absl::ToDoubleSeconds(result.elapsed);
  json["offered_rate"] = result.offered_rate;
  json["achieved_rate"] = result.achieved_rate;
  json["kept_up"] = result.kept_up;
  json["stopped"] = result.stopped;
  json["send_lag"] = LatencyJson(result.send_lag);
  json["overall"] = GroupJson(result.overall);
  json["models"] = Json::array();
  for (const LoadGroup& group : result.models) json["models"].push_back(GroupJson(group));
  json["seconds"] = Json::array();
  for (const LoadSecond& second : result.seconds) {
    json["seconds"].push_back({{"second", second.second},
                               {"requests", second.planned},
                               {"succeeded", second.succeeded},
                               {"errors", second.errors},
                               {"dropped", second.dropped},
                               {"within_slo", second.within_slo},
                               {"p50_ms", Millis(second.p50)},
                               {"p99_ms", Millis(second.p99)},
                               {"max_ms", Millis(second.max)}});
  }
  if (with_samples) {
    json["samples"] = Json::array();
    for (const LoadSample& sample : result.samples) {
      json["samples"].push_back({absl::ToDoubleSeconds(sample.planned), Millis(sample.latency), result.models[sample.model].model,
                                 sample.dropped ? "DROPPED" : CodeName(sample.code)});
    }
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string ToText(const LoadResult& result) {
  size_t width = 5;
  for (const LoadGroup& group : result.models) width = std::max(width, group.model.size());
  std::string out = fmt::format("{:<{}}  {:>8}  {:>7}  {:>7}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>8}\n", "model", width,
                                "requests", "errors", "dropped", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "SLO ms", "in SLO");
  for (const LoadGroup& group : result.models) out += Row(group, width);
  out += Row(result.overall, width);
  out += fmt::format("\n{:.1f} requests/s offered, {:.1f} answered/s, over {:.1f} s", result.offered_rate, result.achieved_rate,
                     absl::ToDoubleSeconds(result.elapsed));
  out += result.stopped ? "; stopped early\n" : "\n";
  for (const auto& [code, count] : result.overall.errors_by_code) {
    const auto example = result.overall.example_by_code.find(code);
    out += fmt::format("{} x {}: {}\n", count, code, example == result.overall.example_by_code.end() ? "" : example->second);
  }
  if (!result.kept_up) {
    out += fmt::format("The generator was late itself (p99 {:.1f} ms): the latencies hold its own delay too.\n",
                       Millis(result.send_lag.p99));
  }
  return out;
}

}  // namespace tidepool::api
