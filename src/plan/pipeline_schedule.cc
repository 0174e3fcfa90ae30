#include "plan/pipeline_schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"
#include "plan/profile_table.h"

namespace tidepool::plan {
namespace {

using Kind = PipelineEvent::Kind;
constexpr int64_t kLargestPlay = int64_t{1} << 18;  // passes of an interleaved pipeline
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A spec in the form that the players need: rounded, per chunk, with what each message blocks.
struct Times {
  struct Stage {
    double forward = 0, backward = 0, weights = 0;  // of one chunk; backward with recompute, without what may run later
    double once = 0;
    double receive_forward = 0, send_forward = 0, receive_backward = 0, send_backward = 0;  // blocked by one message
    int64_t warm = 0;  // forwards before the first backward; those beyond the last pass do not exist
    int64_t lag = 0;   // of weight gradients
  };
  std::vector<Stage> stages;
  std::vector<PipelineEdge> edges;
  int64_t passes = 0;  // N x chunks
  bool finite = true;
};

int64_t WarmUp(PipelineSchedule schedule, int32_t chunks, int32_t stages, int32_t stages_behind) {
  if (schedule != PipelineSchedule::kInterleaved) return stages_behind;
  return 2 * static_cast<int64_t>(stages_behind) + static_cast<int64_t>(chunks - 1) * stages;
}

Times TimesOf(const PipelineSpec& spec) {
  Times times;
  const auto stages = static_cast<int32_t>(spec.stages.size());
  const double chunks = spec.chunks, blocking = 1 - spec.transfer_overlap;
  const bool zero_bubble = spec.schedule == PipelineSchedule::kZeroBubble;
  const bool ring = spec.schedule == PipelineSchedule::kInterleaved && stages > 1;
  times.passes = spec.micro_batches * spec.chunks;
  times.edges.resize(ring ? stages : stages - 1);
  for (size_t i = 0; i < times.edges.size(); ++i) {
    times.edges[i] = {Quantized(spec.edges[i].forward_us), Quantized(spec.edges[i].backward_us)};
    times.finite = times.finite && std::isfinite(times.edges[i].forward_us) && std::isfinite(times.edges[i].backward_us);
  }
  times.stages.resize(stages);
  for (int32_t i = 0; i < stages; ++i) {
    const PipelineStage& from = spec.stages[i];
    Times::Stage& stage = times.stages[i];
    stage.forward = Quantized(from.forward_us / chunks);
    stage.weights = zero_bubble ? Quantized(from.weight_gradient_us) : 0;
    stage.backward = Quantized((from.recompute_us + from.backward_us) / chunks) - stage.weights;
    stage.once = Quantized(from.sync_us + from.optimizer_us);
    stage.warm = WarmUp(spec.schedule, spec.chunks, stages, stages - 1 - i);
    stage.lag = zero_bubble ? i : 0;
    times.finite = times.finite && std::isfinite(stage.forward + stage.backward + stage.weights + stage.once);
    const bool before = i > 0 || ring, behind = i + 1 < stages || ring;
    if (before) {
      const PipelineEdge& edge = times.edges[i > 0 ? i - 1 : stages - 1];
      stage.receive_forward = Quantized(edge.forward_us * blocking);
      stage.send_backward = Quantized(edge.backward_us * blocking);
    }
    if (behind) {
      stage.send_forward = Quantized(times.edges[i].forward_us * blocking);
      stage.receive_backward = Quantized(times.edges[i].backward_us * blocking);
    }
  }
  return times;
}

// --- One chunk per stage: slot by slot ---

// In slot s, stage i runs forward s + warm_i, backward s, and weight gradient s - lag_i, as far as they exist. Forward s + warm_i
// needs what the stage before it sent in slot s - 1, backward s what the stage behind it sent in this slot: so within a slot the
// last stage comes first, and a slot depends on nothing but the state that the slot before it left. Once two states differ by one
// number everywhere, all that follows repeats.
class SlotPlayer {
 public:
  explicit SlotPlayer(const Times& times)
      : times_(times), stages_(static_cast<int64_t>(times.stages.size())), state_(3 * stages_, 0), first_(stages_, 0) {}

