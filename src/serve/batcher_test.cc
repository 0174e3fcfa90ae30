#include "serve/batcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace tidepool::serve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr ModelId kA(1), kB(2);
const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);
absl::Time At(int milliseconds) { return kStart + absl::Milliseconds(milliseconds); }
constexpr int64_t kSlab = int64_t{1} << 30;

class BatcherTest : public ::testing::Test {
 protected:
  BatcherTest() {
    batcher_.SetQueue(kA, {.name = "a", .limit = 8, .max_batch_size = 4});
    batcher_.SetQueue(kB, {.name = "b", .limit = 8, .max_batch_size = 4});
  }
  QueuedRequest Make(ModelId model, int received_ms, int target_ms, int batch = 1) {
    return {.id = RequestId(++last_),
            .model = model,
            .received = At(received_ms),
            .target = At(target_ms),
            .batch = batch,
            .slab_bytes = 100};
  }
  uint64_t Add(QueuedRequest request) {
    EXPECT_TRUE(batcher_.Add(request).ok());
    return request.id.value();
  }
  std::vector<uint64_t> Next(int now_ms, int64_t slab = kSlab) {
    const auto batch = batcher_.Next(At(now_ms), all_, slab);
    std::vector<uint64_t> ids;
    if (batch) {
      for (const auto& request : batch->requests) ids.push_back(request.id.value());
    }
    return ids;
  }
  ComputeEstimator estimator_;
  Batcher batcher_{&estimator_, absl::Seconds(5)};
  Batcher::Cutoff all_ = [](ModelId) { return absl::InfiniteFuture(); };
  uint64_t last_ = 0;
};

TEST_F(BatcherTest, RefusesWhenTheQueueIsFull) {
  for (int i = 0; i < 8; ++i) Add(Make(kA, 0, 100));
  const Status status = batcher_.Add(Make(kA, 0, 100));
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), HasSubstr("the queue of model 'a' is full: 8 requests wait; allowed: 8"));
  EXPECT_TRUE(batcher_.Add(Make(kB, 0, 100)).ok());
}

TEST_F(BatcherTest, TakesTheEarliestTargetAcrossModels) {
  const uint64_t late = Add(Make(kA, 0, 200));
  const uint64_t early = Add(Make(kB, 1, 100));
  EXPECT_THAT(Next(2), ElementsAre(early));
  EXPECT_THAT(Next(2), ElementsAre(late));
}

TEST_F(BatcherTest, BatchesUpToTheLimitInSamples) {
  const uint64_t one = Add(Make(kA, 0, 100, 2));
  Add(Make(kA, 0, 101, 3));  // would make five
  const uint64_t three = Add(Make(kA, 0, 102, 2));
  EXPECT_THAT(Next(1), ElementsAre(one, three));
}

TEST_F(BatcherTest, StopsGrowingWhereAMemberWouldMissItsTarget) {
  for (int size = 1; size <= 4; ++size) estimator_.Record(kA, size, absl::Milliseconds(10 * size));
  const uint64_t urgent = Add(Make(kA, 0, 25));
  const uint64_t second = Add(Make(kA, 0, 400));
  Add(Make(kA, 0, 400));
  EXPECT_THAT(Next(2), ElementsAre(urgent, second)) << "three would take 30 ms and end after 25";
}

TEST_F(BatcherTest, PutsLostRequestsBehindThoseThatCanStillMakeIt) {
  estimator_.Record(kA, 1, absl::Milliseconds(10));
  estimator_.Record(kB, 1, absl::Milliseconds(10));
  const uint64_t lost = Add(Make(kA, 0, 50));
  const uint64_t attainable = Add(Make(kB, 60, 100));
  EXPECT_THAT(Next(70), ElementsAre(attainable));
  EXPECT_THAT(Next(70), ElementsAre(lost));
}

TEST_F(BatcherTest, ServesALostRequestFirstOnceItStarves) {
  estimator_.Record(kA, 1, absl::Milliseconds(10));
  const uint64_t lost = Add(Make(kA, 0, 50));
  Add(Make(kB, 4990, 5100));
  EXPECT_THAT(Next(5001), ElementsAre(lost));
}

TEST_F(BatcherTest, NeverMixesShapesNorRequestsThatMustBeAlone) {
  auto shaped = Make(kA, 0, 100);
  shaped.shape_class = 1;
  auto other = Make(kA, 0, 101);
  other.shape_class = 2;
  auto alone = Make(kA, 0, 102);
  alone.alone = true;
  alone.shape_class = 1;
  Add(shaped), Add(other), Add(alone);
  EXPECT_THAT(Next(1), ElementsAre(shaped.id.value()));
  EXPECT_THAT(Next(1), ElementsAre(other.id.value()));
  EXPECT_THAT(Next(1), ElementsAre(alone.id.value()));
}

TEST_F(BatcherTest, WaitsForCompanyNoLongerThanTheDelayOrTheSlack) {
  batcher_.SetQueue(kA, {.name = "a", .limit = 8, .max_batch_size = 2, .delay = absl::Milliseconds(20)});
  estimator_.Record(kA, 1, absl::Milliseconds(10));
  estimator_.Record(kA, 2, absl::Milliseconds(10));
  Add(Make(kA, 0, 1000));
  EXPECT_TRUE(Next(5).empty());
  EXPECT_EQ(batcher_.NextWake(At(5), all_, true), At(20));
  EXPECT_EQ(Next(20).size(), 1u);
  Add(Make(kA, 100, 115));
  EXPECT_EQ(batcher_.NextWake(At(101), all_, true), At(105)) << "10 ms of work must end by 115";
  Add(Make(kA, 101, 1000));
  EXPECT_EQ(Next(101).size(), 2u) << "a full batch goes at once";
}

