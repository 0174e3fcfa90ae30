// Processes that die or hang at awkward moments, beside a broker that has to go on.
#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "base/process.h"
#include "pool/broker.h"
#include "pool/client.h"

namespace tidepool::pool {
namespace {

using testing::HasSubstr;

constexpr int64_t kPage = 64 * 1024;
constexpr int64_t kPages = 32;

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(30); }

// A child that runs pool_test_client, and what it prints.
class Child {
 public:
  Child(std::vector<std::string> arguments, UniqueFd inherited = UniqueFd()) {
    ProcessOptions options;
    options.command = {std::string(TIDEPOOL_BINARY_DIR) + "/pool_test_client"};
    options.command.insert(options.command.end(), arguments.begin(), arguments.end());
    options.capture_stdout = true;
    if (inherited.valid()) options.descriptors = {{inherited.get(), 3}};
    auto process = ChildProcess::Start(options);
    EXPECT_TRUE(process.ok()) << ToString(process.status());
    process_.emplace(std::move(*process));
  }

  // Reads lines until one starts with `prefix`; returns it, or what came instead.
  std::string Expect(const std::string& prefix) {
    const absl::Time deadline = Soon();
    while (true) {
      while (text_.find('\n') == std::string::npos) {
        pollfd entry{process_->stdout_fd(), POLLIN, 0};
        const absl::Duration left = deadline - Clock::Real()->Now();
        char buffer[512];
        ssize_t got = 0;
        if (::poll(&entry, 1, static_cast<int>(std::max<int64_t>(0, absl::ToInt64Milliseconds(left)))) > 0) {
          got = ::read(process_->stdout_fd(), buffer, sizeof(buffer));
        }
        if (got <= 0) {
          ADD_FAILURE() << "no line '" << prefix << "' came";
          return "";
        }
        text_.append(buffer, static_cast<size_t>(got));
      }
      const std::string line = text_.substr(0, text_.find('\n'));
      text_.erase(0, line.size() + 1);
      if (line.starts_with(prefix)) return line;
      EXPECT_TRUE(line.ends_with(": OK") || line == "revoke") << line;
    }
  }
  void ExpectOk(const std::string& step) { EXPECT_EQ(Expect(step), step + ": OK"); }

  void Kill() { EXPECT_TRUE(process_->Signal(SIGKILL).ok()); }
  // Returns once every thread of it stands still.
  void Stop() {
    EXPECT_TRUE(process_->Signal(SIGSTOP).ok());
    siginfo_t info;
    EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(process_->pid()), &info, WSTOPPED | WNOWAIT), 0);
  }
  ExitStatus Wait() {
    auto ended = process_->Wait(Soon());
    EXPECT_TRUE(ended.ok()) << ToString(ended.status());
    return ended.ok() ? *ended : ExitStatus{};
  }

 private:
  std::optional<ChildProcess> process_;
  std::string text_;
};

class PoolProcess : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/tidepool-pool-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    path_ = directory_ + "/pool.sock";
  }
  void TearDown() override {
    client_.reset();
    if (broker_ != nullptr) {
      const PoolStats stats = broker_->Stats();
      EXPECT_EQ(stats.violations, 0);
      EXPECT_EQ(stats.free + stats.granted + stats.returning + stats.dirty, stats.total);
    }
    broker_.reset();
    std::filesystem::remove_all(directory_);
  }

  void StartBroker(BrokerOptions options = {}) {
    auto device = device::OpenDevice({.name = "host", .capacity_bytes = kPages * kPage, .page_bytes = kPage});
    ASSERT_TRUE(device.ok()) << ToString(device.status());
    device_ = std::move(*device);
    options.socket_path = path_;
    auto broker = Broker::Start(device_.get(), std::move(options));
    ASSERT_TRUE(broker.ok()) << ToString(broker.status());
    broker_ = std::move(*broker);
  }

  // Our own client, with one pinned lease that may have everything.
  void AttachSelf() {
    auto client = Client::Attach({.socket_path = path_, .name = "self"});
    ASSERT_TRUE(client.ok()) << ToString(client.status());
    client_ = std::move(*client);
    auto lease = client_->OpenLease({.name = "self", .burst_pages = kPages}, Soon());
    ASSERT_TRUE(lease.ok()) << ToString(lease.status());
    lease_ = *lease;
  }

  // Takes the whole device once nobody else has a page of it, and notes how long that took.
  void EverythingComesBack() {
    const absl::Time start = Clock::Real()->Now(), deadline = Soon();
    auto extents = client_->Grow(lease_, {.pages = kPages}, deadline);
    // What a pinned lease holds is refused rather than waited for, until the broker knows that its process is gone.
    while (extents.status().code() == StatusCode::kResourceExhausted && Clock::Real()->Now() < deadline) {
      extents = client_->Grow(lease_, {.pages = kPages}, deadline);
    }
    RecordProperty("milliseconds_until_back", static_cast<int>(absl::ToInt64Milliseconds(Clock::Real()->Now() - start)));
    ASSERT_TRUE(extents.ok()) << ToString(extents.status());
    for (const Extent& extent : *extents) {
      const std::byte* bytes = client_->device().memory().base() + extent.first * kPage;
      for (int64_t i = 0; i < extent.count * kPage; ++i) ASSERT_EQ(bytes[i], std::byte{0}) << "a byte of the dead process";
    }
    EXPECT_EQ(broker_->Stats().leases.size(), 1u);
  }

  std::string directory_, path_;
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<Broker> broker_;
  std::unique_ptr<Client> client_;
  LeaseId lease_;
};

