#include "train/trainer.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "base/log.h"
#include "base/units.h"
#include "data/augment.h"
#include "device/emulated/emulated_device.h"
#include "train/journal.h"
#include "train/micro_batch_policy.h"
#include "train/session.h"

namespace tidepool::train {
namespace {

using engine::MicroBatch;
using engine::MicroBatchResult;

constexpr uint64_t kDropoutStream = 0x64726f706f7574;
constexpr absl::Duration kDataTimeout = absl::Minutes(5);           // for the samples of one micro-batch
constexpr absl::Duration kExhaustedPause = absl::Milliseconds(20);  // doubles up to kLongestPause
constexpr absl::Duration kLongestPause = absl::Seconds(2);
constexpr int kMostExhausted = 8;      // of single samples in a row with the whole burst allowed
constexpr int64_t kGuaranteeStep = 2;  // pages
// The size that the broker is told as preferred makes this share of the highest speed.
constexpr double kPreferredSpeed = 0.9;
constexpr int64_t kPreferenceEvery = 8;  // micro-batches

// Sizes of one kind of micro-batch: training or evaluation.
struct Sizing {
  MicroBatchPolicy policy;
  DurationModel durations;
  AbortRate abort_rate;
  int64_t last_batch = 0;
  int exhausted_in_a_row = 0;
};

// Cuts samples into rounds of one micro-batch per device, so that no device is without work: at a round's beginning each device's
// share is an equal part of what is left.
class Rounds {
 public:
  explicit Rounds(int64_t devices) : devices_(devices) {}
  // How many of the `left` samples the next micro-batch is cut from, after `done` of them.
  int64_t Share(int64_t done, int64_t left) {
    if (done % devices_ == 0) share_ = CeilDiv(left, devices_);
    return std::min(share_, left);
  }

 private:
  const int64_t devices_;
  int64_t share_ = 0;
};

// The samples of one micro-batch in ordinary memory, reused. Reading data never waits for the pool, nor the pool for data.
struct Staging {
  std::vector<std::byte> inputs, targets;
};

struct Totals {
  double loss_sum = 0;
  int64_t loss_count = 0, correct = 0;
  void Add(const MicroBatchResult& result) {
    loss_sum += result.loss_sum;
    loss_count += result.loss_count;
    correct += result.correct;
  }
  double loss() const { return loss_count == 0 ? 0 : loss_sum / static_cast<double>(loss_count); }
  double accuracy() const { return loss_count == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(loss_count); }
};

bool IsShortage(const Status& status) {
  return status.code() == StatusCode::kResourceExhausted || status.code() == StatusCode::kDeadlineExceeded;
}

class Trainer {
 public:
  Trainer(const TrainOptions& options, const ProgressSink& sink, StopToken* stop, const TrainerHooks& hooks)
      : options_(options), sink_(sink), stop_(stop), hooks_(hooks), clock_(hooks.clock) {}

  Status Run();

 private:
  // One attempt at a micro-batch; `start` and `commit` are the engine's calls.
  struct Attempt {
    int64_t batch = 0;
    bool protected_run = false;
    std::vector<profile::Phase> passes = {};  // that an emulated device takes its time for
    std::function<StatusOr<MicroBatchResult>()> compute;
    std::function<Status()> commit;
    std::function<Status()> undo;
  };
  enum class Outcome : uint8_t { kDone, kAgain };

  Status Setup();
  Status OpenJournals();
  Status Probe();
  std::string DescribeDevices() const;
  Status TrainLoop();
  Status GlobalBatch();
  Status OneMicroBatch(SampleLedger* ledger, Rounds* rounds, JournalStep* record, Totals* totals);
  Status OptimizerStep(const JournalStep& record, const Totals& totals);
  Status Evaluate();
  StatusOr<MicroBatchChoice> AwaitChoice(Sizing* sizing, int64_t remaining, int64_t exact);
  StatusOr<Outcome> Compute(Sizing* sizing, const Attempt& attempt);
  StatusOr<MicroBatchResult> ComputeInDeviceTime(const Attempt& attempt);
  Status StepInDeviceTime();
  void ReportDeviceTime();
  Status OnShortage(Sizing* sizing, const Attempt& attempt, int64_t limit_before, const Status& status);
  Status Fetch(data::Loader* loader, const data::Dataset& dataset, const std::vector<PositionRange>& ranges, int64_t count);
  MicroBatch Staged(const data::Dataset& dataset, int64_t count);
  Status Park(const std::function<bool(int64_t)>& may_go, absl::Time deadline);
  Status Checkpoint();
  void SaveBuffers();
  void RestoreBuffers();
  Status StopReason() const;
  // Where there are several devices, each has a part of the global batch.
  int64_t LargestMicroBatch() const {
    return std::min(options_.max_micro_batch, CeilDiv(options_.global_batch, int64_t{session_->devices()}));
  }
  int64_t RestOfEpoch() const { return (epoch() + 1) * dataset_size_ - position_; }
  int64_t epoch() const { return position_ / dataset_size_; }
  bool finished() const {
    return position_ >= options_.epochs * dataset_size_ || (options_.max_steps > 0 && step_ >= options_.max_steps);
  }
  void TellPreference();
  void Emit(const std::string& event, const std::string& message = {});

