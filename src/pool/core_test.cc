#include "pool/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace tidepool::pool {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// Writes down what the core wants done.
class RecordingSink : public CoreSink {
 public:
  struct Grown {
    CallId call;
    LeaseId lease;
    DemandId demand;
    Grant grant;
  };
  void Answer(const CallId& call, const Status& status) override { answers.push_back({call.call, status}); }
  void Granted(const CallId& call, LeaseId lease, DemandId demand, const Grant& grant) override {
    grants.push_back({call, lease, demand, grant});
  }
  void Revoke(ClientId client, const RevokeRequest& request) override { revokes.push_back({client, request}); }
  void LimitChanged(ClientId, LeaseId lease, int64_t limit_pages) override { limits.push_back({lease, limit_pages}); }
  void PauseChanged(ClientId client, bool paused) override { pauses.push_back({client, paused}); }
  void Fence(ClientId client, const std::string& reason) override { fenced.push_back({client, reason}); }
  void Handover(const HandoverRecord& record) override { handovers.push_back(record); }

  std::vector<std::pair<uint32_t, Status>> answers;
  std::vector<Grown> grants;
  std::vector<std::pair<ClientId, RevokeRequest>> revokes;
  std::vector<std::pair<LeaseId, int64_t>> limits;
  std::vector<std::pair<ClientId, bool>> pauses;
  std::vector<std::pair<ClientId, std::string>> fenced;
  std::vector<HandoverRecord> handovers;
};

const ClientId kServer(1), kTrainer(2), kOther(3);

class CoreTest : public testing::Test {
 protected:
  void Start(CoreOptions options) {
    core_ = std::make_unique<PoolCore>(options, &sink_);
    core_->Attach(kServer, "worker", 100);
    core_->Attach(kTrainer, "train", 200);
    core_->Attach(kOther, "other", 300);
  }
  LeaseId Pinned(int64_t burst, int64_t guaranteed = 0, const std::string& name = "model") {
    auto lease = core_->OpenLease(kServer, {.name = name, .guaranteed_pages = guaranteed, .burst_pages = burst}, now_);
    EXPECT_TRUE(lease.ok()) << ToString(lease.status());
    return *lease;
  }
  LeaseId Training(int64_t burst, int64_t guaranteed = 0, ClientId client = kTrainer, const std::string& name = "train") {
    auto lease = core_->OpenLease(client,
                                  {.name = name,
                                   .lease_class = LeaseClass::kReclaimable,
                                   .guaranteed_pages = guaranteed,
                                   .burst_pages = burst,
                                   .placement = Placement::kHigh},
                                  now_);
    EXPECT_TRUE(lease.ok()) << ToString(lease.status());
    return *lease;
  }
  void Grow(ClientId client, LeaseId lease, int64_t pages, absl::Duration timeout = absl::Seconds(1), int64_t run = 1) {
    core_->Grow({client, ++call_}, lease, {.pages = pages, .min_run_pages = run}, now_ + timeout, now_);
  }
  // A grow that is granted at once.
  std::vector<Extent> Take(ClientId client, LeaseId lease, int64_t pages) {
    const size_t before = sink_.grants.size();
    Grow(client, lease, pages);
    EXPECT_EQ(sink_.grants.size(), before + 1) << pages << " pages";
    if (sink_.grants.size() == before) return {};
    core_->GrantReady(sink_.grants.back().demand, absl::ZeroDuration(), now_);
    return sink_.grants.back().grant.extents;
  }
  void Return(ClientId client, LeaseId lease, std::vector<Extent> extents) {
    EXPECT_TRUE(core_->Return(client, lease, extents, now_).ok());
  }
  void Pass(absl::Duration time) {
    now_ += time;
    core_->Tick(now_);
  }
  void ExpectSound() {
    const PoolStats stats = core_->Stats();
    EXPECT_EQ(stats.violations, 0);
    EXPECT_EQ(stats.free + stats.granted + stats.returning + stats.dirty, stats.total);
  }

