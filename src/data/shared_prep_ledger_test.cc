#include "data/shared_prep_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>

namespace tidepool::data {
namespace {

using Kind = PrepAction::Kind;
using ::testing::HasSubstr;

absl::Time At(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

// The one action of the kind for the job.
PrepAction Only(const std::vector<PrepAction>& actions, Kind kind, PrepJob job) {
  std::vector<PrepAction> found;
  for (const PrepAction& action : actions) {
    if (action.kind == kind && action.job == job) found.push_back(action);
  }
  EXPECT_EQ(found.size(), 1u);
  return found.empty() ? PrepAction() : found[0];
}
int64_t Count(const std::vector<PrepAction>& actions, Kind kind) {
  return std::count_if(actions.begin(), actions.end(), [kind](const PrepAction& action) { return action.kind == kind; });
}

TEST(PrepLedger, ABatchIsPreparedOnceAndGivenToEachJobOnce) {
  PrepLedger ledger({.batches = 2, .epochs = 1, .slots = 2, .jobs = 2});
  const PrepJob a = *ledger.Join("a", At(0)), b = *ledger.Join("b", At(0));
  ASSERT_TRUE(ledger.Want(a).ok());
  ASSERT_TRUE(ledger.Take(a, At(1)).ok());
  ASSERT_TRUE(ledger.Take(b, At(1)).ok());
  const PrepAction lease = Only(ledger.Advance(At(1)), Kind::kLease, a);
  EXPECT_EQ(lease.g, 0);
  ASSERT_TRUE(ledger.Done(a, lease.token, {.samples = 5}, At(2)).ok());
  const auto given = ledger.Advance(At(2));
  EXPECT_EQ(given.size(), 2u);
  EXPECT_EQ(Only(given, Kind::kDeliver, a).outcome.samples, 5);
  EXPECT_EQ(Only(given, Kind::kDeliver, b).slot, lease.slot);
  EXPECT_EQ(ledger.free_slots(), 1);
  ASSERT_TRUE(ledger.Release(a, 0, At(3)).ok());
  EXPECT_EQ(ledger.free_slots(), 1);
  ASSERT_TRUE(ledger.Release(b, 0, At(3)).ok());
  EXPECT_EQ(ledger.free_slots(), 2);
  EXPECT_THAT(ToString(ledger.Release(b, 0, At(3))), HasSubstr("job 'b' does not hold batch 0"));

  ASSERT_TRUE(ledger.Want(b).ok());
  const PrepAction second = Only(ledger.Advance(At(4)), Kind::kLease, b);
  EXPECT_EQ(second.g, 1);
  ASSERT_TRUE(ledger.Done(b, second.token, {.samples = 3}, At(5)).ok());
  for (const PrepJob job : {a, b}) {
    ASSERT_TRUE(ledger.Take(job, At(5)).ok());
    EXPECT_EQ(Only(ledger.Advance(At(5)), Kind::kDeliver, job).g, 1);
    ASSERT_TRUE(ledger.Take(job, At(5)).ok());
    EXPECT_EQ(Count(ledger.Advance(At(5)), Kind::kEnd), 1);
    ASSERT_TRUE(ledger.Release(job, 1, At(5)).ok());
  }
  ASSERT_EQ(ledger.epochs().size(), 1u);
  EXPECT_EQ(ledger.epochs()[0].prepared, 2);
  EXPECT_EQ(ledger.epochs()[0].delivered, 4);
  EXPECT_EQ(ledger.free_slots(), 2);
}

TEST(PrepLedger, TheFirstEpochWaitsForAllJobsButNotForEver) {
  PrepLedger ledger({.batches = 2, .slots = 2, .jobs = 3, .join_limit = absl::Seconds(10)});
  const PrepJob a = *ledger.Join("a", At(0));
  ASSERT_TRUE(ledger.Want(a).ok());
  EXPECT_TRUE(ledger.Advance(At(9)).empty());
  EXPECT_EQ(ledger.NextDeadline(), At(10));
  ledger.Leave(a);  // and with it the reason to begin
  EXPECT_EQ(ledger.NextDeadline(), absl::InfiniteFuture());
  EXPECT_TRUE(ledger.Advance(At(11)).empty());
  const PrepJob b = *ledger.Join("b", At(20));
  ASSERT_TRUE(ledger.Want(b).ok());
  EXPECT_EQ(ledger.NextDeadline(), At(30));
  EXPECT_EQ(Count(ledger.Advance(At(30)), Kind::kLease), 1);
}

TEST(PrepLedger, AJobThatComesLateBeginsWithTheNextEpochAndGetsAllOfIt) {
  PrepLedger ledger({.batches = 3, .epochs = 3, .slots = 2});
  const PrepJob a = *ledger.Join("a", At(0));
  ASSERT_TRUE(ledger.Want(a).ok());
  const PrepAction lease = Only(ledger.Advance(At(0)), Kind::kLease, a);
  const PrepJob late = *ledger.Join("late", At(1));
  EXPECT_EQ(ledger.jobs().back().first, 3);
  ASSERT_TRUE(ledger.Done(a, lease.token, {}, At(1)).ok());
  ASSERT_TRUE(ledger.Take(a, At(1)).ok());
  EXPECT_EQ(Only(ledger.Advance(At(1)), Kind::kDeliver, a).g, 0);
  ASSERT_TRUE(ledger.Release(a, 0, At(1)).ok());
  EXPECT_EQ(ledger.free_slots(), 2);  // the late job owes nothing of this epoch
  // The first one leaves: nobody needs the rest of epoch 0 any more.
  ledger.Leave(a);
  ASSERT_TRUE(ledger.Want(late).ok());
  EXPECT_EQ(Only(ledger.Advance(At(2)), Kind::kLease, late).g, 3);
}

TEST(PrepLedger, WhatAKilledJobWasPreparingIsLeasedToAnotherAtOnce) {
  PrepLedger ledger({.batches = 4, .slots = 2, .jobs = 2});
  const PrepJob a = *ledger.Join("a", At(0)), b = *ledger.Join("b", At(0));
  ASSERT_TRUE(ledger.Want(a).ok());
  const PrepAction lost = Only(ledger.Advance(At(0)), Kind::kLease, a);
  ledger.Leave(a);
  EXPECT_EQ(ledger.free_slots(), 2);
  ASSERT_TRUE(ledger.Want(b).ok());
  const PrepAction again = Only(ledger.Advance(At(0)), Kind::kLease, b);
  EXPECT_EQ(again.g, lost.g);
  EXPECT_NE(again.token, lost.token);
  EXPECT_EQ(ledger.epochs()[0].takeovers, 1);
  EXPECT_THAT(ToString(ledger.Done(a, lost.token, {}, At(1))), HasSubstr("no job 1"));
}

TEST(PrepLedger, ALeaseThatRunsOutGoesToAnotherAndTheLateOneIsThrownAway) {
  PrepLedger ledger({.batches = 4, .slots = 3, .jobs = 2, .lease_limit = absl::Seconds(10)});
  const PrepJob a = *ledger.Join("a", At(0)), b = *ledger.Join("b", At(0));
  ASSERT_TRUE(ledger.Want(a).ok());
  const PrepAction slow = Only(ledger.Advance(At(0)), Kind::kLease, a);
  EXPECT_EQ(ledger.NextDeadline(), At(10));
  ASSERT_TRUE(ledger.Want(b).ok());
  EXPECT_EQ(Only(ledger.Advance(At(5)), Kind::kLease, b).g, 1);
  ASSERT_TRUE(ledger.Want(b).ok());
  const PrepAction again = Only(ledger.Advance(At(10)), Kind::kLease, b);
  EXPECT_EQ(again.g, 0);
  EXPECT_NE(again.slot, slow.slot);  // the slow one may still write there
  EXPECT_EQ(ledger.stuck_slots(), 1);
  EXPECT_EQ(ledger.free_slots(), 0);
  ASSERT_TRUE(ledger.Done(a, slow.token, {.samples = 1}, At(12)).ok());
  EXPECT_EQ(ledger.free_slots(), 1);
  EXPECT_EQ(ledger.epochs()[0].wasted, 1);
  ASSERT_TRUE(ledger.Done(b, again.token, {.samples = 2}, At(13)).ok());
  ASSERT_TRUE(ledger.Take(a, At(13)).ok());
  EXPECT_EQ(Only(ledger.Advance(At(13)), Kind::kDeliver, a).outcome.samples, 2);
  EXPECT_EQ(ledger.epochs()[0].prepared, 1);
}

// Two slots, one of which a job that does not answer may still write to: the later batch gives up its own.
TEST(PrepLedger, ASlotIsTakenFromALaterBatchWhenAnEarlierOneHasNone) {
  PrepLedger ledger({.batches = 4, .slots = 2, .jobs = 2, .lease_limit = absl::Seconds(10)});
  const PrepJob a = *ledger.Join("a", At(0)), b = *ledger.Join("b", At(0));
  ASSERT_TRUE(ledger.Want(a).ok());
  ASSERT_EQ(Only(ledger.Advance(At(0)), Kind::kLease, a).g, 0);  // and stops
  ASSERT_TRUE(ledger.Want(b).ok());
  const PrepAction later = Only(ledger.Advance(At(0)), Kind::kLease, b);
  ASSERT_TRUE(ledger.Done(b, later.token, {}, At(1)).ok());
  ASSERT_TRUE(ledger.Want(b).ok());
  ASSERT_TRUE(ledger.Take(b, At(1)).ok());
  const PrepAction again = Only(ledger.Advance(At(10)), Kind::kLease, b);
  EXPECT_EQ(again.g, 0);
  EXPECT_EQ(again.slot, later.slot);
  ASSERT_TRUE(ledger.Done(b, again.token, {}, At(11)).ok());
  EXPECT_EQ(Only(ledger.Advance(At(11)), Kind::kDeliver, b).g, 0);
  ledger.Leave(a);
  ASSERT_TRUE(ledger.Want(b).ok());
  const PrepAction repeated = Only(ledger.Advance(At(12)), Kind::kLease, b);
  EXPECT_EQ(repeated.g, 1);
  ASSERT_TRUE(ledger.Done(b, repeated.token, {}, At(13)).ok());
  EXPECT_EQ(ledger.epochs()[0].prepared, 2);
  EXPECT_EQ(ledger.epochs()[0].repeated, 1);
}

TEST(PrepLedger, AJobThatHoldsUpTheOthersIsExpelledAndItsSlotsStayOutOfUseUntilItIsGone) {
  PrepLedger ledger({.batches = 8, .slots = 2, .jobs = 2, .use_limit = absl::Seconds(30)});
  const PrepJob a = *ledger.Join("a", At(0)), stopped = *ledger.Join("stopped", At(0));
  const auto prepare = [&](double now) {
    EXPECT_TRUE(ledger.Want(a).ok());
    const PrepAction lease = Only(ledger.Advance(At(now)), Kind::kLease, a);
    EXPECT_TRUE(ledger.Done(a, lease.token, {}, At(now)).ok());
  };
  prepare(0);
  prepare(0);
  ASSERT_TRUE(ledger.Take(stopped, At(1)).ok());
  ASSERT_EQ(Count(ledger.Advance(At(1)), Kind::kDeliver), 1);
  for (int64_t g = 0; g < 2; ++g) {
    ASSERT_TRUE(ledger.Take(a, At(2)).ok());
    EXPECT_EQ(Only(ledger.Advance(At(2)), Kind::kDeliver, a).g, g);
    ASSERT_TRUE(ledger.Release(a, g, At(2)).ok());
  }
  EXPECT_EQ(ledger.NextDeadline(), absl::InfiniteFuture());  // nobody waits
  ASSERT_TRUE(ledger.Want(a).ok());
  ASSERT_TRUE(ledger.Take(a, At(3)).ok());
  EXPECT_TRUE(ledger.Advance(At(30.9)).empty());
  EXPECT_EQ(ledger.NextDeadline(), At(31));  // 30 s after it last took a batch
  const auto actions = ledger.Advance(At(31));
  EXPECT_EQ(Only(actions, Kind::kExpel, stopped).job, stopped);
  const PrepAction lease = Only(actions, Kind::kLease, a);
  EXPECT_EQ(lease.g, 2);
  EXPECT_EQ(lease.slot, 1);            // that of batch 1, which it had not taken
  EXPECT_EQ(ledger.stuck_slots(), 1);  // that of batch 0, which it may still read
  EXPECT_EQ(ToString(ledger.Take(stopped, At(32))), "FAILED_PRECONDITION: job 'stopped' takes part no more");
  ASSERT_TRUE(ledger.Release(stopped, 0, At(33)).ok());
  EXPECT_EQ(ledger.stuck_slots(), 0);
  EXPECT_EQ(ledger.free_slots(), 1);
}

TEST(PrepLedger, ABatchThatCannotBePreparedIsToldToEachJobOnceAndTheWindowHasAnEnd) {
  PrepLedger ledger({.batches = 100, .slots = 2, .jobs = 2});
  const PrepJob a = *ledger.Join("a", At(0)), b = *ledger.Join("b", At(0));
  int64_t leases = 0;
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(ledger.Want(a).ok());
    for (const PrepAction& action : ledger.Advance(At(1))) {
      ASSERT_EQ(action.kind, Kind::kLease);
      ++leases;
      ASSERT_TRUE(ledger.Done(a, action.token, {.status = DataLoss("broken {}", action.g)}, At(1)).ok());
    }
  }
  EXPECT_EQ(leases, 2);  // although every slot is free
  EXPECT_EQ(ledger.free_slots(), 2);
  for (const PrepJob job : {a, b}) {
    ASSERT_TRUE(ledger.Take(job, At(2)).ok());
    EXPECT_EQ(ToString(Only(ledger.Advance(At(2)), Kind::kDeliver, job).outcome.status), "DATA_LOSS: broken 0");
  }
}

TEST(PrepLedger, BadOptionsAndCallsAreNamed) {
  const auto fault = [](PrepLedgerOptions options) { return ToString(options.Validate()); };
  EXPECT_THAT(fault({.batches = 0, .slots = 2}), HasSubstr("0 batches in an epoch"));
  EXPECT_THAT(fault({.batches = 1, .slots = 1}), HasSubstr("staging memory for 1 batches; allowed: 2 to 65536"));
  EXPECT_THAT(fault({.batches = 1, .slots = 2, .held = 3}), HasSubstr("3 batches held by one job; allowed: 1 to 2"));
  EXPECT_THAT(fault({.batches = 1, .epochs = 0, .slots = 2}), HasSubstr("0 epochs"));
  EXPECT_THAT(fault({.batches = 1, .slots = 2, .jobs = 0}), HasSubstr("0 jobs to wait for"));
  EXPECT_THAT(fault({.batches = 1, .slots = 2, .use_limit = absl::ZeroDuration()}), HasSubstr("a limit of 0"));
  PrepLedger ledger({.batches = 5, .slots = 2});
  const PrepJob a = *ledger.Join("a", At(0));
  EXPECT_THAT(ToString(ledger.Done(a, 77, {}, At(0))), HasSubstr("job 'a' has no lease 77"));
  ASSERT_TRUE(ledger.Take(a, At(0)).ok());
  EXPECT_THAT(ToString(ledger.Take(a, At(0))), HasSubstr("asks for a batch before it has got the last one"));
  EXPECT_THAT(ToString(ledger.Want(static_cast<PrepJob>(9))), HasSubstr("no job 9"));
}

// Jobs that work, dawdle, stop, die and come back at random, on a clock of their own. Checked at every step: no slot is written
// while somebody may look at it or write to it, and slots add up; every job sees rising batches without a gap, with the content
// that was accepted for them; in the end all that stayed have everything.
class Simulation {
 public:
  explicit Simulation(uint64_t seed) : random_(seed) {
    options_ = {.batches = 7,
                .epochs = 4,
                .slots = 2 + static_cast<int>(random_() % 5),
                .jobs = 3,
                .join_limit = absl::Seconds(20),
                .lease_limit = absl::Seconds(5),
                .use_limit = absl::Seconds(40)};
    options_.held = 1 + static_cast<int>(random_() % 2);
    ledger_ = std::make_unique<PrepLedger>(options_);
    written_.resize(options_.slots);
    writers_.resize(options_.slots);
    readers_.resize(options_.slots);
    for (int i = 0; i < 3; ++i) Join();
  }

