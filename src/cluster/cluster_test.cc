#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "base/json.h"
#include "cluster/node.h"
#include "cluster/node_status.h"
#include "cluster/restart_policy.h"
#include "cluster/runtime_directory.h"
#include "cluster/train_supervisor.h"

namespace tidepool::cluster {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(20); }

TEST(RestartPolicy, DoublesTheWaitUpToItsLimitAndGivesUp) {
  RestartPolicy policy(4, absl::Milliseconds(200), absl::Milliseconds(700));
  EXPECT_EQ(policy.OnKilled(false), absl::Milliseconds(200));
  EXPECT_EQ(policy.OnKilled(false), absl::Milliseconds(400));
  EXPECT_EQ(policy.OnKilled(false), absl::Milliseconds(700));
  EXPECT_EQ(policy.OnKilled(false), absl::Milliseconds(700));
  EXPECT_EQ(policy.OnKilled(false), std::nullopt);
}

TEST(RestartPolicy, BeginsAnewAfterProgress) {
  RestartPolicy policy(1, absl::Milliseconds(200), absl::Seconds(10));
  EXPECT_EQ(policy.OnKilled(false), absl::Milliseconds(200));
  EXPECT_EQ(policy.OnKilled(true), absl::Milliseconds(200));
  EXPECT_EQ(policy.OnKilled(false), std::nullopt);
  RestartPolicy never(0, absl::Milliseconds(200), absl::Seconds(10));
  EXPECT_EQ(never.OnKilled(true), std::nullopt);
}

TEST(Timeline, KeepsTheNewestRecordsAndCountsTheRest) {
  Timeline timeline({.memory_samples = 3, .handovers = 2, .serve_events = 2, .train_events = 1});
  for (int i = 0; i < 5; ++i) {
    timeline.AddMemory(absl::FromUnixSeconds(i), {.page_bytes = 4096, .total = 10, .free = i});
    timeline.AddHandover({.pages = i});
    timeline.AddServeEvent({.batch = i});
    timeline.AddTrainProgress({.step = i});
  }
  const TimelineData data = timeline.Snapshot();
  ASSERT_EQ(data.memory.size(), 3u);
  EXPECT_EQ(data.memory.front().free, 2);
  EXPECT_EQ(data.dropped_memory, 2);
  EXPECT_EQ(data.handovers.back().pages, 4);
  EXPECT_EQ(data.dropped_handovers, 3);
  EXPECT_EQ(data.serve.size(), 2u);
  EXPECT_EQ(data.train.front().step, 4);
  EXPECT_EQ(data.dropped_train, 4);
}

TEST(Timeline, AddsLeasesOfOneNameAndLimitsTheNames) {
  Timeline timeline;
  pool::PoolStats stats{.page_bytes = 4096, .total = 100};
  stats.leases.push_back({.name = "train", .lease_class = pool::LeaseClass::kReclaimable, .limit_pages = 50, .held_pages = 7});
  stats.leases.push_back({.name = "model:a", .held_pages = 2});
  stats.leases.push_back({.name = "model:a", .held_pages = 3});
  stats.leases.push_back({.name = "model:idle", .held_pages = 0});
  timeline.AddMemory(absl::Now(), stats);
  TimelineData data = timeline.Snapshot();
  EXPECT_THAT(data.tenants, ::testing::ElementsAre("train", "model:a"));
  EXPECT_THAT(data.memory.back().held, ::testing::ElementsAre(std::pair(0u, int64_t{7}), std::pair(1u, int64_t{5})));
  EXPECT_EQ(data.memory.back().train_limit, 50);

  stats.leases.clear();
  for (int i = 0; i < 3000; ++i) stats.leases.push_back({.name = "m" + std::to_string(i), .held_pages = 1});
  timeline.AddMemory(absl::Now(), stats);
  data = timeline.Snapshot();
  EXPECT_EQ(data.tenants.size(), 1024u);
  EXPECT_EQ(data.tenants.back(), "others");
  int64_t pages = 0;
  for (const auto& [tenant, held] : data.memory.back().held) pages += held;
  EXPECT_EQ(pages, 3000);
}