  RecordingSink sink_;
  std::unique_ptr<PoolCore> core_;
  absl::Time now_ = absl::UnixEpoch();
  uint32_t call_ = 0;
};

TEST_F(CoreTest, TakesFromTrainingWhatServingNeeds) {
  Start({.pages = 100});
  const LeaseId training = Training(100, 10), model = Pinned(50);
  EXPECT_EQ(core_->limit_pages(training), 100);
  const std::vector<Extent> held = Take(kTrainer, training, 100);
  Grow(kServer, model, 30);
  ASSERT_THAT(sink_.revokes, SizeIs(1));
  const RevokeRequest request = sink_.revokes[0].second;
  EXPECT_EQ(sink_.revokes[0].first, kTrainer);
  EXPECT_EQ(request.limit_pages, 70);
  EXPECT_EQ(request.slack, absl::Milliseconds(200));
  EXPECT_THAT(sink_.grants, SizeIs(1)) << "not before the pages are back";

  now_ += absl::Milliseconds(3);
  Return(kTrainer, training, {{0, 20}});
  EXPECT_THAT(sink_.grants, SizeIs(1));
  now_ += absl::Milliseconds(4);
  Return(kTrainer, training, {{20, 10}});
  ASSERT_THAT(sink_.grants, SizeIs(2));
  EXPECT_THAT(sink_.grants[1].grant.extents, ElementsAre(Extent{0, 30}));
  EXPECT_THAT(sink_.grants[1].grant.zero, ElementsAre(Extent{0, 30}));
  EXPECT_TRUE(core_
                  ->FinishRevoke(kTrainer,
                                 {.lease = training,
                                  .demand = request.demand,
                                  .received = absl::UnixEpoch() + absl::Milliseconds(1),
                                  .parts = {.wait = absl::Milliseconds(2), .unwind = absl::Milliseconds(1), .aborted = true}},
                                 now_)
                  .ok());
  EXPECT_THAT(sink_.handovers, IsEmpty()) << "not complete before the pages are clear";
  now_ += absl::Milliseconds(2);
  core_->GrantReady(sink_.grants[1].demand, absl::Milliseconds(2), now_);
  ASSERT_THAT(sink_.handovers, SizeIs(1));
  const HandoverRecord& record = sink_.handovers[0];
  EXPECT_EQ(record.requester, "model");
  EXPECT_EQ(record.giver, "train");
  EXPECT_EQ(record.pages, 30);
  EXPECT_TRUE(record.granted);
  EXPECT_EQ(record.total, absl::Milliseconds(9));
  EXPECT_EQ(record.notify, absl::Milliseconds(1));
  EXPECT_EQ(record.giver_parts.wait, absl::Milliseconds(2));
  EXPECT_TRUE(record.giver_parts.aborted);
  EXPECT_EQ(record.zero, absl::Milliseconds(2));
  EXPECT_EQ(record.rest, absl::Milliseconds(3));
  ExpectSound();
}

TEST_F(CoreTest, GivesTrainingBackWhatServingLeaves) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(50);
  const std::vector<Extent> held = Take(kServer, model, 30);
  EXPECT_EQ(core_->limit_pages(training), 70);
  sink_.limits.clear();
  Return(kServer, model, held);
  EXPECT_THAT(sink_.limits, ElementsAre(std::pair(training, int64_t{100})));
}

TEST_F(CoreTest, RefusesTrainingAtOnceAboveItsLimit) {
  Start({.pages = 100, .reserve_pages = 10});
  const LeaseId training = Training(100);
  Take(kTrainer, training, 85);
  Grow(kTrainer, training, 6, absl::Hours(1));
  ASSERT_THAT(sink_.answers, SizeIs(1));
  EXPECT_EQ(sink_.answers[0].second.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(sink_.answers[0].second),
              HasSubstr("lease 'train' holds 85 pages and asks for 6 more; its present limit is 90"));
}

