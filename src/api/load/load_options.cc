#include <charconv>
#include <cmath>

#include "api/load/load.h"
#include "base/text.h"
#include "base/units.h"

namespace tidepool::api {
namespace {

// "30" or "30s", "5m".
StatusOr<absl::Duration> ParseSeconds(std::string_view text) {
  double seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error == std::errc() && end == text.data() + text.size() && std::isfinite(seconds) && seconds >= 0)
    return absl::Seconds(seconds);
  return ParseDuration(text);
}

}  // namespace

std::string_view Name(Arrivals arrivals) {
  switch (arrivals) {
    case Arrivals::kConstant: return "constant";
    case Arrivals::kPoisson: return "poisson";
    case Arrivals::kBursty: return "bursty";
    case Arrivals::kTrace: return "trace";
  }
  return "?";
}

StatusOr<Arrivals> ParseArrivals(std::string_view text) {
  for (const Arrivals arrivals : {Arrivals::kConstant, Arrivals::kPoisson, Arrivals::kBursty, Arrivals::kTrace}) {
    if (Name(arrivals) == text) return arrivals;
  }
  return InvalidArgument("arrivals '{}' are not known; allowed: constant, poisson, bursty, trace", text);
}

void LoadOptions::Register(OptionTable* table) {
  table->Add({.key = "load.target", .help = "gRPC API under load", .metavar = "HOST:PORT"}, &target);
  table->Add({.key = "load.models", .help = "Models to ask; 'all' asks all that can be served", .metavar = "A,B"}, &models);
  table->AddCustom(
      {.key = "load.arrivals", .help = "constant, poisson, bursty or trace", .metavar = "KIND"}, "string",
      [this](std::string_view text) -> Status {
        TIDEPOOL_ASSIGN_OR_RETURN(arrivals, ParseArrivals(text));
        return absl::OkStatus();
      },
      [this] { return std::string(Name(arrivals)); });
  table->Add({.key = "load.rate", .help = "Requests per second, between bursts"}, &rate);
  table->Add({.key = "load.burst_rate", .help = "Requests per second during a burst"}, &burst_rate);
  table->Add({.key = "load.calm_length", .help = "Mean time between bursts"}, &calm_length);
  table->Add({.key = "load.burst_length", .help = "Mean length of a burst"}, &burst_length);
  table->Add({.key = "load.zipf", .help = "Exponent of the models' popularity; 0: all equal"}, &zipf);
  table->Add(
      {.key = "load.trace_file", .flag = "trace", .help = "File of seconds,model rows, for arrivals trace", .metavar = "FILE"},
      &trace_file);
  table->AddCustom(
      {.key = "load.seconds", .help = "Length of the load, in seconds or as a duration", .metavar = "N"}, "duration",
      [this](std::string_view text) -> Status {
        TIDEPOOL_ASSIGN_OR_RETURN(length, ParseSeconds(text));
        return absl::OkStatus();
      },
      [this] { return fmt::format("{}s", absl::ToDoubleSeconds(length)); });
  table->Add({.key = "load.seed", .help = "The same seed gives the same load"}, &seed);
  table->Add({.key = "load.batch", .help = "Samples per request"}, &batch);
  table->Add({.key = "load.slo", .help = "Latency objective of every model; 0: slo_factor times its latency alone"}, &slo);
  table->Add({.key = "load.slo_factor", .help = "Objective as a multiple of the latency alone", .advanced = true}, &slo_factor);
  table->Add({.key = "load.measure_solo", .help = "Measure each model's latency alone first", .advanced = true}, &measure_solo);
  table->Add({.key = "load.timeout", .help = "Limit of one request", .advanced = true}, &timeout);
  table->Add({.key = "load.max_outstanding", .help = "Unanswered requests beyond which new ones are dropped", .advanced = true},
             &max_outstanding);
}

Status LoadOptions::Validate() const {
  std::vector<std::string> faults;
  const auto rate_fault = [&](const char* name, double value, bool may_be_zero) {
    if (!std::isfinite(value) || value < 0 || (value == 0 && !may_be_zero) || value > 1e6) {
      faults.push_back(fmt::format("{} is {}; allowed: {} to 1000000", name, value, may_be_zero ? "0" : "above 0"));
    }
  };
  const auto time_fault = [&](const char* name, absl::Duration value) {
    if (value <= absl::ZeroDuration() || value > absl::Hours(24)) {
      faults.push_back(fmt::format("{} is {}; allowed: above 0, at most 24h", name, tidepool::FormatDuration(value)));
    }
  };
  if (target.find(':') == std::string::npos) faults.push_back(fmt::format("target is '{}'; allowed: host:port", target));
  if (arrivals != Arrivals::kTrace) rate_fault("rate", rate, arrivals == Arrivals::kBursty);
  if (arrivals == Arrivals::kBursty) {
    rate_fault("burst_rate", burst_rate, false);
    time_fault("calm_length", calm_length);
    time_fault("burst_length", burst_length);
  }
  if (arrivals == Arrivals::kTrace && trace_file.empty()) faults.push_back("arrivals are 'trace', but trace_file is not given");
  if (!std::isfinite(zipf) || zipf < 0 || zipf > 10) faults.push_back(fmt::format("zipf is {}; allowed: 0 to 10", zipf));
  time_fault("seconds", length);
  time_fault("timeout", timeout);
  time_fault("connect_limit", connect_limit);
  if (slo < absl::ZeroDuration()) faults.push_back("slo is negative; allowed: 0 and above");
  if (!std::isfinite(slo_factor) || slo_factor <= 0)
    faults.push_back(fmt::format("slo_factor is {}; allowed: above 0", slo_factor));
  if (batch < 1 || batch > 65536) faults.push_back(fmt::format("batch is {}; allowed: 1 to 65536", batch));
  if (max_outstanding < 1 || max_outstanding > 1 << 20) {
    faults.push_back(fmt::format("max_outstanding is {}; allowed: 1 to {}", max_outstanding, 1 << 20));
  }
  if (max_message_bytes < 1024 || max_message_bytes > int64_t{1} << 30) {
    faults.push_back(fmt::format("max_message_bytes is {}; allowed: 1024 to 2^30", max_message_bytes));
  }
  if (faults.empty()) return absl::OkStatus();
  return InvalidArgument("load: {}", JoinText(faults, "; "));
}

}  // namespace tidepool::api
