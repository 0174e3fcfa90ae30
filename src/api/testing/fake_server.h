// A serve::Server without a worker, for tests of the front ends, of the load generator and of foreign clients. Its models compute
// in the caller's thread:
//
//   scale   FP32 [-1,4] "x"      -> FP32 "y" = 2x
//   tokens  INT64 [-1,8] "input_ids" -> INT64 "sum" [-1,1]
//   text    BYTES [-1,1] "text"  -> BYTES "upper"
//   half    FP16 [-1,2] "x"      -> FP16 "y" = x
//   copy    UINT8 [-1,-1] "x"    -> UINT8 "y" = x, of any size
//   held    as scale, but answers only when Release is called, the request is cancelled or its deadline passes unseen
//   full    refuses with RESOURCE_EXHAUSTED
//   broken  cannot be served
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "serve/server.h"

namespace tidepool::api {

// Thread-safe.
class FakeServer : public serve::Server {
 public:
  FakeServer();
  ~FakeServer() override;

  std::shared_ptr<serve::InferHandle> Infer(serve::InferRequest request, serve::InferCallback done) override;
  bool Live() override { return true; }
  bool Ready() override;
  StatusOr<serve::ModelStatus> Model(const std::string& name) override;
  std::vector<serve::ModelStatus> Models() override;
  StatusOr<serve::ModelPresence> Presence(const std::string& model, const std::string& version) override;
  Status Rescan() override { return absl::OkStatus(); }
  Status Load(const std::string& model, absl::Time deadline) override;
  StatusOr<int64_t> Unload(const std::string& model, absl::Time deadline) override;
  Status MeasureSoloLatencies(absl::Time) override { return absl::OkStatus(); }
  serve::SoloLatencies solo_latencies() override { return {}; }
  Status SetSoloLatencies(const serve::SoloLatencies&, absl::Time) override { return absl::OkStatus(); }
  void Drain() override { SetReady(false); }
  int worker_pid() override { return 0; }
  void SetEventListener(std::function<void(const serve::ServeEvent&)>) override {}

  void SetReady(bool ready);
  void SetSlo(const std::string& model, absl::Duration slo, absl::Duration solo);
  // Answers every request of `held` that waits.
  void Release();
  // Wait for events, with a limit; false if it passed.
  bool WaitForHeld(int count, absl::Duration limit);
  bool WaitForCancelled(int count, absl::Duration limit);
  absl::Time last_deadline();  // of the request that came last

 private:
  struct Held;
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace tidepool::api
