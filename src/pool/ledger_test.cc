#include "pool/ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace tidepool::pool {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const ClientId kClient(1);

LeaseId Open(Ledger& ledger, LeaseOptions options) {
  if (options.name.empty()) options.name = "a";
  auto lease = ledger.OpenLease(kClient, options);
  EXPECT_TRUE(lease.ok()) << ToString(lease.status());
  return *lease;
}

TEST(Ledger, TakesAPageThroughItsStates) {
  Ledger ledger(4, FitPolicy::kBestFit);
  const LeaseId lease = Open(ledger, {.burst_pages = 4});
  auto grant = ledger.Grow(lease, {.pages = 2});
  ASSERT_TRUE(grant.ok());
  EXPECT_THAT(grant->extents, ElementsAre(Extent{0, 2}));
  EXPECT_EQ(ledger.page(0).state, PageState::kGranted);
  EXPECT_EQ(ledger.page(0).owner, lease);
  EXPECT_EQ(ledger.page(0).generation, 1u);
  const Fence fence(9);
  ASSERT_TRUE(ledger.Return(lease, std::vector<Extent>{{0, 1}}, fence).ok());
  EXPECT_EQ(ledger.page(0).state, PageState::kReturning);
  EXPECT_EQ(ledger.available(), 2);
  EXPECT_EQ(ledger.PassFence(fence), 1);
  EXPECT_EQ(ledger.page(0).state, PageState::kDirty);
  ASSERT_TRUE(ledger.MarkZeroed({0, 1}).ok());
  EXPECT_EQ(ledger.page(0).state, PageState::kFree);
  EXPECT_EQ(ledger.Audit(), 0);
}

TEST(Ledger, GrantsNoPageBeforeItsFenceHasPassed) {
  Ledger ledger(2, FitPolicy::kBestFit);
  const LeaseId first = Open(ledger, {.burst_pages = 2}), second = Open(ledger, {.burst_pages = 2});
  ASSERT_TRUE(ledger.Grow(first, {.pages = 2}).ok());
  ASSERT_TRUE(ledger.ReturnAll(first, Fence(1)).ok());
  EXPECT_EQ(ledger.Grow(second, {.pages = 1}).status().code(), StatusCode::kUnavailable);
  ledger.PassFence(Fence(1));
  EXPECT_TRUE(ledger.Grow(second, {.pages = 1}).ok());
}

TEST(Ledger, ClearsPagesThatChangeTheirOwnerUnlessBothTrustEachOther) {
  Ledger ledger(1, FitPolicy::kBestFit);
  const LeaseId a = Open(ledger, {.burst_pages = 1, .trust_label = "acme"});
  const LeaseId b = Open(ledger, {.burst_pages = 1, .trust_label = "acme"});
  const LeaseId c = Open(ledger, {.burst_pages = 1, .trust_label = "other"});
  const LeaseId d = Open(ledger, {.burst_pages = 1});
  const LeaseId e = Open(ledger, {.burst_pages = 1});
  auto zero_when_given_to = [&](LeaseId lease) {
    auto grant = ledger.Grow(lease, {.pages = 1});
    EXPECT_TRUE(grant.ok());
    EXPECT_TRUE(ledger.ReturnAll(lease, kNoFence).ok());
    return !grant->zero.empty();
  };
  EXPECT_FALSE(zero_when_given_to(a)) << "a fresh page is zero";
  EXPECT_FALSE(zero_when_given_to(a)) << "its own page";
  EXPECT_FALSE(zero_when_given_to(b)) << "same label";
  EXPECT_TRUE(zero_when_given_to(c)) << "another label";
  EXPECT_TRUE(zero_when_given_to(d)) << "no label";
  EXPECT_TRUE(zero_when_given_to(e)) << "two empty labels are not the same label";
  EXPECT_EQ(ledger.NextToZero(), 0);
  ASSERT_TRUE(ledger.MarkZeroed({0, 1}).ok());
  EXPECT_EQ(ledger.NextToZero(), -1);
  EXPECT_FALSE(zero_when_given_to(a)) << "cleared";
}

