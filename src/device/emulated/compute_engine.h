// The compute engine of one emulated device: runs one task at a time and divides its time among the jobs that have any.
//
//   fifo                 in order of arrival, each to its end
//   round-robin          jobs in turn, `quantum_ns` each; a job's own tasks in order
//   shortest-remaining   the job with the least work left, preempting; of several the one that came first
//
// A task's end depends on durations and on when tasks become ready only, never on when real time was noticed: a task that was
// ready before the simulation's time begins then if the engine was free (see links.h for the same rule).
//
// Several processes may share one engine through a SharedTimeline (shared_timeline.h); then it is first come, first served.
// Owned by the simulation's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "base/simulation.h"
#include "base/status.h"
#include "device/emulated/shared_timeline.h"

namespace tidepool::device::emulated {

enum class Sharing : uint8_t { kFifo, kRoundRobin, kShortestRemaining };
std::string_view NameOf(Sharing sharing);
StatusOr<Sharing> ParseSharing(std::string_view text);

class TaskSink {
 public:
  virtual ~TaskSink() = default;
  // The engine has begun the task for the first time. May be called from within Submit.
  virtual void TaskStarted(uint64_t tag, int64_t start_ns) = 0;
  virtual void TaskEnded(uint64_t tag, int64_t end_ns) = 0;
};

class ComputeEngine {
 public:
  struct Options {
    Sharing sharing = Sharing::kFifo;
    int64_t quantum_ns = 2'000'000;
    int64_t switch_ns = 0;  // lost whenever the engine goes from one job to another
    SharedTimeline* shared = nullptr;
    TaskSink* sink = nullptr;
  };
  ComputeEngine(Simulation* simulation, Simulation::ActorId actor, const Options& options)
      : simulation_(simulation), actor_(actor), options_(options), idle_since_ns_(simulation->now_ns()) {}
  ComputeEngine(const ComputeEngine&) = delete;
  ComputeEngine& operator=(const ComputeEngine&) = delete;

  void Submit(int32_t job, uint64_t tag, int64_t work_ns, int64_t ready_ns);
  // What a job has still to do in all, for shortest-remaining; goes down as it is served. A job that never says counts by its
  // task.
  void SetRemaining(int32_t job, int64_t work_ns);

  bool idle() const { return current_job_ < 0; }
  int64_t busy_ns() const { return busy_ns_; }
  int64_t BusyOf(int32_t job) const;
  int64_t switches() const { return switches_; }

 private:
  struct Task {
    uint64_t tag = 0;
    int64_t left_ns = 0;
    int64_t ready_ns = 0;
    uint64_t arrival = 0;
    bool started = false;
  };
  struct Job {
    int32_t id = 0;
    std::deque<Task> tasks;
    int64_t remaining_ns = -1;  // negative: not declared
    int64_t busy_ns = 0;
    bool in_turn = false;  // waits in turns_
  };
  size_t FindJob(int32_t id);
  int64_t RemainingOf(const Job& job) const { return job.remaining_ns >= 0 ? job.remaining_ns : job.tasks.front().left_ns; }
  size_t ChooseNext() const;
  void StartNext(int64_t free_since_ns);
  void ScheduleSlice();
  void OnSlice();
  // Takes the time from slice_start_ns_ to `until_ns` off the current task.
  void ChargeUntil(int64_t until_ns);
  void Preempt(int64_t at_ns);

  Simulation* const simulation_;
  const Simulation::ActorId actor_;
  const Options options_;
  std::vector<Job> jobs_;
  std::deque<size_t> turns_;   // round-robin: jobs with tasks, but for the current one
  int64_t waiting_tasks_ = 0;  // of all jobs, without the current task
  uint64_t arrivals_ = 0;
  int64_t current_job_ = -1;  // index into jobs_
  int64_t last_job_ = -1;
  int64_t slice_start_ns_ = 0;  // on the timeline; what came before is charged
  int64_t turn_start_ns_ = 0;   // when the current job's quantum began
  int64_t slice_end_ns_ = 0;
  Simulation::EventId slice_;
  int64_t idle_since_ns_;
  int64_t busy_ns_ = 0;
  int64_t switches_ = 0;
};

}  // namespace tidepool::device::emulated
