#include "train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "base/units.h"
#include "model/families.h"
#include "model/weights.h"
#include "pool/broker.h"
#include "pool/client.h"
#include "profile/planted.h"
#include "train/journal.h"
#include "train/testing.h"

namespace tidepool::train {
namespace {

using ::testing::HasSubstr;

class RuntimeEnvironment : public ::testing::Environment {
 public:
  void SetUp() override { ASSERT_TRUE(engine::InitRuntime({.threads = 1}).ok()); }
};
const auto* const kEnvironment = ::testing::AddGlobalTestEnvironment(new RuntimeEnvironment);

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(60); }

struct Recorded {
  std::vector<TrainProgress> lines;
  Status status;
  int Count(const std::string& event) const {
    int count = 0;
    for (const TrainProgress& line : lines) count += line.event == event;
    return count;
  }
  TrainProgress Last(const std::string& event) const {
    for (auto line = lines.rbegin(); line != lines.rend(); ++line) {
      if (line->event == event) return *line;
    }
    return {};
  }
};

class TrainerTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_NO_FATAL_FAILURE(WritePictures(folder_ / "data", 4, 10)); }  // 40 samples: 12 + 12 + 12 + 4

  Recorded Run(TrainOptions options, TrainerHooks hooks = {}, StopToken* stop = nullptr,
               const std::function<void(const TrainProgress&)>& watch = {}) {
    Recorded recorded;
    StopToken own;
    options.yield_cpu = false;
    recorded.status = RunTrainer(
        options,
        [&](const TrainProgress& progress) {
          recorded.lines.push_back(progress);
          if (watch) watch(progress);
        },
        stop == nullptr ? &own : stop, hooks);
    return recorded;
  }

  std::string Bytes(const std::string& path) { return ReadFile(path, kGiB).value(); }

  // The largest difference between two files of F32 tensors, relative to the largest value.
  double Difference(const std::string& a, const std::string& b) {
    const std::string x = Bytes(a), y = Bytes(b);
    EXPECT_EQ(x.size(), y.size());
    uint64_t header = 0;
    std::memcpy(&header, x.data(), 8);
    double largest = 0, worst = 0;
    for (size_t at = 8 + header; at + 4 <= x.size(); at += 4) {
      float u, v;
      std::memcpy(&u, x.data() + at, 4);
      std::memcpy(&v, y.data() + at, 4);
      largest = std::max(largest, std::abs(double{u}));
      worst = std::max(worst, std::abs(double{u} - v));
    }
    return worst / largest;
  }

  ScratchFolder folder_;
};

TEST_F(TrainerTest, TrainsAndReportsEachStep) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.epochs = 5;
  options.learning_rate = 0.005;
  options.evaluation_data = options.data;
  options.final_weights = folder_ / "final.safetensors";
  const Recorded run = Run(options);
  ASSERT_TRUE(run.status.ok()) << ToString(run.status);
  EXPECT_EQ(run.Count("started"), 1);
  EXPECT_EQ(run.Count("step"), 20);
  EXPECT_EQ(run.Count("evaluation"), 6);
  EXPECT_EQ(run.lines.back().event, "finished");
  const TrainProgress last = run.lines.back();
  EXPECT_EQ(last.samples, 200);
  EXPECT_EQ(last.step, 20);
  EXPECT_EQ(last.aborts, 0);
  EXPECT_GT(last.guaranteed_bytes, 0);
  TrainProgress first;
  for (const TrainProgress& line : run.lines) {
    if (line.event == "evaluation") {
      first = line;
      break;
    }
  }
  EXPECT_LT(run.Last("evaluation").loss, first.loss);
  EXPECT_GT(run.Last("evaluation").accuracy, first.accuracy);
  EXPECT_TRUE(std::filesystem::exists(options.final_weights));
}

