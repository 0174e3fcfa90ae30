#include "api/status_page.h"

#include <fmt/ranges.h>

#include "base/units.h"

namespace tidepool::api {
namespace {

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out.push_back(c);
    }
  }
  return out;
}

std::string ModelRow(const serve::ModelStatus& model) {
  const std::string state = model.servable ? std::string(serve::Name(model.state)) : "cannot be served: " + model.reason;
  const auto optional = [](absl::Duration duration) {
    return duration > absl::ZeroDuration() ? tidepool::FormatDuration(duration) : "-";
  };
  std::string resident = FormatBytes(model.resident_bytes);
  if (!model.devices.empty()) resident += fmt::format(" on {}", fmt::join(model.devices, ", "));
  return fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                     Escape(model.name), Escape(model.spec), Escape(state), resident, model.requests, model.failures,
                     optional(model.solo_latency), optional(model.slo));
}

std::string PoolTable(const pool::PoolStats& stats, const std::string& title) {
  const auto bytes = [&](int64_t pages) { return FormatBytes(pages * stats.page_bytes); };
  std::string out = fmt::format(
      "<h2>{}</h2>\n<p>{} in all: {} free, {} granted, {} returning, {} dirty; {} violations.</p>\n"
      "<table><tr><th>tenant</th><th>class</th><th>holds</th><th>guaranteed</th><th>limit</th></tr>\n",
      title, bytes(stats.total), bytes(stats.free), bytes(stats.granted), bytes(stats.returning), bytes(stats.dirty),
      stats.violations);
  for (const pool::LeaseStats& lease : stats.leases) {
    out += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n", Escape(lease.name),
                       pool::Name(lease.lease_class), bytes(lease.held_pages), bytes(lease.guaranteed_pages),
                       bytes(lease.limit_pages));
  }
  return out + "</table>\n";
}

}  // namespace

std::string RenderStatusPage(FrontEnd* front_end) {
  std::string page = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Tidepool</title>\n"
      "<style>body{{font:15px system-ui,sans-serif;margin:2em}}td,th{{text-align:left;padding:.2em 1em .2em 0}}</style>\n"
      "<h1>Tidepool {}</h1>\n<p>{}. <a href=\"/metrics\">Metrics</a>, <a href=\"/v2/models/stats\">statistics</a>.</p>\n"
      "<h2>Models</h2>\n<table><tr><th>name</th><th>network</th><th>state</th><th>resident</th><th>requests</th><th>failed</th>"
      "<th>alone</th><th>objective</th></tr>\n",
      kServerVersion, front_end->Ready() ? "Ready" : "Not ready");
  for (const serve::ModelStatus& model : front_end->server().Models()) page += ModelRow(model);
  page += "</table>\n";
  const std::vector<pool::Broker*>& brokers = front_end->brokers();
  for (size_t i = 0; i < brokers.size(); ++i) {
    page += PoolTable(brokers[i]->Stats(), brokers.size() > 1 ? fmt::format("Memory of device {}", i) : "Device memory");
  }
  return page + "</html>\n";
}

}  // namespace tidepool::api
