#include "serve/residency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidepool::serve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr ModelId kA(1), kB(2), kC(3);
absl::Time At(int64_t milliseconds) { return absl::UnixEpoch() + absl::Hours(1) + absl::Milliseconds(milliseconds); }

class ResidencyTest : public ::testing::Test {
 protected:
  void Make(ResidencyOptions options) {
    residency_ = std::make_unique<Residency>(options);
    residency_->AddModel(kA, "a", 4, 1, 1);
    residency_->AddModel(kB, "b", 4, 1, 1);
    residency_->AddModel(kC, "c", 4, 1, 1);
  }
  void Resident(ModelId model, int64_t used_ms, int uses = 1) {
    residency_->OnLoadStarted(model);
    residency_->OnLoaded(model, 4, At(used_ms));
    residency_->OnUse(model, uses, At(used_ms));
  }
  ResidencyDemand Wants(ModelId model, int64_t since_ms, int64_t target_ms, int queued = 1) {
    return {model, At(target_ms), At(since_ms), queued};
  }
  void SetUp() override { Make({}); }
  std::unique_ptr<Residency> residency_;
};

TEST_F(ResidencyTest, LoadsTheMostUrgentModelAndOneAtATime) {
  Situation situation{.now = At(0), .available_pages = 100, .demands = {Wants(kA, 0, 50), Wants(kB, 0, 20)}};
  EXPECT_EQ(residency_->Decide(situation).load, kB);
  residency_->OnLoadStarted(kB);
  EXPECT_FALSE(residency_->Decide(situation).load.has_value());
  residency_->OnLoaded(kB, 4, At(5));
  EXPECT_EQ(residency_->Decide(situation).load, kA);
}

TEST_F(ResidencyTest, EvictsTheColdestIdleModelToMakeRoom) {
  Resident(kA, 0, 10);
  Resident(kB, 1, 1);
  const Situation situation{.now = At(2), .available_pages = 1, .demands = {Wants(kC, 2, 50)}};
  const ResidencyDecision decision = residency_->Decide(situation);
  EXPECT_THAT(decision.unload, ElementsAre(kB)) << "used later, but less";
  EXPECT_FALSE(decision.load.has_value()) << "not before the room is there";
  residency_->OnUnloadStarted(kB);
  EXPECT_THAT(residency_->Decide(situation).unload, IsEmpty()) << "one is on its way out already";
  residency_->OnUnloaded(kB);
  EXPECT_EQ(residency_->Decide({.now = At(3), .available_pages = 5, .demands = {Wants(kC, 2, 50)}}).load, kC);
}

