// The load generator: drives a server that speaks the Open Inference Protocol over gRPC with a planned stream of requests.
//
// Open loop: each request is sent at its planned time whether or not earlier ones have been answered, and its latency counts from
// that planned time. A generator that is late, or that a slow server holds up, therefore cannot make the server look better than
// it is.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/options.h"
#include "base/status.h"

namespace tidepool::api {

enum class Arrivals : uint8_t {
  kConstant,  // evenly spaced, `rate` per second
  kPoisson,   // exponential gaps, `rate` per second on average
  kBursty,    // Poisson whose rate switches between `rate` and `burst_rate`; the time in each state is exponential
  kTrace,     // `trace_file`: one "seconds,model" row per request
};
std::string_view Name(Arrivals arrivals);
StatusOr<Arrivals> ParseArrivals(std::string_view text);

struct LoadOptions {
  std::string target = "127.0.0.1:8001";  // host:port of the gRPC API
  std::vector<std::string> models;        // {"all"}, or empty: every model the server lists as servable
  Arrivals arrivals = Arrivals::kPoisson;
  double rate = 20;                                // requests per second, over all models
  double burst_rate = 100;                         // kBursty: requests per second during a burst
  absl::Duration calm_length = absl::Seconds(4);   // kBursty: mean time between bursts
  absl::Duration burst_length = absl::Seconds(1);  // kBursty: mean length of a burst
  double zipf = 0;  // model k (from 1, in the order of `models`) gets a share of 1/k^zipf; 0: all equal
  std::string trace_file;
  absl::Duration length = absl::Seconds(10);  // requests are planned in [0, length); the answers may come later
  uint64_t seed = 1;
  int batch = 1;       // samples per request
  absl::Duration slo;  // zero: slo_factor x solo latency of each model
  double slo_factor = 4;
  // Measure each model's latency alone before the load starts. Without it, what the server publishes of its models is taken, and
  // a model of which it publishes nothing is measured.
  bool measure_solo = false;
  absl::Duration timeout = absl::Seconds(10);  // of one request; an unanswered one counts as DEADLINE_EXCEEDED
  int max_outstanding = 1024;                  // requests beyond this are not sent: they count as dropped, and as outside the SLO
  absl::Duration connect_limit = absl::Seconds(10);
  int64_t max_message_bytes = int64_t{64} << 20;
  Clock* clock = Clock::Real();

  // Section [load]. The target and the lists belong to the verb's own flags as well.
  void Register(OptionTable* table);
  // Reports all faults at once.
  Status Validate() const;
};

// Exact: from all samples, not from buckets. Zero where there was none.
struct LatencySummary {
  int64_t count = 0;
  absl::Duration mean, p50, p90, p95, p99, p999, max;
};

// planned = succeeded + errors + dropped, once the run has ended and was not stopped early.
struct LoadGroup {
  std::string model;  // empty: all together
  int64_t planned = 0, sent = 0, succeeded = 0, errors = 0, dropped = 0;
  std::map<std::string, int64_t> errors_by_code;       // "RESOURCE_EXHAUSTED" -> count
  std::map<std::string, std::string> example_by_code;  // one error text for each code
  LatencySummary latency;                              // of the requests that succeeded
  absl::Duration solo, slo;                            // zero for the group of all
  std::string slo_source;                              // "given", "server", "measured"
  int64_t within_slo = 0;
  double slo_attainment = 0;  // within_slo / planned; 0 when nothing was planned
};

// Requests are counted in the second for which they were planned.
struct LoadSecond {
  int second = 0;
  int64_t planned = 0, succeeded = 0, errors = 0, dropped = 0, within_slo = 0;
  absl::Duration p50, p99, max;
};

struct LoadSample {
  absl::Duration planned;  // since the start of the load
  absl::Duration latency;  // from `planned` to the answer
  uint32_t model = 0;      // index into LoadResult::models
  StatusCode code = StatusCode::kOk;
  bool dropped = false;
  bool within_slo = false;
};

struct LoadResult {
  absl::Time start;        // on options.clock
  absl::Duration elapsed;  // until the last answer
  LoadGroup overall;
  std::vector<LoadGroup> models;
  std::vector<LoadSecond> seconds;
  std::vector<LoadSample> samples;  // in planned order
  LatencySummary send_lag;          // how late requests were sent after their planned time
  bool kept_up = true;  // false: the generator itself was late (p99 of send_lag above 10 ms), so latencies hold its own delay too
  bool stopped = false;                        // `stop` ended it early; what was not sent is not counted as planned
  double offered_rate = 0, achieved_rate = 0;  // requests planned, and answered, per second
};

struct LoadProgress {
  absl::Duration elapsed, length;
  int64_t planned_total = 0;  // over the whole run
  int64_t due = 0, sent = 0, succeeded = 0, errors = 0, dropped = 0, outstanding = 0, within_slo = 0;
  absl::Duration last_p50, last_p99;  // of the answers since the previous report
  double last_rate = 0;               // answers per second since the previous report
  bool measuring = false;             // still measuring solo latencies; the counts are zero
  std::string model;                  // the one being measured
};

// Blocks until every planned request has been answered, has failed or was dropped, or until `stop` says so (asked at least every
// 50 ms). `progress`, if given, is called about four times a second on the calling thread. Errors of single requests are results,
// not errors of the call: UNAVAILABLE if the server cannot be reached at all, NOT_FOUND for a model it does not have,
// INVALID_ARGUMENT for options.
StatusOr<LoadResult> RunLoad(const LoadOptions& options, const std::function<void(const LoadProgress&)>& progress = {},
                             const std::function<bool()>& stop = {});

// One JSON object: options, overall, models, seconds, send lag. `with_samples` adds every request as [planned_s, latency_ms,
// model, code].
std::string ToJson(const LoadOptions& options, const LoadResult& result, bool with_samples = false);
// A table for people.
std::string ToText(const LoadResult& result);

}  // namespace tidepool::api