  void Play() {
    const int64_t passes = times_.passes;
    const bool delayed = times_.stages.back().lag > 0;
    const int64_t steady_begin = delayed ? stages_ - 1 : 0, steady_end = passes - times_.stages[0].warm;
    const int64_t end = passes + (delayed ? stages_ - 1 : 0);
    int64_t slot = -times_.stages[0].warm;
    for (; slot < std::min(end, steady_begin); ++slot) Slot<false>(slot);
    PlaySteady(&slot, steady_end);
    for (; slot < end; ++slot) Slot<false>(slot);
  }

  double first_us(int64_t stage) const { return first_[stage]; }
  double free_us(int64_t stage) const { return state_[stage]; }

 private:
  // Slots [*slot, end), in all of which every stage has all its passes. The state is compared with that of an earlier slot, which
  // moves up at every power of two (Brent's way to find a cycle).
  void PlaySteady(int64_t* slot, int64_t end) {
    std::vector<double> anchor = state_;
    int64_t since = 0, span = 1;  // slots since the anchor; when it moves
    while (*slot < end) {
      Slot<true>((*slot)++);
      ++since;
      const double growth = state_[0] - anchor[0];
      bool repeats = true;
      for (size_t j = 1; j < state_.size() && repeats; ++j) repeats = state_[j] - anchor[j] == growth;
      if (repeats) {
        const int64_t periods = (end - *slot) / since;
        for (double& value : state_) value += growth * static_cast<double>(periods);
        *slot += periods * since;
        while (*slot < end) Slot<true>((*slot)++);
      } else if (since == span) {
        anchor = state_;
        since = 0;
        span *= 2;
      }
    }
  }

  template <bool kAll>
  void Slot(int64_t slot) {
    double* free = state_.data();
    double* forward_link = free + stages_;           // [i]: the last message from i to i + 1 is there
    double* backward_link = forward_link + stages_;  // [i]: the last message from i to i - 1 is there
    for (int64_t i = stages_ - 1; i >= 0; --i) {
      const Times::Stage& stage = times_.stages[i];
      double now = free[i];
      if (const int64_t pass = slot + stage.warm; kAll || (pass >= 0 && pass < times_.passes)) {
        now += stage.receive_forward;
        if (i > 0) now = std::max(now, forward_link[i - 1]);
        if (pass == 0) first_[i] = now;
        now += stage.forward;
        if (i + 1 < stages_) {
          forward_link[i] = std::max(now, forward_link[i]) + times_.edges[i].forward_us;
          now += stage.send_forward;
        }
      }
      if (kAll || (slot >= 0 && slot < times_.passes)) {
        now += stage.receive_backward;
        if (i + 1 < stages_) now = std::max(now, backward_link[i + 1]);
        now += stage.backward;
        if (i > 0) {
          backward_link[i] = std::max(now, backward_link[i]) + times_.edges[i - 1].backward_us;
          now += stage.send_backward;
        }
      }
      if (const int64_t pass = slot - stage.lag; kAll || (pass >= 0 && pass < times_.passes)) now += stage.weights;
      free[i] = now;
    }
  }

  const Times& times_;
  int64_t stages_;
  std::vector<double> state_;
  std::vector<double> first_;
};

// --- Any schedule, pass by pass ---

// What there is to do on a stage, in order. Passes are numbered over all chunks: groups of S micro-batches go through chunk after
// chunk.
struct Pass {
  Kind kind = Kind::kForward;
  int32_t chunk = 0;
  int64_t micro_batch = 0;
};

class OrderPlayer {
 public:
  OrderPlayer(const PipelineSpec& spec, const Times& times, std::vector<PipelineEvent>* events)
      : spec_(spec), times_(times), events_(events), stages_(static_cast<int32_t>(spec.stages.size())) {
    const size_t size = static_cast<size_t>(stages_) * times.passes;
    forward_ready_.assign(size, -1);
    backward_ready_.assign(size, -1);
    for (int64_t m = 0; m < spec.micro_batches; ++m) forward_ready_[Index(0, m)] = 0;
    forward_link_.assign(times.edges.size(), 0);
    backward_link_.assign(times.edges.size(), 0);
    free_.assign(stages_, 0);
    first_.assign(stages_, 0);
  }