TEST(Ledger, RemembersTheLabelOfALeaseThatIsClosed) {
  Ledger ledger(1, FitPolicy::kBestFit);
  const LeaseId a = Open(ledger, {.burst_pages = 1, .trust_label = "acme"});
  ASSERT_TRUE(ledger.Grow(a, {.pages = 1}).ok());
  ASSERT_TRUE(ledger.ReturnAll(a, kNoFence).ok());
  ASSERT_TRUE(ledger.CloseLease(a).ok());
  const LeaseId b = Open(ledger, {.burst_pages = 1, .trust_label = "acme"});
  EXPECT_EQ(ledger.NextToZero(), -1) << "the only open lease may see the page as it is";
  EXPECT_THAT(ledger.Grow(b, {.pages = 1})->zero, IsEmpty());
  EXPECT_EQ(ledger.leases().size(), 1u) << "the closed lease is forgotten with its last page";
  EXPECT_EQ(ledger.Audit(), 0);
}

TEST(Ledger, PlacesTheTwoClassesAtOppositeEnds) {
  Ledger ledger(10, FitPolicy::kBestFit);
  const LeaseId low = Open(ledger, {.burst_pages = 10}), high = Open(ledger, {.burst_pages = 10, .placement = Placement::kHigh});
  EXPECT_THAT(ledger.Grow(low, {.pages = 2})->extents, ElementsAre(Extent{0, 2}));
  EXPECT_THAT(ledger.Grow(high, {.pages = 3})->extents, ElementsAre(Extent{7, 3}));
  EXPECT_THAT(ledger.Grow(low, {.pages = 2})->extents, ElementsAre(Extent{2, 2}));
}

TEST(Ledger, GathersAGrantFromSeveralRunsOfTheLengthThatIsAskedFor) {
  Ledger ledger(10, FitPolicy::kBestFit);
  const LeaseId a = Open(ledger, {.burst_pages = 10}), b = Open(ledger, {.burst_pages = 10});
  ASSERT_TRUE(ledger.Grow(a, {.pages = 10}).ok());
  ASSERT_TRUE(ledger.Return(a, std::vector<Extent>{{0, 3}, {5, 4}}, kNoFence).ok());
  EXPECT_THAT(MessageOf(ledger.Grow(b, {.pages = 5, .min_run_pages = 5}).status()),
              HasSubstr("asks for 5 pages in runs of at least 5; 7 are available, the longest run has 4"));
  EXPECT_THAT(ledger.Grow(b, {.pages = 6, .min_run_pages = 4})->extents, ElementsAre(Extent{0, 2}, Extent{5, 4}))
      << "only the last run may be shorter, because it completes the request";
  EXPECT_EQ(ledger.Audit(), 0);
}

TEST(Ledger, RefusesAGrowBeyondTheBurst) {
  Ledger ledger(8, FitPolicy::kBestFit);
  const LeaseId lease = Open(ledger, {.name = "model:a", .burst_pages = 4});
  ASSERT_TRUE(ledger.Grow(lease, {.pages = 3}).ok());
  const Status status = ledger.Grow(lease, {.pages = 2}).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), HasSubstr("lease 'model:a' holds 3 pages and asks for 2 more; its burst is 4"));
}