TEST_F(TrainerTest, GivesTheSameBitsAsItsJournalHoweverItWasDisturbed) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.final_weights = folder_ / "plain.safetensors";
  ASSERT_TRUE(Run(options).status.ok());

  options.journal = folder_ / "disturbed.jsonl";
  options.final_weights = folder_ / "disturbed.safetensors";
  std::mt19937 random(5);
  TrainerHooks hooks;
  hooks.before_micro_batch = [&](int64_t, engine::AbortToken& token) {
    if (random() % 3 == 0) token.RequestAtCheck(random() % 200);
  };
  const Recorded disturbed = Run(options, hooks);
  ASSERT_TRUE(disturbed.status.ok()) << ToString(disturbed.status);
  EXPECT_GT(disturbed.lines.back().aborts, 0);
  EXPECT_GT(disturbed.lines.back().micro_batches, disturbed.lines.back().step);

  options.replay = options.journal;
  options.journal.clear();
  options.final_weights = folder_ / "replayed.safetensors";
  const Recorded replayed = Run(options);
  ASSERT_TRUE(replayed.status.ok()) << ToString(replayed.status);
  EXPECT_EQ(replayed.lines.back().aborts, 0);
  EXPECT_EQ(replayed.lines.back().micro_batches, disturbed.lines.back().micro_batches);
  EXPECT_EQ(Bytes(folder_ / "disturbed.safetensors"), Bytes(folder_ / "replayed.safetensors"));
}

// Without BatchNorm, whose statistics depend on the partition, any partition gives the same result up to rounding.
TEST_F(TrainerTest, MatchesAnUndisturbedRunWhateverTheMicroBatches) {
  std::string text;
  for (int i = 0; i < 1500; ++i) text += static_cast<char>('a' + (i * i + i / 7) % 23);
  ASSERT_TRUE(WriteFileAtomically(folder_ / "text.txt", text).ok());
  TrainOptions options = TinyOptions(folder_ / "data");
  options.model = "gpt2:layers=2,width=32,heads=2,vocab=256,context=16,dropout=0";
  options.data = "text:" + (folder_ / "text.txt");
  options.global_batch = 20;
  options.max_micro_batch = 20;
  options.final_weights = folder_ / "plain.safetensors";
  const Recorded plain = Run(options);
  ASSERT_TRUE(plain.status.ok()) << ToString(plain.status);
  options.max_micro_batch = 3;
  options.final_weights = folder_ / "small.safetensors";
  std::mt19937 random(6);
  TrainerHooks hooks;
  hooks.before_micro_batch = [&](int64_t, engine::AbortToken& token) {
    if (random() % 4 == 0) token.RequestAtCheck(random() % 100);
  };
  const Recorded small = Run(options, hooks);
  ASSERT_TRUE(small.status.ok()) << ToString(small.status);
  EXPECT_GT(small.lines.back().aborts, 0);
  EXPECT_LT(Difference(folder_ / "plain.safetensors", folder_ / "small.safetensors"), 1e-4);
}

TEST_F(TrainerTest, GoesOnFromItsCheckpointExactly) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.epochs = 3;
  options.max_micro_batch = 5;
  options.journal = folder_ / "whole.jsonl";
  options.final_weights = folder_ / "whole.safetensors";
  ASSERT_TRUE(Run(options).status.ok());

  options.journal = folder_ / "parts.jsonl";
  options.final_weights = folder_ / "parts.safetensors";
  options.checkpoint = folder_ / "checkpoint";
  options.checkpoint_steps = 2;
  // Stopped in the middle of a global batch, twice.
  for (const int64_t stop_at : {1, 5}) {
    StopToken stop;
    TrainerHooks hooks;
    int64_t step = 0;
    int left = 2;
    hooks.before_micro_batch = [&](int64_t, engine::AbortToken&) {
      if (step == stop_at && --left == 0) stop.Stop();
    };
    const Recorded part = Run(options, hooks, &stop, [&](const TrainProgress& progress) { step = progress.step; });
    ASSERT_TRUE(part.status.ok()) << ToString(part.status);
    EXPECT_EQ(part.lines.back().message, fmt::format("stopped at step {}", stop_at));
  }
  const Recorded rest = Run(options);
  ASSERT_TRUE(rest.status.ok()) << ToString(rest.status);
  EXPECT_EQ(rest.Count("step"), 7);
  // The partition near a stop may differ, so equality holds for the run that follows the same journal.
  options.checkpoint.clear();
  options.checkpoint_steps = 0;
  options.replay = options.journal;
  options.journal.clear();
  options.final_weights = folder_ / "replayed.safetensors";
  ASSERT_TRUE(Run(options).status.ok());
  EXPECT_EQ(Bytes(folder_ / "parts.safetensors"), Bytes(folder_ / "replayed.safetensors"));
}