struct KillPoint {
  std::string name;
  std::vector<std::string> steps;
  std::string last_line;
};
void PrintTo(const KillPoint& point, std::ostream* out) { *out << point.name; }

class KilledClient : public PoolProcess, public testing::WithParamInterface<KillPoint> {};

TEST_P(KilledClient, LosesItsPagesToTheOthers) {
  StartBroker();
  AttachSelf();
  std::vector<std::string> arguments = {"client", path_};
  arguments.insert(arguments.end(), GetParam().steps.begin(), GetParam().steps.end());
  Child child(arguments);
  child.Expect(GetParam().last_line);
  child.Kill();
  EverythingComesBack();
  EXPECT_TRUE(child.Wait().signalled);
}

INSTANTIATE_TEST_SUITE_P(
    Step, KilledClient,
    testing::Values(KillPoint{"Attach", {"attach", "wait"}, "wait"},
                    KillPoint{"LeaseOpen", {"attach", "pinned:5:10", "wait"}, "wait"},
                    KillPoint{"Grant", {"attach", "pinned:0:10", "grow:10", "fill:171", "wait"}, "wait"},
                    KillPoint{"Return", {"attach", "pinned:0:10", "grow:10", "fill:171", "return:4", "wait"}, "wait"},
                    KillPoint{"Exit", {"attach", "reclaimable:2:20", "grow:20", "fill:171", "return:20", "wait"}, "wait"}),
    [](const testing::TestParamInfo<KillPoint>& info) { return info.param.name; });

TEST_F(PoolProcess, ClientThatIsKilledWhileItWaitsForPagesLeavesTheQueue) {
  StartBroker();
  AttachSelf();
  Child holder({"client", path_, "attach", "on-revoke:ignore", "reclaimable:0:32", "grow:32", "wait"});
  holder.Expect("wait");
  Child waiter({"client", path_, "attach", "pinned:0:32", "grow-async:20", "wait"});
  waiter.Expect("wait");
  holder.Expect("revoke");
  waiter.Kill();
  waiter.Wait();
  holder.Kill();
  EverythingComesBack();
}

TEST_F(PoolProcess, WaitingRequestGoesOnWhenTheHolderIsKilledDuringItsRevoke) {
  StartBroker();
  AttachSelf();
  for (const char* behaviour : {"hang", "half"}) {
    Child holder(
        {"client", path_, "attach", std::string("on-revoke:") + behaviour, "reclaimable:0:32", "grow:32", "fill:171", "wait"});
    holder.Expect("wait");
    absl::Notification done;
    StatusOr<std::vector<Extent>> extents;
    std::thread waiter([&] {
      extents = client_->Grow(lease_, {.pages = 20}, Soon());
      done.Notify();
    });
    holder.Expect("revoke");
    if (std::string(behaviour) == "half") holder.Expect("gave back: OK");
    EXPECT_FALSE(done.HasBeenNotified());
    holder.Kill();
    waiter.join();
    ASSERT_TRUE(extents.ok()) << ToString(extents.status());
    ASSERT_TRUE(client_->Return(lease_, *extents).ok());
    holder.Wait();
  }
  EverythingComesBack();
}

TEST_F(PoolProcess, TenantThatObeysHandsItsPagesOverCleared) {
  absl::Notification recorded;
  HandoverRecord record;
  StartBroker({.on_handover = [&](const HandoverRecord& complete) {
    record = complete;
    recorded.Notify();
  }});
  AttachSelf();
  Child holder({"client", path_, "attach", "on-revoke:comply", "reclaimable:0:32", "grow:32", "fill:171", "wait"});
  holder.Expect("wait");
  auto extents = client_->Grow(lease_, {.pages = 20}, Soon());
  ASSERT_TRUE(extents.ok()) << ToString(extents.status());
  for (const Extent& extent : *extents) {
    const std::byte* bytes = client_->device().memory().base() + extent.first * kPage;
    for (int64_t i = 0; i < extent.count * kPage; ++i) ASSERT_EQ(bytes[i], std::byte{0});
  }
  holder.Expect("finished: OK");
  ASSERT_TRUE(recorded.WaitForNotificationWithDeadline(Soon()));
  EXPECT_EQ(record.requester, "self");
  EXPECT_EQ(record.giver, "test");
  EXPECT_EQ(record.pages, 20);
  EXPECT_TRUE(record.granted);
  EXPECT_TRUE(record.giver_parts.aborted);
  EXPECT_GT(record.notify, absl::ZeroDuration());
  EXPECT_LT(record.notify, record.total);
  EXPECT_GT(record.zero, absl::ZeroDuration());
}