  void Play() {
    std::vector<int64_t> next(stages_, 0);
    bool progress = true;
    while (progress) {
      progress = false;
      for (int32_t i = 0; i < stages_; ++i) {
        while (Run(i, next[i])) {
          ++next[i];
          progress = true;
        }
      }
    }
    for (int32_t i = 0; i < stages_; ++i) {
      TIDEPOOL_CHECK(next[i] == Steps(i), "stage {} stopped at step {} of {}", i, next[i], Steps(i));
    }
  }
  double first_us(int64_t stage) const { return first_[stage]; }
  double free_us(int64_t stage) const { return free_[stage]; }

 private:
  bool zero_bubble() const { return spec_.schedule == PipelineSchedule::kZeroBubble; }
  // Steps of a stage: its warm-up, then up to three for each slot, some of which are empty.
  int64_t Warm(int32_t stage) const { return std::min(times_.stages[stage].warm, times_.passes); }
  int64_t Steps(int32_t stage) const { return Warm(stage) + 3 * (times_.passes + times_.stages[stage].lag); }
  // False if there is nothing to do in this step.
  bool PassAt(int32_t stage, int64_t step, Pass* pass) const {
    const Times::Stage& times = times_.stages[stage];
    const int64_t warm = Warm(stage), slot = (step - warm) / 3;
    int64_t number = step;
    pass->kind = Kind::kForward;
    if (step >= warm) {
      switch ((step - warm) % 3) {
        case 0: number = slot + warm; break;
        case 1: pass->kind = Kind::kBackward, number = slot; break;
        default: pass->kind = Kind::kWeightGradient, number = zero_bubble() ? slot - times.lag : -1;
      }
    }
    if (number < 0 || number >= times_.passes) return false;
    const int64_t group = number / (static_cast<int64_t>(stages_) * spec_.chunks);
    const int64_t within = number % (static_cast<int64_t>(stages_) * spec_.chunks);
    pass->chunk = spec_.chunks == 1 ? 0 : static_cast<int32_t>(within / stages_);
    if (pass->kind != Kind::kForward) pass->chunk = spec_.chunks - 1 - pass->chunk;
    pass->micro_batch = spec_.chunks == 1 ? number : group * stages_ + within % stages_;
    return true;
  }

  size_t Index(int32_t part, int64_t micro_batch) const {  // of chunk part / S on stage part % S
    return static_cast<size_t>(part) * spec_.micro_batches + micro_batch;
  }
  void Record(Kind kind, int32_t stage, const Pass& pass, double start, double end) {
    if (events_ != nullptr && end > start) events_->push_back({kind, stage, pass.chunk, pass.micro_batch, start, end});
  }

  // Runs a step of the stage if what it needs is known.
  bool Run(int32_t stage, int64_t step) {
    if (step >= Steps(stage)) return false;
    Pass pass;
    if (!PassAt(stage, step, &pass)) return true;
    const Times::Stage& times = times_.stages[stage];
    const int32_t part = pass.chunk * stages_ + stage;
    if (pass.kind == Kind::kWeightGradient) {
      Record(pass.kind, stage, pass, free_[stage], free_[stage] + times.weights);
      free_[stage] += times.weights;
      return true;
    }
    return pass.kind == Kind::kForward ? Forward(stage, part, pass) : Backward(stage, part, pass);
  }

