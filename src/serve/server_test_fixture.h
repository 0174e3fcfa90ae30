// A node in miniature for the tests of the server: a repository of tiny models, a pool, the server and its real worker process.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"
#include "engine/inference.h"
#include "model/repository.h"
#include "pool/broker.h"
#include "serve/catalog.h"
#include "serve/server.h"

namespace tidepool::serve {

inline constexpr int64_t kTestPageBytes = int64_t{64} << 10;
inline constexpr const char* kTinyResNet = "resnet18:image=32,small_stem=true,width=8,classes=4";
inline constexpr const char* kTinyGpt = "gpt2:layers=2,width=32,heads=2,vocab=61,context=16";
inline constexpr const char* kTinyBert = "bert:layers=2,width=32,heads=2,vocab=61,context=16,classes=3,intermediate=64";

// The answers to a set of requests, by order of submission.
class Answers {
 public:
  explicit Answers(Server* server) : server_(server) {}
  size_t Submit(InferRequest request);
  // Whether all answers are there before `limit` has passed.
  bool WaitAll(absl::Duration limit = absl::Seconds(60));
  size_t answered();
  const StatusOr<InferResponse>& at(size_t index);
  void Cancel(size_t index) { handles_[index]->Cancel(); }
  size_t size() const { return handles_.size(); }

 private:
  struct Slot {
    int calls = 0;
    StatusOr<InferResponse> response = Unknown();
  };
  struct State {
    absl::Mutex mu;
    std::vector<std::unique_ptr<Slot>> slots ABSL_GUARDED_BY(mu);
    size_t answered ABSL_GUARDED_BY(mu) = 0;
  };
  static Status Unknown() { return Internal("no answer yet"); }
  Server* server_;
  std::shared_ptr<State> state_ = std::make_shared<State>();
  std::vector<std::shared_ptr<InferHandle>> handles_;
};

class ServerTest : public ::testing::Test {
 protected:
  static std::string WorkerBinary() { return std::string(TIDEPOOL_BINARY_DIR) + "/tidepool-worker"; }
  void SetUp() override;
  void TearDown() override;

  void Create(const std::string& name, const std::string& spec, uint64_t seed, model::ServingConfig serving = {});
  std::string WeightsFile(const std::string& name) const { return repository_ + "/" + name + "/1/model.safetensors"; }
  // `pool_bytes` of device memory; fails the test if the server does not start.
  void Start(int64_t pool_bytes, ServerOptions options = {});
  // A request with inputs drawn from `seed`.
  InferRequest Request(const std::string& model, uint64_t seed, int64_t batch = 1);
  StatusOr<InferResponse> Infer(InferRequest request);
  // The same computation in this process, by the engine alone.
  std::vector<std::string> Direct(const InferRequest& request);
  // Waits until the pool holds no granted page but those of `lease_name` (empty: none).
  void ExpectPagesBack(absl::Duration limit = absl::Seconds(10));
  // Waits for `condition`; false if it does not hold in time.
  static bool Eventually(const std::function<bool()>& condition, absl::Duration limit = absl::Seconds(20));

  std::string repository_;
  std::unique_ptr<device::Device> device_;
  std::unique_ptr<pool::Broker> broker_;
  std::unique_ptr<Server> server_;
};

}  // namespace tidepool::serve