  void Run() {
    for (int step = 0; step < 6000; ++step) {
      if (step == 3000) calm_ = true;  // nobody dies or stops any more
      now_ += 0.05 + static_cast<double>(random_() % 100) / 200;
      if (!calm_ && step % 700 == 350) Join();
      std::vector<PrepJob> ids;
      for (const auto& [id, job] : jobs_) ids.push_back(id);
      if (ids.empty()) {
        Join();
        continue;
      }
      Act(ids[random_() % ids.size()]);
      for (const PrepAction& action : ledger_->Advance(At(now_))) Perform(action);
      CheckSlots();
      if (::testing::Test::HasFailure()) return;
    }
    for (const auto& [id, job] : jobs_) {
      if (!job.expelled) {
        EXPECT_EQ(job.next, options_.epochs * options_.batches);
      }
    }
    for (const PrepEpochAccount& epoch : ledger_->epochs()) EXPECT_LE(epoch.prepared, options_.batches);
    EXPECT_GT(delivered_, 0);
  }

 private:
  struct Job {
    int64_t first = 0, next = 0;
    bool wants = false, takes = false, ended = false, expelled = false;
    double asleep_until = 0;
    std::map<int64_t, int> reading;
    std::map<uint64_t, std::pair<int64_t, int>> writing;
  };

