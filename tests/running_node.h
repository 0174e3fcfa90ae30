// A real `tidepool up` on loopback for whole-system tests: started with free ports, asked over REST, stopped or killed by the
// test.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "api/http_client.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/process.h"
#include "cli/demo_data.h"
#include "cli/node_client.h"
#include "data/jpeg.h"
#include "model/repository.h"

namespace tidepool::testing {

inline const std::string kTidepool = std::string(TIDEPOOL_BINARY_DIR) + "/tidepool";
inline constexpr absl::Duration kPatience = absl::Seconds(60);

// Small models and pictures, made once per test program.
struct SmallData {
  std::string root, repository, pictures;
};
inline const SmallData& TheSmallData() {
  static const SmallData data = [] {
    SmallData made{.root = ::testing::TempDir() + "/tidepool-system-" + std::to_string(::getpid())};
    made.repository = made.root + "/models";
    made.pictures = made.root + "/pictures";
    std::filesystem::create_directories(made.repository);
    const std::pair<const char*, const char*> models[] = {
        {"small-a", "resnet18:classes=4,image=32,width=16"},
        {"small-b", "resnet18:classes=4,image=32,width=16"},
        {"words", "gpt2:layers=2,width=64,heads=2,vocab=256,context=16,sequence=16"}};
    for (const auto& [name, spec] : models) {
      const Status status = model::CreateModel({.repository = made.repository, .name = name, .spec = spec, .seed = 1});
      EXPECT_TRUE(status.ok()) << ToString(status);
    }
    for (int i = 0; i < 64; ++i) {
      const std::string folder = made.pictures + "/" + cli::DemoClasses()[i % 4];
      std::filesystem::create_directories(folder);
      const cli::DemoPicture picture = cli::DrawDemoPicture(i % 4, 1, i);
      const auto jpeg = data::EncodeJpeg(picture.rgb, picture.width, picture.height, 88);
      EXPECT_TRUE(jpeg.ok());
      std::ofstream(folder + "/" + std::to_string(i) + ".jpg", std::ios::binary) << *jpeg;
    }
    return made;
  }();
  return data;
}

// Whether process `pid` ends by itself until `deadline`.
inline bool AwaitEnd(int pid, absl::Time deadline) {
  const auto fd = OpenPidFd(pid);
  if (!fd.ok()) return true;
  pollfd entry{.fd = fd->get(), .events = POLLIN};
  const auto left = absl::ToInt64Milliseconds(deadline - Clock::Real()->Now());
  return ::poll(&entry, 1, static_cast<int>(std::max<int64_t>(0, left))) == 1;
}

class RunningNode {
 public:
  // `extra` are further flags. Waits until the node says that it is ready.
  static std::optional<RunningNode> Start(std::vector<std::string> extra, bool with_training) {
    ProcessOptions options{.capture_stdout = true};
    options.command = {kTidepool,        "up",     "-o",          "json", "--model-repository", TheSmallData().repository,
                       "--capacity",     "256MiB", "--http-port", "0",    "--grpc-port",        "0",
                       "--metrics-port", "-1"};
    if (with_training) {
      for (const std::string& word :
           {std::string("--model"), std::string("resnet18:classes=4,image=32,width=16"), std::string("--data"),
            "imagefolder:" + TheSmallData().pictures, std::string("--global-batch"), std::string("16"),
            std::string("--max-micro-batch"), std::string("8"), std::string("--epochs"), std::string("1000000"),
            std::string("--checkpoint-steps"), std::string("1"), std::string("--checkpoint"),
            ::testing::TempDir() + "/checkpoint-" + std::to_string(::getpid()) + "-" + std::to_string(NextNumber())}) {
        options.command.push_back(word);
      }
    }
    options.command.insert(options.command.end(), extra.begin(), extra.end());
    auto started = ChildProcess::Start(options);
    EXPECT_TRUE(started.ok()) << ToString(started.status());
    if (!started.ok()) return std::nullopt;
    RunningNode node(std::move(*started));
    const std::string line = node.ReadLine(Clock::Real()->Now() + kPatience);
    const auto ready = nlohmann::json::parse(line, nullptr, false);
    EXPECT_TRUE(ready.is_object()) << "the node did not get ready: '" << line << "'";
    if (!ready.is_object()) return std::nullopt;
    node.client_ = {.url = ready["http"], .timeout = kPatience};
    return node;
  }

  ChildProcess& process() { return process_; }
  const cli::NodeClient& client() const { return client_; }

  nlohmann::json Status() {
    const auto text = client_.Status();
    return text.ok() ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json();
  }
  // Asks until `holds` is true of the node's status. How long it took; nothing if it never was.
  std::optional<absl::Duration> AwaitStatus(const std::function<bool(const nlohmann::json&)>& holds,
                                            absl::Duration limit = kPatience) {
    const absl::Time start = Clock::Real()->Now();
    while (Clock::Real()->Now() < start + limit) {
      const nlohmann::json status = Status();
      if (status.is_object() && holds(status)) return Clock::Real()->Now() - start;
      Clock::Real()->SleepFor(absl::Milliseconds(5));  // between two questions; nothing is assumed to have happened by then
    }
    ADD_FAILURE() << "the node never reached the state; last: " << Status().dump(2);
    return std::nullopt;
  }
  tidepool::Status Infer(const std::string& model) {
    const auto metadata = client_.Metadata(model);
    if (!metadata.ok()) return metadata.status();
    const auto request = cli::RandomRequest(*metadata, 1, 1);
    if (!request.ok()) return request.status();
    return client_.Infer(model, *request).status();
  }
  // Until one succeeds: a worker that was killed needs a moment.
  bool InferUntilOk(const std::string& model, absl::Duration limit = kPatience) {
    const absl::Time deadline = Clock::Real()->Now() + limit;
    tidepool::Status last;
    while (Clock::Real()->Now() < deadline) {
      last = Infer(model);
      if (last.ok()) return true;
      Clock::Real()->SleepFor(absl::Milliseconds(20));
    }
    ADD_FAILURE() << "no request to " << model << " succeeded: " << ToString(last);
    return false;
  }

 private:
  explicit RunningNode(ChildProcess process) : process_(std::move(process)) {}
  static int NextNumber() {
    static int number = 0;
    return ++number;
  }
  std::string ReadLine(absl::Time deadline) {
    std::string line;
    while (true) {
      pollfd entry{.fd = process_.stdout_fd(), .events = POLLIN};
      const auto left = absl::ToInt64Milliseconds(deadline - Clock::Real()->Now());
      if (left <= 0 || ::poll(&entry, 1, static_cast<int>(left)) <= 0) return line;
      char c = 0;
      if (::read(process_.stdout_fd(), &c, 1) != 1 || c == '\n') return line;
      line += c;
    }
  }
  ChildProcess process_;
  cli::NodeClient client_;
};

// Pages that the leases of process `pid` hold, in bytes.
inline int64_t HeldBy(const nlohmann::json& status, int pid) {
  int64_t bytes = 0;
  for (const auto& lease : status["pool"]["leases"]) {
    if (lease["pid"] == pid) bytes += lease["held_bytes"].get<int64_t>();
  }
  return bytes;
}
inline bool PagesAddUp(const nlohmann::json& status) {
  const auto& pool = status["pool"];
  return pool["violations"] == 0 && pool["free_pages"].get<int64_t>() + pool["granted_pages"].get<int64_t>() +
                                            pool["returning_pages"].get<int64_t>() + pool["dirty_pages"].get<int64_t>() ==
                                        pool["total_pages"].get<int64_t>();
}

}  // namespace tidepool::testing
