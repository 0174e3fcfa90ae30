#include "api/load/load.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <algorithm>
#include <utility>

#include "api/load/load_plan.h"
#include "api/load/load_stats.h"
#include "api/load/load_target.h"

namespace tidepool::api {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(250);
constexpr absl::Duration kStopInterval = absl::Milliseconds(50);
constexpr absl::Duration kLateLimit = absl::Milliseconds(10);

// Sends the plan and collects the answers. Send runs on the caller's thread, answers come on gRPC's.
class Sender {
 public:
  Sender(const LoadOptions& options, LoadTarget* target, std::vector<TargetModel>* models, std::vector<PlannedRequest> plan,
         const std::function<void(const LoadProgress&)>& progress, const std::function<bool()>& stop)
      : options_(options), target_(target), models_(models), plan_(std::move(plan)), progress_(progress), stop_(stop) {}

  void Run(LoadResult* result);

 private:
  struct Call {
    size_t index = 0;
    grpc::ClientContext context;
    inference::ModelInferResponse response;
  };

  bool Stopped() { return stopped_ = stopped_ || (stop_ && stop_()); }
  // Waits until `time`, reporting progress and asking `stop` meanwhile. False if stopped.
  bool WaitUntil(absl::Time time);
  void WaitForAnswers();
  void Send(size_t index);
  void OnAnswer(Call* call, const grpc::Status& status);
  void ReportIfDue(absl::Time now);

  const LoadOptions& options_;
  LoadTarget* const target_;
  std::vector<TargetModel>* const models_;
  const std::vector<PlannedRequest> plan_;
  const std::function<void(const LoadProgress&)>& progress_;
  const std::function<bool()>& stop_;
  absl::Time start_, next_report_, last_report_;
  bool stopped_ = false;
  size_t sent_to_ = 0;  // plan entries below this were sent or dropped
  std::vector<absl::Duration> lags_;

  absl::Mutex mu_;
  std::map<size_t, Call*> calls_ ABSL_GUARDED_BY(mu_);  // outstanding, by plan index
  std::vector<LoadSample> samples_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Duration> recent_ ABSL_GUARDED_BY(mu_);  // latencies since the last report
  std::map<std::pair<uint32_t, StatusCode>, std::string> examples_ ABSL_GUARDED_BY(mu_);
  LoadProgress counts_ ABSL_GUARDED_BY(mu_);
};

void Sender::Run(LoadResult* result) {
  {
    absl::MutexLock lock(&mu_);
    samples_.resize(plan_.size());
    for (size_t i = 0; i < plan_.size(); ++i) samples_[i] = {.planned = plan_[i].at, .model = plan_[i].model};
    counts_.length = options_.length;
    counts_.planned_total = static_cast<int64_t>(plan_.size());
  }
  lags_.reserve(plan_.size());
  start_ = options_.clock->Now();
  last_report_ = start_;
  next_report_ = start_ + kProgressInterval;
  for (size_t i = 0; i < plan_.size(); ++i) {
    if (!WaitUntil(start_ + plan_[i].at)) break;
    Send(i);
    sent_to_ = i + 1;
  }
  WaitForAnswers();
  ReportIfDue(absl::InfiniteFuture());

  absl::MutexLock lock(&mu_);
  result->start = start_;
  result->stopped = stopped_;
  // What a stop kept from being sent, or cut off, was not measured.
  for (size_t i = 0; i < sent_to_; ++i) {
    if (stopped_ && samples_[i].code == StatusCode::kCancelled) continue;
    result->samples.push_back(samples_[i]);
    result->elapsed = std::max(result->elapsed, samples_[i].planned + samples_[i].latency);
  }
  for (const auto& [key, text] : examples_) {
    result->models[key.first].example_by_code.emplace(CodeName(key.second), text);
    result->overall.example_by_code.emplace(CodeName(key.second), text);
  }
  result->send_lag = Summarize(lags_);
  result->kept_up = result->send_lag.p99 <= kLateLimit;
}

bool Sender::WaitUntil(absl::Time time) {
  while (true) {
    const absl::Time now = options_.clock->Now();
    ReportIfDue(now);
    if (Stopped()) return false;
    if (now >= time) return true;
    options_.clock->SleepUntil(std::min({time, now + kStopInterval, next_report_}));
  }
}

void Sender::WaitForAnswers() {
  const auto quiet = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return calls_.empty(); };
  bool cancelled = false;
  // Every call has a deadline, so this ends.
  while (true) {
    const bool stop = Stopped();
    absl::Time now = options_.clock->Now();
    {
      absl::MutexLock lock(&mu_);
      if (stop && !std::exchange(cancelled, true)) {
        for (const auto& [index, call] : calls_) call->context.TryCancel();
      }
      if (options_.clock->Await(&mu_, quiet, now + kStopInterval)) return;
    }
    ReportIfDue(options_.clock->Now());
  }
}