TEST_F(TrainerTest, RefusesACheckpointOfAnotherJob) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.max_steps = 1;
  options.checkpoint = folder_ / "checkpoint";
  ASSERT_TRUE(Run(options).status.ok());
  options.seed = 8;
  options.global_batch = 6;
  const Recorded other = Run(options);
  EXPECT_EQ(other.status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(other.status), HasSubstr("seed is 7 in the checkpoint and 8 in this run; global_batch is 12"));
}

TEST_F(TrainerTest, NamesWhatDoesNotFit) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.model = "resnet18:image=32,small_stem=true,width=8,classes=3";
  EXPECT_THAT(MessageOf(Run(options).status), HasSubstr("has 4 classes; model"));
  options = TinyOptions(folder_ / "none");
  EXPECT_EQ(Run(options).status.code(), StatusCode::kNotFound);
  options = TinyOptions(folder_ / "data");
  options.burst_bytes = 2 << 20;
  EXPECT_THAT(MessageOf(Run(options).status), HasSubstr("training 'test' keeps "));
  options = TinyOptions(folder_ / "data");
  options.model = "gpt2:layers=1,width=32,heads=2,vocab=256,context=16";
  EXPECT_THAT(MessageOf(Run(options).status), HasSubstr("but the model's input has shape [16]; allowed: [3, size, size]"));
}

TEST_F(TrainerTest, EndsWithTheNameOfABrokenFileOrSkipsIt) {
  ASSERT_TRUE(WriteFileAtomically(folder_ / "data/class2/0003.jpg", "broken").ok());
  TrainOptions options = TinyOptions(folder_ / "data");
  const Recorded failed = Run(options);
  EXPECT_EQ(failed.status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(failed.status), HasSubstr("class2/0003.jpg: not a readable JPEG file"));
  EXPECT_EQ(failed.lines.back().event, "failed");
  options.skip_broken_samples = true;
  EXPECT_TRUE(Run(options).status.ok());
}

// The name of a device on which a sample takes 1 ms forward and 2 ms backward, and the optimizer 5 ms.
std::string WriteProfile(const std::string& folder, const TrainOptions& options) {
  std::vector<profile::OpRow> rows = {{.key = {.model = options.model, .phase = profile::Phase::kOptimizer}, .median_us = 5000}};
  for (int64_t batch = 1; batch <= options.max_micro_batch; ++batch) {
    const auto samples = static_cast<double>(batch);
    rows.push_back(
        {.key = {.model = options.model, .phase = profile::Phase::kForward, .batch = batch}, .median_us = 1000 * samples});
    rows.push_back(
        {.key = {.model = options.model, .phase = profile::Phase::kBackward, .batch = batch}, .median_us = 2000 * samples});
  }
  std::filesystem::create_directories(folder);
  return profile::testing::WritePlantedBundle(folder, rows);
}

TEST_F(TrainerTest, ChargesAnEmulatedDeviceWhatItsProfileSays) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.final_weights = folder_ / "plain.safetensors";
  ASSERT_TRUE(Run(options).status.ok());
  options.final_weights = folder_ / "emulated.safetensors";
  options.device = WriteProfile(folder_ / "profile", options);
  const Recorded run = Run(options);
  ASSERT_TRUE(run.status.ok()) << ToString(run.status);
  EXPECT_THAT(run.lines.front().message, HasSubstr("times from profile 'planted', measured (a test)"));
  const TrainProgress& last = run.lines.back();
  EXPECT_EQ(last.samples, 80);
  // Two epochs of 40 samples in four steps each, and the one sample that is tried before.
  EXPECT_DOUBLE_EQ(last.device_seconds, 81 * 0.003 + 8 * 0.005);
  EXPECT_NEAR(last.device_samples_per_s, 68 / (68 * 0.003 + 7 * 0.005), 1e-6)
      << "from the end of the first step to that of the last";
  EXPECT_EQ(Bytes(folder_ / "plain.safetensors"), Bytes(folder_ / "emulated.safetensors"));
}

