// Metrics of this process, on prometheus-cpp. Names pass `promtool check metrics`: counters end in _total, units are spelt out.
//
//   Metrics::Default().Counter("tidepool_requests_total", "Requests by outcome", {{"model", m}, {"outcome", "ok"}}).Increment();
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace tidepool {

using MetricLabels = std::map<std::string, std::string>;

// Bucket bounds in seconds, 100 us to 30 s.
const std::vector<double>& LatencyBuckets();

// Thread-safe.
class Metrics {
 public:
  static Metrics& Default();

  prometheus::Counter& Counter(const std::string& name, const std::string& help, const MetricLabels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help, const MetricLabels& labels = {});
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help, const MetricLabels& labels = {},
                                   const std::vector<double>& buckets = LatencyBuckets());
  // Called before each Render, to set gauges from state that is kept elsewhere. Removed when the returned handle is destroyed.
  std::shared_ptr<void> AddCollector(std::function<void()> collect);
  // The Prometheus text format.
  std::string Render();

 private:
  Metrics();
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace tidepool