TEST(RuntimeDirectory, IsPrivateAndRemovedAtTheEnd) {
  std::string path;
  {
    auto directory = RuntimeDirectory::Open("");
    ASSERT_TRUE(directory.ok()) << ToString(directory.status());
    path = (*directory)->path();
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700u);
    std::ofstream(path + "/file") << "x";
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(RuntimeDirectory, ThatWasGivenIsProtectedAndKept) {
  const std::string path = ::testing::TempDir() + "/tp-kept";
  std::filesystem::create_directories(path);
  ::chmod(path.c_str(), 0755);
  { ASSERT_TRUE(RuntimeDirectory::Open(path).ok()); }
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  std::filesystem::remove_all(path);

  const auto long_path = RuntimeDirectory::Open("/tmp/" + std::string(120, 'x'));
  EXPECT_THAT(MessageOf(long_path.status()), HasSubstr("allowed: 90"));
  const auto missing = RuntimeDirectory::Open("/proc/no-such-folder/a");
  EXPECT_THAT(MessageOf(missing.status()), HasSubstr("/proc/no-such-folder/a"));
}

TEST(NodeOptions, ReportAllFaultsAtOnce) {
  NodeOptions options;
  options.device.page_bytes = 5000;
  options.device.capacity_bytes = 1;
  options.static_train_fraction = 1.5;
  options.server.repository = "/tmp";
  options.server.worker_binary = "/bin/true";
  const std::string text = MessageOf(options.Validate());
  EXPECT_THAT(text, HasSubstr("node.page_size"));
  EXPECT_THAT(text, HasSubstr("node.capacity"));
  EXPECT_THAT(text, HasSubstr("serve.static_train_fraction is 1.5; allowed: between 0 and 1"));
}

TEST(Timeline, KeepsTheMemoryOfEachDevice) {
  Timeline timeline({.memory_samples = 2});
  for (int i = 0; i < 4; ++i) {
    for (int device = 0; device < 2; ++device) {
      timeline.AddMemory(absl::FromUnixSeconds(i), {.page_bytes = 4096, .total = 10, .free = i}, device);
    }
  }
  const TimelineData data = timeline.Snapshot();
  EXPECT_EQ(data.devices, 2);
  ASSERT_EQ(data.memory.size(), 4u) << "two of each device";
  EXPECT_EQ(data.memory[0].device, 0);
  EXPECT_EQ(data.memory[3].device, 1);
  EXPECT_EQ(data.memory[3].free, 3);
}

NodeStatus SomeStatus(const NodeOptions* options, int devices) {
  NodeStatus status{.options = options, .runtime_directory = "/run/node", .ready = true};
  for (int i = 0; i < devices; ++i) {
    DeviceStatus device{.ready = i == 0, .worker_pid = 100 + i};
    device.pool = {.page_bytes = 4096, .total = 10, .free = 10 - i, .granted = i, .peak_granted = 2 + i};
    device.pool.leases = {{.name = "workspace", .pid = 100 + i, .held_pages = i}};
    EmulationStatus emulation;
    emulation.report.elapsed = absl::Seconds(10 + i);
    for (const auto engine :
         {device::EngineKind::kCompute, device::EngineKind::kHostToDevice, device::EngineKind::kDeviceToHost}) {
      emulation.report.busy[engine] = absl::Seconds(1 + i);
    }
    emulation.report.host_limited = i == 1;
    emulation.report.host_limited_reason = i == 1 ? "slow" : "";
    device.emulation = emulation;
    status.devices.push_back(device);
  }
  status.models = {{.name = "m", .state = serve::ModelState::kReady, .devices = {1}}};
  return status;
}

TEST(NodeStatus, SaysOfOneDeviceWhatItAlwaysSaid) {
  NodeOptions options;
  options.device.capacity_bytes = 40960;
  const nlohmann::json json = nlohmann::json::parse(StatusJsonOf(SomeStatus(&options, 1)));
  for (const char* key :
       {"mode", "device", "capacity_bytes", "ready", "worker_pid", "runtime_directory", "pool", "models", "emulation"})
    EXPECT_TRUE(json.contains(key)) << key;
  EXPECT_EQ(json["worker_pid"], 100);
  EXPECT_EQ(json["devices"].size(), 1u);
  EXPECT_FALSE(json["pool"]["leases"][0].contains("device"));
  EXPECT_FALSE(json["models"][0].contains("devices"));
}

TEST(NodeStatus, SaysOfSeveralDevicesWhatEachIsAndWhatTheyAreTogether) {
  NodeOptions options;
  options.device.capacity_bytes = 40960;
  options.train.data = "text:/books";
  options.train_device = 2;
  const nlohmann::json json = nlohmann::json::parse(StatusJsonOf(SomeStatus(&options, 3)));
  EXPECT_EQ(json["device_count"], 3);
  EXPECT_EQ(json["capacity_bytes"], 3 * 40960);
  EXPECT_FALSE(json.contains("worker_pid"));
  EXPECT_EQ(json["pool"]["total_pages"], 30);
  EXPECT_EQ(json["pool"]["granted_pages"], 3);
  EXPECT_EQ(json["pool"]["leases"][2]["device"], 2);
  ASSERT_EQ(json["devices"].size(), 3u);
  EXPECT_EQ(json["devices"][1]["worker_pid"], 101);
  EXPECT_EQ(json["devices"][1]["ready"], false);
  EXPECT_EQ(json["devices"][1]["pool"]["granted_pages"], 1);
  EXPECT_EQ(json["devices"][2]["trains"], true);
  EXPECT_EQ(json["devices"][1]["trains"], false);
  EXPECT_EQ(json["devices"][1]["emulation"]["compute_busy_s"], 2.0);
  EXPECT_EQ(json["emulation"]["compute_busy_s"], 6.0);
  EXPECT_EQ(json["emulation"]["elapsed_s"], 12.0);
  EXPECT_EQ(json["emulation"]["host_limited_reason"], "slow");
  EXPECT_EQ(json["models"][0]["devices"], nlohmann::json({1}));
  EXPECT_EQ(json["training"]["device"], 2);
}

TEST(NodeOptions, TakeDevicesThatOtherProcessesCanFollow) {
  NodeOptions options;
  const auto text = [&](const std::string& device) {
    options.device.name = device;
    return MessageOf(options.Validate());
  };
  EXPECT_THAT(text("v100"), HasSubstr("node.device: device name 'v100' is unknown; allowed: host"));
  EXPECT_THAT(text("emulated:h200,clock=virtual"), HasSubstr("allowed here: real"));
  EXPECT_THAT(text("emulated:h200x17,mode=timing"), HasSubstr("means 17 devices; allowed on a node: 1 to 16"));
  EXPECT_THAT(text("emulated:h200x0"), HasSubstr("the number of devices is '0'"));
  EXPECT_THAT(text("emulated:h200,mode=fast"), HasSubstr("mode is 'fast'; allowed: timing, functional"));
  EXPECT_THAT(text("emulated:h200,mode=timing"), Not(HasSubstr("emulated")));
  EXPECT_THAT(text("emulated:h200x8,mode=timing"), Not(HasSubstr("node.")));
  options.train_device = 8;
  EXPECT_THAT(text("emulated:h200x8,mode=timing"), HasSubstr("node.train_device is 8; allowed: 0 to 7"));
  options.train_device = -1;
  EXPECT_THAT(text("host"), HasSubstr("node.train_device is -1; allowed: 0 to 0"));
  options.train_device = 0;
  options.train.data = "text:/books";
  EXPECT_THAT(text("emulated:h200,mode=timing"), HasSubstr("only keeps time; a training job computes its results"));
  options.reserve_bytes = 8 << 20;
  EXPECT_THAT(text("emulated:h200,capacity=4MiB"),
              HasSubstr("pool.reserve is 8.00 MiB; allowed: 0 B to the capacity of 4.00 MiB"));
}

TEST(NodeOptions, AreReadFromTheTableOfOptions) {
  NodeOptions options;
  OptionTable table;
  options.Register(&table);
  const auto set = [&](const char* key, const char* value) {
    return table.Set(key, value, OptionTable::Source::kFlag, "--test");
  };
  EXPECT_TRUE(set("node.capacity", "512MiB").ok());
  EXPECT_TRUE(set("node.mapping", "strict").ok());
  EXPECT_TRUE(set("pool.fit_policy", "next-fit").ok());
  EXPECT_TRUE(set("serve.mode", "task-switch").ok());
  EXPECT_EQ(options.device.capacity_bytes, 512 << 20);
  EXPECT_EQ(options.device.mapping, device::MappingMode::kStrict);
  EXPECT_EQ(options.fit, pool::FitPolicy::kNextFit);
  EXPECT_EQ(options.server.mode, serve::Mode::kTaskSwitch);
  EXPECT_THAT(MessageOf(set("node.mapping", "loose")), HasSubstr("'loose'; allowed: fast, strict"));
  EXPECT_THAT(MessageOf(set("serve.mode", "both")), HasSubstr("both"));
}

// A job that runs until the test says how it ends.
class FakeJob : public train::TrainJob {
 public:
  explicit FakeJob(Status* stop_result) : stop_result_(stop_result) {}
  int pid() override { return 4242; }
  train::TrainProgress Latest() override { return {}; }
  Status Stop(absl::Duration) override {
    End({});
    return *stop_result_;
  }
  Status Wait(absl::Time deadline) override {
    absl::MutexLock lock(&mu_);
    if (!mu_.AwaitWithDeadline(absl::Condition(&ended_), deadline)) return DeadlineExceeded("still running");
    return end_;
  }
  void End(Status status) {
    absl::MutexLock lock(&mu_);
    if (!ended_) end_ = std::move(status);
    ended_ = true;
  }

 private:
  Status* stop_result_;
  absl::Mutex mu_;
  bool ended_ = false;
  Status end_;
};

class TrainSupervisorTest : public ::testing::Test {
 protected:
  TrainSupervisorOptions Options() {
    TrainSupervisorOptions options{.restarts = 2, .backoff = absl::Milliseconds(1)};
    options.train.name = "job";
    options.start = [this](const auto& on_progress) -> StatusOr<std::unique_ptr<train::TrainJob>> {
      absl::MutexLock lock(&mu_);
      if (!start_error_.ok()) return start_error_;
      auto job = std::make_unique<FakeJob>(&stop_result_);
      job_ = job.get();
      on_progress_ = on_progress;
      ++starts_;
      return std::unique_ptr<train::TrainJob>(std::move(job));
    };
    return options;
  }
  FakeJob* AwaitStart(int number) {
    absl::MutexLock lock(&mu_);
    const auto started = [&] { return starts_ >= number; };
    EXPECT_TRUE(Clock::Real()->Await(&mu_, started, Soon())) << "run " << number << " never started";
    return job_;
  }

  absl::Mutex mu_;
  int starts_ = 0;
  FakeJob* job_ = nullptr;
  Status start_error_, stop_result_;
  std::function<void(const train::TrainProgress&)> on_progress_;
};

TEST_F(TrainSupervisorTest, ReportsTheEndOfAJobThatFinishes) {
  TrainSupervisor supervisor(Options());
  EXPECT_EQ(supervisor.status().state, TrainState::kNone);
  ASSERT_TRUE(supervisor.Start().ok());
  AwaitStart(1)->End({});
  EXPECT_TRUE(supervisor.WaitUntilEnded(Soon()).ok());
  EXPECT_EQ(supervisor.status().state, TrainState::kFinished);
}

TEST_F(TrainSupervisorTest, StartsAKilledJobAgainUntilItFailsTooOftenInARow) {
  TrainSupervisor supervisor(Options());
  ASSERT_TRUE(supervisor.Start().ok());
  for (int run = 1; run <= 3; ++run) AwaitStart(run)->End(Aborted("was killed by signal 9 (Killed)"));
  EXPECT_THAT(MessageOf(supervisor.WaitUntilEnded(Soon())), HasSubstr("killed by signal 9"));
  EXPECT_EQ(supervisor.status().state, TrainState::kFailed);
  EXPECT_EQ(supervisor.status().restarts, 2);
}

TEST_F(TrainSupervisorTest, GrantsNewRestartsAfterProgress) {
  TrainSupervisor supervisor(Options());
  ASSERT_TRUE(supervisor.Start().ok());
  for (int run = 1; run <= 6; ++run) {
    FakeJob* job = AwaitStart(run);
    on_progress_({.event = "step", .step = run});
    job->End(Aborted("was killed by signal 9 (Killed)"));
  }
  AwaitStart(7)->End({});
  EXPECT_TRUE(supervisor.WaitUntilEnded(Soon()).ok());
  EXPECT_EQ(supervisor.status().restarts, 6);
  EXPECT_EQ(supervisor.status().latest.step, 6);
}

TEST_F(TrainSupervisorTest, DoesNotRestartAJobThatFailsByItself) {
  TrainSupervisor supervisor(Options());
  ASSERT_TRUE(supervisor.Start().ok());
  AwaitStart(1)->End(NotFound("no such folder"));
  EXPECT_EQ(ToString(supervisor.WaitUntilEnded(Soon())), "NOT_FOUND: no such folder");
  EXPECT_EQ(supervisor.status().state, TrainState::kFailed);
}

TEST_F(TrainSupervisorTest, TriesAgainWhenAJobFoundTooLittleMemoryToBegin) {
  TrainSupervisor supervisor(Options());
  ASSERT_TRUE(supervisor.Start().ok());
  AwaitStart(1)->End(ResourceExhausted("64 of 200 pages are not promised to others"));
  FakeJob* job = AwaitStart(2);
  on_progress_({.event = "step", .step = 3});
  job->End(ResourceExhausted("a micro-batch of one sample does not fit"));
  EXPECT_TRUE(absl::IsResourceExhausted(supervisor.WaitUntilEnded(Soon())));
  EXPECT_EQ(supervisor.status().restarts, 1);
}

TEST_F(TrainSupervisorTest, ReportsAJobThatCannotBeStarted) {
  start_error_ = NotFound("tidepool-worker is missing");
  TrainSupervisor supervisor(Options());
  ASSERT_TRUE(supervisor.Start().ok());
  EXPECT_THAT(MessageOf(supervisor.WaitUntilEnded(Soon())), HasSubstr("is missing"));
}

TEST_F(TrainSupervisorTest, StopsARunningJobAndCanStartAnother) {
  TrainSupervisor supervisor(Options());
  EXPECT_TRUE(supervisor.Stop().ok());
  ASSERT_TRUE(supervisor.Start().ok());
  AwaitStart(1);
  EXPECT_THAT(MessageOf(supervisor.Start()), HasSubstr("'job' is running already"));
  EXPECT_TRUE(supervisor.Stop().ok());
  EXPECT_EQ(supervisor.status().state, TrainState::kStopped);
  ASSERT_TRUE(supervisor.Start().ok());
  AwaitStart(2);
}

TEST_F(TrainSupervisorTest, StopsWhileItWaitsForTheNextStart) {
  TrainSupervisorOptions options = Options();
  options.backoff = absl::Seconds(600);
  TrainSupervisor supervisor(options);
  ASSERT_TRUE(supervisor.Start().ok());
  AwaitStart(1)->End(Aborted("was killed by signal 9 (Killed)"));
  EXPECT_TRUE(supervisor.Stop().ok());
  EXPECT_EQ(supervisor.status().state, TrainState::kStopped);
}

}  // namespace
}  // namespace tidepool::cluster