TEST_F(ResidencyTest, ABurstBringsItsModelsBackAheadOfTheirRequestsTheHottestFirst) {
  Make({.idle_eviction = absl::Milliseconds(100)});
  residency_->OnUse(kB, 20, At(0));
  residency_->OnUse(kC, 10, At(0));
  Resident(kA, 60'000, 10);
  residency_->OnUse(kA, 1, At(60'000 + 2'000));
  const auto look = [&](int64_t ms, int64_t available) {
    return residency_->Decide({.now = At(ms), .available_pages = available, .spare_pages = -20});
  };
  EXPECT_FALSE(residency_->WantsAhead(At(62'000))) << "one request is no burst";
  EXPECT_FALSE(look(62'000, 100).load.has_value());

  for (int64_t ms = 70'000; ms <= 70'200; ms += 20) residency_->OnUse(kA, 1, At(ms));  // 50/s
  EXPECT_TRUE(residency_->WantsAhead(At(70'200)));
  EXPECT_FALSE(look(70'200, 4).load.has_value()) << "no room beside the activations";
  const ResidencyDecision decision = look(70'200, 5);
  EXPECT_EQ(decision.load, kB);
  EXPECT_THAT(decision.unload, IsEmpty());
  residency_->OnLoadStarted(kB);
  EXPECT_FALSE(look(70'200, 100).load.has_value()) << "one at a time";
  residency_->OnLoaded(kB, 4, At(70'200));
  EXPECT_EQ(look(70'210, 100).load, kC);
  EXPECT_THAT(look(70'320, 0).unload, IsEmpty()) << "idle, but expected soon";

  EXPECT_FALSE(residency_->WantsAhead(At(72'000))) << "the burst is over";
  EXPECT_THAT(look(72'000, 0).unload, ElementsAre(kB, kA));
}

TEST_F(ResidencyTest, NothingComesBackAheadThatAUserUnloadedThatNobodyAskedForOrThatCouldNotBeLoaded) {
  residency_->OnUse(kA, 20, At(0));
  residency_->OnUse(kB, 20, At(0));
  for (int64_t ms = 1'000; ms <= 1'200; ms += 20) residency_->OnUse(kA, 1, At(ms));
  residency_->OnLoadStarted(kA);
  residency_->OnLoadFailed(kA, Internal("broken"), At(1'200));
  EXPECT_EQ(residency_->Decide({.now = At(1'200), .available_pages = 100}).load, kB);
  residency_->OnUnwanted(kB);
  EXPECT_FALSE(residency_->Decide({.now = At(1'200), .available_pages = 100}).load.has_value());
}

// A load that fails although the pages are there by count (they lie too scattered) costs one model before each further try, not
// all.
TEST_F(ResidencyTest, AFailedLoadEvictsOneModelAndIsTriedAgain) {
  Resident(kA, 0, 10);
  Resident(kB, 0, 1);
  const auto look = [&](int64_t ms) {
    return residency_->Decide({.now = At(ms), .available_pages = 6, .demands = {Wants(kC, 0, 50)}});
  };
  ASSERT_EQ(look(0).load, kC);
  residency_->OnLoadStarted(kC);
  residency_->OnLoadFailed(kC, ResourceExhausted("scattered"), At(1));
  const ResidencyDecision one = look(200);
  EXPECT_THAT(one.unload, ElementsAre(kB));
  EXPECT_FALSE(one.load.has_value());
  residency_->OnUnloadStarted(kB);
  EXPECT_FALSE(look(201).load.has_value()) << "it is still on its way out";
  residency_->OnUnloaded(kB);
  const ResidencyDecision again = look(202);
  EXPECT_EQ(again.load, kC);
  EXPECT_THAT(again.unload, IsEmpty());
  residency_->OnLoadStarted(kC);
  residency_->OnLoadFailed(kC, ResourceExhausted("scattered"), At(203));
  EXPECT_THAT(look(800).unload, ElementsAre(kA)) << "and one more after each failure";
}

TEST_F(ResidencyTest, ForgetsOldHeat) {
  Resident(kA, 0, 100);
  Resident(kB, 0, 1);
  EXPECT_GT(residency_->hotness(kA, At(0)), residency_->hotness(kB, At(0)));
  residency_->OnUse(kB, 3, At(300'000));  // ten half-lives later
  EXPECT_LT(residency_->hotness(kA, At(300'000)), residency_->hotness(kB, At(300'000)));
}

TEST_F(ResidencyTest, NeverEvictsAModelWithWorkButDrainsOneWhenARequestStarves) {
  Resident(kA, 0);
  Resident(kB, 0);
  Situation situation{
      .now = At(500), .available_pages = 1, .demands = {Wants(kA, 490, 600), Wants(kC, 0, 50)}, .executing = {kB}};
  ResidencyDecision decision = residency_->Decide(situation);
  EXPECT_THAT(decision.unload, IsEmpty());
  EXPECT_THAT(decision.drain, IsEmpty());
  EXPECT_EQ(decision.wake, At(1000));
  situation.now = At(1000);
  decision = residency_->Decide(situation);
  EXPECT_THAT(decision.unload, IsEmpty());
  EXPECT_EQ(decision.drain.size(), 1u);
  residency_->OnDrain(decision.drain[0], At(1000));
  EXPECT_EQ(residency_->cutoff(decision.drain[0]), At(1000));
  EXPECT_THAT(residency_->Decide(situation).drain, IsEmpty()) << "one is enough";
}

TEST_F(ResidencyTest, EvictsWhatIsCheapToReloadBeforeItPressesTraining) {
  Resident(kA, 0);
  Resident(kB, 900);
  // 10 pages can be had, 2 of them without pressing training: a model of 4 pages with its workspace does not fit into those.
  Situation situation{
      .now = At(1000), .available_pages = 10, .spare_pages = 2, .demands = {Wants(kC, 1000, 1100)}, .cheap_to_reload = {kA, kB}};
  ResidencyDecision decision = residency_->Decide(situation);
  EXPECT_THAT(decision.unload, ElementsAre(kA)) << "b was used just now";
  EXPECT_EQ(decision.load, std::nullopt);
  residency_->OnUnloadStarted(kA);
  decision = residency_->Decide(situation);
  EXPECT_THAT(decision.unload, IsEmpty()) << "the pages of a are on their way";
  EXPECT_EQ(decision.load, std::nullopt);
  residency_->OnUnloaded(kA);
  situation.available_pages = 14;
  situation.spare_pages = 6;
  EXPECT_EQ(residency_->Decide(situation).load, kC);
}

TEST_F(ResidencyTest, GivesWhatIdleCheapModelsHoldToTrainingThatMissesIt) {
  Resident(kA, 0);
  Resident(kB, 500);
  Resident(kC, 900);
  Situation situation{.now = At(1000), .available_pages = 10, .spare_pages = -1, .cheap_to_reload = {kB, kC}};
  EXPECT_THAT(residency_->Decide(situation).unload, ElementsAre(kB)) << "a is not cheap, c was used just now, b is enough";
  situation.spare_pages = 0;
  EXPECT_THAT(residency_->Decide(situation).unload, IsEmpty());
  situation.spare_pages = -20;
  situation.demands = {Wants(kC, 990, 1100)};
  EXPECT_THAT(residency_->Decide(situation).unload, ElementsAre(kB)) << "too few is better than none";
}

TEST_F(ResidencyTest, PressesTrainingWhereEvictionWouldBreakObjectives) {
  Resident(kA, 0);
  Resident(kB, 900);
  Situation situation{.now = At(1000), .available_pages = 10, .spare_pages = 2, .demands = {Wants(kC, 1000, 1100)}};
  EXPECT_EQ(residency_->Decide(situation).load, kC) << "neither is cheap to reload";
  situation.cheap_to_reload = {kB};
  EXPECT_EQ(residency_->Decide(situation).load, kC) << "b was used just now";
  situation.cheap_to_reload = {kA};
  situation.executing = {kA};
  EXPECT_EQ(residency_->Decide(situation).load, kC) << "a runs";
}

TEST_F(ResidencyTest, EvictsIdleModelsAfterTheTimeoutWhereTrainingMissesTheirMemory) {
  Resident(kA, 0);
  Resident(kB, 1000);
  const auto missing = [](int64_t ms, int64_t pages) {
    return Situation{.now = At(ms), .available_pages = 50, .spare_pages = -pages};
  };
  ResidencyDecision decision = residency_->Decide(missing(2999, 1));
  EXPECT_THAT(decision.unload, IsEmpty());
  EXPECT_EQ(decision.wake, At(3000));
  EXPECT_THAT(residency_->Decide(missing(3000, 1)).unload, ElementsAre(kA));
  EXPECT_THAT(residency_->Decide(missing(9000, 4)).unload, ElementsAre(kA)) << "one is enough";
  EXPECT_THAT(residency_->Decide(missing(9000, 5)).unload, ElementsAre(kA, kB));
  EXPECT_THAT(residency_->Decide(missing(9000, 0)).unload, IsEmpty()) << "nobody misses anything";
  Situation wanted = missing(3000, 1);
  wanted.demands = {Wants(kA, 3000, 3050)};
  EXPECT_THAT(residency_->Decide(wanted).unload, IsEmpty());
}

TEST_F(ResidencyTest, SaysWhatIsMissingWhenAModelCannotFitAtAll) {
  Resident(kA, 0);
  residency_->AddModel(kC, "c", 40, 3, 1);
  Situation situation{.now = At(999), .available_pages = 10, .demands = {Wants(kC, 0, 50)}};
  EXPECT_THAT(residency_->Decide(situation).impossible, IsEmpty()) << "a dead worker's pages may still come back";
  situation.now = At(1000);
  const ResidencyDecision decision = residency_->Decide(situation);
  ASSERT_EQ(decision.impossible.size(), 1u);
  EXPECT_EQ(decision.impossible[0].status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(decision.impossible[0].status),
              HasSubstr("model 'c' needs 40 pages for its weights and 1 for its activations; at most 14 pages"));
}

TEST_F(ResidencyTest, LoadsAModelWhoseLargestBatchDoesNotFitIfOneSampleDoes) {
  residency_->AddModel(kC, "c", 8, 50, 2);
  EXPECT_EQ(residency_->Decide({.now = At(0), .available_pages = 10, .demands = {Wants(kC, 0, 50)}}).load, kC);
  EXPECT_FALSE(residency_->Decide({.now = At(0), .available_pages = 9, .demands = {Wants(kC, 0, 50)}}).load.has_value());
}

TEST_F(ResidencyTest, KeepsToTheStaticSplitAndLeavesRoomForActivations) {
  Make({.idle_eviction = absl::InfiniteDuration(), .serving_limit_pages = 9});
  Resident(kA, 0);
  // 4 held + 4 wanted + 1 workspace = 9 fits exactly; a larger workspace does not.
  EXPECT_EQ(residency_->Decide({.now = At(1), .available_pages = 100, .demands = {Wants(kB, 1, 50)}}).load, kB);
  residency_->OnWorkspace(kB, 2);
  const ResidencyDecision decision = residency_->Decide({.now = At(1), .available_pages = 100, .demands = {Wants(kB, 1, 50)}});
  EXPECT_FALSE(decision.load.has_value());
  EXPECT_THAT(decision.unload, ElementsAre(kA));
  EXPECT_THAT(residency_->Decide({.now = At(3'600'000), .available_pages = 100, .spare_pages = -1}).unload, IsEmpty())
      << "no idle eviction";
}

TEST_F(ResidencyTest, BacksOffAfterFailuresAndTellsMemoryFromBrokenModels) {
  residency_->OnLoadStarted(kA);
  residency_->OnLoadFailed(kA, InvalidArgument("tensor 'x' is missing"), At(0));
  EXPECT_THAT(MessageOf(residency_->broken(kA, At(1))), HasSubstr("model 'a' could not be loaded"));
  EXPECT_THAT(MessageOf(residency_->broken(kA, At(1))), HasSubstr("tensor 'x' is missing"));
  EXPECT_TRUE(residency_->broken(kA, At(1000)).ok());
  residency_->OnLoadStarted(kB);
  residency_->OnLoadFailed(kB, ResourceExhausted("no room"), At(0));
  EXPECT_TRUE(residency_->broken(kB, At(0)).ok());
  const Situation early{.now = At(5), .available_pages = 100, .demands = {Wants(kB, 0, 50)}};
  EXPECT_FALSE(residency_->Decide(early).load.has_value());
  EXPECT_EQ(residency_->Decide(early).wake, At(10));
  const Situation later{.now = At(10), .available_pages = 100, .demands = {Wants(kB, 0, 50)}};
  EXPECT_EQ(residency_->Decide(later).load, kB);
}

TEST_F(ResidencyTest, EvictsOneMoreWhenTheCountedPagesWereNotEnough) {
  Resident(kA, 0);
  residency_->OnLoadStarted(kB);
  residency_->OnLoadFailed(kB, ResourceExhausted("too scattered"), At(0));
  const Situation situation{.now = At(100), .available_pages = 100, .demands = {Wants(kB, 0, 50)}};
  EXPECT_THAT(residency_->Decide(situation).unload, ElementsAre(kA));
  residency_->OnUnloadStarted(kA);
  EXPECT_FALSE(residency_->Decide(situation).load.has_value());
  residency_->OnUnloaded(kA);
  EXPECT_EQ(residency_->Decide(situation).load, kB);
}

TEST(TaskSwitch, StopsTrainingOnTheFirstRequestAndResumesWhenIdleAndEmpty) {
  using Action = TaskSwitch::Action;
  TaskSwitch task(absl::Milliseconds(10));
  EXPECT_EQ(task.Step(At(0), false, false), Action::kNone);
  EXPECT_EQ(task.Step(At(1), true, false), Action::kPause);
  EXPECT_FALSE(task.may_serve());
  EXPECT_EQ(task.Step(At(2), true, false), Action::kNone) << "asked once";
  task.OnPaused(Status(), At(3));
  EXPECT_TRUE(task.may_serve());
  EXPECT_EQ(task.Step(At(4), true, true), Action::kNone);
  EXPECT_EQ(task.Step(At(5), false, true), Action::kNone);
  EXPECT_EQ(task.wake(), At(15));
  EXPECT_EQ(task.Step(At(14), false, true), Action::kNone);
  EXPECT_EQ(task.Step(At(15), false, true), Action::kEvictAll);
  EXPECT_FALSE(task.may_serve());
  EXPECT_EQ(task.Step(At(16), false, false), Action::kResume);
  task.OnResumed(Status(), At(17));
  EXPECT_EQ(task.Step(At(18), true, false), Action::kPause);
}

TEST(TaskSwitch, KeepsServingWhenARequestComesWhileModelsAreEvicted) {
  using Action = TaskSwitch::Action;
  TaskSwitch task(absl::Milliseconds(10));
  task.Step(At(0), true, false);
  task.OnPaused(Status(), At(0));
  task.Step(At(1), false, true);
  EXPECT_EQ(task.Step(At(11), false, true), Action::kEvictAll);
  EXPECT_EQ(task.Step(At(12), true, true), Action::kNone);
  EXPECT_TRUE(task.may_serve());
}

TEST(TaskSwitch, TriesAgainWhenTrainingDoesNotStop) {
  using Action = TaskSwitch::Action;
  TaskSwitch task(absl::Milliseconds(10));
  EXPECT_EQ(task.Step(At(0), true, false), Action::kPause);
  task.OnPaused(DeadlineExceeded("busy"), At(50));
  EXPECT_FALSE(task.may_serve());
  EXPECT_EQ(task.Step(At(51), true, false), Action::kNone);
  EXPECT_EQ(task.Step(task.wake(), true, false), Action::kPause);
}

}  // namespace
}  // namespace tidepool::serve