  bool Forward(int32_t stage, int32_t part, const Pass& pass) {
    const Times::Stage& times = times_.stages[stage];
    const double ready = forward_ready_[Index(part, pass.micro_batch)];
    if (ready < 0) return false;
    const double start = std::max(free_[stage] + (part > 0 ? times.receive_forward : 0), ready), end = start + times.forward;
    if (part == stage && pass.micro_batch == 0) first_[stage] = start;
    Record(Kind::kForward, stage, pass, start, end);
    free_[stage] = end;
    if (part + 1 == stages_ * spec_.chunks) {
      backward_ready_[Index(part, pass.micro_batch)] = end;
      return true;
    }
    double arrival = end;
    if (stages_ > 1) {
      const double sent = std::max(end, forward_link_[stage]);
      arrival = forward_link_[stage] = sent + times_.edges[stage].forward_us;
      free_[stage] += times.send_forward;
      Record(Kind::kSendForward, stage, pass, sent, arrival);
    }
    forward_ready_[Index(part + 1, pass.micro_batch)] = arrival;
    return true;
  }

  bool Backward(int32_t stage, int32_t part, const Pass& pass) {
    const Times::Stage& times = times_.stages[stage];
    const double ready = backward_ready_[Index(part, pass.micro_batch)];
    if (ready < 0) return false;
    const bool last = part + 1 == stages_ * spec_.chunks;
    const double start = std::max(free_[stage] + (last ? 0 : times.receive_backward), ready), end = start + times.backward;
    const double recomputed = std::min(end, start + Quantized(spec_.stages[stage].recompute_us / spec_.chunks));
    Record(Kind::kRecompute, stage, pass, start, recomputed);
    Record(Kind::kBackward, stage, pass, recomputed, end);
    free_[stage] = end;
    if (part == 0) return true;
    double arrival = end;
    if (stages_ > 1) {
      const int32_t edge = stage > 0 ? stage - 1 : stages_ - 1;
      const double sent = std::max(end, backward_link_[edge]);
      arrival = backward_link_[edge] = sent + times_.edges[edge].backward_us;
      free_[stage] += times.send_backward;
      Record(Kind::kSendBackward, stage, pass, sent, arrival);
    }
    backward_ready_[Index(part - 1, pass.micro_batch)] = arrival;
    return true;
  }

