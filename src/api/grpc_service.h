// The handlers of GRPCInferenceService, on gRPC's callback API: nothing in here blocks one of its threads.
#pragma once

#include <grpcpp/grpcpp.h>

#include "api/front_end.h"
#include "proto/inference.grpc.pb.h"

namespace tidepool::api {

// gRPC's codes have the same numbers as Abseil's.
grpc::Status ToGrpc(const Status& status);

// The time on the front end's clock at which a call must have been answered: what its client said, or the default.
absl::Time DeadlineOf(const grpc::ServerContextBase& context, FrontEnd* front_end);

// Gives the handler of ModelInfer a message that it may take the bytes out of.
class InferMessages : public grpc::MessageAllocator<inference::ModelInferRequest, inference::ModelInferResponse> {
 public:
  struct Holder : grpc::MessageHolder<inference::ModelInferRequest, inference::ModelInferResponse> {
    Holder();
    void Release() override { delete this; }
    inference::ModelInferRequest request_message;
    inference::ModelInferResponse response_message;
  };
  Holder* AllocateMessages() override { return new Holder; }
};

class InferenceService : public inference::GRPCInferenceService::CallbackService {
 public:
  explicit InferenceService(FrontEnd* front_end);

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context, const inference::ServerLiveRequest* request,
                                       inference::ServerLiveResponse* response) override;
  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context, const inference::ServerReadyRequest* request,
                                        inference::ServerReadyResponse* response) override;
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context, const inference::ModelReadyRequest* request,
                                       inference::ModelReadyResponse* response) override;
  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context, const inference::ServerMetadataRequest* request,
                                           inference::ServerMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context, const inference::ModelMetadataRequest* request,
                                          inference::ModelMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context, const inference::ModelInferRequest* request,
                                       inference::ModelInferResponse* response) override;
  grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>* ModelStreamInfer(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ModelStatistics(grpc::CallbackServerContext* context,
                                            const inference::ModelStatisticsRequest* request,
                                            inference::ModelStatisticsResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryIndex(grpc::CallbackServerContext* context,
                                            const inference::RepositoryIndexRequest* request,
                                            inference::RepositoryIndexResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryModelLoad(grpc::CallbackServerContext* context,
                                                const inference::RepositoryModelLoadRequest* request,
                                                inference::RepositoryModelLoadResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryModelUnload(grpc::CallbackServerContext* context,
                                                  const inference::RepositoryModelUnloadRequest* request,
                                                  inference::RepositoryModelUnloadResponse* response) override;

 private:
  FrontEnd* const front_end_;
  InferMessages infer_messages_;
};

// The reactor of one ModelInfer stream; deletes itself.
grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>* NewInferStream(
    grpc::CallbackServerContext* context, FrontEnd* front_end);

}  // namespace tidepool::api
