// The contract of Device and Stream as a parameterised test suite. A backend's test file includes this header once and says
//
//   INSTANTIATE_TEST_SUITE_P(Host, DeviceContract, ::testing::Values(DeviceFactory{"host", OpenIt, AttachIt}));
#pragma once

#include <absl/synchronization/mutex.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "device/device.h"

namespace tidepool::device {

struct DeviceFactory {
  std::string name;
  std::function<StatusOr<std::unique_ptr<Device>>(int64_t capacity_bytes, int64_t page_bytes)> open;
};

class DeviceContract : public ::testing::TestWithParam<DeviceFactory> {
 protected:
  static constexpr int64_t kPage = 64 * 1024;
  static constexpr int32_t kPages = 16;
  // Emulated devices know what it costs, though no profile does.
  const Operation kOperation{.key = {.model = "contract"}, .cost = {.flops_per_sample = 1e6}};

  void SetUp() override {
    auto device = GetParam().open(kPage * kPages + kPage / 2, kPage);
    ASSERT_TRUE(device.ok()) << ToString(device.status());
    device_ = std::move(*device);
    // Virtual time stands still while the test does something.
    if (auto* clock = dynamic_cast<VirtualClock*>(device_->clock())) actor_.emplace(clock);
  }

  absl::Time Soon() { return device_->clock()->Now() + absl::Seconds(20); }

  // Opened once. Waits in the device's clock: where its time is virtual, a thread that waits elsewhere would hold it.
  class Gate {
   public:
    explicit Gate(Device* device) : clock_(device->clock()) {}
    void Open() {
      absl::MutexLock lock(&mu_);
      open_ = true;
    }
    bool Wait() {
      absl::MutexLock lock(&mu_);
      return clock_->Await(
          &mu_, [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return open_; }, clock_->Now() + absl::Seconds(20));
    }

   private:
    Clock* const clock_;
    absl::Mutex mu_;
    bool open_ = false;
  };

  std::unique_ptr<Stream> NewStream(int32_t queue_limit = 1024) {
    auto stream = device_->CreateStream({.name = "test", .queue_limit = queue_limit});
    EXPECT_TRUE(stream.ok()) << ToString(stream.status());
    return std::move(*stream);
  }