TEST_F(CoreTest, OneRequestToGiveBackServesSeveralDemands) {
  Start({.pages = 100, .reserve_pages = 20});
  const LeaseId training = Training(100), model = Pinned(50), second = Pinned(50, 0, "second");
  Take(kTrainer, training, 80);
  Grow(kServer, model, 25);
  Grow(kServer, second, 20);
  ASSERT_THAT(sink_.revokes, SizeIs(1)) << "the reserve that is being restored covers the second";
  EXPECT_EQ(sink_.revokes[0].second.limit_pages, 55);
  Return(kTrainer, training, {{20, 25}});
  ASSERT_THAT(sink_.grants, SizeIs(3));
  for (const auto& grant : sink_.grants) core_->GrantReady(grant.demand, absl::ZeroDuration(), now_);
  EXPECT_TRUE(
      core_->FinishRevoke(kTrainer, {.lease = training, .demand = sink_.revokes[0].second.demand, .received = now_}, now_).ok());
  EXPECT_THAT(sink_.handovers, SizeIs(2)) << "both waited for it";
}

TEST_F(CoreTest, ALaterAnswerCoversEarlierRequests) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(80);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 10);
  Grow(kServer, model, 20);
  ASSERT_THAT(sink_.revokes, SizeIs(2));
  EXPECT_EQ(sink_.revokes[1].second.limit_pages, 70);
  Return(kTrainer, training, {{0, 30}});
  EXPECT_TRUE(
      core_->FinishRevoke(kTrainer, {.lease = training, .demand = sink_.revokes[1].second.demand, .received = now_}, now_).ok());
  for (const auto& grant : sink_.grants) core_->GrantReady(grant.demand, absl::ZeroDuration(), now_);
  EXPECT_THAT(sink_.handovers, SizeIs(2));
  EXPECT_THAT(MessageOf(core_->FinishRevoke(kTrainer, {.lease = training, .demand = sink_.revokes[0].second.demand}, now_)),
              HasSubstr("has no open request"));
}

TEST_F(CoreTest, ServesWaitingRequestsInOrderOfArrival) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(50);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 20);
  Grow(kServer, model, 1);
  Return(kTrainer, training, {{0, 1}});
  EXPECT_THAT(sink_.grants, SizeIs(1)) << "a small request does not overtake a large one";
  Return(kTrainer, training, {{1, 19}});
  ASSERT_THAT(sink_.grants, SizeIs(2));
  EXPECT_EQ(sink_.grants[1].call.call, 2u);
  Return(kTrainer, training, {{20, 1}});
  ASSERT_THAT(sink_.grants, SizeIs(3));
  EXPECT_EQ(sink_.grants[2].call.call, 3u);
}

TEST_F(CoreTest, WaitsNoLongerThanItsDeadline) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(50);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 20, absl::Milliseconds(50));
  EXPECT_EQ(core_->NextDeadline(), now_ + absl::Milliseconds(50));
  Pass(absl::Milliseconds(50));
  ASSERT_THAT(sink_.answers, SizeIs(1));
  EXPECT_EQ(sink_.answers[0].second.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(sink_.answers[0].second), HasSubstr("lease 'model' waited in vain for 20 pages; 0 are available"));
  EXPECT_EQ(core_->limit_pages(training), 100) << "the demand is over";
  Grow(kServer, model, 20, absl::ZeroDuration());
  EXPECT_THAT(MessageOf(sink_.answers.back().second), HasSubstr("its deadline has passed"));
}

TEST_F(CoreTest, QueueOfWaitingRequestsHasALimit) {
  Start({.pages = 100, .waiting_limit = 2});
  const LeaseId training = Training(100), model = Pinned(50);
  Take(kTrainer, training, 100);
  for (int i = 0; i < 3; ++i) Grow(kServer, model, 1);
  ASSERT_THAT(sink_.answers, SizeIs(1));
  EXPECT_EQ(sink_.answers[0].second.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(sink_.answers[0].second), HasSubstr("2 requests wait already; allowed: 2"));
}