void Sender::Send(size_t index) {
  const PlannedRequest& planned = plan_[index];
  Call* call = nullptr;
  {
    absl::MutexLock lock(&mu_);
    if (static_cast<int>(calls_.size()) >= options_.max_outstanding) {
      samples_[index].dropped = true;
      samples_[index].code = StatusCode::kResourceExhausted;
      ++counts_.dropped;
      return;
    }
    ++counts_.sent;
    call = calls_[index] = new Call;
  }
  call->index = index;
  const absl::Duration lag = options_.clock->Now() - (start_ + planned.at);
  lags_.push_back(lag);
  call->context.set_deadline(GrpcDeadline(std::max(options_.timeout - lag, absl::Milliseconds(1))));
  target_->stub()->async()->ModelInfer(&call->context, &(*models_)[planned.model].request, &call->response,
                                       [this, call](const grpc::Status& status) { OnAnswer(call, status); });
}

void Sender::OnAnswer(Call* call, const grpc::Status& status) {
  const absl::Time now = options_.clock->Now();
  absl::MutexLock lock(&mu_);
  LoadSample& sample = samples_[call->index];
  sample.latency = now - (start_ + sample.planned);
  sample.code = static_cast<StatusCode>(status.error_code());
  if (status.ok()) {
    ++counts_.succeeded;
    recent_.push_back(sample.latency);
    if (sample.latency <= (*models_)[sample.model].slo) ++counts_.within_slo;
  } else {
    ++counts_.errors;
    examples_.emplace(std::pair(sample.model, sample.code), status.error_message());
  }
  calls_.erase(call->index);
  delete call;
}

void Sender::ReportIfDue(absl::Time now) {
  const bool last = now == absl::InfiniteFuture();
  if (now < next_report_ || !progress_) return;
  if (last) now = options_.clock->Now();
  LoadProgress report;
  std::vector<absl::Duration> recent;
  {
    absl::MutexLock lock(&mu_);
    report = counts_;
    report.outstanding = static_cast<int64_t>(calls_.size());
    recent.swap(recent_);
  }
  report.elapsed = now - start_;
  const auto due =
      std::partition_point(plan_.begin(), plan_.end(), [&](const PlannedRequest& p) { return p.at <= report.elapsed; });
  report.due = due - plan_.begin();
  const absl::Duration span = now - last_report_;
  if (span > absl::ZeroDuration()) report.last_rate = static_cast<double>(recent.size()) / absl::ToDoubleSeconds(span);
  const LatencySummary summary = Summarize(std::move(recent));
  report.last_p50 = summary.p50;
  report.last_p99 = summary.p99;
  last_report_ = now;
  next_report_ = now + kProgressInterval;
  progress_(report);
}

// Each model's objective, and where it comes from.
Status SetObjectives(const LoadOptions& options, LoadTarget* target, const std::function<void(const LoadProgress&)>& progress,
                     const std::function<bool()>& stop, std::vector<TargetModel>* models, LoadResult* result) {
  for (TargetModel& model : *models) {
    LoadGroup group{.model = model.name};
    const bool given = options.slo > absl::ZeroDuration();
    const bool published = model.slo > absl::ZeroDuration() || model.solo > absl::ZeroDuration();
    if (options.measure_solo || (!given && !published)) {
      if (progress) progress({.length = options.length, .measuring = true, .model = model.name});
      TIDEPOOL_ASSIGN_OR_RETURN(model.solo, target->MeasureSolo(model, stop));
      model.slo = model.solo * options.slo_factor;
      group.slo_source = "measured";
    } else if (model.slo == absl::ZeroDuration()) {
      model.slo = model.solo * options.slo_factor;
      group.slo_source = "server";
    } else {
      group.slo_source = "server";
    }
    if (given) {
      model.slo = options.slo;
      group.slo_source = "given";
    }
    group.solo = model.solo;
    group.slo = model.slo;
    result->models.push_back(std::move(group));
  }
  return absl::OkStatus();
}

}  // namespace

StatusOr<LoadResult> RunLoad(const LoadOptions& options, const std::function<void(const LoadProgress&)>& progress,
                             const std::function<bool()>& stop) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  TIDEPOOL_ASSIGN_OR_RETURN(const std::unique_ptr<LoadTarget> target, LoadTarget::Connect(options));
  TIDEPOOL_ASSIGN_OR_RETURN(std::vector<TargetModel> models, target->Models());
  std::vector<std::string> names;
  for (const TargetModel& model : models) names.push_back(model.name);
  TIDEPOOL_ASSIGN_OR_RETURN(std::vector<PlannedRequest> plan, MakePlan(options, names));
  LoadResult result;
  TIDEPOOL_RETURN_IF_ERROR(SetObjectives(options, target.get(), progress, stop, &models, &result));
  Sender sender(options, target.get(), &models, std::move(plan), progress, stop);
  sender.Run(&result);
  Aggregate(&result);
  const double offered_for = absl::ToDoubleSeconds(result.stopped ? std::min(options.length, result.elapsed) : options.length);
  if (offered_for > 0) result.offered_rate = static_cast<double>(result.overall.planned) / offered_for;
  const double answered_for = std::max(offered_for, absl::ToDoubleSeconds(result.elapsed));
  if (answered_for > 0) result.achieved_rate = static_cast<double>(result.overall.succeeded) / answered_for;
  return result;
}

}  // namespace tidepool::api