  const TrainOptions options_;
  const ProgressSink sink_;
  StopToken* const stop_;
  const TrainerHooks hooks_;
  Clock* const clock_;

  std::unique_ptr<Session> session_;
  std::unique_ptr<data::Loader> loader_;
  std::unique_ptr<JournalWriter> journal_;
  std::unique_ptr<JournalReader> replay_;
  std::optional<Sizing> training_, evaluation_;
  Staging staging_;
  std::vector<std::pair<engine::TensorView, std::vector<std::byte>>>
      buffers_;  // and what each was at the last global batch's end
  std::optional<absl::Duration> optimizer_duration_;

  int64_t preferred_pages_ = 0;  // as the broker was told
  int64_t dataset_size_ = 0;
  int64_t step_ = 0;
  int64_t position_ = 0;
  int64_t checkpoint_step_ = -1;  // of the newest checkpoint on disk
  TrainProgress progress_;
  // Ends of steps, with the samples trained on and the device's time so far.
  struct StepEnd {
    absl::Time time;
    int64_t samples = 0;
    double device_seconds = 0;
  };
  std::deque<StepEnd> recent_;
};

Status Trainer::StopReason() const {
  if (!session_->reclaimer->connected()) return Unavailable("the page broker of this node is gone");
  return Cancelled("training was asked to stop");
}

void Trainer::Emit(const std::string& event, const std::string& message) {
  progress_.event = event;
  progress_.message = message;
  progress_.time = clock_->Now();
  progress_.step = step_;
  progress_.epoch = dataset_size_ == 0 ? 0 : epoch();
  if (session_ != nullptr && session_->arena != nullptr) {
    const pool::ArenaStats stats = session_->arena->stats();
    progress_.held_bytes = stats.held_pages * session_->page_bytes;
    progress_.live_bytes = stats.live_bytes;
    progress_.guaranteed_bytes = session_->guaranteed_pages * session_->page_bytes;
    if (session_->module != nullptr) {
      progress_.longest_operator_ms = static_cast<double>(session_->module->abort_token().longest_gap_ns()) * 1e-6;
    }
  }
  if (sink_) sink_(progress_);
}

// --- setting up ---

Status Trainer::Setup() {
  TIDEPOOL_ASSIGN_OR_RETURN(session_, Session::Open(options_, hooks_, stop_));
  dataset_size_ = session_->dataset->size();
  progress_.devices = session_->devices();
  if (session_->resumed.has_value()) {
    step_ = session_->resumed->step;
    position_ = session_->resumed->position;
    checkpoint_step_ = step_;
    progress_.samples = position_;
  }
  for (const engine::NamedTensor& tensor : session_->module->State()) {
    const auto param = session_->graph->FindParam(tensor.name);
    if (param.ok() && session_->graph->params[*param].kind == model::ParamKind::kBuffer)
      buffers_.emplace_back(tensor.view, std::vector<std::byte>());
  }
  SaveBuffers();
  TIDEPOOL_RETURN_IF_ERROR(OpenJournals());
  TIDEPOOL_ASSIGN_OR_RETURN(loader_,
                            data::Loader::Start(session_->dataset.get(),
                                                {.threads = options_.loader_threads,
                                                 .max_bytes = options_.prefetch_bytes,
                                                 .seed = options_.seed,
                                                 .epochs = options_.epochs,
                                                 .first_position = position_,
                                                 .on_error = options_.skip_broken_samples ? data::LoaderOptions::OnError::kReplace
                                                                                          : data::LoaderOptions::OnError::kFail,
                                                 .clock = clock_}));
  stop_->OnStop([this] {
    session_->reclaimer->RequestStop();
    loader_->Cancel();
  });
  const int64_t persistent = session_->arena->stats().live_bytes;
  training_.emplace(Sizing{.policy = MicroBatchPolicy({.max_batch = LargestMicroBatch(),
                                                       .persistent_bytes = persistent,
                                                       .protected_after_aborts = options_.protected_after_aborts})});
  evaluation_.emplace(Sizing{.policy = MicroBatchPolicy({.max_batch = options_.max_micro_batch,
                                                         .persistent_bytes = persistent,
                                                         .protected_after_aborts = options_.protected_after_aborts})});
  if (finished()) return {};
  return Probe();
}

Status Trainer::OpenJournals() {
  const JournalHeader header{
      .model = session_->spec, .seed = options_.seed, .global_batch = options_.global_batch, .dataset_size = dataset_size_};
  if (!options_.journal.empty()) {
    const int64_t keep = session_->resumed.has_value() ? session_->resumed->journal_bytes : 0;
    if (keep > 0) {
      TIDEPOOL_ASSIGN_OR_RETURN(journal_, JournalWriter::Resume(options_.journal, header, keep));
    } else {
      TIDEPOOL_ASSIGN_OR_RETURN(journal_, JournalWriter::Create(options_.journal, header));
    }
  }
  if (!options_.replay.empty()) {
    TIDEPOOL_ASSIGN_OR_RETURN(replay_, JournalReader::Open(options_.replay));
    TIDEPOOL_RETURN_IF_ERROR(replay_->CheckFits(header));
  }
  return {};
}

// Runs one sample and throws the result away: what it needed on top of the state is the least that training can do with, and is
// guaranteed from here on.
Status Trainer::Probe() {
  TIDEPOOL_RETURN_IF_ERROR(session_->module->BeginGlobalBatch());
  bool done = false;
  while (!done) {
    TIDEPOOL_ASSIGN_OR_RETURN(const MicroBatchChoice choice, AwaitChoice(&*training_, 1, 0));
    TIDEPOOL_RETURN_IF_ERROR(Fetch(loader_.get(), *session_->dataset, {{position_, position_ + 1}}, 1));
    session_->reclaimer->ReturnCached();
    MicroBatch batch = Staged(*session_->dataset, 1);
    batch.global_batch_size = 1;
    const Attempt attempt{.batch = choice.batch,
                          .passes = {profile::Phase::kForward, profile::Phase::kBackward},
                          .compute = [&] { return session_->module->RunMicroBatch(batch); },
                          .commit = [&] { return session_->module->AbortMicroBatch(); },
                          .undo = [&] { return session_->module->AbortMicroBatch(); }};
    TIDEPOOL_ASSIGN_OR_RETURN(const Outcome outcome, Compute(&*training_, attempt));
    done = outcome == Outcome::kDone;
  }
  progress_.micro_batches = 0;
  if (session_->device_time != nullptr) session_->device_time->Settle();
  // The first run of an operator prepares it, which takes longer than any run after it.
  session_->module->abort_token().ResetLongest();
  training_->durations = DurationModel();
  if (session_->yield != nullptr) session_->yield->Refresh();
  return session_->SetGuaranteed(
      std::max(session_->guaranteed_pages, CeilDiv(*training_->policy.Predict(1), session_->page_bytes) + 1));
}

// --- waiting ---

// Waits at the gate without using the CPU; what holds nothing goes back first.
Status Trainer::Park(const std::function<bool(int64_t)>& may_go, absl::Time deadline) {
  using Gate = Reclaimer::Gate;
  Gate gate = session_->reclaimer->AwaitGate(may_go, absl::InfinitePast());
  if (gate == Gate::kGo) return {};
  if (gate == Gate::kTimedOut) {
    const bool paused = session_->reclaimer->paused();
    session_->reclaimer->ReturnCached();
    Emit("paused",
         paused ? "inference has the device" : fmt::format("the limit is {}", FormatBytes(session_->reclaimer->limit_bytes())));
    const absl::Time start = clock_->Now();
    gate = session_->reclaimer->AwaitGate(may_go, deadline);
    progress_.paused_seconds += absl::ToDoubleSeconds(clock_->Now() - start);
    training_->policy.LimitChanged();
    evaluation_->policy.LimitChanged();
    if (gate == Gate::kGo || gate == Gate::kTimedOut) {
      Emit("resumed");
      return {};
    }
  }
  return StopReason();
}

// How large the next micro-batch is: `exact` samples if that is positive (a replay), else what the limit allows.
StatusOr<MicroBatchChoice> Trainer::AwaitChoice(Sizing* sizing, int64_t remaining, int64_t exact) {
  MicroBatchChoice choice;
  const int64_t best = BestSize(sizing->durations, sizing->abort_rate.per_second(), options_.max_micro_batch);
  const int64_t guaranteed = session_->guaranteed_pages * session_->page_bytes;
  const std::function<bool(int64_t)> may_go = [&](int64_t limit_bytes) {
    if (exact > 0) {
      // With everything allowed there is no use in waiting for more.
      const bool all = limit_bytes >= session_->burst_pages * session_->page_bytes;
      choice = {.batch = all || sizing->policy.Fits(exact, limit_bytes, guaranteed) ? exact : 0};
    } else {
      choice = sizing->policy.Choose(limit_bytes, guaranteed, remaining, best);
    }
    return choice.batch > 0;
  };
  if (sizing->exhausted_in_a_row > 0) {
    // One sample did not fit: the limit does not tell the whole truth at this moment. Not before it changes, or some time has
    // passed.
    const int64_t limit_then = session_->reclaimer->limit_bytes();
    const absl::Duration pause = std::min(kLongestPause, kExhaustedPause * (1 << std::min(sizing->exhausted_in_a_row - 1, 10)));
    TIDEPOOL_RETURN_IF_ERROR(Park([&](int64_t limit_bytes) { return limit_bytes > limit_then; }, clock_->Now() + pause));
  }
  TIDEPOOL_RETURN_IF_ERROR(Park(may_go, absl::InfiniteFuture()));
  return choice;
}

Status Trainer::Fetch(data::Loader* loader, const data::Dataset& dataset, const std::vector<PositionRange>& ranges,
                      int64_t count) {
  staging_.inputs.resize(count * dataset.input().size_bytes());
  staging_.targets.resize(count * dataset.target().size_bytes());
  const Status fetched = loader->Fetch(ranges, staging_.inputs, staging_.targets, clock_->Now() + kDataTimeout);
  if (fetched.code() == StatusCode::kCancelled) return StopReason();
  return fetched;
}

MicroBatch Trainer::Staged(const data::Dataset& dataset, int64_t count) {
  auto view = [count](std::vector<std::byte>& bytes, const data::TensorSpec& spec) {
    engine::TensorView tensor{bytes.data(), spec.dtype, {count}};
    tensor.shape.insert(tensor.shape.end(), spec.shape.begin(), spec.shape.end());
    return tensor;
  };
  return {.inputs = {view(staging_.inputs, dataset.input())}, .target = view(staging_.targets, dataset.target())};
}

// --- one micro-batch ---

// On an emulated device it takes as long as the slower of this machine and the device.
StatusOr<MicroBatchResult> Trainer::ComputeInDeviceTime(const Attempt& attempt) {
  DeviceTime* device_time = session_->device_time.get();
  if (device_time == nullptr) return attempt.compute();
  const auto broken_off = [&] { return !attempt.protected_run && session_->module->abort_token().requested(); };
  const auto run = [&]() -> StatusOr<MicroBatchResult> {
    TIDEPOOL_RETURN_IF_ERROR(device_time->Begin(attempt.passes, attempt.batch));
    TIDEPOOL_ASSIGN_OR_RETURN(MicroBatchResult computed, attempt.compute());
    TIDEPOOL_RETURN_IF_ERROR(device_time->End(broken_off));
    return computed;
  };
  StatusOr<MicroBatchResult> result = run();
  if (!result.ok()) device_time->BreakOff();
  ReportDeviceTime();
  return result;
}

Status Trainer::StepInDeviceTime() {
  DeviceTime* device_time = session_->device_time.get();
  if (device_time == nullptr) return session_->module->OptimizerStep(options_.learning_rate);
  TIDEPOOL_RETURN_IF_ERROR(device_time->BeginUpdate());
  TIDEPOOL_RETURN_IF_ERROR(session_->module->OptimizerStep(options_.learning_rate));
  TIDEPOOL_RETURN_IF_ERROR(device_time->End(nullptr));
  ReportDeviceTime();
  return {};
}

void Trainer::ReportDeviceTime() {
  const DeviceTime& device_time = *session_->device_time;
  progress_.device_seconds = absl::ToDoubleSeconds(device_time.total());
  progress_.communication_seconds = absl::ToDoubleSeconds(device_time.communication());
  progress_.host_limited = device_time.host_limited();
}

StatusOr<Trainer::Outcome> Trainer::Compute(Sizing* sizing, const Attempt& attempt) {
  Reclaimer& reclaimer = *session_->reclaimer;
  pool::Arena* arena = session_->arena.get();
  if (!reclaimer.Begin(Phase::kMicroBatch, attempt.protected_run, sizing->durations.Predict(attempt.batch)))
    return Outcome::kAgain;
  const int64_t limit_bytes = reclaimer.limit_bytes();
  // The limit may have fallen while the samples were read.
  if (!sizing->policy.Fits(attempt.batch, limit_bytes, session_->guaranteed_pages * session_->page_bytes) &&
      limit_bytes < session_->burst_pages * session_->page_bytes) {
    reclaimer.End();
    return Outcome::kAgain;
  }
  // Free space that smaller micro-batches left in pieces does not fit a larger one: where there is little room, start from whole
  // pages.
  const int64_t need = sizing->policy.Predict(attempt.batch).value_or(0);
  if (attempt.batch > sizing->last_batch && need * 5 / 4 > limit_bytes) arena->ReturnCached(0).status().IgnoreError();
  sizing->last_batch = attempt.batch;
  if (hooks_.before_micro_batch) hooks_.before_micro_batch(attempt.batch, session_->module->abort_token());

  const int64_t held_before = arena->stats().held_pages;
  const absl::Time start = clock_->Now();
  const StatusOr<MicroBatchResult> result = ComputeInDeviceTime(attempt);
  const absl::Duration elapsed = clock_->Now() - start;
  if (result.ok()) {
    const int64_t peak_held = arena->stats().peak_held_pages;
    reclaimer.Begin(Phase::kCommit, false, std::nullopt);
    const Status committed = attempt.commit();
    reclaimer.End();
    TIDEPOOL_RETURN_IF_ERROR(committed);
    // Where the arena had to grow, what it held is what was needed, the space between blocks included.
    sizing->policy.ObserveSuccess(attempt.batch, peak_held > held_before ? peak_held * session_->page_bytes : result->peak_bytes);
    sizing->durations.Observe(attempt.batch, elapsed);
    sizing->abort_rate.Observe(elapsed, false);
    sizing->exhausted_in_a_row = 0;
    ++progress_.micro_batches;
    progress_.protected_runs += attempt.protected_run ? 1 : 0;
    progress_.compute_seconds += absl::ToDoubleSeconds(elapsed);
    progress_.micro_batch = attempt.batch;
    progress_.boundary_waits = reclaimer.stats().boundary_waits;
    return Outcome::kDone;
  }
  const int64_t held_at_failure = arena->stats().held_pages;
  reclaimer.Unwinding();
  const Status undone = attempt.undo();
  reclaimer.End();
  TIDEPOOL_RETURN_IF_ERROR(undone);
  if (result.status().code() != StatusCode::kAborted && !IsShortage(result.status())) return result.status();
  progress_.wasted_seconds += absl::ToDoubleSeconds(elapsed);
  ++progress_.aborts;
  progress_.boundary_waits = reclaimer.stats().boundary_waits;
  if (result.status().code() == StatusCode::kAborted || reclaimer.limit_bytes() < limit_bytes) {
    // Memory was taken away; the size was right when it was chosen.
    sizing->abort_rate.Observe(elapsed, true);
    sizing->policy.ObserveAbort();
    return Outcome::kAgain;
  }
  sizing->policy.ObserveExhausted(attempt.batch, held_at_failure * session_->page_bytes);
  TIDEPOOL_RETURN_IF_ERROR(OnShortage(sizing, attempt, limit_bytes, result.status()));
  return Outcome::kAgain;
}

// The pool had no room though the limit allowed it.
Status Trainer::OnShortage(Sizing* sizing, const Attempt& attempt, int64_t limit_before, const Status& status) {
  if (!session_->reclaimer->connected()) return StopReason();
  const bool within_guarantee =
      attempt.protected_run || (attempt.batch == 1 && limit_before <= session_->guaranteed_pages * session_->page_bytes);
  if (within_guarantee && session_->guaranteed_pages < session_->burst_pages) {
    const Status raised = session_->SetGuaranteed(session_->guaranteed_pages + kGuaranteeStep);
    if (!raised.ok()) Log(LogLevel::kWarning, "the guaranteed memory does not hold one sample", {{"error", raised}});
  }
  if (attempt.batch > 1 && replay_ == nullptr) return {};
  ++sizing->exhausted_in_a_row;
  const bool everything = limit_before >= session_->burst_pages * session_->page_bytes;
  if (everything && sizing->exhausted_in_a_row >= kMostExhausted) {
    return Annotate(status, fmt::format("training '{}' cannot run {} sample(s) at once within {}", options_.name, attempt.batch,
                                        FormatBytes(limit_before)));
  }
  return {};
}

// --- one global batch ---

Status Trainer::OneMicroBatch(SampleLedger* ledger, Rounds* rounds, JournalStep* record, Totals* totals) {
  const JournalMicroBatch* planned = nullptr;
  if (replay_ != nullptr) {
    TIDEPOOL_ASSIGN_OR_RETURN(const JournalStep* step, replay_->Step(step_ + 1));
    planned = &step->micro_batches[record->micro_batches.size()];
  }
  int64_t exact = 0;
  if (planned != nullptr) {
    for (const PositionRange& range : planned->ranges) exact += range.size();
  }
  const int64_t share = rounds->Share(static_cast<int64_t>(record->micro_batches.size()), ledger->unprocessed());
  TIDEPOOL_ASSIGN_OR_RETURN(const MicroBatchChoice choice, AwaitChoice(&*training_, share, exact));
  TIDEPOOL_ASSIGN_OR_RETURN(const SampleLedger::Ticket ticket,
                            planned != nullptr ? ledger->GetExactly(planned->ranges) : ledger->Get(choice.batch));
  JournalMicroBatch entry{.ranges = ticket.ranges};
  // The same samples draw the same dropout, however often they are tried.
  entry.rng_key = planned != nullptr ? planned->rng_key
                                     : data::RandomBits(data::RandomBits(options_.seed, kDropoutStream, 0),
                                                        static_cast<uint64_t>(ticket.ranges.front().begin),
                                                        static_cast<uint64_t>(ticket.size()));
  const Status fetched = Fetch(loader_.get(), *session_->dataset, ticket.ranges, ticket.size());
  if (!fetched.ok()) {
    TIDEPOOL_RETURN_IF_ERROR(ledger->Abort(ticket));
    return fetched;
  }
  MicroBatch batch = Staged(*session_->dataset, ticket.size());
  batch.global_batch_size = ledger->global_batch().size();
  batch.rng_key = entry.rng_key;
  batch.abortable = !choice.protected_run;
  MicroBatchResult result;
  const Attempt attempt{.batch = ticket.size(),
                        .protected_run = choice.protected_run,
                        .passes = {profile::Phase::kForward, profile::Phase::kBackward},
                        .compute = [&]() -> StatusOr<MicroBatchResult> {
                          TIDEPOOL_ASSIGN_OR_RETURN(result, session_->module->RunMicroBatch(batch));
                          return result;
                        },
                        .commit = [&] { return session_->module->CommitMicroBatch(); },
                        .undo = [&] { return session_->module->AbortMicroBatch(); }};
  const StatusOr<Outcome> outcome = Compute(&*training_, attempt);
  if (!outcome.ok() || *outcome == Outcome::kAgain) {
    TIDEPOOL_RETURN_IF_ERROR(ledger->Abort(ticket));
    return outcome.status();
  }
  if (progress_.micro_batches % kPreferenceEvery == 0) TellPreference();
  totals->Add(result);
  record->micro_batches.push_back(std::move(entry));
  return ledger->Finish(ticket);
}

// With few samples at a time the fixed cost of a micro-batch dominates. Whoever places models can spare the memory that avoids
// it.
void Trainer::TellPreference() {
  const auto batch = training_->durations.SmallestAtSpeed(kPreferredSpeed, LargestMicroBatch());
  if (!batch.has_value()) return;
  const auto need = training_->policy.Predict(*batch);
  if (!need.has_value()) return;
  const int64_t pages = std::min(session_->burst_pages, CeilDiv(*need, session_->page_bytes));
  if (pages == preferred_pages_) return;
  if (session_->client->SetPreferred(session_->lease, pages, clock_->Now() + absl::Seconds(1)).ok()) preferred_pages_ = pages;
}

Status Trainer::GlobalBatch() {
  const int64_t size = std::min(options_.global_batch, RestOfEpoch());
  SampleLedger ledger({position_, position_ + size});
  JournalStep record{.epoch = epoch(), .step = step_ + 1, .positions = ledger.global_batch()};
  Totals totals;
  if (replay_ != nullptr) {
    TIDEPOOL_ASSIGN_OR_RETURN(const JournalStep* step, replay_->Step(step_ + 1));
    if (step->positions != record.positions) {
      return FailedPrecondition("step {} is over [{}, {}) in the journal '{}' and over [{}, {}) in this run", step_ + 1,
                                step->positions.begin, step->positions.end, options_.replay, record.positions.begin,
                                record.positions.end);
    }
  }
  TIDEPOOL_RETURN_IF_ERROR(session_->module->BeginGlobalBatch());
  Rounds rounds(session_->devices());
  while (!ledger.done()) {
    const Status status = OneMicroBatch(&ledger, &rounds, &record, &totals);
    if (!status.ok()) {
      // What this global batch did to the BatchNorm buffers is undone, so that the state is that of the last boundary.
      RestoreBuffers();
      return status;
    }
  }
  return OptimizerStep(record, totals);
}

Status Trainer::OptimizerStep(const JournalStep& record, const Totals& totals) {
  Reclaimer& reclaimer = *session_->reclaimer;
  const absl::Time start = clock_->Now();
  reclaimer.Begin(Phase::kOptimizer, false, optimizer_duration_);
  const Status stepped = StepInDeviceTime();
  reclaimer.End();
  TIDEPOOL_RETURN_IF_ERROR(stepped);
  const absl::Time end = clock_->Now();
  optimizer_duration_ = end - start;
  ++step_;
  position_ = record.positions.end;
  SaveBuffers();
  loader_->ReleaseBefore(position_);
  if (journal_ != nullptr) TIDEPOOL_RETURN_IF_ERROR(journal_->Append(record));
  if (session_->yield != nullptr && step_ % 64 == 0) session_->yield->Refresh();

  progress_.compute_seconds += absl::ToDoubleSeconds(end - start);
  progress_.samples += record.positions.size();
  progress_.loss = totals.loss();
  progress_.accuracy = totals.accuracy();
  recent_.push_back({end, progress_.samples, progress_.device_seconds});
  if (recent_.size() > 10) recent_.pop_front();
  const StepEnd &first = recent_.front(), &last = recent_.back();
  const auto samples = static_cast<double>(last.samples - first.samples);
  const double seconds = absl::ToDoubleSeconds(last.time - first.time),
               device_seconds = last.device_seconds - first.device_seconds;
  if (seconds > 0) progress_.samples_per_s = samples / seconds;
  if (device_seconds > 0) progress_.device_samples_per_s = samples / device_seconds;
  Emit("step");
  return {};
}

std::string Trainer::DescribeDevices() const {
  if (session_->device_time == nullptr) return "";
  device::Device& device = session_->client->device();
  const std::string described = device::emulated::Describe(device.properties());
  if (session_->devices() == 1) return fmt::format("{}: {}", device.info().name, described);
  return fmt::format("{} devices side by side, each {}, with an all-reduce per step; {}, once for all of them",
                     session_->devices(), device.info().name, described);
}

Status Trainer::TrainLoop() {
  if (!finished()) {
    Emit("started", DescribeDevices());
  }
  if (step_ == 0) TIDEPOOL_RETURN_IF_ERROR(Evaluate());
  while (!finished()) {
    if (stop_->stopped() || !session_->reclaimer->connected()) return StopReason();
    TIDEPOOL_RETURN_IF_ERROR(GlobalBatch());
    const bool epoch_end = position_ % dataset_size_ == 0;
    const bool due = options_.checkpoint_steps > 0 ? step_ % options_.checkpoint_steps == 0 : epoch_end;
    if (due && !options_.checkpoint.empty()) TIDEPOOL_RETURN_IF_ERROR(Checkpoint());
    const bool evaluate = epoch_end || (options_.evaluation_steps > 0 && step_ % options_.evaluation_steps == 0);
    if (evaluate) TIDEPOOL_RETURN_IF_ERROR(Evaluate());
  }
  return {};
}

// --- evaluation, state ---

Status Trainer::Evaluate() {
  if (session_->evaluation == nullptr) return {};
  const data::Dataset& dataset = *session_->evaluation;
  TIDEPOOL_ASSIGN_OR_RETURN(
      const auto loader,
      data::Loader::Start(&dataset, {.threads = options_.loader_threads,
                                     .max_bytes = options_.prefetch_bytes,
                                     .shuffle = false,
                                     .augment = false,
                                     .epochs = 1,
                                     .on_error = options_.skip_broken_samples ? data::LoaderOptions::OnError::kReplace
                                                                              : data::LoaderOptions::OnError::kFail,
                                     .clock = clock_}));
  if (session_->yield != nullptr) session_->yield->Refresh();
  Totals totals;
  Rounds rounds(session_->devices());
  int64_t position = 0, done = 0;
  while (position < dataset.size()) {
    const int64_t share = rounds.Share(done, dataset.size() - position);
    TIDEPOOL_ASSIGN_OR_RETURN(const MicroBatchChoice choice, AwaitChoice(&*evaluation_, share, 0));
    TIDEPOOL_RETURN_IF_ERROR(Fetch(loader.get(), dataset, {{position, position + choice.batch}}, choice.batch));
    MicroBatch batch = Staged(dataset, choice.batch);
    batch.global_batch_size = choice.batch;
    batch.abortable = !choice.protected_run;
    MicroBatchResult result;
    const Attempt attempt{.batch = choice.batch,
                          .protected_run = choice.protected_run,
                          .passes = {profile::Phase::kForward},
                          .compute = [&]() -> StatusOr<MicroBatchResult> {
                            TIDEPOOL_ASSIGN_OR_RETURN(result, session_->module->Evaluate(batch));
                            return result;
                          },
                          .commit = [] { return Status(); },
                          .undo = [] { return Status(); }};
    TIDEPOOL_ASSIGN_OR_RETURN(const Outcome outcome, Compute(&*evaluation_, attempt));
    if (outcome == Outcome::kAgain) continue;
    totals.Add(result);
    ++done;
    position += choice.batch;
    loader->ReleaseBefore(position);
  }
  if (session_->device_time != nullptr) session_->device_time->Settle();
  progress_.loss = totals.loss();
  progress_.accuracy = totals.accuracy();
  Emit("evaluation");
  return {};
}

void Trainer::SaveBuffers() {
  for (auto& [view, saved] : buffers_) saved.assign(view.data, view.data + view.size_bytes());
}

void Trainer::RestoreBuffers() {
  for (auto& [view, saved] : buffers_) std::memcpy(view.data, saved.data(), saved.size());
}

Status Trainer::Checkpoint() {
  CheckpointManifest manifest = session_->Identity();
  manifest.step = step_;
  manifest.epoch = epoch();
  manifest.position = position_;
  if (journal_ != nullptr) {
    TIDEPOOL_RETURN_IF_ERROR(journal_->Sync());
    manifest.journal_bytes = journal_->size_bytes();
  }
  TIDEPOOL_RETURN_IF_ERROR(session_->Save(std::move(manifest)));
  checkpoint_step_ = step_;
  Emit("checkpoint");
  return {};
}

Status Trainer::Run() {
  Status status = Setup();
  if (status.ok()) status = TrainLoop();
  const bool stopped = status.code() == StatusCode::kCancelled && stop_->stopped();
  const bool cut_off = session_ != nullptr && session_->module != nullptr && !session_->reclaimer->connected();
  // The memory of a lost broker is still mapped, so the state in it can be saved.
  if ((status.ok() || stopped || cut_off) && !options_.checkpoint.empty() && session_ != nullptr && checkpoint_step_ != step_) {
    const Status saved = Checkpoint();
    if (!saved.ok() && (status.ok() || stopped)) status = saved;
    if (!saved.ok()) Log(LogLevel::kError, "no checkpoint could be written", {{"error", saved}});
  }
  if (status.ok() && !options_.final_weights.empty()) status = session_->SaveWeights(options_.final_weights);
  if (status.ok() || stopped) {
    Emit("finished", status.ok() ? "" : fmt::format("stopped at step {}", step_));
    status = absl::OkStatus();
  } else {
    if (cut_off && status.code() != StatusCode::kUnavailable) status = Annotate(StopReason(), MessageOf(status));
    Emit("failed", ToString(status));
  }
  stop_->OnStop(nullptr);
  loader_.reset();
  session_.reset();
  return status;
}

}  // namespace

void StopToken::Stop() {
  absl::MutexLock lock(&mu_);
  if (std::exchange(stopped_, true)) return;
  if (callback_) callback_();
}

bool StopToken::stopped() const {
  absl::MutexLock lock(&mu_);
  return stopped_;
}

void StopToken::OnStop(std::function<void()> callback) {
  absl::MutexLock lock(&mu_);
  callback_ = std::move(callback);
  if (stopped_ && callback_) callback_();
}

Status RunTrainer(const TrainOptions& options, const ProgressSink& sink, StopToken* stop, const TrainerHooks& hooks) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  return Trainer(options, sink, stop, hooks).Run();
}

}  // namespace tidepool::train
