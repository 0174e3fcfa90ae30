// A process for pool_process_test to kill: runs the steps of its command line against a broker and prints one line per step.
//
//   pool_test_client broker PATH PAGES      a broker of its own on PATH
//   pool_test_client client PATH|fd:N STEP...
//
// Steps: attach, on-revoke:ignore|comply|hang|half, pinned:GUARANTEED:BURST, reclaimable:GUARANTEED:BURST, label:TEXT (of later
// leases), grow:PAGES, grow-async:PAGES, fill:BYTE, expect:BYTE, return:PAGES, shutdown, exit, wait.
#include <absl/synchronization/mutex.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "pool/broker.h"
#include "pool/client.h"

namespace tidepool::pool {
namespace {

constexpr int64_t kPage = int64_t{64} << 10;

absl::Time Late() { return Clock::Real()->Now() + absl::Seconds(60); }

void Say(const std::string& line) {
  const std::string text = line + "\n";
  (void)!::write(STDOUT_FILENO, text.data(), text.size());
}

[[noreturn]] void WaitForTheEnd() {
  while (true) ::pause();
}

int RunBroker(const std::string& path, int64_t pages) {
  auto device = device::OpenDevice({.name = "host", .capacity_bytes = pages * kPage, .page_bytes = kPage});
  if (!device.ok()) return Say(ToString(device.status())), 1;
  auto broker = Broker::Start(device->get(), {.socket_path = path});
  if (!broker.ok()) return Say(ToString(broker.status())), 1;
  Say("ready");
  WaitForTheEnd();
}

class TestClient {
 public:
  explicit TestClient(std::string address) : address_(std::move(address)) {}

  Status Run(const std::string& step) {
    std::vector<std::string> words(1);
    for (const char c : step) {
      if (c == ':') {
        words.emplace_back();
      } else {
        words.back() += c;
      }
    }
    auto number = [&](size_t i) { return i < words.size() ? std::stoll(words[i]) : 0; };
    const std::string& verb = words[0];
    if (verb == "attach") return Attach();
    if (verb == "on-revoke") return OnRevoke(words.at(1));
    if (verb == "label") return label_ = words.at(1), Status();
    if (verb == "pinned" || verb == "reclaimable") {
      TIDEPOOL_ASSIGN_OR_RETURN(
          lease_, client_->OpenLease({.name = "test",
                                      .lease_class = verb == "pinned" ? LeaseClass::kPinned : LeaseClass::kReclaimable,
                                      .guaranteed_pages = number(1),
                                      .burst_pages = number(2),
                                      .trust_label = label_},
                                     Late()));
      return {};
    }
    if (verb == "grow") return Grow(number(1));
    if (verb == "grow-async") {
      background_ = std::thread([this, pages = number(1)] { Say("grow-async: " + ToString(Grow(pages))); });
      return {};
    }
    if (verb == "fill")
      return ForEachByte([&](std::byte* page) {
        std::memset(page, static_cast<int>(number(1)), kPage);
        return true;
      });
    if (verb == "expect") {
      return ForEachByte([&](const std::byte* page) {
        for (int64_t i = 0; i < kPage; ++i) {
          if (page[i] != static_cast<std::byte>(number(1))) return false;
        }
        return true;
      });
    }
    if (verb == "return") return Return(number(1));
    if (verb == "shutdown") return ::shutdown(inherited_, SHUT_RDWR) == 0 ? Status() : ErrnoError(errno, "shutdown");
    if (verb == "wait") {
      Say("wait");
      WaitForTheEnd();
    }
    return InvalidArgument("unknown step '{}'", step);
  }

  void End() {
    if (background_.joinable()) background_.join();
    client_.reset();
  }

 private:
  Status Attach() {
    ClientOptions options{.name = "test-client"};
    if (address_.starts_with("fd:")) {
      inherited_ = std::stoi(address_.substr(3));
      options.connected_socket.reset(inherited_);
    } else {
      options.socket_path = address_;
    }
    TIDEPOOL_ASSIGN_OR_RETURN(client_, Client::Attach(std::move(options)));
    return {};
  }

  Status OnRevoke(const std::string& behaviour) {
    client_->SetHandlers(
        [this, behaviour](const RevokeRequest& request) {
          Say("revoke");
          if (behaviour == "ignore") return;
          if (behaviour == "hang") WaitForTheEnd();
          const int64_t above = client_->held_pages(lease_) - request.limit_pages;
          const Status returned = Return(behaviour == "half" ? above / 2 : above);
          Say("gave back: " + ToString(returned));
          if (behaviour == "half") WaitForTheEnd();
          Say("finished: " + ToString(client_->FinishRevoke(request, {.aborted = true})));
        },
        nullptr);
    return {};
  }

  Status Grow(int64_t pages) {
    TIDEPOOL_ASSIGN_OR_RETURN(auto extents, client_->Grow(lease_, {.pages = pages}, Late()));
    absl::MutexLock lock(&mu_);
    for (const Extent& extent : extents) {
      for (PageIndex page = extent.first; page < extent.end(); ++page) pages_.push_back(page);
    }
    return {};
  }

  Status Return(int64_t pages) {
    std::vector<Extent> extents;
    {
      absl::MutexLock lock(&mu_);
      for (; pages > 0 && !pages_.empty(); --pages) {
        extents.push_back({pages_.front(), 1});
        pages_.pop_front();
      }
    }
    return client_->Return(lease_, extents);
  }

  template <typename F>
  Status ForEachByte(F&& f) {
    absl::MutexLock lock(&mu_);
    for (const PageIndex page : pages_) {
      if (!f(client_->device().memory().base() + page * kPage)) return DataLoss("page {} holds other bytes", page);
    }
    return {};
  }

  const std::string address_;
  std::unique_ptr<Client> client_;
  int inherited_ = -1;
  LeaseId lease_;
  std::string label_;
  absl::Mutex mu_;
  std::deque<PageIndex> pages_ ABSL_GUARDED_BY(mu_);
  std::thread background_;
};

int RunClient(const std::string& address, const std::vector<std::string>& steps) {
  // Never destroyed: its background thread may still use it when a step ends the process.
  static TestClient* const client = new TestClient(address);
  for (const std::string& step : steps) {
    if (step == "exit") {
      client->End();
      Say("exit: OK");
      return 0;
    }
    const Status status = client->Run(step);
    Say(step + ": " + ToString(status));
    if (!status.ok()) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace tidepool::pool

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 3 && arguments[0] == "broker") {
    return tidepool::pool::RunBroker(arguments[1], std::stoll(arguments[2]));
  }
  if (arguments.size() >= 2 && arguments[0] == "client") {
    return tidepool::pool::RunClient(arguments[1], {arguments.begin() + 2, arguments.end()});
  }
  std::fprintf(stderr, "usage: see the head of pool_test_client.cc\n");
  return 2;
}
