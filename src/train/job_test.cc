// The job as a process of its own: the real worker, killed and cut off at awkward points.
#include "train/job.h"

#include <absl/synchronization/mutex.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <thread>

#include "base/clock.h"
#include "base/process.h"
#include "base/units.h"
#include "pool/broker.h"
#include "pool/client.h"
#include "train/checkpoint.h"
#include "train/testing.h"

namespace tidepool::train {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(90); }
std::string Worker() { return ExecutableDirectory() + "/tidepool-worker"; }

// Collects progress and waits for a line of it.
class Watcher {
 public:
  std::function<void(const TrainProgress&)> Sink() {
    return [this](const TrainProgress& progress) {
      absl::MutexLock lock(&mu_);
      lines_.push_back(progress);
    };
  }
  bool WaitFor(const std::function<bool(const TrainProgress&)>& wanted) {
    absl::MutexLock lock(&mu_);
    auto seen = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return std::any_of(lines_.begin(), lines_.end(), wanted); };
    return Clock::Real()->Await(&mu_, seen, Soon());
  }
  bool WaitForStep(int64_t step) {
    return WaitFor([step](const TrainProgress& p) { return p.event == "step" && p.step >= step; });
  }
  std::vector<TrainProgress> lines() {
    absl::MutexLock lock(&mu_);
    return lines_;
  }

 private:
  absl::Mutex mu_;
  std::vector<TrainProgress> lines_ ABSL_GUARDED_BY(mu_);
};

class JobTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(WritePictures(folder_ / "data", 4, 8));
    options_ = TinyOptions(folder_ / "data");
  }

  void StartBroker() {
    device_ = device::OpenDevice({.name = "host", .capacity_bytes = 64 * kMiB, .page_bytes = 256 * kKiB}).value();
    options_.pool_socket = folder_ / "pool.sock";
    broker_ = pool::Broker::Start(device_.get(), {.socket_path = options_.pool_socket, .revoke_slack = absl::Milliseconds(100)})
                  .value();
  }

  ScratchFolder folder_;
  TrainOptions options_;
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<pool::Broker> broker_;
  Watcher watcher_;
};

TEST_F(JobTest, RunsToItsEndAndReports) {
  options_.final_weights = folder_ / "final.safetensors";
  auto job = TrainJob::Start(options_, Worker(), watcher_.Sink()).value();
  EXPECT_GT(job->pid(), 0);
  const Status ended = job->Wait(Soon());
  EXPECT_TRUE(ended.ok()) << ToString(ended);
  EXPECT_EQ(job->Latest().event, "finished");
  EXPECT_EQ(job->Latest().samples, 64);
  EXPECT_TRUE(std::filesystem::exists(options_.final_weights));
}

TEST_F(JobTest, ReportsItsOwnErrorWithItsCode) {
  options_.data = "imagefolder:" + (folder_ / "none");
  auto job = TrainJob::Start(options_, Worker(), nullptr).value();
  const Status ended = job->Wait(Soon());
  EXPECT_EQ(ended.code(), StatusCode::kNotFound) << ToString(ended);
  EXPECT_THAT(MessageOf(ended), HasSubstr(folder_ / "none"));
  EXPECT_EQ(TrainJob::Start(options_, "/no/such/worker", nullptr).status().code(), StatusCode::kNotFound);
  options_.epochs = 0;
  EXPECT_THAT(MessageOf(TrainJob::Start(options_, Worker(), nullptr).status()), HasSubstr("train.epochs is 0"));
}

