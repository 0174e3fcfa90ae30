#include "api/grpc_service.h"

#include <chrono>

#include "api/cancel_slot.h"
#include "api/proto_codec.h"

namespace tidepool::api {
namespace {

// One unary call whose answer may come on another thread. The reactor deletes itself when gRPC is done with it, which can be at
// any moment after Finish; what must be reachable until then by others is in the shared CancelSlot.
class CancellableReactor : public grpc::ServerUnaryReactor {
 public:
  explicit CancellableReactor(std::shared_ptr<CancelSlot> cancel) : cancel_(std::move(cancel)) {}
  void OnCancel() override { cancel_->Cancel(); }
  void OnDone() override { delete this; }

 private:
  std::shared_ptr<CancelSlot> cancel_;
};

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

// Runs `work` where it may block.
grpc::ServerUnaryReactor* OnAdmin(grpc::CallbackServerContext* context, FrontEnd* front_end, std::function<Status()> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  front_end->admin().Submit(
      [reactor, work = std::move(work)](const Status& admitted) { reactor->Finish(ToGrpc(admitted.ok() ? work() : admitted)); });
  return reactor;
}

}  // namespace

grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()), MessageOf(status));
}

absl::Time DeadlineOf(const grpc::ServerContextBase& context, FrontEnd* front_end) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return front_end->DeadlineAfter(absl::InfiniteDuration());
  // gRPC's deadline is on the system clock; only the time that is left can be carried over to ours.
  const auto left = deadline - std::chrono::system_clock::now();
  return front_end->clock().Now() + absl::FromChrono(std::chrono::duration_cast<std::chrono::nanoseconds>(left));
}

InferMessages::Holder::Holder() {
  set_request(&request_message);
  set_response(&response_message);
}

InferenceService::InferenceService(FrontEnd* front_end) : front_end_(front_end) {
  SetMessageAllocatorFor_ModelInfer(&infer_messages_);
}

grpc::ServerUnaryReactor* InferenceService::ServerLive(grpc::CallbackServerContext* context, const inference::ServerLiveRequest*,
                                                       inference::ServerLiveResponse* response) {
  response->set_live(front_end_->server().Live());
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::ServerReady(grpc::CallbackServerContext* context,
                                                        const inference::ServerReadyRequest*,
                                                        inference::ServerReadyResponse* response) {
  response->set_ready(front_end_->Ready());
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::ModelReady(grpc::CallbackServerContext* context,
                                                       const inference::ModelReadyRequest* request,
                                                       inference::ModelReadyResponse* response) {
  const StatusOr<serve::ModelStatus> model = front_end_->FindModel(request->name(), request->version());
  if (model.ok()) response->set_ready(front_end_->Ready() && IsReady(*model));
  return Answer(context, model.status());
}

grpc::ServerUnaryReactor* InferenceService::ServerMetadata(grpc::CallbackServerContext* context,
                                                           const inference::ServerMetadataRequest*,
                                                           inference::ServerMetadataResponse* response) {
  response->set_name(std::string(kServerName));
  response->set_version(kServerVersion);
  for (const std::string& extension : ServerExtensions()) response->add_extensions(extension);
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::ModelMetadata(grpc::CallbackServerContext* context,
                                                          const inference::ModelMetadataRequest* request,
                                                          inference::ModelMetadataResponse* response) {
  const StatusOr<serve::ModelStatus> model = front_end_->FindModel(request->name(), request->version());
  if (model.ok()) EncodeMetadata(*model, response);
  return Answer(context, model.status());
}

grpc::ServerUnaryReactor* InferenceService::ModelInfer(grpc::CallbackServerContext* context, const inference::ModelInferRequest*,
                                                       inference::ModelInferResponse* response) {
  const absl::Time started = front_end_->clock().Now();
  inference::ModelInferRequest& message = static_cast<InferMessages::Holder*>(context->GetRpcAllocatorState())->request_message;
  auto cancel = std::make_shared<CancelSlot>();
  auto* reactor = new CancellableReactor(cancel);
  const std::string model = message.model_name();
  const Status open = front_end_->CheckOpen();
  StatusOr<DecodedProto> decoded = open.ok() ? DecodeProto(&message) : StatusOr<DecodedProto>(open);
  if (!decoded.ok()) {
    front_end_->Record("grpc", model, decoded.status(), started);
    reactor->Finish(ToGrpc(decoded.status()));
    return reactor;
  }
  decoded->request.deadline = DeadlineOf(*context, front_end_);
  if (decoded->timeout > absl::ZeroDuration()) {
    decoded->request.deadline = std::min(decoded->request.deadline, front_end_->DeadlineAfter(decoded->timeout));
  }
  auto done = [front_end = front_end_, reactor, response, started, model,
               form = decoded->form](StatusOr<serve::InferResponse> result) {
    const Status status = result.ok() ? EncodeProto(*std::move(result), form, response) : result.status();
    front_end->Record("grpc", model, status, started);
    reactor->Finish(ToGrpc(status));
  };
  cancel->Set(front_end_->server().Infer(std::move(decoded->request), std::move(done)));
  return reactor;
}

grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>* InferenceService::ModelStreamInfer(
    grpc::CallbackServerContext* context) {
  return NewInferStream(context, front_end_);
}

grpc::ServerUnaryReactor* InferenceService::ModelStatistics(grpc::CallbackServerContext* context,
                                                            const inference::ModelStatisticsRequest* request,
                                                            inference::ModelStatisticsResponse* response) {
  const absl::Time now = front_end_->clock().Now();
  if (request->name().empty()) {
    for (const serve::ModelStatus& model : front_end_->server().Models())
      EncodeStatistics(model, now, response->add_model_stats());
    return Answer(context, absl::OkStatus());
  }
  const StatusOr<serve::ModelStatus> model = front_end_->FindModel(request->name(), request->version());
  if (model.ok()) EncodeStatistics(*model, now, response->add_model_stats());
  return Answer(context, model.status());
}

grpc::ServerUnaryReactor* InferenceService::RepositoryIndex(grpc::CallbackServerContext* context,
                                                            const inference::RepositoryIndexRequest* request,
                                                            inference::RepositoryIndexResponse* response) {
  return OnAdmin(context, front_end_, [this, request, response] {
    TIDEPOOL_RETURN_IF_ERROR(front_end_->server().Rescan());
    for (const serve::ModelStatus& model : front_end_->server().Models()) {
      if (request->ready() && !IsReady(model)) continue;
      auto* entry = response->add_models();
      entry->set_name(model.name);
      if (!model.versions.empty()) entry->set_version(model.versions.back());
      entry->set_state(std::string(IndexState(model)));
      entry->set_reason(model.reason);
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::RepositoryModelLoad(grpc::CallbackServerContext* context,
                                                                const inference::RepositoryModelLoadRequest* request,
                                                                inference::RepositoryModelLoadResponse*) {
  return OnAdmin(context, front_end_, [this, request] { return LoadModel(front_end_, request->model_name()); });
}

grpc::ServerUnaryReactor* InferenceService::RepositoryModelUnload(grpc::CallbackServerContext* context,
                                                                  const inference::RepositoryModelUnloadRequest* request,
                                                                  inference::RepositoryModelUnloadResponse*) {
  return OnAdmin(context, front_end_, [this, request] {
    return front_end_->server().Unload(request->model_name(), front_end_->AdminDeadline()).status();
  });
}

}  // namespace tidepool::api