  void Join() {
    const auto id = ledger_->Join("job", At(now_));
    ASSERT_TRUE(id.ok());
    jobs_[*id].first = jobs_[*id].next = ledger_->jobs().back().first;
    EXPECT_EQ(jobs_[*id].first % options_.batches, 0);
  }

  void Act(PrepJob id) {
    Job& job = jobs_[id];
    if (!calm_ && random_() % 200 == 0) {
      for (const auto& [g, slot] : job.reading) --readers_[slot];
      for (const auto& [token, writing] : job.writing) --writers_[writing.second];
      jobs_.erase(id);
      ledger_->Leave(id);
      return;
    }
    if (!calm_ && random_() % 60 == 0) job.asleep_until = now_ + static_cast<double>(random_() % 120);
    if (now_ < job.asleep_until) return;
    if (!job.writing.empty() && random_() % 2 == 0) {
      const auto [token, writing] = *job.writing.begin();
      job.writing.erase(token);
      --writers_[writing.second];
      written_[writing.second] = writing.first;
      ASSERT_TRUE(ledger_->Done(id, token, {.samples = writing.first}, At(now_)).ok());
      job.wants = false;
    } else if (!job.reading.empty() && random_() % 2 == 0) {
      const auto [g, slot] = *std::next(job.reading.begin(), static_cast<int64_t>(random_() % job.reading.size()));
      EXPECT_EQ(written_[slot], g);  // to the end
      job.reading.erase(g);
      --readers_[slot];
      ASSERT_TRUE(ledger_->Release(id, g, At(now_)).ok());
    } else if (job.expelled) {
      return;
    } else if (!job.wants) {
      job.wants = ledger_->Want(id).ok();
    } else if (!job.takes && !job.ended && static_cast<int>(job.reading.size()) < options_.held) {
      job.takes = true;
      ASSERT_TRUE(ledger_->Take(id, At(now_)).ok());
    }
  }

