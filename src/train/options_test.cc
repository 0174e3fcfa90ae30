#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "train/job.h"

namespace tidepool::train {
namespace {

using ::testing::HasSubstr;

TEST(TrainOptions, TravelAsJsonUnchanged) {
  TrainOptions options;
  options.name = "a \"quoted\" job";
  options.data = "imagefolder:/data/x";
  options.learning_rate = 0.1;
  options.seed = std::numeric_limits<uint64_t>::max();
  options.prefetch_bytes = 12345;
  options.yield_cpu = false;
  options.wrap = {.cache = "minio", .cache_bytes = 4096, .storage = "hdd,rate=100MB"};
  options.wrap.partition = {.peers = {"127.0.0.1:7000", "-"}, .node = 0, .seed = 3};
  const TrainOptions back = ParseTrainOptions(ToJson(options)).value();
  EXPECT_EQ(ToJson(back), ToJson(options));
  EXPECT_EQ(back.name, options.name);
  EXPECT_EQ(back.learning_rate, 0.1);
  EXPECT_EQ(back.seed, options.seed);
  EXPECT_EQ(back.prefetch_bytes, 12345);
  EXPECT_FALSE(back.yield_cpu);
  EXPECT_EQ(back.wrap.cache, "minio");
  EXPECT_EQ(back.wrap.cache_bytes, 4096);
  EXPECT_EQ(back.wrap.storage, "hdd,rate=100MB");
  EXPECT_EQ(back.wrap.partition.peers, options.wrap.partition.peers);
  EXPECT_EQ(back.wrap.partition.seed, 3u);
}

TEST(TrainOptions, RefuseUnknownKeysAndValues) {
  EXPECT_THAT(MessageOf(ParseTrainOptions("[]").status()), HasSubstr("no JSON object"));
  EXPECT_THAT(MessageOf(ParseTrainOptions(R"({"train.color":"red"})").status()), HasSubstr("train.color"));
  EXPECT_THAT(MessageOf(ParseTrainOptions(R"({"train.epochs":3})").status()),
              HasSubstr("option 'train.epochs' is 3; allowed: a string"));
  EXPECT_THAT(MessageOf(ParseTrainOptions(R"({"train.epochs":"three"})").status()), HasSubstr("three"));
}

TEST(TrainOptions, ReportAllFaultsAtOnce) {
  TrainOptions options;
  options.model = "resnet19";
  options.global_batch = 0;
  options.optimizer = "adam";
  options.momentum = 1;
  options.checkpoint_steps = 5;
  options.wrap.cache = "lru";
  const std::string text = MessageOf(options.Validate());
  EXPECT_THAT(text, HasSubstr("train.data is empty"));
  EXPECT_THAT(text, HasSubstr("resnet19"));
  EXPECT_THAT(text, HasSubstr("train.global_batch is 0; allowed: 1 to 1048576"));
  EXPECT_THAT(text, HasSubstr("train.optimizer is 'adam'; allowed: sgd, adamw"));
  EXPECT_THAT(text, HasSubstr("train.momentum is 1; allowed: 0 to below 1"));
  EXPECT_THAT(text, HasSubstr("train.checkpoint is empty"));
  EXPECT_THAT(text, HasSubstr("cache policy 'lru' without a size"));
}

TEST(TrainOptions, TakeADeviceOfTheirOwnPool) {
  TrainOptions options{.data = "text:/books"};
  const auto fault = [&](const std::string& device) {
    options.device = device;
    return MessageOf(options.Validate());
  };
  EXPECT_EQ(fault("host"), "");
  EXPECT_EQ(fault("emulated:v100,capacity=64MiB"), "");
  EXPECT_THAT(fault("v100"), HasSubstr("train.device: device name 'v100' is unknown"));
  EXPECT_EQ(fault("emulated:h200x8"), "") << "replicas";
  EXPECT_THAT(fault("emulated:h200x0"), HasSubstr("train.device: device 'emulated:h200x0': the number of devices is '0'"));
  EXPECT_THAT(fault("emulated:h200x17"), HasSubstr("train.device: device 'emulated:h200x17' means 17 devices; allowed"));
  EXPECT_THAT(fault("emulated:h200x8,share=round-robin"), HasSubstr("share is 'round-robin'"));
  EXPECT_THAT(fault("emulated:h200x8,clock=virtual"), HasSubstr("clock is 'virtual'"));
  EXPECT_THAT(fault("emulated:h200x8,mode=timing"), HasSubstr("allowed: mode=functional"));
  options.global_batch = 7;
  EXPECT_EQ(fault("emulated:h200x7"), "");
  EXPECT_EQ(
      fault("emulated:h200x8"),
      "train.global_batch is 7, and train.device 'emulated:h200x8' means 8 devices; allowed: 8 and above, a sample for each");
  EXPECT_THAT(fault("emulated:v100,mode=timing"),
              HasSubstr("only keeps time, and training computes its results; allowed: mode=functional"));
  options.pool_socket = "/run/pool.sock";
  EXPECT_EQ(fault("host"), "") << "the node's";
}

TEST(TrainProgress, TravelsAsOneJsonLine) {
  TrainProgress progress{.event = "step",
                         .time = absl::FromUnixNanos(1'700'000'000'123'456'789),
                         .step = 5,
                         .epoch = 1,
                         .samples = 320,
                         .loss = 1.25,
                         .samples_per_s = 99.5,
                         .micro_batch = 16,
                         .aborts = 3,
                         .devices = 4,
                         .communication_seconds = 0.25,
                         .host_limited = "slow",
                         .held_bytes = 1 << 20,
                         .message = "a\nb"};
  const std::string line = ToJson(progress);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const TrainProgress back = ParseTrainProgress(line).value();
  EXPECT_EQ(ToJson(back), line);
  EXPECT_EQ(back.time, progress.time);
  EXPECT_EQ(back.message, "a\nb");
  EXPECT_EQ(back.devices, 4);
  EXPECT_EQ(back.communication_seconds, 0.25);
  EXPECT_EQ(back.host_limited, "slow");
  progress.loss = std::nan("");
  EXPECT_TRUE(std::isnan(ParseTrainProgress(ToJson(progress)).value().loss));
  EXPECT_THAT(MessageOf(ParseTrainProgress("hello").status()), HasSubstr("not a JSON object: 'hello'"));
  EXPECT_THAT(MessageOf(ParseTrainProgress("{}").status()), HasSubstr("key 'event' is missing"));
  EXPECT_THAT(MessageOf(ParseTrainProgress(R"({"event":"step","step":"x"})").status()), HasSubstr("key 'step' is \"x\""));
}

}  // namespace
}  // namespace tidepool::train
