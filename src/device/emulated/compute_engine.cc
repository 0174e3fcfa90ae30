#include "device/emulated/compute_engine.h"

#include <algorithm>

namespace tidepool::device::emulated {

std::string_view NameOf(Sharing sharing) {
  switch (sharing) {
    case Sharing::kFifo: return "fifo";
    case Sharing::kRoundRobin: return "round-robin";
    case Sharing::kShortestRemaining: return "shortest-remaining";
  }
  return "?";
}

StatusOr<Sharing> ParseSharing(std::string_view text) {
  for (const Sharing sharing : {Sharing::kFifo, Sharing::kRoundRobin, Sharing::kShortestRemaining}) {
    if (text == NameOf(sharing)) return sharing;
  }
  return InvalidArgument("the sharing is '{}'; allowed: fifo, round-robin, shortest-remaining", text);
}

size_t ComputeEngine::FindJob(int32_t id) {
  for (size_t i = 0; i < jobs_.size(); ++i) {
    if (jobs_[i].id == id) return i;
  }
  jobs_.emplace_back();
  jobs_.back().id = id;
  return jobs_.size() - 1;
}

int64_t ComputeEngine::BusyOf(int32_t id) const {
  for (const Job& job : jobs_) {
    if (job.id == id) return job.busy_ns;
  }
  return 0;
}

void ComputeEngine::SetRemaining(int32_t job, int64_t work_ns) { jobs_[FindJob(job)].remaining_ns = work_ns; }

void ComputeEngine::Submit(int32_t id, uint64_t tag, int64_t work_ns, int64_t ready_ns) {
  const int64_t now_ns = simulation_->now_ns();
  const size_t index = FindJob(id);
  Job& job = jobs_[index];
  job.tasks.push_back(
      {.tag = tag, .left_ns = std::max<int64_t>(0, work_ns), .ready_ns = std::min(ready_ns, now_ns), .arrival = arrivals_++});
  if (idle()) {
    if (options_.sharing == Sharing::kRoundRobin && !job.in_turn) {
      job.in_turn = true;
      turns_.push_back(index);
    }
    ++waiting_tasks_;
    StartNext(idle_since_ns_);
    return;
  }
  ++waiting_tasks_;
  const bool other = static_cast<int64_t>(index) != current_job_;
  if (options_.sharing == Sharing::kRoundRobin && other) {
    if (!job.in_turn) {
      job.in_turn = true;
      turns_.push_back(index);
      if (turns_.size() == 1) {  // the current job ran alone until now
        simulation_->Cancel(slice_);
        ScheduleSlice();
      }
    }
  } else if (options_.sharing == Sharing::kShortestRemaining && other && options_.shared == nullptr && slice_end_ns_ > now_ns) {
    ChargeUntil(now_ns);
    if (RemainingOf(job) < RemainingOf(jobs_[static_cast<size_t>(current_job_)])) Preempt(now_ns);
  }
}

size_t ComputeEngine::ChooseNext() const {
  if (options_.sharing == Sharing::kRoundRobin) return turns_.front();
  size_t best = jobs_.size();
  for (size_t i = 0; i < jobs_.size(); ++i) {
    if (jobs_[i].tasks.empty()) continue;
    if (best == jobs_.size()) {
      best = i;
      continue;
    }
    const int64_t a = options_.sharing == Sharing::kShortestRemaining ? RemainingOf(jobs_[i]) : 0;
    const int64_t b = options_.sharing == Sharing::kShortestRemaining ? RemainingOf(jobs_[best]) : 0;
    if (a != b ? a < b : jobs_[i].tasks.front().arrival < jobs_[best].tasks.front().arrival) best = i;
  }
  return best;
}

// There is a task. The engine is free since `free_since_ns`, which may lie before the simulation's time.
void ComputeEngine::StartNext(int64_t free_since_ns) {
  const size_t index = ChooseNext();
  if (options_.sharing == Sharing::kRoundRobin) {
    turns_.pop_front();
    jobs_[index].in_turn = false;
  }
  --waiting_tasks_;
  Task& task = jobs_[index].tasks.front();
  int64_t start_ns = std::max(free_since_ns, task.ready_ns);
  if (last_job_ >= 0 && last_job_ != static_cast<int64_t>(index)) {
    ++switches_;
    start_ns += options_.switch_ns;
  }
  if (options_.shared != nullptr) start_ns = options_.shared->Reserve(0, start_ns, task.left_ns);
  current_job_ = last_job_ = static_cast<int64_t>(index);
  slice_start_ns_ = turn_start_ns_ = start_ns;
  ScheduleSlice();
  if (task.started) return;
  task.started = true;
  options_.sink->TaskStarted(task.tag, start_ns);
}

// The current task goes on until its end, or until its job's quantum ends where others wait.
void ComputeEngine::ScheduleSlice() {
  const Task& task = jobs_[static_cast<size_t>(current_job_)].tasks.front();
  const int64_t now_ns = simulation_->now_ns();
  slice_end_ns_ = Simulation::Later(slice_start_ns_, task.left_ns);
  if (options_.sharing == Sharing::kRoundRobin && !turns_.empty() && options_.shared == nullptr) {
    // While nobody else waited the quantum was renewed each time it ended.
    const int64_t gone_ns = std::max<int64_t>(0, now_ns - turn_start_ns_);
    turn_start_ns_ += gone_ns / options_.quantum_ns * options_.quantum_ns;
    slice_end_ns_ = std::min(slice_end_ns_, std::max(slice_start_ns_, turn_start_ns_ + options_.quantum_ns));
  }
  slice_ = simulation_->Schedule(std::max(now_ns, slice_end_ns_), actor_, [this] { OnSlice(); });
}

void ComputeEngine::ChargeUntil(int64_t until_ns) {
  const int64_t served_ns = until_ns - slice_start_ns_;
  if (served_ns <= 0) return;
  Job& job = jobs_[static_cast<size_t>(current_job_)];
  job.tasks.front().left_ns -= served_ns;
  if (job.remaining_ns >= 0) job.remaining_ns = std::max<int64_t>(0, job.remaining_ns - served_ns);
  job.busy_ns += served_ns;
  busy_ns_ += served_ns;
  slice_start_ns_ = until_ns;
}

void ComputeEngine::Preempt(int64_t at_ns) {
  simulation_->Cancel(slice_);
  ++waiting_tasks_;
  current_job_ = -1;
  StartNext(at_ns);
}

void ComputeEngine::OnSlice() {
  const auto index = static_cast<size_t>(current_job_);
  const int64_t end_ns = slice_end_ns_;
  ChargeUntil(end_ns);
  if (jobs_[index].tasks.front().left_ns > 0) {  // the quantum is over
    jobs_[index].in_turn = true;
    turns_.push_back(index);
    Preempt(end_ns);
    return;
  }
  const uint64_t tag = jobs_[index].tasks.front().tag;
  jobs_[index].tasks.pop_front();
  current_job_ = -1;
  idle_since_ns_ = end_ns;
  if (!jobs_[index].tasks.empty() && options_.sharing == Sharing::kRoundRobin) {
    jobs_[index].in_turn = true;
    turns_.push_back(index);
  }
  // The sink first: the job's next task may come at once, and takes part in the choice.
  options_.sink->TaskEnded(tag, end_ns);
  if (idle() && waiting_tasks_ > 0) StartNext(end_ns);
}

}  // namespace tidepool::device::emulated