TEST_F(CoreTest, RefusesAtOnceWhatNobodyCanGive) {
  Start({.pages = 100});
  Training(100, 40);
  const LeaseId model = Pinned(100);
  EXPECT_EQ(core_->AvailableToPinned(), 60);
  Grow(kServer, model, 61);
  ASSERT_THAT(sink_.answers, SizeIs(1));
  EXPECT_EQ(sink_.answers[0].second.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(sink_.answers[0].second), HasSubstr("of 100 pages 40 are guaranteed"));
  Take(kServer, model, 60);
  EXPECT_EQ(core_->AvailableToPinned(), 0);
}

TEST_F(CoreTest, SparesTheSizeThatTrainingPrefersInWhatItCallsSpare) {
  Start({.pages = 100});
  const LeaseId training = Training(100, 40), model = Pinned(100);
  EXPECT_EQ(core_->SpareForPinned(), 60);
  ASSERT_TRUE(core_->SetPreferred(kTrainer, training, 70).ok());
  EXPECT_EQ(core_->SpareForPinned(), 30);
  EXPECT_EQ(core_->AvailableToPinned(), 60);  // it is a wish, not a promise
  Take(kServer, model, 50);
  EXPECT_EQ(core_->SpareForPinned(), -20);
  EXPECT_EQ(core_->AvailableToPinned(), 10);
  ASSERT_TRUE(core_->SetPreferred(kTrainer, training, 10).ok());  // below the guarantee: that counts
  EXPECT_EQ(core_->SpareForPinned(), 10);
}

TEST_F(CoreTest, RefusesAPreferredSizeThatMeansNothing) {
  Start({.pages = 100});
  const LeaseId training = Training(80, 40), model = Pinned(100);
  EXPECT_THAT(MessageOf(core_->SetPreferred(kServer, model, 10)), HasSubstr("only reclaimable leases have a preferred size"));
  EXPECT_THAT(MessageOf(core_->SetPreferred(kTrainer, training, 81)),
              HasSubstr("prefers 81 pages; allowed: 0 to its burst of 80"));
  EXPECT_EQ(core_->SetPreferred(kServer, training, 10).code(), StatusCode::kPermissionDenied);
}

TEST_F(CoreTest, PromisesNoPageToTwoWaitingRequests) {
  Start({.pages = 100});
  const LeaseId training = Training(100, 40), model = Pinned(100);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 50);
  EXPECT_EQ(core_->AvailableToPinned(), 10);
  Grow(kServer, model, 11);
  ASSERT_THAT(sink_.answers, SizeIs(1));
  EXPECT_THAT(MessageOf(sink_.answers[0].second), HasSubstr("50 are promised to earlier requests"));
}

TEST_F(CoreTest, AsksForMoreUntilARunIsLongEnough) {
  Start({.pages = 64});
  const LeaseId training = Training(64), model = Pinned(32);
  Take(kTrainer, training, 64);
  Grow(kServer, model, 8, absl::Seconds(1), 8);
  ASSERT_THAT(sink_.revokes, SizeIs(1));
  EXPECT_EQ(sink_.revokes[0].second.limit_pages, 56);
  // Every second page: enough of them, but no run.
  std::vector<Extent> scattered;
  for (PageIndex page = 0; page < 16; page += 2) scattered.push_back({page, 1});
  Return(kTrainer, training, scattered);
  ASSERT_THAT(sink_.revokes, SizeIs(2));
  EXPECT_EQ(sink_.revokes[1].second.limit_pages, 48);
  scattered.clear();
  for (PageIndex page = 1; page < 16; page += 2) scattered.push_back({page, 1});
  Return(kTrainer, training, scattered);
  ASSERT_THAT(sink_.grants, SizeIs(2));
  EXPECT_THAT(sink_.grants[1].grant.extents, ElementsAre(Extent{0, 8}));
  EXPECT_EQ(core_->limit_pages(training), 56) << "what was asked for in excess is allowed again";
  ExpectSound();
}

TEST_F(CoreTest, GivesUpWhenRunsStayTooShort) {
  Start({.pages = 8});
  const LeaseId training = Training(8, 4), model = Pinned(8);
  Take(kTrainer, training, 8);
  Grow(kServer, model, 4, absl::Seconds(1), 4);
  Return(kTrainer, training, {{0, 1}, {2, 1}, {4, 1}, {6, 1}});
  ASSERT_THAT(sink_.answers, SizeIs(1));
  EXPECT_EQ(sink_.answers[0].second.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(sink_.answers[0].second), HasSubstr("the longest run has 1; no lease can give back more"));
}