TEST_F(PoolProcess, PagesOfOneTrustLabelKeepTheirBytes) {
  StartBroker();
  Child writer({"client", path_, "attach", "label:acme", "pinned:0:32", "grow:8", "fill:171", "exit"});
  writer.Expect("exit: OK");
  EXPECT_TRUE(writer.Wait().ok());
  Child friendly({"client", path_, "attach", "label:acme", "pinned:0:32", "grow:8", "expect:171", "exit"});
  friendly.Expect("exit: OK");
  Child stranger({"client", path_, "attach", "label:other", "pinned:0:32", "grow:8", "expect:0", "exit"});
  stranger.Expect("exit: OK");
}

TEST_F(PoolProcess, WedgedTenantIsKilledAndItsPagesTaken) {
  StartBroker({.fence_after = absl::Milliseconds(200)});
  AttachSelf();
  Child hung({"client", path_, "attach", "on-revoke:ignore", "reclaimable:0:32", "grow:32", "fill:171", "wait"});
  hung.Expect("wait");
  EverythingComesBack();
  const ExitStatus ended = hung.Wait();
  EXPECT_TRUE(ended.signalled);
  EXPECT_EQ(ended.code, SIGKILL);
  EXPECT_EQ(broker_->Stats().fenced, 1);
}

TEST_F(PoolProcess, StoppedTenantIsKilledAndItsPagesTaken) {
  StartBroker({.fence_after = absl::Milliseconds(200)});
  AttachSelf();
  Child stopped({"client", path_, "attach", "on-revoke:comply", "reclaimable:0:32", "grow:32", "wait"});
  stopped.Expect("wait");
  stopped.Stop();
  EverythingComesBack();
  EXPECT_EQ(stopped.Wait().code, SIGKILL);
}

TEST_F(PoolProcess, ClientThatHangsUpButRunsOnIsFenced) {
  StartBroker({.fence_after = absl::Milliseconds(200)});
  AttachSelf();
  auto socket = broker_->Connect();
  ASSERT_TRUE(socket.ok());
  Child child({"client", "fd:3", "attach", "pinned:0:32", "grow:32", "fill:171", "shutdown", "wait"}, std::move(*socket));
  child.Expect("wait");
  EverythingComesBack();
  EXPECT_EQ(child.Wait().code, SIGKILL);
  EXPECT_EQ(broker_->Stats().fenced, 1);
}

TEST_F(PoolProcess, InheritedConnectionBelongsToTheChildThatUsesIt) {
  StartBroker();
  AttachSelf();
  auto socket = broker_->Connect();
  ASSERT_TRUE(socket.ok());
  Child child({"client", "fd:3", "attach", "pinned:0:32", "grow:32", "wait"}, std::move(*socket));
  child.Expect("wait");
  bool found = false;
  for (const LeaseStats& lease : broker_->Stats().leases)
    found |= lease.name == "test" && lease.pid != ::getpid() && lease.pid > 0;
  EXPECT_TRUE(found) << "the broker knows the child, not the process that made the connection";
  child.Kill();
  EverythingComesBack();
}

TEST_F(PoolProcess, DeathOfTheBrokerIsSeenAtOnce) {
  Child broker({"broker", path_, "32"});
  broker.Expect("ready");
  AttachSelf();
  auto held = client_->Grow(lease_, {.pages = 4}, Soon());
  ASSERT_TRUE(held.ok());
  auto training = client_->OpenLease({.name = "t", .lease_class = LeaseClass::kReclaimable, .burst_pages = kPages}, Soon());
  ASSERT_TRUE(training.ok());
  ASSERT_TRUE(client_->Grow(*training, {.pages = 28}, Soon()).ok());
  absl::Notification told, revoked;
  client_->SetDisconnectHandler([&] { told.Notify(); });
  client_->SetHandlers([&](const RevokeRequest&) { revoked.Notify(); }, nullptr);
  Status waited;
  std::thread waiter([&] { waited = client_->Grow(lease_, {.pages = 4}, Soon()).status(); });
  ASSERT_TRUE(revoked.WaitForNotificationWithDeadline(Soon()));
  broker.Kill();
  waiter.join();
  EXPECT_EQ(waited.code(), StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(waited), HasSubstr("the page broker of this node is gone"));
  EXPECT_TRUE(told.WaitForNotificationWithDeadline(Soon()));
  EXPECT_FALSE(client_->connected());
  EXPECT_EQ(client_->Return(lease_, *held).code(), StatusCode::kUnavailable);
  // The memory stays ours to the end of the process.
  std::memset(client_->device().memory().base() + held->front().first * kPage, 1, kPage);
}

TEST_F(PoolProcess, BrokerTakesOverThePathOfADeadOne) {
  Child broker({"broker", path_, "32"});
  broker.Expect("ready");
  broker.Kill();
  broker.Wait();
  StartBroker();
  AttachSelf();
  EverythingComesBack();
}

}  // namespace
}  // namespace tidepool::pool