// Gradients as the planted profile's links exchange them: 1 ns per byte, latency 100 us.
absl::Duration RingAllReduce(const TrainOptions& options, int64_t devices) {
  int64_t bytes = 0;
  const model::Graph graph = model::BuildGraph(options.model).value();
  for (const model::Param& param : graph.params) bytes += param.kind == model::ParamKind::kWeight ? model::BytesOf(param) : 0;
  return 2 * (devices - 1) * (absl::Nanoseconds(bytes) / devices + absl::Microseconds(100));
}

TEST_F(TrainerTest, TrainsOnSeveralDevicesWhatOneTrainsInTheTimeOfAll) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.epochs = 1;
  options.max_micro_batch = 1;
  options.device = WriteProfile(folder_ / "profile", options) + "x4,collective=ring";
  options.journal = folder_ / "journal.jsonl";
  options.final_weights = folder_ / "four.safetensors";
  const Recorded run = Run(options);
  ASSERT_TRUE(run.status.ok()) << ToString(run.status);
  EXPECT_THAT(run.lines.front().message, HasSubstr("4 devices side by side, each emulated:"));
  const TrainProgress& last = run.lines.back();
  EXPECT_EQ(last.devices, 4);
  EXPECT_EQ(last.samples, 40);
  // 12 + 12 + 12 + 4 samples, and the one sample that each device tries before.
  const double all_reduce = absl::ToDoubleSeconds(RingAllReduce(options, 4));
  EXPECT_DOUBLE_EQ(last.communication_seconds, 4 * all_reduce);
  EXPECT_NEAR(last.device_seconds, 0.003 + (3 + 3 + 3 + 1) * 0.003 + 4 * (all_reduce + 0.005), 1e-9);
  EXPECT_NEAR(last.device_samples_per_s, 28 / ((3 + 3 + 1) * 0.003 + 3 * (all_reduce + 0.005)), 1e-6)
      << "from the end of the first step to that of the last";

  options.device = WriteProfile(folder_ / "profile of one", options);
  options.replay = std::exchange(options.journal, "");
  options.final_weights = folder_ / "one.safetensors";
  const Recorded one = Run(options);
  ASSERT_TRUE(one.status.ok()) << ToString(one.status);
  EXPECT_EQ(one.lines.back().devices, 1);
  EXPECT_DOUBLE_EQ(one.lines.back().device_seconds, 41 * 0.003 + 4 * 0.005);
  EXPECT_EQ(Bytes(folder_ / "four.safetensors"), Bytes(folder_ / "one.safetensors"));
}

TEST_F(TrainerTest, GivesEachDeviceAnEqualPartOfEveryGlobalBatch) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.device = WriteProfile(folder_ / "profile", options) + "x4";
  options.evaluation_data = options.data;
  options.journal = folder_ / "journal.jsonl";
  ASSERT_TRUE(Run(options).status.ok());
  const auto journal = JournalReader::Open(options.journal);
  ASSERT_TRUE(journal.ok()) << ToString(journal.status());
  // The first step tries what fits; then 12 samples are 3 for each device, and the last 4 of an epoch 1.
  for (int64_t step = 3; step <= 8; ++step) {
    const auto record = (*journal)->Step(step);
    ASSERT_TRUE(record.ok()) << ToString(record.status());
    ASSERT_EQ((*record)->micro_batches.size(), 4u) << "step " << step;
    for (const JournalMicroBatch& part : (*record)->micro_batches) {
      int64_t samples = 0;
      for (const PositionRange& range : part.ranges) samples += range.size();
      EXPECT_EQ(samples, step % 4 == 0 ? 1 : 3) << "step " << step;
    }
  }
}