  void Perform(const PrepAction& action) {
    Job& job = jobs_.at(action.job);
    switch (action.kind) {
      case Kind::kLease:
        EXPECT_TRUE(job.wants);
        EXPECT_EQ(writers_[action.slot], 0);
        EXPECT_EQ(readers_[action.slot], 0);
        ++writers_[action.slot];
        written_[action.slot] = -1;
        job.writing[action.token] = {action.g, action.slot};
        return;
      case Kind::kDeliver:
        EXPECT_TRUE(job.takes);
        EXPECT_EQ(action.g, job.next);
        EXPECT_EQ(action.outcome.samples, action.g);
        EXPECT_EQ(written_[action.slot], action.g);
        EXPECT_EQ(writers_[action.slot], 0);
        ++readers_[action.slot];
        job.takes = false;
        ++job.next;
        ++delivered_;
        job.reading[action.g] = action.slot;
        return;
      case Kind::kEnd:
        EXPECT_EQ(job.next, options_.epochs * options_.batches);
        job.ended = true;
        return;
      case Kind::kExpel: job.expelled = true; return;
    }
  }

  void CheckSlots() {
    int used = 0;
    for (int slot = 0; slot < options_.slots; ++slot) used += writers_[slot] > 0 || readers_[slot] > 0 ? 1 : 0;
    EXPECT_LE(used + ledger_->free_slots(), options_.slots);
    EXPECT_LE(ledger_->stuck_slots(), used);
  }

  std::mt19937_64 random_;
  PrepLedgerOptions options_;
  std::unique_ptr<PrepLedger> ledger_;
  double now_ = 0;
  bool calm_ = false;
  std::map<PrepJob, Job> jobs_;
  std::vector<int64_t> written_;        // by slot: which batch it holds
  std::vector<int> writers_, readers_;  // by slot
  int64_t delivered_ = 0;
};

TEST(PrepLedger, InAnyOrderOfEventsEveryJobGetsEveryBatchOnceAndNoSlotIsWrittenUnderAReader) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Simulation(seed).Run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace tidepool::data
