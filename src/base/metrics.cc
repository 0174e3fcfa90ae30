#include "base/metrics.h"

#include <absl/synchronization/mutex.h>
#include <prometheus/text_serializer.h>

#include <list>
#include <sstream>
#include <utility>

#include "base/status.h"

namespace tidepool {

const std::vector<double>& LatencyBuckets() {
  static const std::vector<double> buckets = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                              0.1,    0.25,    0.5,    1,     2.5,    5,     10,   30};
  return buckets;
}

struct Metrics::State {
  prometheus::Registry registry;
  // A collector runs under its own lock, so that dropping its handle waits for a call in progress and nothing runs afterwards.
  struct Collector {
    absl::Mutex mu;
    std::function<void()> collect ABSL_GUARDED_BY(mu);
  };
  absl::Mutex mu;
  std::list<std::shared_ptr<Collector>> collectors ABSL_GUARDED_BY(mu);

  // prometheus-cpp reports a wrong name, or one name with two types, by an exception: both are our own bugs.
  template <typename Make>
  static auto& Checked(const std::string& name, const Make& make) {
    try {
      return make();
    } catch (const std::exception& error) {
      TIDEPOOL_CHECK(false, "metric '{}': {}", name, error.what());
      std::abort();
    }
  }
};

Metrics::Metrics() : state_(std::make_shared<State>()) {}

Metrics& Metrics::Default() {
  static Metrics* metrics = new Metrics;
  return *metrics;
}

prometheus::Counter& Metrics::Counter(const std::string& name, const std::string& help, const MetricLabels& labels) {
  return State::Checked(name, [&]() -> prometheus::Counter& {
    return prometheus::BuildCounter().Name(name).Help(help).Register(state_->registry).Add(labels);
  });
}

prometheus::Gauge& Metrics::Gauge(const std::string& name, const std::string& help, const MetricLabels& labels) {
  return State::Checked(name, [&]() -> prometheus::Gauge& {
    return prometheus::BuildGauge().Name(name).Help(help).Register(state_->registry).Add(labels);
  });
}

prometheus::Histogram& Metrics::Histogram(const std::string& name, const std::string& help, const MetricLabels& labels,
                                          const std::vector<double>& buckets) {
  return State::Checked(name, [&]() -> prometheus::Histogram& {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(state_->registry).Add(labels, buckets);
  });
}

std::shared_ptr<void> Metrics::AddCollector(std::function<void()> collect) {
  auto collector = std::make_shared<State::Collector>();
  {
    absl::MutexLock lock(&collector->mu);
    collector->collect = std::move(collect);
  }
  {
    absl::MutexLock lock(&state_->mu);
    state_->collectors.push_back(collector);
  }
  return std::shared_ptr<void>(collector.get(), [collector, state = state_](void*) {
    {
      absl::MutexLock lock(&state->mu);
      state->collectors.remove(collector);
    }
    absl::MutexLock lock(&collector->mu);
    collector->collect = nullptr;
  });
}

std::string Metrics::Render() {
  std::vector<std::shared_ptr<State::Collector>> collectors;
  {
    absl::MutexLock lock(&state_->mu);
    collectors.assign(state_->collectors.begin(), state_->collectors.end());
  }
  for (const auto& collector : collectors) {
    absl::MutexLock lock(&collector->mu);
    if (collector->collect) collector->collect();
  }
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, state_->registry.Collect());
  return out.str();
}

}  // namespace tidepool