TEST_F(TrainerTest, GoesOnFromACheckpointWithAnotherNumberOfDevices) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.max_micro_batch = 3;
  options.journal = folder_ / "journal.jsonl";
  options.checkpoint = folder_ / "checkpoint";
  options.final_weights = folder_ / "parts.safetensors";
  const std::string device = WriteProfile(folder_ / "profile", options);
  int64_t step = 0;
  for (const int count : {4, 1, 2}) {
    options.device = fmt::format("{}x{}", device, count);
    options.max_steps = count == 2 ? 0 : step += 3;
    const Recorded part = Run(options);
    ASSERT_TRUE(part.status.ok()) << ToString(part.status);
    EXPECT_EQ(part.lines.back().step, count == 2 ? 8 : step);
  }
  options.device = "host";
  options.checkpoint.clear();
  options.replay = std::exchange(options.journal, "");
  options.final_weights = folder_ / "replayed.safetensors";
  ASSERT_TRUE(Run(options).status.ok());
  EXPECT_EQ(Bytes(folder_ / "parts.safetensors"), Bytes(folder_ / "replayed.safetensors"));
}

// A pool that a test and a trainer share.
class SharedPoolTest : public TrainerTest {
 protected:
  void SetUp() override {
    TrainerTest::SetUp();
    device_ = device::OpenDevice({.name = "host", .capacity_bytes = 64 * kMiB, .page_bytes = 256 * kKiB}).value();
    broker_ = pool::Broker::Start(device_.get(), {.revoke_slack = absl::Milliseconds(100)}).value();
    client_ = pool::Client::Attach({.connected_socket = broker_->Connect().value(), .name = "inference"}).value();
    lease_ = client_->OpenLease({.name = "model", .burst_pages = total()}, Soon()).value();
  }
  int64_t total() const { return device_->info().capacity_bytes / device_->info().page_bytes; }

  std::unique_ptr<device::Device> device_;
  std::unique_ptr<pool::Broker> broker_;
  std::unique_ptr<pool::Client> client_;
  pool::LeaseId lease_;
};

TEST_F(SharedPoolTest, GivesMemoryBackInTheMiddleOfAMicroBatchAndTrainsOn) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.epochs = 6;
  options.journal = folder_ / "journal.jsonl";
  options.final_weights = folder_ / "final.safetensors";
  TrainerHooks hooks{.broker = broker_.get()};
  std::atomic<bool> ended{false};
  std::atomic<int> handovers{0};
  std::atomic<bool> training{false};
  std::thread inference([&] {
    std::mt19937 random(1);
    while (!ended) {
      if (!training) {
        std::this_thread::yield();
        continue;
      }
      const int64_t available = broker_->RoomForPinned().pages;
      const int64_t pages = available / 2 + static_cast<int64_t>(random() % (available / 2));
      auto grown = client_->Grow(lease_, {.pages = pages}, Soon());
      ASSERT_TRUE(grown.ok()) << ToString(grown.status());
      ++handovers;
      ASSERT_TRUE(client_->Return(lease_, *grown).ok());
    }
  });
  const Recorded run =
      Run(options, hooks, nullptr, [&](const TrainProgress& progress) { training = training || progress.event == "step"; });
  ended = true;
  inference.join();
  ASSERT_TRUE(run.status.ok()) << ToString(run.status);
  EXPECT_GT(handovers, 0);
  EXPECT_GT(run.lines.back().aborts + run.lines.back().boundary_waits, 0);
  const pool::PoolStats stats = broker_->Stats();
  EXPECT_EQ(stats.violations, 0);
  EXPECT_EQ(stats.fenced, 0);
  EXPECT_EQ(stats.granted, 0);

  // Each sample of each epoch once, and the same bits when the journal is followed in peace.
  options.replay = options.journal;
  options.journal.clear();
  options.final_weights = folder_ / "replayed.safetensors";
  ASSERT_TRUE(Run(options).status.ok());
  EXPECT_EQ(Bytes(folder_ / "final.safetensors"), Bytes(folder_ / "replayed.safetensors"));
}