TEST_F(BatcherTest, RefusesAtTheDeadlineAndEarlierWhenItCannotBeMet) {
  auto soon = Make(kA, 0, 50);
  soon.deadline = At(50);
  Add(soon);
  EXPECT_TRUE(batcher_.Expire(At(49), [](ModelId) {}).empty());
  EXPECT_EQ(batcher_.NextWake(At(49), all_, false), At(50));
  auto refused = batcher_.Expire(At(50), [](ModelId) {});
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(refused[0].status), HasSubstr("the deadline passed after 50"));

  estimator_.Record(kA, 1, absl::Milliseconds(30));
  auto hopeless = Make(kA, 60, 80);
  hopeless.deadline = At(80);
  Add(hopeless);
  std::vector<ModelId> doubted;
  refused = batcher_.Expire(At(60), [&](ModelId model) { doubted.push_back(model); });
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_THAT(MessageOf(refused[0].status), HasSubstr("model 'a' computes for at least 30"));
  EXPECT_THAT(doubted, ElementsAre(kA));
}

TEST_F(BatcherTest, TakesOnlyWhatFitsIntoSharedMemory) {
  const uint64_t one = Add(Make(kA, 0, 100));
  Add(Make(kA, 0, 101));
  EXPECT_TRUE(Next(1, 99).empty());
  EXPECT_THAT(Next(1, 199), ElementsAre(one));
  EXPECT_EQ(batcher_.queued(kA), 1);
}

TEST_F(BatcherTest, LeavesYoungerRequestsOfADrainingModelQueued) {
  const uint64_t old = Add(Make(kA, 0, 100));
  Add(Make(kA, 10, 90));
  const Batcher::Cutoff cutoff = [](ModelId) { return At(10); };
  const auto batch = batcher_.Next(At(20), cutoff, kSlab);
  ASSERT_TRUE(batch.has_value());
  ASSERT_EQ(batch->requests.size(), 1u);
  EXPECT_EQ(batch->requests[0].id.value(), old);
  EXPECT_EQ(batcher_.queued_before(kA, At(10)), 0);
  EXPECT_EQ(batcher_.queued(kA), 1);
}

// Any schedule: each accepted request comes out exactly once, batches keep every limit, and nothing runs past its deadline.
TEST(BatcherProperty, LosesNothingAndKeepsItsLimitsOnRandomSchedules) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
    ComputeEstimator estimator;
    Batcher batcher(&estimator, absl::Milliseconds(300));
    std::map<ModelId, QueueOptions> queues;
    for (uint32_t m = 1; m <= 3; ++m) {
      queues[ModelId(m)] = {
          .name = "m", .limit = 1 + pick(10), .max_batch_size = 1 + pick(6), .delay = absl::Milliseconds(pick(3) * 5)};
      batcher.SetQueue(ModelId(m), queues[ModelId(m)]);
    }
    std::set<uint64_t> inside;
    int now = 0;
    uint64_t last = 0;
    const Batcher::Cutoff all = [](ModelId) { return absl::InfiniteFuture(); };
    const auto leave = [&](RequestId id) { ASSERT_EQ(inside.erase(id.value()), 1u) << "request " << id << " left twice"; };
    for (int step = 0; step < 400; ++step) {
      now += pick(8);
      const ModelId model(1 + static_cast<uint32_t>(pick(3)));
      switch (pick(5)) {
        case 0:
        case 1: {
          QueuedRequest request{.id = RequestId(++last),
                                .model = model,
                                .received = At(now),
                                .target = At(now + pick(100)),
                                .batch = 1 + pick(queues[model].max_batch_size),
                                .shape_class = static_cast<uint64_t>(pick(2)),
                                .slab_bytes = 1 + pick(50),
                                .alone = pick(10) == 0};
          if (pick(3) == 0) request.deadline = At(now + pick(60));
          const bool full = batcher.queued(model) >= queues[model].limit;
          const Status added = batcher.Add(request);
          ASSERT_EQ(added.ok(), !full);
          if (added.ok()) inside.insert(last);
          break;
        }
        case 2: {
          if (inside.empty()) break;
          const uint64_t victim = *inside.begin();
          for (uint32_t m = 1; m <= 3; ++m) {
            if (batcher.Remove(ModelId(m), RequestId(victim))) leave(RequestId(victim));
          }
          break;
        }
        default: {
          for (const Refusal& refusal : batcher.Expire(At(now), [&](ModelId m) { estimator.Doubt(m); }))
            leave(refusal.request.id);
          const int64_t slab = 60 + pick(200);
          const auto batch = batcher.Next(At(now), all, slab);
          if (!batch) {
            // Nothing to do now means: nothing to do before the wake time either.
            ASSERT_GT(batcher.NextWake(At(now), all, true), At(now));
            break;
          }
          int size = 0;
          int64_t bytes = 0;
          for (const QueuedRequest& request : batch->requests) {
            size += request.batch;
            bytes += request.slab_bytes;
            ASSERT_GT(request.deadline, At(now));
            ASSERT_TRUE(batch->requests.size() == 1 || !request.alone);
            ASSERT_EQ(request.shape_class, batch->requests[0].shape_class);
            ASSERT_EQ(request.model, batch->model);
            leave(request.id);
          }
          ASSERT_EQ(size, batch->size);
          ASSERT_LE(size, queues[batch->model].max_batch_size);
          ASSERT_LE(bytes, slab);
          estimator.Record(batch->model, size, absl::Milliseconds(1 + pick(10 * size)));
        }
      }
      ASSERT_EQ(batcher.total_queued(), static_cast<int>(inside.size()));
    }
  }
}

}  // namespace
}  // namespace tidepool::serve
