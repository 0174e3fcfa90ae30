#include "train/job.h"

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"

namespace tidepool::train {
namespace {

using Json = nlohmann::json;

constexpr int kOptionsDescriptor = 3;
constexpr size_t kLongestLine = 1 << 20;

// Reads the job's lines on a thread of its own and reaps it. The process is started and ended by the thread that made the object:
// the kernel ties a child to the thread that started it.
class ProcessJob : public TrainJob {
 public:
  ProcessJob(ChildProcess process, std::function<void(const TrainProgress&)> on_progress)
      : pid_(process.pid()), on_progress_(std::move(on_progress)), process_(std::move(process)) {
    reader_ = std::thread([this] { Follow(); });
  }

  ~ProcessJob() override {
    Signal(SIGKILL);
    reader_.join();
  }

  int pid() override { return pid_; }

  TrainProgress Latest() override {
    absl::MutexLock lock(&mu_);
    return latest_;
  }

  Status Stop(absl::Duration grace) override {
    Signal(SIGTERM);
    if (AwaitEnd(Clock::Real()->Now() + grace)) return {};
    Signal(SIGKILL);
    // A killed process ends as soon as the kernel has taken its memory back.
    if (!AwaitEnd(Clock::Real()->Now() + absl::Seconds(30))) return DeadlineExceeded("process {} survives SIGKILL", pid_);
    return DeadlineExceeded("the training job did not end within {} and was killed", absl::FormatDuration(grace));
  }

  Status Wait(absl::Time deadline) override {
    if (!AwaitEnd(deadline)) return DeadlineExceeded("the training job (process {}) still runs", pid_);
    absl::MutexLock lock(&mu_);
    if (exit_->ok()) return {};
    if (exit_->signalled) return Aborted("the training job {}", exit_->Describe());
    if (latest_.event == "failed" && !latest_.message.empty()) {
      const Status failure = ParseFailure(latest_.message);
      // That code means that the job still runs.
      if (failure.code() == StatusCode::kDeadlineExceeded) return Unavailable("{}", MessageOf(failure));
      return failure;
    }
    return Internal("the training job {}; the reason is in its log", exit_->Describe());
  }

 private:
  // "CODE: text", as the worker writes it into its last line.
  static Status ParseFailure(const std::string& text) {
    const size_t colon = text.find(": ");
    if (colon != std::string::npos) {
      for (int code = 1; code <= 16; ++code) {
        if (CodeName(static_cast<StatusCode>(code)) == text.substr(0, colon)) {
          return Status(static_cast<StatusCode>(code), text.substr(colon + 2));
        }
      }
    }
    return Internal("{}", text);
  }

  bool AwaitEnd(absl::Time deadline) {
    absl::MutexLock lock(&mu_);
    return Clock::Real()->Await(
        &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return exit_.has_value(); }, deadline);
  }

  void Signal(int signal) {
    absl::MutexLock lock(&mu_);
    if (!exit_.has_value()) ::kill(pid_, signal);  // not reaped before exit_ is set, so the number is still this process's
  }

  void Follow();
  void TakeLine(const std::string& line);