TEST_F(CoreTest, FencesATenantThatStaysAboveItsLimit) {
  Start({.pages = 100, .fence_after = absl::Seconds(5)});
  const LeaseId training = Training(100), model = Pinned(50);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 20, absl::Seconds(30));
  Return(kTrainer, training, {{0, 10}});
  const Status told =
      core_->FinishRevoke(kTrainer, {.lease = training, .demand = sink_.revokes[0].second.demand, .received = now_}, now_);
  EXPECT_EQ(told.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(told), HasSubstr("with 90 pages; its limit is 80, and it is fenced if it stays above that"));
  Pass(absl::Milliseconds(4999));
  EXPECT_THAT(sink_.fenced, IsEmpty());
  Pass(absl::Milliseconds(1));
  ASSERT_THAT(sink_.fenced, SizeIs(1));
  EXPECT_EQ(sink_.fenced[0].first, kTrainer);
  EXPECT_THAT(sink_.fenced[0].second, HasSubstr("lease 'train' holds 90 pages, 5.00 s after it was asked to come down to 80"));
  EXPECT_THAT(sink_.grants, SizeIs(1)) << "its pages are not taken while it runs";
  core_->ClientGone(kTrainer, now_);
  EXPECT_THAT(sink_.grants, SizeIs(2));
  EXPECT_EQ(core_->Stats().fenced, 1);
  ExpectSound();
}

TEST_F(CoreTest, NewDemandsDoNotPutOffTheFence) {
  Start({.pages = 100, .fence_after = absl::Seconds(5)});
  const LeaseId training = Training(100), model = Pinned(90);
  Take(kTrainer, training, 100);
  for (int i = 0; i < 5; ++i) {
    Grow(kServer, model, 10, absl::Seconds(30));
    Pass(absl::Seconds(1));
  }
  EXPECT_THAT(sink_.fenced, SizeIs(1));
}

TEST_F(CoreTest, AFenceIsOverWhenTheTenantComesDown) {
  Start({.pages = 100, .fence_after = absl::Seconds(5)});
  const LeaseId training = Training(100), model = Pinned(90);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 10, absl::Seconds(30));
  Pass(absl::Seconds(4));
  Return(kTrainer, training, {{0, 10}});
  Grow(kServer, model, 10, absl::Seconds(30));
  Pass(absl::Seconds(4));
  EXPECT_THAT(sink_.fenced, IsEmpty()) << "the second request has time of its own";
  Pass(absl::Seconds(1));
  EXPECT_THAT(sink_.fenced, SizeIs(1));
}

TEST_F(CoreTest, TakesPagesOfADeadProcessOnlyWhenItIsGone) {
  Start({.pages = 100, .fence_after = absl::Seconds(5)});
  const LeaseId training = Training(100), model = Pinned(50);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 20, absl::Seconds(30));
  core_->Disconnect(kTrainer, /*clean=*/false, now_);
  EXPECT_EQ(core_->Stats().returning, 100);
  EXPECT_THAT(sink_.grants, SizeIs(1));
  Pass(absl::Seconds(5));
  ASSERT_THAT(sink_.fenced, SizeIs(1)) << "it closed its connection but runs on";
  EXPECT_THAT(sink_.fenced[0].second, HasSubstr("client 'train' closed its connection and still runs after 5.00 s"));
  core_->ClientGone(kTrainer, now_);
  EXPECT_THAT(sink_.grants, SizeIs(2));
  ExpectSound();
}

TEST_F(CoreTest, TakesPagesOfACleanDetachAtOnce) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(50);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 20);
  core_->Disconnect(kTrainer, /*clean=*/true, now_);
  EXPECT_THAT(sink_.grants, SizeIs(2));
  EXPECT_EQ(core_->NextDeadline(), absl::InfiniteFuture());
  ExpectSound();
}