  std::unique_ptr<Device> device_;
  std::optional<VirtualClock::Actor> actor_;
};

TEST_P(DeviceContract, RoundsItsCapacityDownToWholePages) {
  EXPECT_EQ(device_->info().capacity_bytes, kPage * kPages);
  EXPECT_EQ(device_->info().page_bytes, kPage);
  EXPECT_EQ(device_->memory().page_bytes(), kPage);
  EXPECT_EQ(device_->memory().page_count(), kPages);
}

TEST_P(DeviceContract, RefusesPagesThatItDoesNotHave) {
  for (const Extent extent :
       {Extent{-1, 1}, Extent{0, 0}, Extent{0, -3}, Extent{kPages, 1}, Extent{kPages - 1, 2}, Extent{0, kPages + 1}}) {
    for (const Status& status :
         {device_->memory().Map(extent), device_->memory().Unmap(extent), device_->memory().Zero(extent)}) {
      EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
      EXPECT_THAT(MessageOf(status), ::testing::HasSubstr("allowed: pages 0 to 15"));
    }
  }
}

TEST_P(DeviceContract, ZeroClearsExactlyTheExtent) {
  PageMemory& memory = device_->memory();
  ASSERT_TRUE(memory.Map({0, kPages}).ok());
  std::memset(memory.base(), 0x5a, kPage * kPages);
  ASSERT_TRUE(memory.Zero({3, 2}).ok());
  for (int64_t i = 0; i < kPage * kPages; ++i) {
    const bool cleared = i >= 3 * kPage && i < 5 * kPage;
    ASSERT_EQ(memory.base()[i], cleared ? std::byte{0} : std::byte{0x5a}) << "byte " << i;
  }
}

TEST_P(DeviceContract, StreamRunsOperationsInOrder) {
  auto stream = NewStream();
  std::vector<int> seen;
  for (int i = 0; i < 500; ++i) {
    ASSERT_TRUE(stream
                    ->Enqueue("append",
                              [&seen, i] {
                                seen.push_back(i);
                                return Status();
                              })
                    .ok());
  }
  ASSERT_TRUE(stream->Synchronize(Soon()).ok());
  ASSERT_EQ(seen.size(), 500u);
  for (int i = 0; i < 500; ++i) EXPECT_EQ(seen[static_cast<size_t>(i)], i);
}

TEST_P(DeviceContract, CopyMovesBytesIntoAndOutOfDeviceMemory) {
  auto stream = NewStream();
  ASSERT_TRUE(device_->memory().Map({1, 2}).ok());
  std::vector<char> source(kPage + 100), target(kPage + 100);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<char>(i * 7);
  std::byte* place = device_->memory().base() + kPage + 13;
  ASSERT_TRUE(stream->CopyAsync(place, source.data(), static_cast<int64_t>(source.size())).ok());
  ASSERT_TRUE(stream->CopyAsync(target.data(), place, static_cast<int64_t>(target.size())).ok());
  ASSERT_TRUE(stream->CopyAsync(target.data(), place, 0).ok());
  ASSERT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_EQ(source, target);
  EXPECT_THAT(MessageOf(stream->CopyAsync(target.data(), place, -1)),
              ::testing::HasSubstr("copy of -1 bytes; allowed: 0 or more"));
}

TEST_P(DeviceContract, EventIsReachedAfterTheWorkBeforeIt) {
  auto stream = NewStream();
  Gate release(device_.get());
  std::atomic<bool> ran = false;
  ASSERT_TRUE(stream
                  ->Enqueue("gate",
                            [&] {
                              release.Wait();
                              ran = true;
                              return Status();
                            })
                  .ok());
  auto event = stream->Record();
  ASSERT_TRUE(event.ok());
  EXPECT_FALSE(event->Done());
  EXPECT_EQ(event->Wait(absl::InfinitePast()).code(), StatusCode::kDeadlineExceeded);
  release.Open();
  EXPECT_TRUE(event->Wait(Soon()).ok());
  EXPECT_TRUE(event->Done());
  EXPECT_TRUE(ran);
}

TEST_P(DeviceContract, EmptyEventIsReached) {
  EXPECT_TRUE(Event().Done());
  EXPECT_TRUE(Event().Wait(absl::InfinitePast()).ok());
  EXPECT_TRUE(NewStream()->WaitFor(Event()).ok());
}

TEST_P(DeviceContract, StreamWaitsForAnEventOfAnotherStream) {
  auto first = NewStream(), second = NewStream();
  Gate release(device_.get());
  std::atomic<int> order = 0;
  int first_at = -1, second_at = -1;
  ASSERT_TRUE(first
                  ->Enqueue("first",
                            [&] {
                              release.Wait();
                              first_at = order++;
                              return Status();
                            })
                  .ok());
  auto event = first->Record();
  ASSERT_TRUE(event.ok());
  ASSERT_TRUE(second->WaitFor(*event).ok());
  ASSERT_TRUE(second
                  ->Enqueue("second",
                            [&] {
                              second_at = order++;
                              return Status();
                            })
                  .ok());
  EXPECT_EQ(second->Synchronize(absl::InfinitePast()).code(), StatusCode::kDeadlineExceeded);
  release.Open();
  ASSERT_TRUE(second->Synchronize(Soon()).ok());
  EXPECT_EQ(first_at, 0);
  EXPECT_EQ(second_at, 1);
}

TEST_P(DeviceContract, FailureSkipsLaterWorkUntilSynchronizeReturnsIt) {
  auto stream = NewStream();
  bool later_ran = false;
  ASSERT_TRUE(stream->Enqueue("matmul", [] { return ResourceExhausted("no room for the result"); }).ok());
  ASSERT_TRUE(stream
                  ->Enqueue("later",
                            [&] {
                              later_ran = true;
                              return Status();
                            })
                  .ok());
  auto event = stream->Record();
  ASSERT_TRUE(event.ok());
  const Status waited = event->Wait(Soon());
  EXPECT_EQ(waited.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(waited), ::testing::HasSubstr("operation 'matmul': no room for the result"));
  EXPECT_EQ(stream->Synchronize(Soon()).code(), StatusCode::kResourceExhausted);
  EXPECT_FALSE(later_ran);
  ASSERT_TRUE(stream
                  ->Enqueue("again",
                            [&] {
                              later_ran = true;
                              return Status();
                            })
                  .ok());
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_TRUE(later_ran);
}

TEST_P(DeviceContract, FailureCrossesToTheStreamThatWaitsForIt) {
  auto first = NewStream(), second = NewStream();
  ASSERT_TRUE(first->Enqueue("load", [] { return DataLoss("short read"); }).ok());
  auto event = first->Record();
  ASSERT_TRUE(event.ok());
  ASSERT_TRUE(second->WaitFor(*event).ok());
  bool ran = false;
  ASSERT_TRUE(second
                  ->Enqueue("compute",
                            [&] {
                              ran = true;
                              return Status();
                            })
                  .ok());
  EXPECT_EQ(second->Synchronize(Soon()).code(), StatusCode::kDataLoss);
  EXPECT_FALSE(ran);
}

TEST_P(DeviceContract, QueueHasALimit) {
  auto stream = NewStream(4);
  Gate started(device_.get()), release(device_.get());
  ASSERT_TRUE(stream
                  ->Enqueue("gate",
                            [&] {
                              started.Open();
                              release.Wait();
                              return Status();
                            })
                  .ok());
  ASSERT_TRUE(started.Wait());
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(stream->Enqueue("filler", [] { return Status(); }).ok());
  const Status refused = stream->Enqueue("one more", [] { return Status(); });
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(refused), ::testing::HasSubstr("has 4 operations queued; allowed: 4"));
  EXPECT_EQ(stream->Record().status().code(), StatusCode::kResourceExhausted);
  release.Open();
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_TRUE(stream->Enqueue("room again", [] { return Status(); }).ok());
}

