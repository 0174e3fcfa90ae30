// The server under load, as the generator sees it: its models, what to send them, and what is known of their latencies.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "api/load/load.h"
#include "proto/inference.grpc.pb.h"

namespace tidepool::api {

struct TargetModel {
  std::string name;
  inference::ModelInferRequest request;  // sent again and again
  absl::Duration solo, slo;              // zero: not published
};

// Thread-compatible; stub() may be used by many threads.
class LoadTarget {
 public:
  // UNAVAILABLE if no connection is there within options.connect_limit.
  static StatusOr<std::unique_ptr<LoadTarget>> Connect(const LoadOptions& options);

  // The models of the load, in order, each with a request filled from its metadata: normal numbers for floating point, ids below
  // 256 for integers (0 or 1 where the name says that it is a mask or a type), seeded.
  StatusOr<std::vector<TargetModel>> Models();
  // Latency of one request alone: the median of some, after some that do not count (the first one may load the model).
  StatusOr<absl::Duration> MeasureSolo(const TargetModel& model, const std::function<bool()>& stop);

  inference::GRPCInferenceService::Stub* stub() { return stub_.get(); }

 private:
  explicit LoadTarget(const LoadOptions& options) : options_(options) {}
  StatusOr<std::vector<std::string>> ModelNames();

  const LoadOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

Status FromGrpc(const grpc::Status& status);
// gRPC's deadlines are on the system clock; only a time span can be carried over to it.
std::chrono::system_clock::time_point GrpcDeadline(absl::Duration from_now);

}  // namespace tidepool::api