TEST(Ledger, RefusesContradictoryRequests) {
  Ledger ledger(8, FitPolicy::kBestFit);
  for (const LeaseOptions& options :
       {LeaseOptions{.guaranteed_pages = -1, .burst_pages = 2}, LeaseOptions{.guaranteed_pages = 3, .burst_pages = 2},
        LeaseOptions{.burst_pages = 0}, LeaseOptions{.burst_pages = 9}}) {
    EXPECT_THAT(MessageOf(ledger.OpenLease(kClient, options).status()),
                HasSubstr("allowed: 0 <= guaranteed <= burst, 1 <= burst <= 8"));
  }
  const LeaseId lease = Open(ledger, {.burst_pages = 4});
  for (const GrowOptions& options : {GrowOptions{.pages = 0}, GrowOptions{.pages = -2},
                                     GrowOptions{.pages = 2, .min_run_pages = 3}, GrowOptions{.pages = 2, .min_run_pages = 0}}) {
    EXPECT_EQ(ledger.Grow(lease, options).status().code(), StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(MessageOf(ledger.Grow(LeaseId(77), {.pages = 1}).status()), HasSubstr("lease 77 is not open"));
  EXPECT_THAT(MessageOf(ledger.SetGuaranteed(lease, 5)), HasSubstr("5 guaranteed pages; allowed: 0 to its burst of 4"));
}

TEST(Ledger, TakesBackOnlyWhatTheLeaseHolds) {
  Ledger ledger(8, FitPolicy::kBestFit);
  const LeaseId a = Open(ledger, {.burst_pages = 4}), b = Open(ledger, {.burst_pages = 4});
  ASSERT_TRUE(ledger.Grow(a, {.pages = 2}).ok());
  ASSERT_TRUE(ledger.Grow(b, {.pages = 2}).ok());
  auto fails = [&](std::vector<Extent> extents) { return MessageOf(ledger.Return(a, extents, kNoFence)); };
  EXPECT_THAT(fails({{1, 2}}), HasSubstr("returns page 2, which it does not hold"));
  EXPECT_THAT(fails({{0, 2}, {1, 1}}), HasSubstr("returns page 1 twice"));
  EXPECT_THAT(fails({{-1, 1}}), HasSubstr("the device has pages 0 to 7"));
  EXPECT_THAT(fails({{7, 2}}), HasSubstr("the device has pages 0 to 7"));
  EXPECT_THAT(fails({{0, 0}}), HasSubstr("returns 0 pages"));
  EXPECT_THAT(fails({{2'000'000'000, 2'000'000'000}}), HasSubstr("the device has pages 0 to 7"));
  EXPECT_EQ(ledger.Find(a)->held, 2) << "a return that fails returns nothing";
  EXPECT_THAT(MessageOf(ledger.CloseLease(a)), HasSubstr("still holds 2 pages"));
  EXPECT_THAT(MessageOf(ledger.MarkZeroed({0, 1})), HasSubstr("page 0 is granted; only dirty pages become free"));
  EXPECT_EQ(ledger.Audit(), 0);
}

TEST(Ledger, PromisesNoPageTwice) {
  Ledger ledger(10, FitPolicy::kBestFit);
  const LeaseId pinned = Open(ledger, {.name = "p", .guaranteed_pages = 2, .burst_pages = 10});
  Open(ledger, {.name = "r", .lease_class = LeaseClass::kReclaimable, .guaranteed_pages = 3, .burst_pages = 10});
  EXPECT_THAT(MessageOf(ledger.OpenLease(kClient, {.name = "q", .guaranteed_pages = 6, .burst_pages = 6}).status()),
              HasSubstr("lease 'q' asks for 6 guaranteed pages; of 10 pages 5 are guaranteed to others"));
  EXPECT_THAT(MessageOf(ledger.Grow(pinned, {.pages = 8}).status()), HasSubstr("of 10 pages 5 are guaranteed"));
  ASSERT_TRUE(ledger.Grow(pinned, {.pages = 7}).ok());
  EXPECT_EQ(ledger.unpromised_pages(), 0);
  EXPECT_THAT(MessageOf(ledger.OpenLease(kClient, {.name = "q", .guaranteed_pages = 1, .burst_pages = 6}).status()),
              HasSubstr("5 are held by pinned leases above their guarantees"));
  EXPECT_TRUE(ledger.SetGuaranteed(pinned, 7).ok()) << "it holds them already";
  EXPECT_EQ(ledger.unpromised_pages(), 0);
  EXPECT_EQ(ledger.SetGuaranteed(pinned, 8).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(ledger.Find(pinned)->options.guaranteed_pages, 7);
}

// One page as the model sees it.
struct ModelPage {
  PageState state = PageState::kFree;
  LeaseId owner, last;
  Fence fence;
};

// Random schedules of everything that can happen to a ledger, clients that die included, beside a model that looks at every page.
class LedgerSchedule {
 public:
  LedgerSchedule(uint64_t seed, FitPolicy fit)
      : random_(seed), total_(8 + Below(57)), ledger_(total_, fit), pages_(static_cast<size_t>(total_)) {}

  void Run(int steps) {
    for (int step = 0; step < steps; ++step) {
      switch (Below(10)) {
        case 0: OpenOne(); break;
        case 1: CloseOne(); break;
        case 2: ChangeGuarantee(); break;
        case 3: KillClient(); break;
        case 4: PassOneFence(); break;
        case 5: ZeroOne(); break;
        case 6:
        case 7: ReturnSome(); break;
        default: GrowOne(); break;
      }
      if (testing::Test::HasFatalFailure()) return;
      ASSERT_NO_FATAL_FAILURE(Compare()) << "step " << step;
      if (step % 16 != 0) continue;
      ASSERT_NO_FATAL_FAILURE(EveryLeaseReachesItsGuarantee()) << "step " << step;
    }
  }

 private:
  int32_t Below(int64_t n) { return static_cast<int32_t>(random_() % static_cast<uint64_t>(n)); }
  LeaseId RandomLease() {
    return open_.empty() ? LeaseId() : open_[static_cast<size_t>(Below(static_cast<int64_t>(open_.size())))];
  }
  ModelPage& At(PageIndex page) { return pages_[static_cast<size_t>(page)]; }
  int64_t Held(LeaseId lease) const {
    return std::count_if(pages_.begin(), pages_.end(),
                         [&](const ModelPage& page) { return page.owner == lease && lease != LeaseId(); });
  }
  int64_t Unpromised() const {
    int64_t left = total_;
    for (const auto& [lease, options] : terms_) {
      if (std::find(open_.begin(), open_.end(), lease) == open_.end()) continue;
      left -= options.guaranteed_pages;
      if (options.lease_class == LeaseClass::kPinned) left -= std::max<int64_t>(0, Held(lease) - options.guaranteed_pages);
    }
    return left;
  }

  void OpenOne() {
    if (open_.size() >= 6) return;
    const char* labels[] = {"", "acme", "other"};
    LeaseOptions options{.name = "x",
                         .lease_class = Below(2) == 0 ? LeaseClass::kPinned : LeaseClass::kReclaimable,
                         .guaranteed_pages = Below(total_ / 3 + 1),
                         .placement = Below(2) == 0 ? Placement::kLow : Placement::kHigh,
                         .trust_label = labels[Below(3)]};
    options.burst_pages = std::min<int64_t>(total_, options.guaranteed_pages + 1 + Below(total_));
    const bool fits = options.guaranteed_pages <= Unpromised();
    auto lease = ledger_.OpenLease(ClientId(1 + static_cast<uint32_t>(Below(3))), options);
    ASSERT_EQ(lease.ok(), fits);
    if (!fits) return;
    open_.push_back(*lease);
    terms_[*lease] = options;
  }

  void CloseOne() {
    const LeaseId lease = RandomLease();
    if (lease == LeaseId()) return;
    ASSERT_EQ(ledger_.CloseLease(lease).ok(), Held(lease) == 0);
    if (Held(lease) == 0) std::erase(open_, lease);
  }

  void ChangeGuarantee() {
    const LeaseId lease = RandomLease();
    if (lease == LeaseId()) return;
    LeaseOptions& terms = terms_[lease];
    const int64_t before = terms.guaranteed_pages;
    terms.guaranteed_pages = Below(terms.burst_pages + 1);
    const bool fits = terms.guaranteed_pages <= before || Unpromised() >= 0;
    ASSERT_EQ(ledger_.SetGuaranteed(lease, terms.guaranteed_pages).ok(), fits);
    if (!fits) terms.guaranteed_pages = before;
  }

  void KillClient() {
    if (Below(3) != 0) return;
    const ClientId client(1 + static_cast<uint32_t>(Below(3)));
    const Fence fence(++last_fence_);
    for (const LeaseId lease : std::vector<LeaseId>(open_)) {
      if (ledger_.Find(lease)->client != client) continue;
      ASSERT_TRUE(ledger_.ReturnAll(lease, fence).ok());
      ASSERT_TRUE(ledger_.CloseLease(lease).ok());
      std::erase(open_, lease);
      for (ModelPage& page : pages_) {
        if (page.owner == lease) page = {.state = PageState::kReturning, .last = lease, .fence = fence};
      }
    }
  }

  void PassOneFence() {
    if (last_fence_ == 0) return;
    const Fence fence(1 + static_cast<uint64_t>(Below(static_cast<int64_t>(last_fence_))));
    int64_t passed = 0;
    for (ModelPage& page : pages_) {
      if (page.state != PageState::kReturning || page.fence != fence) continue;
      page = {.state = PageState::kDirty, .last = page.last};
      ++passed;
    }
    ASSERT_EQ(ledger_.PassFence(fence), passed);
  }

  bool MustZero(const ModelPage& page, LeaseId lease) {
    if (page.state != PageState::kDirty || page.last == lease) return false;
    const std::string& label = terms_[lease].trust_label;
    return label.empty() || terms_[page.last].trust_label != label;
  }

  void ZeroOne() {
    const PageIndex page = ledger_.NextToZero();
    const bool any = std::any_of(pages_.begin(), pages_.end(), [&](const ModelPage& p) {
      return std::any_of(open_.begin(), open_.end(), [&](LeaseId lease) { return MustZero(p, lease); });
    });
    ASSERT_EQ(page >= 0, any);
    if (page < 0) return;
    ASSERT_EQ(At(page).state, PageState::kDirty);
    ASSERT_TRUE(ledger_.MarkZeroed({page, 1}).ok());
    At(page) = {};
  }

  void ReturnSome() {
    const LeaseId lease = RandomLease();
    if (lease == LeaseId()) return;
    const Fence fence = Below(2) == 0 ? kNoFence : Fence(++last_fence_);
    std::vector<Extent> extents;
    for (PageIndex page = 0; page < total_; ++page) {
      if (At(page).owner != lease || Below(2) == 0) continue;
      extents.push_back({page, 1});
      At(page) = {.state = fence == kNoFence ? PageState::kDirty : PageState::kReturning, .last = lease, .fence = fence};
    }
    std::shuffle(extents.begin(), extents.end(), random_);
    ASSERT_TRUE(ledger_.Return(lease, extents, fence).ok());
  }

  bool Available(PageIndex page) { return At(page).state == PageState::kFree || At(page).state == PageState::kDirty; }

  // Whether `pages` can be put together from runs of at least `min_run`, where one shorter run may complete it.
  bool Feasible(int64_t pages, int64_t min_run) {
    int64_t in_long_runs = 0, longest_short = 0, run = 0;
    for (PageIndex page = 0; page <= total_; ++page) {
      if (page < total_ && Available(page)) {
        ++run;
        continue;
      }
      if (run >= min_run) {
        in_long_runs += run;
      } else {
        longest_short = std::max(longest_short, run);
      }
      run = 0;
    }
    return pages <= in_long_runs + longest_short;
  }

  void GrowOne() {
    const LeaseId lease = RandomLease();
    if (lease == LeaseId()) return;
    const LeaseOptions& terms = terms_[lease];
    const int64_t pages = 1 + Below(total_ / 2), min_run = 1 + Below(pages), held = Held(lease);
    StatusCode expected = StatusCode::kOk;
    const int64_t more_burst =
        std::max<int64_t>(0, held + pages - terms.guaranteed_pages) - std::max<int64_t>(0, held - terms.guaranteed_pages);
    if (held + pages > terms.burst_pages) {
      expected = StatusCode::kResourceExhausted;
    } else if (terms.lease_class == LeaseClass::kPinned && more_burst > 0 && more_burst > Unpromised()) {
      expected = StatusCode::kResourceExhausted;
    } else if (!Feasible(pages, min_run)) {
      expected = StatusCode::kUnavailable;
    }
    auto grant = ledger_.Grow(lease, {.pages = pages, .min_run_pages = min_run});
    ASSERT_EQ(grant.status().code(), expected) << ToString(grant.status());
    if (!grant.ok()) return;
    ASSERT_EQ(grant->pages(), pages);
    std::vector<PageIndex> to_zero, expected_zero;
    for (const Extent& extent : grant->zero) {
      for (PageIndex page = extent.first; page < extent.end(); ++page) to_zero.push_back(page);
    }
    int short_runs = 0;
    for (const Extent& extent : grant->extents) {
      short_runs += extent.count < min_run ? 1 : 0;
      for (PageIndex page = extent.first; page < extent.end(); ++page) {
        ASSERT_TRUE(Available(page)) << "page " << page << " was " << Name(At(page).state);
        if (MustZero(At(page), lease)) expected_zero.push_back(page);
        At(page) = {.state = PageState::kGranted, .owner = lease};
      }
    }
    ASSERT_LE(short_runs, 1);
    ASSERT_EQ(to_zero, expected_zero);
  }

  void Compare() {
    LedgerCounts seen;
    for (PageIndex page = 0; page < total_; ++page) {
      ASSERT_EQ(ledger_.page(page).state, At(page).state) << "page " << page;
      ASSERT_EQ(ledger_.page(page).owner, At(page).owner);
      ASSERT_EQ(ledger_.page(page).last_owner, At(page).last);
      switch (At(page).state) {
        case PageState::kFree: ++seen.free; break;
        case PageState::kGranted: ++seen.granted; break;
        case PageState::kReturning: ++seen.returning; break;
        case PageState::kDirty: ++seen.dirty; break;
      }
    }
    const LedgerCounts counts = ledger_.counts();
    ASSERT_EQ(counts.free, seen.free);
    ASSERT_EQ(counts.granted, seen.granted);
    ASSERT_EQ(counts.returning, seen.returning);
    ASSERT_EQ(counts.dirty, seen.dirty);
    ASSERT_EQ(counts.free + counts.granted + counts.returning + counts.dirty, counts.total);
    ASSERT_EQ(ledger_.Audit(), 0);
    ASSERT_EQ(counts.violations, 0);
    ASSERT_EQ(ledger_.unpromised_pages(), Unpromised());
    ASSERT_GE(Unpromised(), 0);
  }

  // Tries it out on a copy: bursts of reclaimable leases come back, fences pass, and then every lease grows to its guarantee.
  void EveryLeaseReachesItsGuarantee() {
    Ledger copy = ledger_;
    for (uint64_t fence = 1; fence <= last_fence_; ++fence) copy.PassFence(Fence(fence));
    for (const LeaseId lease : open_) {
      if (terms_[lease].lease_class != LeaseClass::kReclaimable) continue;
      for (PageIndex page = 0; page < total_ && copy.Find(lease)->held > terms_[lease].guaranteed_pages; ++page) {
        if (copy.page(page).owner != lease) continue;
        ASSERT_TRUE(copy.Return(lease, std::vector<Extent>{{page, 1}}, kNoFence).ok());
      }
    }
    for (const LeaseId lease : open_) {
      const int64_t missing = terms_[lease].guaranteed_pages - copy.Find(lease)->held;
      if (missing <= 0) continue;
      ASSERT_TRUE(copy.Grow(lease, {.pages = missing}).ok());
    }
    ASSERT_EQ(copy.Audit(), 0);
  }

  std::mt19937_64 random_;
  const int32_t total_;
  Ledger ledger_;
  std::vector<ModelPage> pages_;
  std::vector<LeaseId> open_;
  std::map<LeaseId, LeaseOptions> terms_;
  uint64_t last_fence_ = 0;
};

TEST(Ledger, MatchesAModelUnderRandomSchedules) {
  for (const FitPolicy fit : {FitPolicy::kFirstFit, FitPolicy::kBestFit, FitPolicy::kNextFit}) {
    for (uint64_t seed = 1; seed <= 60; ++seed) {
      SCOPED_TRACE(fmt::format("seed {} with {}", seed, Name(fit)));
      LedgerSchedule schedule(seed, fit);
      ASSERT_NO_FATAL_FAILURE(schedule.Run(300));
    }
  }
}

TEST(FitPolicy, IsReadFromItsName) {
  for (const FitPolicy fit : {FitPolicy::kFirstFit, FitPolicy::kBestFit, FitPolicy::kNextFit})
    EXPECT_EQ(*ParseFitPolicy(Name(fit)), fit);
  EXPECT_THAT(MessageOf(ParseFitPolicy("worst-fit").status()),
              HasSubstr("fit policy 'worst-fit' is unknown; allowed: first-fit, best-fit, next-fit"));
}

}  // namespace
}  // namespace tidepool::pool
