#include "profile/lookup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "profile/builtin.h"
#include "profile/networks.h"

namespace tidepool::profile {
namespace {

using ::testing::HasSubstr;

OpRow Row(const std::string& model, int64_t batch, double median_us, Phase phase = Phase::kStep) {
  return {.key = {.model = model, .phase = phase, .batch = batch}, .repeats = 10, .median_us = median_us};
}

std::shared_ptr<Bundle> Measured() {
  auto bundle = std::make_shared<Bundle>();
  bundle->manifest.name = "test";
  bundle->manifest.measured = true;
  Hardware& hardware = bundle->manifest.hardware;
  hardware.name = "card";
  hardware.memory_bytes_per_s = 1e12;
  hardware.peak_flops = {{DType::kF32, 10e12}};
  hardware.launch_us = 5;
  hardware.link_bytes_per_s = {{LinkKind::kHostToDevice, 10e9}, {LinkKind::kPeer, 100e9}};
  hardware.link_latency_us = {{LinkKind::kHostToDevice, 10}, {LinkKind::kPeer, 2}};
  return bundle;
}

TEST(Lookup, AnswersWithTheRowThenNeighboursThenTheFit) {
  auto bundle = Measured();
  bundle->ops = {Row("net", 16, 1600), Row("net", 32, 3100), Row("net", 64, 6100)};
  bundle->ops[1].p10_us = 3000;
  bundle->ops[1].p90_us = 3300;
  bundle->ops[1].first_us = 9100;
  const Lookup lookup(bundle);
  const auto times = lookup.Find({.model = "net", .phase = Phase::kStep});
  ASSERT_TRUE(times.ok()) << ToString(times.status());

  const TimeEstimate row = times->At(32);
  EXPECT_EQ(row.median_us, 3100);
  EXPECT_NEAR(row.p10_us, 3000, 1e-9);
  EXPECT_NEAR(row.p90_us, 3300, 1e-9);
  EXPECT_NEAR(row.first_us, 9100, 1e-9);
  EXPECT_EQ(row.origin, Origin::kMeasured);
  EXPECT_EQ(row.method, Method::kRow);
  EXPECT_NEAR(row.error, 300.0 / 2 / 3100, 1e-9);

  const TimeEstimate between = times->At(48);
  EXPECT_NEAR(between.median_us, 4600, 1e-9);
  EXPECT_EQ(between.origin, Origin::kFitted);
  EXPECT_EQ(between.method, Method::kNeighbours);
  EXPECT_NEAR(between.first_us, 4600 + 3000, 1e-9) << "half of the neighbour's warm-up";

  const TimeEstimate beyond = times->At(128);
  EXPECT_NEAR(beyond.median_us, 12100, 30);
  EXPECT_EQ(beyond.origin, Origin::kFitted);
  EXPECT_EQ(beyond.method, Method::kAffine);
  ASSERT_NE(times->fit(), nullptr);
  EXPECT_NEAR(times->fit()->slope, 93.75, 0.3);
}

TEST(Lookup, KeepsPhasesDtypesAndSplitsApart) {
  auto bundle = Measured();
  bundle->ops = {Row("net", 1, 10, Phase::kForward), Row("net", 1, 30, Phase::kStep)};
  bundle->ops.push_back(Row("net", 1, 7));
  bundle->ops.back().key.tensor_parallel = 2;
  bundle->ops.push_back(Row("net", 1, 8));
  bundle->ops.back().key.op = "conv1";
  const Lookup lookup(bundle);
  EXPECT_EQ(lookup.Find({.model = "net", .phase = Phase::kForward})->At(1).median_us, 10);
  EXPECT_EQ(lookup.Find({.model = "net", .phase = Phase::kStep})->At(1).median_us, 30);
  EXPECT_EQ(lookup.Find({.model = "net", .phase = Phase::kStep, .tensor_parallel = 2})->At(1).median_us, 7);
  EXPECT_EQ(lookup.Find({.model = "net", .op = "conv1", .phase = Phase::kStep})->At(1).median_us, 8);
  EXPECT_FALSE(lookup.Find({.model = "net", .phase = Phase::kStep, .dtype = DType::kF16}).ok());
}

TEST(Lookup, FallsBackToTheRooflineAndSaysThatItEstimates) {
  const Lookup lookup(Measured());
  // Bound by arithmetic: 5 + 64 * 1e9 / 10e12 s.
  const auto compute = lookup.Find({.model = "x", .op = "a"}, {.flops_per_sample = 1e9, .bytes_per_sample = 1e6});
  ASSERT_TRUE(compute.ok());
  EXPECT_FALSE(compute->has_rows());
  const TimeEstimate estimate = compute->At(64);
  EXPECT_NEAR(estimate.median_us, 5 + 6400, 1e-6);
  EXPECT_EQ(estimate.origin, Origin::kEstimated);
  EXPECT_EQ(estimate.method, Method::kRoofline);
  EXPECT_EQ(estimate.error, kPriorError);
  // Bound by memory, and three kernels.
  const auto memory =
      lookup.Find({.model = "x", .op = "b"}, {.flops_per_sample = 1, .bytes_per_sample = 1e6, .fixed_bytes = 4e6, .launches = 3});
  EXPECT_NEAR(memory->At(16).median_us, 15 + 20, 1e-6);
}

TEST(Lookup, ScalesASingleRowByTheRooflineWhereThereIsOne) {
  auto bundle = Measured();
  bundle->ops = {Row("net", 64, 2 * (5 + 6400))};
  const Lookup lookup(bundle);
  const OpKey key = {.model = "net", .phase = Phase::kStep};
  const TimeEstimate with_cost = lookup.Find(key, {.flops_per_sample = 1e9})->At(1);
  EXPECT_NEAR(with_cost.median_us, 2 * (5 + 100), 1e-6);
  EXPECT_EQ(with_cost.origin, Origin::kEstimated);
  EXPECT_EQ(with_cost.method, Method::kScaledRow);
  EXPECT_NEAR(lookup.Find(key)->At(32).median_us, 5 + 6400, 1e-6) << "without a cost: in proportion to the batch";
}

TEST(Lookup, UsesTheTableOfKnownNetworks) {
  const Lookup lookup(std::make_shared<Bundle>(*FindBuiltin("v100")));
  const auto times = lookup.Find({.model = "resnet50", .phase = Phase::kStep});
  ASSERT_TRUE(times.ok()) << ToString(times.status());
  const TimeEstimate estimate = times->At(64);
  EXPECT_EQ(estimate.origin, Origin::kEstimated);
  // Measured with cuDNN: 184 ms.
  EXPECT_NEAR(estimate.median_us, 184e3, kPriorError * 184e3);
}

TEST(Lookup, OfRowsThatWereNotMeasuredSaysSo) {
  auto bundle = Measured();
  bundle->manifest.measured = false;
  bundle->ops = {Row("net", 1, 10), Row("net", 2, 20), Row("other", 1, 5)};
  bundle->ops[2].source = "a paper";
  const Lookup lookup(bundle);
  EXPECT_EQ(lookup.Find({.model = "net", .phase = Phase::kStep})->At(1).origin, Origin::kEstimated);
  EXPECT_EQ(lookup.Find({.model = "net", .phase = Phase::kStep})->At(4).origin, Origin::kEstimated);
  EXPECT_EQ(lookup.Find({.model = "net", .phase = Phase::kStep})->At(1).error, kPriorError);
  EXPECT_EQ(lookup.Find({.model = "other", .phase = Phase::kStep})->At(1).origin, Origin::kMeasured);
}

TEST(Lookup, NamesTheNearestModelWhenItKnowsNothing) {
  auto bundle = Measured();
  bundle->ops = {Row("resnet50", 1, 10)};
  const Lookup lookup(bundle);
  const Status unknown = lookup.Find({.model = "resnet5", .phase = Phase::kStep}).status();
  EXPECT_EQ(unknown.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(unknown), HasSubstr("profile 'test' has no rows for resnet5 step"));
  EXPECT_THAT(MessageOf(unknown), HasSubstr("the nearest model is 'resnet50'"));
  const Status no_rate = lookup.Find({.model = "x", .dtype = DType::kBF16}, {.flops_per_sample = 1}).status();
  EXPECT_THAT(MessageOf(no_rate), HasSubstr("hardware 'card' has no peak rate for BF16"));
}

TEST(Lookup, InterpolatesMemoryFieldByField) {
  auto bundle = Measured();
  bundle->ops = {Row("net", 1, 10), Row("net", 64, 100), Row("net", 128, 190)};
  for (OpRow& row : bundle->ops) {
    row.memory.peak_bytes = 861e6 + 3.54e6 * static_cast<double>(row.key.batch);
    row.memory.weight_bytes = 244e6;
  }
  const Lookup lookup(bundle);
  const auto times = lookup.Find({.model = "net", .phase = Phase::kStep});
  EXPECT_EQ(times->MemoryAt(64).origin, Origin::kMeasured);
  EXPECT_NEAR(times->MemoryAt(64).memory.peak_bytes, 861e6 + 3.54e6 * 64, 1);
  const MemoryEstimate beyond = times->MemoryAt(256);
  EXPECT_EQ(beyond.origin, Origin::kFitted);
  EXPECT_NEAR(beyond.memory.peak_bytes, 861e6 + 3.54e6 * 256, 1e3);
  EXPECT_NEAR(beyond.memory.weight_bytes, 244e6, 1);
  EXPECT_EQ(beyond.memory.activation_bytes, 0) << "not recorded";
}

TEST(Lookup, EstimatesMemoryFromTheCostWhereNoneWasRecorded) {
  auto bundle = Measured();
  bundle->ops = {Row("net", 1, 10)};
  const Lookup lookup(bundle);
  EXPECT_FALSE(lookup.Find({.model = "net", .phase = Phase::kStep})->MemoryAt(4).known);
  const auto times = lookup.Find({.model = "net", .phase = Phase::kStep},
                                 {.fixed_memory = {.weight_bytes = 100}, .memory_per_sample = {.activation_bytes = 7}});
  const MemoryEstimate estimate = times->MemoryAt(4);
  EXPECT_TRUE(estimate.known);
  EXPECT_EQ(estimate.origin, Origin::kEstimated);
  EXPECT_EQ(estimate.memory.weight_bytes, 100);
  EXPECT_EQ(estimate.memory.activation_bytes, 28);
}

TEST(Lookup, OfOneMemoryRowErrsToTheLargeSide) {
  auto bundle = Measured();
  bundle->ops = {Row("net", 8, 10)};
  bundle->ops[0].memory = {.weight_bytes = 50, .peak_bytes = 100};
  const Lookup lookup(bundle);
  const auto times = lookup.Find({.model = "net", .phase = Phase::kStep});
  EXPECT_EQ(times->MemoryAt(16).memory.peak_bytes, 200);
  EXPECT_EQ(times->MemoryAt(16).memory.weight_bytes, 50);
  EXPECT_EQ(times->MemoryAt(1).memory.peak_bytes, 100);
  EXPECT_EQ(times->MemoryAt(1).origin, Origin::kEstimated);
}

TEST(Lookup, TimesTransfersFromRowsOrFromTheLink) {
  auto bundle = Measured();
  const Lookup from_rate(bundle);
  EXPECT_NEAR(from_rate.FindLink(LinkKind::kHostToDevice)->At(1e6).median_us, 110, 1e-9);
  EXPECT_EQ(from_rate.FindLink(LinkKind::kHostToDevice)->At(1e6).origin, Origin::kEstimated);
  EXPECT_NEAR(from_rate.FindLink(LinkKind::kHostToDevice, false)->At(1e6).median_us, 220, 1e-9) << "pageable is copied twice";
  const Status none = from_rate.FindLink(LinkKind::kNetwork).status();
  EXPECT_THAT(MessageOf(none), HasSubstr("no rows for network transfers, and its hardware 'card' has no such link"));

  bundle->links = {{LinkKind::kHostToDevice, true, 1e6, 150}, {LinkKind::kHostToDevice, true, 2e6, 250}};
  const Lookup measured(bundle);
  EXPECT_EQ(measured.FindLink(LinkKind::kHostToDevice)->At(1e6).origin, Origin::kMeasured);
  EXPECT_NEAR(measured.FindLink(LinkKind::kHostToDevice)->At(1.5e6).median_us, 200, 1e-9);
  EXPECT_NEAR(measured.FindLink(LinkKind::kHostToDevice)->At(4e6).median_us, 450, 1e-6);
  EXPECT_EQ(measured.FindLink(LinkKind::kHostToDevice, false)->At(1e6).origin, Origin::kEstimated);
}

TEST(Lookup, TimesCollectivesFromRowsOrAsARing) {
  auto bundle = Measured();
  const Lookup ring(bundle);
  // 2 * 3 steps of 2 us, and 2 * 3/4 of 1e6 bytes at 100e9 bytes/s.
  EXPECT_NEAR(ring.FindCollective(CollectiveKind::kAllReduce, 4)->At(1e6).median_us, 12 + 15, 1e-9);
  EXPECT_NEAR(ring.FindCollective(CollectiveKind::kAllGather, 4)->At(1e6).median_us, 6 + 7.5, 1e-9);
  EXPECT_EQ(ring.FindCollective(CollectiveKind::kAllReduce, 1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ring.FindCollective(CollectiveKind::kAllReduce, 2, "", true).status().code(), StatusCode::kNotFound);

  bundle->collectives = {{"", CollectiveKind::kAllReduce, 2, 1e6, 20},
                         {"", CollectiveKind::kAllReduce, 2, 2e6, 30},
                         {"net", CollectiveKind::kAllReduce, 2, 1e6, 25}};
  const Lookup measured(bundle);
  EXPECT_EQ(measured.FindCollective(CollectiveKind::kAllReduce, 2, "net")->At(1e6).median_us, 25);
  EXPECT_EQ(measured.FindCollective(CollectiveKind::kAllReduce, 2, "other")->At(1e6).median_us, 20);
  const TimeEstimate scaled = measured.FindCollective(CollectiveKind::kAllReduce, 4)->At(1e6);
  EXPECT_NEAR(scaled.median_us, 20 * 1.5, 1e-9);
  EXPECT_EQ(scaled.origin, Origin::kEstimated);
}

TEST(Lookup, TimesPinningOfHostMemory) {
  auto bundle = Measured();
  EXPECT_EQ(Lookup(bundle).FindPin().status().code(), StatusCode::kNotFound);
  bundle->pins = {{38535168, 13000}, {77070336, 23000}, {154140672, 43000}};
  const Lookup lookup(bundle);
  EXPECT_EQ(lookup.FindPin()->At(77070336).median_us, 23000);
  EXPECT_NEAR(lookup.FindPin()->At(2 * 154140672.0).median_us, 83000, 2000);
}

TEST(Jitter, SigmaGivesBackTheRecordedSpread) {
  const TimeEstimate estimate = {.median_us = 100, .p10_us = 90, .p90_us = 110};
  EXPECT_NEAR(std::exp(2 * 1.2815515655446004 * JitterSigma(estimate)), 110.0 / 90, 1e-12);
  EXPECT_EQ(JitterSigma({.median_us = 100, .p10_us = 100, .p90_us = 100}), 0);
}

TEST(KnownNetworks, ArePlausible) {
  for (const KnownNetwork& network : KnownNetworks()) {
    EXPECT_GT(network.forward_flops, network.winograd_flops) << network.name;
    EXPECT_GT(LeastFlopsPerSample(network, Phase::kStep), 0) << network.name;
    EXPECT_LE(LeastFlopsPerSample(network, Phase::kStep), FlopsPerSample(network, Phase::kStep)) << network.name;
    EXPECT_EQ(FindNetwork(network.name), &network);
  }
  // Published counts: 4.09 GMAC and 25.6 M parameters for ResNet-50, 15.5 GMAC for VGG-16.
  EXPECT_NEAR(FindNetwork("resnet50")->forward_flops, 2 * 4.09e9, 2e7);
  EXPECT_NEAR(FindNetwork("vgg16")->forward_flops, 2 * 15.47e9, 2e7);
  EXPECT_EQ(FindNetwork("resnet51"), nullptr);
}

TEST(Builtins, HoldTheCardsAndMarkEveryTimeAsAnEstimateUnlessItNamesASource) {
  for (const char* name : {"k80", "p100", "v100", "t4", "a100", "h100", "h200"}) {
    const Bundle* bundle = FindBuiltin(name);
    ASSERT_NE(bundle, nullptr) << name;
    EXPECT_FALSE(bundle->manifest.measured);
    EXPECT_THAT(bundle->manifest.source, HasSubstr("estimated"));
    EXPECT_THAT(bundle->manifest.source, ::testing::AnyOf(HasSubstr("datasheet"), HasSubstr("specification")));
    for (const OpRow& row : bundle->ops) EXPECT_FALSE(row.source.empty());
  }
  EXPECT_EQ(FindBuiltin("h300"), nullptr);
  const Lookup h100(std::make_shared<Bundle>(*FindBuiltin("h100")));
  const TimeEstimate step = h100.Find({.model = "resnet50", .phase = Phase::kStep})->At(400);
  EXPECT_EQ(step.median_us, 224e3);
  EXPECT_EQ(step.origin, Origin::kMeasured);
  EXPECT_EQ(h100.Find({.model = "cosmoflow", .phase = Phase::kStep})->At(1).median_us, 3500);
}

}  // namespace
}  // namespace tidepool::profile