TEST_F(JobTest, StopsWithACheckpointAndGoesOn) {
  options_.epochs = 1000;
  options_.checkpoint = folder_ / "checkpoint";
  auto job = TrainJob::Start(options_, Worker(), watcher_.Sink()).value();
  ASSERT_TRUE(watcher_.WaitForStep(4));
  EXPECT_EQ(job->Wait(absl::InfinitePast()).code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(job->Stop(absl::Seconds(60)).ok());
  EXPECT_TRUE(job->Wait(Soon()).ok());
  const int64_t stopped_at = job->Latest().step;
  EXPECT_EQ(FindCheckpoint(options_.checkpoint).value()->step, stopped_at);
  Watcher second;
  job = TrainJob::Start(options_, Worker(), second.Sink()).value();
  ASSERT_TRUE(second.WaitForStep(stopped_at + 1));
  EXPECT_EQ(second.lines().front().step, stopped_at);
}

TEST_F(JobTest, KilledInTheMiddleItsPagesAreBackAndAnotherTenantGoesOn) {
  StartBroker();
  options_.epochs = 1000;
  options_.checkpoint = folder_ / "checkpoint";
  options_.checkpoint_steps = 1;
  auto client = pool::Client::Attach({.connected_socket = broker_->Connect().value(), .name = "inference"}).value();
  const int64_t total = device_->info().capacity_bytes / device_->info().page_bytes;
  const auto lease = client->OpenLease({.name = "model", .burst_pages = total}, Soon()).value();
  for (const int64_t step : {1, 5}) {
    Watcher watcher;
    auto job = TrainJob::Start(options_, Worker(), watcher.Sink()).value();
    ASSERT_TRUE(watcher.WaitForStep(step));
    // More than the guarantee of training leaves: granted only when the trainer's death frees it.
    StatusOr<std::vector<device::Extent>> grown = Cancelled("not yet");
    std::thread inference([&] { grown = client->Grow(lease, {.pages = broker_->RoomForPinned().pages}, Soon()); });
    ASSERT_EQ(::kill(job->pid(), SIGKILL), 0);
    inference.join();
    ASSERT_TRUE(grown.ok()) << ToString(grown.status());
    const Status ended = job->Wait(Soon());
    EXPECT_EQ(ended.code(), StatusCode::kAborted);
    EXPECT_THAT(MessageOf(ended), HasSubstr("was killed by signal 9"));
    // The whole device can be had now: nothing of the dead trainer is left.
    ASSERT_TRUE(client->Return(lease, *grown).ok());
    auto all = client->Grow(lease, {.pages = total}, Soon());
    ASSERT_TRUE(all.ok()) << ToString(all.status());
    ASSERT_TRUE(client->Return(lease, *all).ok());
    EXPECT_EQ(broker_->Stats().violations, 0);
  }
  // What it had saved last is whole.
  const auto saved = FindCheckpoint(options_.checkpoint).value();
  ASSERT_TRUE(saved.has_value());
  options_.max_steps = saved->step + 1;
  auto job = TrainJob::Start(options_, Worker(), watcher_.Sink()).value();
  EXPECT_TRUE(job->Wait(Soon()).ok());
  EXPECT_EQ(job->Latest().step, saved->step + 1);
}

// The node as a process that can be killed.
class NodeProcess {
 public:
  explicit NodeProcess(const std::string& socket) {
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      auto device = device::OpenDevice({.name = "host", .capacity_bytes = 64 * kMiB, .page_bytes = 256 * kKiB}).value();
      auto broker = pool::Broker::Start(device.get(), {.socket_path = socket}).value();
      (void)!::write(ready[1], "x", 1);
      while (true) ::pause();
    }
    char byte;
    ::close(ready[1]);
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
  }
  ~NodeProcess() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  int pid_ = -1;
};

TEST_F(JobTest, SavesItsStateAndEndsWhenTheNodeDies) {
  options_.pool_socket = folder_ / "pool.sock";
  options_.epochs = 1000;
  options_.checkpoint = folder_ / "checkpoint";
  NodeProcess node(options_.pool_socket);
  auto job = TrainJob::Start(options_, Worker(), watcher_.Sink()).value();
  ASSERT_TRUE(watcher_.WaitForStep(3));
  node.Kill();
  const Status ended = job->Wait(Soon());
  EXPECT_EQ(ended.code(), StatusCode::kUnavailable) << ToString(ended);
  EXPECT_THAT(MessageOf(ended), HasSubstr("the page broker of this node is gone"));
  EXPECT_GE(FindCheckpoint(options_.checkpoint).value()->step, 3);
}

TEST(Worker, ExplainsAWrongCommandLine) {
  auto process = ChildProcess::Start({.command = {Worker(), "train", "--fast"}}).value();
  EXPECT_EQ(process.Wait(Soon())->code, 2);
}

}  // namespace
}  // namespace tidepool::train