TEST_F(CoreTest, DeathOfTheGiverCompletesTheRecord) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(50);
  Take(kTrainer, training, 100);
  Grow(kServer, model, 20);
  core_->ClientGone(kTrainer, now_);
  ASSERT_THAT(sink_.grants, SizeIs(2));
  core_->GrantReady(sink_.grants[1].demand, absl::ZeroDuration(), now_);
  ASSERT_THAT(sink_.handovers, SizeIs(1));
  EXPECT_EQ(sink_.handovers[0].giver, "train");
  EXPECT_TRUE(sink_.handovers[0].granted);
}

TEST_F(CoreTest, DeathOfTheRequesterFreesTheQueue) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(50);
  auto other = core_->OpenLease(kOther, {.name = "other", .burst_pages = 50}, now_);
  ASSERT_TRUE(other.ok());
  Take(kTrainer, training, 100);
  Grow(kServer, model, 20);
  core_->Grow({kOther, 77}, *other, {.pages = 5}, now_ + absl::Seconds(1), now_);
  core_->ClientGone(kServer, now_);
  EXPECT_EQ(core_->limit_pages(training), 95);
  Return(kTrainer, training, {{0, 5}});
  ASSERT_THAT(sink_.grants, SizeIs(2));
  EXPECT_EQ(sink_.grants[1].call.call, 77u);
  ExpectSound();
}

TEST_F(CoreTest, PauseTellsEverybodyAndEndsWhenAllHaveStopped) {
  Start({.pages = 100});
  const LeaseId training = Training(100, 10), small = Training(100, 5, kOther, "small");
  Take(kTrainer, training, 30);
  EXPECT_TRUE(core_->PauseComplete());
  core_->SetPaused(true, now_);
  EXPECT_THAT(sink_.pauses, SizeIs(3));
  ASSERT_THAT(sink_.revokes, SizeIs(2)) << "also the tenant that holds nothing says that it has stopped";
  EXPECT_EQ(core_->limit_pages(training), 10);
  EXPECT_FALSE(core_->PauseComplete());
  for (const auto& [client, request] : sink_.revokes) {
    if (request.lease == training) Return(kTrainer, training, {{70, 20}});
    EXPECT_TRUE(core_->FinishRevoke(client, {.lease = request.lease, .demand = request.demand, .received = now_}, now_).ok());
  }
  EXPECT_TRUE(core_->PauseComplete());
  sink_.limits.clear();
  core_->SetPaused(false, now_);
  EXPECT_THAT(sink_.limits, testing::Contains(std::pair(training, int64_t{50})));
  EXPECT_THAT(sink_.limits, testing::Contains(std::pair(small, int64_t{50})));
  EXPECT_THAT(sink_.pauses, SizeIs(6));
}

TEST_F(CoreTest, PauseIsCompleteWithoutATenantThatDies) {
  Start({.pages = 100});
  const LeaseId training = Training(100, 10);
  Take(kTrainer, training, 30);
  core_->SetPaused(true, now_);
  EXPECT_FALSE(core_->PauseComplete());
  core_->ClientGone(kTrainer, now_);
  EXPECT_TRUE(core_->PauseComplete());
}

TEST_F(CoreTest, StaticSplitKeepsBothSidesApart) {
  Start({.pages = 100, .static_reclaimable_pages = 40});
  const LeaseId training = Training(100), model = Pinned(100);
  EXPECT_EQ(core_->limit_pages(training), 40);
  EXPECT_EQ(core_->AvailableToPinned(), 60);
  Take(kTrainer, training, 40);
  Take(kServer, model, 50);
  Grow(kServer, model, 11);
  ASSERT_THAT(sink_.answers, SizeIs(1));
  EXPECT_THAT(MessageOf(sink_.answers[0].second), HasSubstr("pinned leases share 60 pages and have 50"));
  EXPECT_THAT(sink_.revokes, IsEmpty());
  EXPECT_THAT(MessageOf(core_->OpenLease(kServer, {.name = "x", .guaranteed_pages = 11, .burst_pages = 20}, now_).status()),
              HasSubstr("pinned leases share 60 pages and have 50"));
  EXPECT_THAT(MessageOf(core_->SetGuaranteed(kTrainer, training, 41, now_)),
              HasSubstr("reclaimable leases share 40 pages and have 0"));
}

