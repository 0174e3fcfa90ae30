// The text that Prometheus scrapes: what this process counts itself, and the state of serving and of the page pool at this
// moment.
#pragma once

#include <string>

#include "pool/broker.h"
#include "serve/server.h"

namespace tidepool::api {

struct MetricsExportOptions {
  // Adds nv_inference_* counters for dashboards made for such servers. Those names do not pass `promtool check metrics`.
  bool triton_names = false;
};

// `broker` may be null. Names of our own pass `promtool check metrics`. Thread-safe.
std::string RenderMetrics(serve::Server* server, pool::Broker* broker, const MetricsExportOptions& options);

}  // namespace tidepool::api
