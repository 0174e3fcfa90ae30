// The text that Prometheus scrapes: what this process counts itself, and the state of serving and of the page pool at this
// moment.
#pragma once

#include <string>
#include <vector>

#include "pool/broker.h"
#include "serve/server.h"

namespace tidepool::api {

struct MetricsExportOptions {
  // Adds nv_inference_* counters for dashboards made for such servers. Those names do not pass `promtool check metrics`.
  bool triton_names = false;
};

// `brokers` by device, may be empty; of several, what they say has the label `device`. Names of our own pass `promtool check
// metrics`. Thread-safe.
std::string RenderMetrics(serve::Server* server, const std::vector<pool::Broker*>& brokers, const MetricsExportOptions& options);

}  // namespace tidepool::api