TEST_F(CoreTest, RaisingAGuaranteeTakesFromTraining) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(50);
  Take(kTrainer, training, 100);
  EXPECT_TRUE(core_->SetGuaranteed(kServer, model, 30, now_).ok());
  ASSERT_THAT(sink_.revokes, SizeIs(1));
  EXPECT_EQ(sink_.revokes[0].second.limit_pages, 70);
  EXPECT_EQ(core_->SetGuaranteed(kTrainer, training, 71, now_).code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(core_->SetGuaranteed(kTrainer, training, 70, now_).ok());
  EXPECT_THAT(MessageOf(core_->SetGuaranteed(kServer, model, INT64_MIN, now_)), HasSubstr("allowed: 0 to its burst of 50"));
  EXPECT_THAT(MessageOf(core_->SetGuaranteed(kServer, model, INT64_MAX, now_)), HasSubstr("allowed: 0 to its burst of 50"));
}

TEST_F(CoreTest, KeepsLeasesOfDifferentClientsApart) {
  Start({.pages = 100, .leases_per_client = 2});
  const LeaseId model = Pinned(50);
  const std::vector<Extent> held = Take(kServer, model, 5);
  EXPECT_EQ(core_->Return(kTrainer, model, held, now_).code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(core_->CloseLease(kTrainer, model, now_).code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(core_->SetGuaranteed(kTrainer, model, 1, now_).code(), StatusCode::kPermissionDenied);
  Grow(kTrainer, model, 1);
  EXPECT_THAT(MessageOf(sink_.answers.back().second), HasSubstr("belongs to another client"));
  Pinned(1);
  EXPECT_THAT(MessageOf(core_->OpenLease(kServer, {.name = "third", .burst_pages = 1}, now_).status()),
              HasSubstr("lease 'third': this client has 2 leases open; allowed: 2"));
}

TEST_F(CoreTest, ClosingALeaseReturnsItsPagesAndAnswersItsRequests) {
  Start({.pages = 100});
  const LeaseId training = Training(100), model = Pinned(100);
  Take(kTrainer, training, 90);
  Take(kServer, model, 10);
  Grow(kServer, model, 5);
  EXPECT_TRUE(core_->CloseLease(kServer, model, now_).ok());
  ASSERT_THAT(sink_.answers, SizeIs(1));
  EXPECT_EQ(sink_.answers[0].second.code(), StatusCode::kCancelled);
  EXPECT_EQ(core_->Stats().granted, 90);
  EXPECT_EQ(core_->limit_pages(training), 100);
}

// Random tenants, some of which obey, some late, some never, and all of which may die. Everything that is asked gets one answer,
// and the ledger stays sound.
TEST_F(CoreTest, AnswersEverythingOnceUnderRandomSchedules) {
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    RecordingSink sink;
    const auto total = static_cast<int32_t>(20 + below(80));
    PoolCore core({.pages = total, .reserve_pages = below(10), .fence_after = absl::Seconds(2), .waiting_limit = 20}, &sink);
    absl::Time now = absl::UnixEpoch();
    struct Tenant {
      ClientId client;
      LeaseId lease;
      bool reclaimable;
      std::vector<PageIndex> pages;
    };
    std::vector<Tenant> tenants;
    std::map<uint32_t, ClientId> asked;
    uint32_t next_client = 0, call = 0;
    size_t grants_seen = 0, fenced_seen = 0;
    auto take_in = [&] {
      for (; grants_seen < sink.grants.size(); ++grants_seen) {
        const auto& grown = sink.grants[grants_seen];
        for (Tenant& tenant : tenants) {
          if (tenant.lease != grown.lease) continue;
          for (const Extent& extent : grown.grant.extents) {
            for (PageIndex page = extent.first; page < extent.end(); ++page) tenant.pages.push_back(page);
          }
        }
        core.GrantReady(grown.demand, absl::ZeroDuration(), now);
      }
    };
    auto give = [&](Tenant& tenant, int64_t pages) {
      std::vector<Extent> extents;
      while (pages-- > 0 && !tenant.pages.empty()) {
        const auto index = static_cast<size_t>(below(static_cast<int64_t>(tenant.pages.size())));
        extents.push_back({tenant.pages[index], 1});
        tenant.pages.erase(tenant.pages.begin() + static_cast<std::ptrdiff_t>(index));
      }
      ASSERT_TRUE(core.Return(tenant.client, tenant.lease, extents, now).ok());
    };
    auto kill = [&](ClientId client) {
      if (below(2) == 0) core.Disconnect(client, below(4) == 0, now);
      core.ClientGone(client, now);
      std::erase_if(tenants, [&](const Tenant& tenant) { return tenant.client == client; });
      std::erase_if(asked, [&](const auto& entry) { return entry.second == client; });
    };
    for (int step = 0; step < 400; ++step) {
      const auto choice = below(12);
      Tenant* tenant = tenants.empty() ? nullptr : &tenants[static_cast<size_t>(below(static_cast<int64_t>(tenants.size())))];
      if (choice == 0 && tenants.size() < 6) {
        const ClientId client(++next_client);
        core.Attach(client, "c", 0);
        const bool reclaimable = below(2) == 0;
        auto lease = core.OpenLease(client,
                                    {.name = "l",
                                     .lease_class = reclaimable ? LeaseClass::kReclaimable : LeaseClass::kPinned,
                                     .guaranteed_pages = below(total / 4),
                                     .burst_pages = total},
                                    now);
        if (lease.ok()) tenants.push_back({client, *lease, reclaimable, {}});
      } else if (choice == 1 && tenant != nullptr && below(4) == 0) {
        kill(tenant->client);
      } else if (choice <= 5 && tenant != nullptr) {
        const int64_t pages = 1 + below(total / 2);
        asked[++call] = tenant->client;
        core.Grow({tenant->client, call}, tenant->lease, {.pages = pages, .min_run_pages = 1 + below(pages)},
                  now + absl::Milliseconds(below(3000)), now);
      } else if (choice <= 7 && tenant != nullptr) {
        give(*tenant, below(10));
      } else if (choice == 8) {
        core.SetPaused(below(2) == 0, now);
      } else if (choice == 9 && tenant != nullptr) {
        core.SetGuaranteed(tenant->client, tenant->lease, below(total / 3), now).IgnoreError();
      } else {
        now += absl::Milliseconds(below(400));
        core.Tick(now);
      }
      take_in();
      // Two of three tenants do at once what they are asked.
      for (Tenant& each : tenants) {
        if (!each.reclaimable || each.client.value() % 3 == 0) continue;
        const int64_t above = static_cast<int64_t>(each.pages.size()) - core.limit_pages(each.lease);
        if (above > 0) give(each, above);
      }
      take_in();
      for (; fenced_seen < sink.fenced.size(); ++fenced_seen) kill(sink.fenced[fenced_seen].first);
      take_in();
      const PoolStats stats = core.Stats();
      ASSERT_EQ(stats.violations, 0) << "step " << step;
      ASSERT_EQ(stats.free + stats.granted + stats.returning + stats.dirty, stats.total);
      int64_t held = 0;
      for (const Tenant& each : tenants) held += static_cast<int64_t>(each.pages.size());
      ASSERT_EQ(stats.granted, held) << "step " << step;
    }
    // After all deadlines nothing is left waiting.
    now += absl::Hours(1);
    core.Tick(now);
    take_in();
    std::map<uint32_t, int> answers;
    for (const auto& [number, status] : sink.answers) ++answers[number];
    for (const auto& grown : sink.grants) ++answers[grown.call.call];
    for (const auto& [number, client] : asked) ASSERT_EQ(answers[number], 1) << "call " << number;
    for (const auto& [number, count] : answers) ASSERT_EQ(count, 1) << "call " << number;
  }
}

}  // namespace
}  // namespace tidepool::pool