TEST_F(SharedPoolTest, ParksWhileItIsPausedAndGoesOn) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.epochs = 3;
  TrainerHooks hooks{.broker = broker_.get()};
  absl::Mutex mu;
  bool pause_now = false, parked = false;
  std::thread node([&] {
    {
      absl::MutexLock lock(&mu);
      mu.Await(absl::Condition(&pause_now));
    }
    const Status paused = broker_->SetPaused(true, Soon());
    EXPECT_TRUE(paused.ok()) << ToString(paused);
    {
      absl::MutexLock lock(&mu);
      mu.Await(absl::Condition(&parked));
    }
    const pool::PoolStats stats = broker_->Stats();
    for (const pool::LeaseStats& lease : stats.leases) {
      if (lease.name != "train:test") continue;
      EXPECT_LE(lease.held_pages, lease.guaranteed_pages);
    }
    EXPECT_TRUE(broker_->SetPaused(false, Soon()).ok());
  });
  const Recorded run = Run(options, hooks, nullptr, [&](const TrainProgress& progress) {
    absl::MutexLock lock(&mu);
    pause_now = pause_now || progress.step >= 3;
    parked = parked || progress.event == "paused";
  });
  {
    absl::MutexLock lock(&mu);
    pause_now = parked = true;
  }
  node.join();
  ASSERT_TRUE(run.status.ok()) << ToString(run.status);
  EXPECT_GE(run.Count("paused"), 1);
  EXPECT_EQ(run.Count("paused"), run.Count("resumed"));
  EXPECT_EQ(run.Count("step"), 12);
}

TEST_F(SharedPoolTest, MakesProgressUnderAbortsThatNeverEnd) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.epochs = 1;
  options.protected_after_aborts = 3;
  TrainerHooks hooks{.broker = broker_.get()};
  // The first attempt measures one sample; nothing is guaranteed before it.
  int attempts = 0;
  hooks.before_micro_batch = [&](int64_t, engine::AbortToken& token) {
    if (attempts++ > 0) token.RequestAtCheck(0);
  };
  const Recorded run = Run(options, hooks);
  ASSERT_TRUE(run.status.ok()) << ToString(run.status);
  EXPECT_EQ(run.lines.back().samples, 40);
  EXPECT_GT(run.lines.back().protected_runs, 0);
}

TEST_F(SharedPoolTest, SavesItsStateWhenTheBrokerDies) {
  TrainOptions options = TinyOptions(folder_ / "data");
  options.epochs = 200;
  options.checkpoint = folder_ / "checkpoint";
  TrainerHooks hooks{.broker = broker_.get()};
  const Recorded run = Run(options, hooks, nullptr, [&](const TrainProgress& progress) {
    if (progress.event == "step" && progress.step == 3) broker_.reset();
  });
  EXPECT_EQ(run.status.code(), StatusCode::kUnavailable) << ToString(run.status);
  EXPECT_THAT(MessageOf(run.status), HasSubstr("page broker of this node is gone"));
  EXPECT_EQ(run.Last("checkpoint").step, run.lines.back().step);
  options.epochs = 1;
  options.max_steps = run.lines.back().step;
  const Recorded resumed = Run(options);
  EXPECT_TRUE(resumed.status.ok()) << ToString(resumed.status);
  EXPECT_EQ(resumed.lines.back().step, options.max_steps);
}

TEST_F(SharedPoolTest, ExplainsAGuaranteeThatTheNodeCannotGive) {
  auto taken = client_->OpenLease({.name = "other", .guaranteed_pages = total() - 2, .burst_pages = total()}, Soon());
  ASSERT_TRUE(taken.ok()) << ToString(taken.status());
  const Recorded run = Run(TinyOptions(folder_ / "data"), {.broker = broker_.get()});
  EXPECT_EQ(run.status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(run.status), HasSubstr("guaranteed (parameters, gradients, optimizer state)"));
}

}  // namespace
}  // namespace tidepool::train