  const PipelineSpec& spec_;
  const Times& times_;
  std::vector<PipelineEvent>* events_;
  int32_t stages_;
  std::vector<double> forward_ready_, backward_ready_;  // [part][micro-batch]: when its input is there; -1: not known yet
  std::vector<double> forward_link_, backward_link_;    // [edge]: the last message is there
  std::vector<double> free_, first_;
};

// --- Results ---

template <typename Player>
PipelineRun Collect(const PipelineSpec& spec, const Times& times, const Player& player) {
  PipelineRun run;
  const auto stages = static_cast<int32_t>(times.stages.size());
  const auto passes = static_cast<double>(times.passes);
  run.stages.resize(stages);
  for (int32_t i = 0; i < stages; ++i) {
    const Times::Stage& stage = times.stages[i];
    StageRun& result = run.stages[i];
    result.first_us = player.first_us(i);
    result.last_us = player.free_us(i);
    result.compute_us = passes * (stage.forward + stage.backward + stage.weights);
    // The first chunk receives no input, the last one no gradient.
    const auto outer = static_cast<double>(times.passes - spec.micro_batches);
    const double before = i == 0 ? outer : passes, behind = i + 1 == stages ? outer : passes;
    result.blocked_us =
        before * (stage.receive_forward + stage.send_backward) + behind * (stage.send_forward + stage.receive_backward);
    run.makespan_us = std::max(run.makespan_us, result.last_us + stage.once);
  }
  for (int32_t i = 0; i < stages; ++i) {
    StageRun& result = run.stages[i];
    result.idle_us = std::max(0.0, run.makespan_us - result.compute_us - result.blocked_us - times.stages[i].once);
  }
  return run;
}

// Every pass is played, but of very long runs: these grow as they grew before.
PipelineRun SimulateInterleaved(const PipelineSpec& spec, const Times& times) {
  const auto stages = static_cast<int64_t>(spec.stages.size());
  const int64_t longest = std::max<int64_t>(4, kLargestPlay / (stages * stages * spec.chunks)) * stages;
  if (spec.micro_batches <= longest) {
    OrderPlayer player(spec, times, nullptr);
    player.Play();
    return Collect(spec, times, player);
  }
  PipelineSpec shorter = spec;
  shorter.micro_batches = longest / 2 / stages * stages;
  const PipelineRun half = SimulatePipeline(shorter);
  const auto played = static_cast<double>(longest - shorter.micro_batches);
  shorter.micro_batches = longest;
  PipelineRun run = SimulatePipeline(shorter);
  const double more = static_cast<double>(spec.micro_batches - longest) / played;
  run.makespan_us += (run.makespan_us - half.makespan_us) * more;
  for (int64_t i = 0; i < stages; ++i) {
    StageRun& to = run.stages[i];
    const StageRun& from = half.stages[i];
    to.last_us += (to.last_us - from.last_us) * more;
    to.compute_us += (to.compute_us - from.compute_us) * more;
    to.blocked_us += (to.blocked_us - from.blocked_us) * more;
    to.idle_us += (to.idle_us - from.idle_us) * more;
  }
  return run;
}

PipelineRun Unplayable(const PipelineSpec& spec) {
  PipelineRun run;
  run.makespan_us = kInfinity;
  run.stages.resize(spec.stages.size());
  return run;
}

}  // namespace

std::string_view NameOf(PipelineSchedule schedule) {
  switch (schedule) {
    case PipelineSchedule::kOneForwardOneBackward: return "1f1b";
    case PipelineSchedule::kInterleaved: return "interleaved";
    case PipelineSchedule::kZeroBubble: return "zero-bubble";
  }
  return "?";
}

StatusOr<PipelineSchedule> PipelineScheduleFrom(std::string_view name) {
  for (const PipelineSchedule schedule :
       {PipelineSchedule::kOneForwardOneBackward, PipelineSchedule::kInterleaved, PipelineSchedule::kZeroBubble}) {
    if (NameOf(schedule) == name) return schedule;
  }
  return InvalidArgument("schedule '{}'; allowed: 1f1b, interleaved, zero-bubble", name);
}

std::string_view NameOf(PipelineEvent::Kind kind) {
  switch (kind) {
    case Kind::kForward: return "forward";
    case Kind::kRecompute: return "recompute";
    case Kind::kBackward: return "backward";
    case Kind::kWeightGradient: return "weight gradient";
    case Kind::kSendForward: return "send activations";
    case Kind::kSendBackward: return "send gradients";
    case Kind::kSync: return "gradient sync";
    case Kind::kOptimizer: return "optimizer";
  }
  return "?";
}

Status Validate(const PipelineSpec& spec) {
  std::vector<std::string> faults;
  const auto require = [&](bool good, std::string text) {
    if (!good) faults.push_back(std::move(text));
  };
  const auto stages = static_cast<int64_t>(spec.stages.size());
  const bool interleaved = spec.schedule == PipelineSchedule::kInterleaved;
  require(stages >= 1 && stages <= 1 << 20, fmt::format("{} stages; allowed: 1 to 1048576", stages));
  require(spec.micro_batches >= 1 && spec.micro_batches <= int64_t{1} << 31,
          fmt::format("{} micro-batches; allowed: 1 to 2^31", spec.micro_batches));
  require(spec.chunks >= 1 && spec.chunks <= 1024 && (interleaved || spec.chunks == 1),
          fmt::format("{} chunks per stage; allowed: {}", spec.chunks, interleaved ? "1 to 1024" : "1, if not interleaved"));
  require(!interleaved || stages < 1 || spec.micro_batches % stages == 0,
          fmt::format("{} micro-batches in an interleaved pipeline; allowed: a multiple of the {} stages", spec.micro_batches,
                      stages));
  require(spec.transfer_overlap >= 0 && spec.transfer_overlap <= 1,
          fmt::format("transfer_overlap is {}; allowed: 0 to 1", spec.transfer_overlap));
  const int64_t edges = stages < 2 ? 0 : stages - (interleaved ? 0 : 1);
  require(static_cast<int64_t>(spec.edges.size()) >= edges,
          fmt::format("{} edges; allowed: {} for {} stages", spec.edges.size(), edges, stages));
  const auto is_time = [](double us) { return std::isfinite(us) && us >= 0; };
  for (size_t i = 0; i < spec.stages.size(); ++i) {
    const PipelineStage& stage = spec.stages[i];
    for (const double us :
         {stage.forward_us, stage.recompute_us, stage.backward_us, stage.weight_gradient_us, stage.sync_us, stage.optimizer_us}) {
      require(is_time(us), fmt::format("stage {} has a time of {} us; allowed: 0 or more", i, us));
    }
    require(!(stage.weight_gradient_us > stage.backward_us),
            fmt::format("stage {} takes {} us for weight gradients; allowed: at most {}, the backward pass", i,
                        stage.weight_gradient_us, stage.backward_us));
  }
  for (size_t i = 0; i < spec.edges.size(); ++i) {
    for (const double us : {spec.edges[i].forward_us, spec.edges[i].backward_us}) {
      require(is_time(us), fmt::format("edge {} has a time of {} us; allowed: 0 or more", i, us));
    }
  }
  return faults.empty() ? Status() : InvalidArgument("{}", JoinText(faults, "; "));
}

PipelineRun SimulatePipeline(const PipelineSpec& spec) {
  const Times times = TimesOf(spec);
  if (!times.finite) return Unplayable(spec);
  if (spec.schedule == PipelineSchedule::kInterleaved) return SimulateInterleaved(spec, times);
  SlotPlayer player(times);
  player.Play();
  return Collect(spec, times, player);
}

StatusOr<PipelineRun> TracePipeline(const PipelineSpec& spec, int64_t limit) {
  TIDEPOOL_RETURN_IF_ERROR(Validate(spec));
  const auto stages = static_cast<int64_t>(spec.stages.size());
  const int64_t passes = stages * spec.chunks * spec.micro_batches;  // below 2^61
  if (passes > limit / 2) {
    return ResourceExhausted("a trace of {} stages and {} micro-batches has {} passes; allowed: {}", stages, spec.micro_batches,
                             2 * passes, limit);
  }
  const Times times = TimesOf(spec);
  std::vector<PipelineEvent> events;
  OrderPlayer player(spec, times, &events);
  player.Play();
  PipelineRun run = Collect(spec, times, player);
  for (int32_t i = 0; i < stages; ++i) {
    const double synced = run.stages[i].last_us + Quantized(spec.stages[i].sync_us);
    const double done = run.stages[i].last_us + times.stages[i].once;
    if (synced > run.stages[i].last_us) events.push_back({Kind::kSync, i, 0, 0, run.stages[i].last_us, synced});
    if (done > synced) events.push_back({Kind::kOptimizer, i, 0, 0, synced, done});
  }
  std::stable_sort(events.begin(), events.end(), [](const PipelineEvent& a, const PipelineEvent& b) {
    return a.stage != b.stage ? a.stage < b.stage : a.start_us < b.start_us;
  });
  run.events = std::move(events);
  return run;
}

double ClosedFormUs(const PipelineSpec& spec) {
  const Times times = TimesOf(spec);
  double slowest = 0, path = 0, once = 0;
  for (const Times::Stage& stage : times.stages) {
    const double busy = stage.forward + stage.backward + stage.weights + stage.receive_forward + stage.send_forward +
                        stage.receive_backward + stage.send_backward;
    slowest = std::max(slowest, busy);
    path += busy;
    once = std::max(once, stage.once);
  }
  for (const PipelineEdge& edge : times.edges) path += Quantized((edge.forward_us + edge.backward_us) * spec.transfer_overlap);
  return times.finite ? static_cast<double>(times.passes - 1) * slowest + path + once : kInfinity;
}

// Stage i cannot start before the first micro-batch came through the stages before it; is then busy for all its passes; and when
// it has sent its last gradient, the stages before it still have a backward pass each. In 1F1B it also waits: between the first
// forward and the first backward pass the micro-batch goes through all stages behind and back, and there is no more to do
// meanwhile than the warm-up; the same at the end.
std::vector<double> StageBoundsUs(const PipelineSpec& spec) {
  const Times times = TimesOf(spec);
  const size_t stages = times.stages.size();
  if (!times.finite) return std::vector<double>(stages, kInfinity);
  const bool plain = spec.schedule == PipelineSchedule::kOneForwardOneBackward;
  const auto passes = static_cast<double>(times.passes), micro_batches = static_cast<double>(spec.micro_batches);
  std::vector<double> behind(stages, 0);  // from the end of a forward pass to the arrival of its gradient
  for (size_t i = stages - 1; plain && i-- > 0;) {
    const Times::Stage& next = times.stages[i + 1];
    behind[i] = behind[i + 1] + next.forward + next.backward + times.edges[i].forward_us + times.edges[i].backward_us;
  }
  std::vector<double> bounds(stages);
  double fill = 0, drain = 0;
  for (size_t i = 0; i < stages; ++i) {
    const Times::Stage& stage = times.stages[i];
    const double front = i > 0 ? stage.receive_forward : 0;
    const double messages = (i > 0 ? stage.receive_forward + stage.send_backward : 0) +
                            (i + 1 < stages ? stage.send_forward + stage.receive_backward : 0);
    // Interleaved stages at the ends block for the messages between chunks too; leaving those out keeps the bound valid.
    double end = fill - front + passes * (stage.forward + stage.backward + stage.weights) + micro_batches * messages;
    if (plain && i + 1 < stages) {
      const double edge = stage.send_forward + stage.receive_backward;
      const auto warm = static_cast<double>(std::min<int64_t>(stage.warm, times.passes - 1));
      const double at_start = behind[i] - edge - warm * (front + stage.forward + stage.send_forward);
      const double at_end =
          behind[i] - edge - warm * (stage.receive_backward + stage.backward + (i > 0 ? stage.send_backward : 0));
      const bool apart = times.passes >= stage.warm + 2;
      end += apart ? std::max(0.0, at_start) + std::max(0.0, at_end) : std::max({0.0, at_start, at_end});
    }
    const double down = end - (i > 0 ? stage.send_backward : 0) - (plain ? 0 : stage.weights * passes) + drain;
    bounds[i] = std::max(end + stage.once, i > 0 && plain ? down + times.stages[0].once : 0.0);
    if (i + 1 < stages) {
      fill += stage.forward + times.edges[i].forward_us;
      drain += times.edges[i].backward_us + stage.backward;
    }
  }
  return bounds;
}

double LowerBoundUs(const PipelineSpec& spec) {
  const std::vector<double> bounds = StageBoundsUs(spec);
  return bounds.empty() ? 0 : *std::max_element(bounds.begin(), bounds.end());
}

double InFlight(PipelineSchedule schedule, int32_t chunks, int32_t stages_behind, int32_t stages, int64_t micro_batches) {
  const int32_t all = std::max(stages, stages_behind + 1);
  double held = stages_behind + 1;
  if (schedule == PipelineSchedule::kZeroBubble) held = all;
  if (schedule == PipelineSchedule::kInterleaved) {
    held = static_cast<double>(WarmUp(schedule, chunks, all, stages_behind) + 1) / chunks;
  }
  return micro_batches > 0 ? std::min(held, static_cast<double>(micro_batches)) : held;
}

}  // namespace tidepool::plan