  const int pid_;
  const std::function<void(const TrainProgress&)> on_progress_;
  ChildProcess process_;
  absl::Mutex mu_;
  TrainProgress latest_ ABSL_GUARDED_BY(mu_);
  std::optional<ExitStatus> exit_ ABSL_GUARDED_BY(mu_);
  std::thread reader_;
};

void ProcessJob::TakeLine(const std::string& line) {
  if (line.empty()) return;
  StatusOr<TrainProgress> progress = ParseTrainProgress(line);
  if (!progress.ok()) {
    Log(LogLevel::kWarning, "a line of the training job is no progress", {{"pid", pid_}, {"error", progress.status()}});
    return;
  }
  {
    absl::MutexLock lock(&mu_);
    latest_ = *progress;
  }
  if (on_progress_) on_progress_(*progress);
}

void ProcessJob::Follow() {
  std::string pending;
  char buffer[16 * 1024];
  while (true) {
    // A child of the job could keep the pipe open: the job's end counts too.
    pollfd entries[2] = {{process_.stdout_fd(), POLLIN, 0}, {process_.pid_fd(), POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0 && errno != EINTR) break;
    if ((entries[0].revents & (POLLIN | POLLHUP)) == 0) {
      if ((entries[1].revents & POLLIN) != 0) break;
      continue;
    }
    const ssize_t n = ::read(process_.stdout_fd(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    pending.append(buffer, static_cast<size_t>(n));
    size_t begin = 0;
    for (size_t end; (end = pending.find('\n', begin)) != std::string::npos; begin = end + 1)
      TakeLine(pending.substr(begin, end - begin));
    pending.erase(0, begin);
    if (pending.size() > kLongestLine) pending.clear();
  }
  pollfd ended{process_.pid_fd(), POLLIN, 0};
  while (::poll(&ended, 1, -1) < 0 && errno == EINTR) {
  }
  absl::MutexLock lock(&mu_);
  auto status = process_.Wait(absl::InfiniteFuture());
  exit_ = status.ok() ? *status : ExitStatus{.signalled = false, .code = 1};
}

}  // namespace

std::string ToJson(const TrainProgress& p) {
  return Json{{"event", p.event},
              {"time_ns", absl::ToUnixNanos(p.time)},
              {"step", p.step},
              {"epoch", p.epoch},
              {"samples", p.samples},
              {"loss", p.loss},
              {"accuracy", p.accuracy},
              {"samples_per_s", p.samples_per_s},
              {"micro_batch", p.micro_batch},
              {"micro_batches", p.micro_batches},
              {"aborts", p.aborts},
              {"boundary_waits", p.boundary_waits},
              {"protected_runs", p.protected_runs},
              {"wasted_seconds", p.wasted_seconds},
              {"compute_seconds", p.compute_seconds},
              {"paused_seconds", p.paused_seconds},
              {"longest_operator_ms", p.longest_operator_ms},
              {"devices", p.devices},
              {"device_seconds", p.device_seconds},
              {"communication_seconds", p.communication_seconds},
              {"device_samples_per_s", p.device_samples_per_s},
              {"host_limited", p.host_limited},
              {"held_bytes", p.held_bytes},
              {"live_bytes", p.live_bytes},
              {"guaranteed_bytes", p.guaranteed_bytes},
              {"message", p.message}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

StatusOr<TrainProgress> ParseTrainProgress(const std::string& line) {
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return InvalidArgument("not a JSON object: '{:.80}'", line);
  TrainProgress p;
  std::string fault;
  auto number = [&](const char* key, auto* field) {
    const auto found = object.find(key);
    if (found == object.end()) return;
    using Field = std::remove_pointer_t<decltype(field)>;
    if (found->is_number()) {
      *field = found->template get<Field>();
    } else if (found->is_null() && std::numeric_limits<Field>::has_quiet_NaN) {
      *field = std::numeric_limits<Field>::quiet_NaN();  // JSON has no such number: written as null
    } else {
      fault = fmt::format("key '{}' is {}; allowed: a number", key, found->dump());
    }
  };
  auto text = [&](const char* key, std::string* field) {
    const auto found = object.find(key);
    if (found == object.end()) return;
    if (found->is_string()) {
      *field = found->get<std::string>();
    } else {
      fault = fmt::format("key '{}' is {}; allowed: a string", key, found->dump());
    }
  };
  int64_t time_ns = 0;
  text("event", &p.event);
  text("message", &p.message);
  text("host_limited", &p.host_limited);
  number("time_ns", &time_ns);
  number("step", &p.step);
  number("epoch", &p.epoch);
  number("samples", &p.samples);
  number("loss", &p.loss);
  number("accuracy", &p.accuracy);
  number("samples_per_s", &p.samples_per_s);
  number("micro_batch", &p.micro_batch);
  number("micro_batches", &p.micro_batches);
  number("aborts", &p.aborts);
  number("boundary_waits", &p.boundary_waits);
  number("protected_runs", &p.protected_runs);
  number("wasted_seconds", &p.wasted_seconds);
  number("compute_seconds", &p.compute_seconds);
  number("paused_seconds", &p.paused_seconds);
  number("longest_operator_ms", &p.longest_operator_ms);
  number("devices", &p.devices);
  number("device_seconds", &p.device_seconds);
  number("communication_seconds", &p.communication_seconds);
  number("device_samples_per_s", &p.device_samples_per_s);
  number("held_bytes", &p.held_bytes);
  number("live_bytes", &p.live_bytes);
  number("guaranteed_bytes", &p.guaranteed_bytes);
  if (p.event.empty() && fault.empty()) fault = "key 'event' is missing";
  if (!fault.empty()) return InvalidArgument("{}", fault);
  p.time = absl::FromUnixNanos(time_ns);
  return p;
}

std::string ToJson(const TrainOptions& options) {
  TrainOptions copy = options;
  OptionTable table;
  copy.Register(&table);
  Json object = Json::object();
  for (const OptionTable::Entry& entry : table.entries()) object[entry.info.key] = entry.get();
  return object.dump();
}

StatusOr<TrainOptions> ParseTrainOptions(const std::string& text) {
  const Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return InvalidArgument("training options are no JSON object");
  TrainOptions options;
  OptionTable table;
  options.Register(&table);
  for (const auto& [key, value] : object.items()) {
    if (!value.is_string()) return InvalidArgument("option '{}' is {}; allowed: a string", key, value.dump());
    TIDEPOOL_RETURN_IF_ERROR(table.Set(key, value.get<std::string>(), OptionTable::Source::kFlag, "--options-fd"));
  }
  return options;
}

StatusOr<std::unique_ptr<TrainJob>> TrainJob::Start(const TrainOptions& options, const std::string& worker_binary,
                                                    std::function<void(const TrainProgress&)> on_progress) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  const std::string text = ToJson(options);
  TIDEPOOL_ASSIGN_OR_RETURN(UniqueFd memory, CreateMemFd("train-options", static_cast<int64_t>(text.size())));
  if (::pwrite(memory.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return ErrnoError(errno, "writing the training options");
  }
  ProcessOptions process{.command = {worker_binary, "train", fmt::format("--options-fd={}", kOptionsDescriptor)},
                         .environment = ArithmeticEnvironment(options.threads),
                         .descriptors = {{memory.get(), kOptionsDescriptor}},
                         .capture_stdout = true};
  auto started = ChildProcess::Start(process);
  if (!started.ok()) return Annotate(started.status(), fmt::format("training job '{}'", options.name));
  return std::make_unique<ProcessJob>(std::move(*started), std::move(on_progress));
}

}  // namespace tidepool::train