TEST_P(DeviceContract, QueueLimitBelowOneIsRefused) {
  auto stream = device_->CreateStream({.name = "s", .queue_limit = 0});
  EXPECT_THAT(MessageOf(stream.status()), ::testing::HasSubstr("queue limit is 0; allowed: 1 or more"));
}

TEST_P(DeviceContract, OperationWithoutAFunctionIsRefused) {
  EXPECT_THAT(MessageOf(NewStream()->Enqueue("nothing", nullptr)), ::testing::HasSubstr("operation 'nothing' has no function"));
}

TEST_P(DeviceContract, EndOfAStreamCancelsItsEventsAndItsWaits) {
  auto blocked = NewStream(), other = NewStream();
  Gate release(device_.get());
  ASSERT_TRUE(other
                  ->Enqueue("gate",
                            [&] {
                              release.Wait();
                              return Status();
                            })
                  .ok());
  auto gate = other->Record();
  ASSERT_TRUE(gate.ok());
  ASSERT_TRUE(blocked->WaitFor(*gate).ok());
  auto never = blocked->Record();
  ASSERT_TRUE(never.ok());
  blocked.reset();
  EXPECT_EQ(never->Wait(Soon()).code(), StatusCode::kCancelled);
  release.Open();
  EXPECT_TRUE(gate->Wait(Soon()).ok());
}

TEST_P(DeviceContract, LaunchRunsItsFunctionInTheOrderOfTheStream) {
  auto stream = NewStream();
  std::vector<int> seen;
  for (int i = 0; i < 20; ++i) {
    auto note = [&seen, i] {
      seen.push_back(i);
      return Status();
    };
    ASSERT_TRUE((i % 2 == 0 ? stream->Launch(kOperation, note) : stream->Enqueue("note", note)).ok());
  }
  ASSERT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_THAT(seen, ::testing::SizeIs(20));
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
}

TEST_P(DeviceContract, FailureOfALaunchIsKeptOnItsStream) {
  auto stream = NewStream();
  ASSERT_TRUE(stream->Launch(kOperation, [] { return Internal("not a number"); }).ok());
  const Status failed = stream->Synchronize(Soon());
  EXPECT_EQ(failed.code(), StatusCode::kInternal);
  EXPECT_THAT(MessageOf(failed), ::testing::HasSubstr("not a number"));
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
}

TEST_P(DeviceContract, CopiesBothWaysRunWhileTheDeviceComputes) {
  auto compute = NewStream(), in = NewStream(), out = NewStream();
  ASSERT_TRUE(device_->memory().Map({0, 2}).ok());
  Gate release(device_.get());
  ASSERT_TRUE(compute
                  ->Launch(kOperation,
                           [&] {
                             release.Wait();
                             return Status();
                           })
                  .ok());
  std::vector<char> source(kPage, 7), target(kPage);
  ASSERT_TRUE(in->CopyAsync(device_->memory().base(), source.data(), kPage).ok());
  ASSERT_TRUE(in->Synchronize(Soon()).ok());
  ASSERT_TRUE(out->CopyAsync(target.data(), device_->memory().base(), kPage).ok());
  ASSERT_TRUE(out->Synchronize(Soon()).ok());
  EXPECT_EQ(source, target);
  EXPECT_EQ(compute->Synchronize(absl::InfinitePast()).code(), StatusCode::kDeadlineExceeded) << "the arithmetic is not over yet";
  release.Open();
  EXPECT_TRUE(compute->Synchronize(Soon()).ok());
}

TEST_P(DeviceContract, CopyWithinTheDeviceKeepsOrder) {
  auto stream = NewStream();
  ASSERT_TRUE(device_->memory().Map({0, 3}).ok());
  std::byte* base = device_->memory().base();
  std::vector<char> source(kPage, 3), target(kPage);
  ASSERT_TRUE(stream->CopyAsync(base, source.data(), kPage).ok());
  ASSERT_TRUE(stream->CopyAsync(base + 2 * kPage, base, kPage).ok());
  ASSERT_TRUE(stream->CopyAsync(target.data(), base + 2 * kPage, kPage).ok());
  ASSERT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_EQ(source, target);
}

TEST_P(DeviceContract, EventsHaveTimesInTheOrderOfTheirStream) {
  auto stream = NewStream();
  Gate release(device_.get());
  ASSERT_TRUE(stream
                  ->Enqueue("gate",
                            [&] {
                              release.Wait();
                              return Status();
                            })
                  .ok());
  auto first = stream->Record();
  ASSERT_TRUE(stream->Launch(kOperation, [] { return Status(); }).ok());
  auto second = stream->Record();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(second->ReachedAt().status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(Event().ReachedAt().status().code(), StatusCode::kFailedPrecondition);
  release.Open();
  ASSERT_TRUE(stream->Synchronize(Soon()).ok());
  ASSERT_TRUE(first->ReachedAt().ok() && second->ReachedAt().ok());
  EXPECT_LE(*first->ReachedAt(), *second->ReachedAt());
  EXPECT_LE(*second->ReachedAt(), device_->clock()->Now());
}

TEST_P(DeviceContract, MemoryRunsOutAtTheExactByte) {
  ASSERT_TRUE(device_->memory().Map({0, kPages}).ok());
  Allocator& memory = device_->allocator();
  constexpr int64_t kAll = kPage * kPages;
  EXPECT_EQ(memory.Allocate(kAll + 1).status().code(), StatusCode::kResourceExhausted);
  {
    auto all = memory.Allocate(kAll);
    ASSERT_TRUE(all.ok());
    EXPECT_EQ(all->data(), device_->memory().base());
    const Status refused = memory.Allocate(1).status();
    EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(MessageOf(refused), ::testing::HasSubstr("out of memory: 1 bytes asked for, 0 of 1048576 bytes free"));
  }
  auto most = memory.Allocate(kAll - Allocator::kAlignment);
  ASSERT_TRUE(most.ok());
  EXPECT_EQ(memory.Allocate(Allocator::kAlignment + 1).status().code(), StatusCode::kResourceExhausted);
  auto last = memory.Allocate(Allocator::kAlignment);
  ASSERT_TRUE(last.ok());
  std::memset(last->data(), 1, Allocator::kAlignment);
  EXPECT_EQ(memory.report().free_bytes, 0);
}

TEST_P(DeviceContract, PinnedMemoryHasALimit) {
  PinnedPool& pinned = device_->pinned();
  const int64_t limit = pinned.report().limit_bytes;
  const Status refused = pinned.Allocate(limit + 1).status();
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(refused), ::testing::HasSubstr("bytes of pinned memory asked for, 0 of"));
  auto buffer = pinned.Allocate(kPage);
  ASSERT_TRUE(buffer.ok());
  std::memset(buffer->data(), 9, kPage);
  ASSERT_TRUE(device_->memory().Map({0, 1}).ok());
  auto stream = NewStream();
  ASSERT_TRUE(stream->CopyAsync(device_->memory().base(), buffer->data(), kPage).ok());
  ASSERT_TRUE(stream->Synchronize(Soon()).ok());
  EXPECT_EQ(device_->memory().base()[kPage - 1], std::byte{9});
}

TEST_P(DeviceContract, WhatOnlyKeepsTimeIsRefusedUnlessTheDeviceIsEmulated) {
  auto stream = NewStream();
  const bool emulated = device_->info().kind == "emulated";
  EXPECT_EQ(stream->Transfer({.size_bytes = 1000}).ok(), emulated);
  EXPECT_EQ(stream->Collective({.size_bytes = 1000, .group = "all"}).ok(), emulated);
  EXPECT_EQ(stream->Launch(kOperation, nullptr).ok(), emulated);
  EXPECT_EQ(device_->timeline().has_value(), emulated);
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
}

}  // namespace tidepool::device
