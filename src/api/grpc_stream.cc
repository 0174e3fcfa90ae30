#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <deque>
#include <map>
#include <memory>
#include <utility>

#include "api/cancel_slot.h"
#include "api/grpc_service.h"
#include "api/proto_codec.h"

namespace tidepool::api {
namespace {

using inference::ModelInferRequest;
using inference::ModelStreamInferResponse;

// Requests of one stream that may run or wait to be written at the same time; at the limit no more are read until one is done.
constexpr size_t kMaxInFlight = 64;

// Reads requests while fewer than kMaxInFlight are open, hands each to serve, and writes the answers in the order in which they
// come. Ends when the client has sent its last request and every answer is written, or when a write fails or the call is
// cancelled.
//
// gRPC may delete the reactor on another thread as soon as Finish was called, so Finish is the last thing anyone does with it:
// outside the lock, by the one caller that TakeFinish told to, when no read, write or request is open.
class InferStream : public grpc::ServerBidiReactor<ModelInferRequest, ModelStreamInferResponse> {
 public:
  InferStream(grpc::CallbackServerContext* context, FrontEnd* front_end) : context_(context), front_end_(front_end) {
    StartRead(&incoming_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      bool finish = false;
      {
        absl::MutexLock lock(&mu_);
        reading_ = false;
        reads_over_ = true;
        finish = TakeFinish();
      }
      if (finish) End();
      return;
    }
    uint64_t key = 0;
    auto cancel = std::make_shared<CancelSlot>();
    ModelInferRequest message = std::move(incoming_);
    incoming_.Clear();
    {
      absl::MutexLock lock(&mu_);
      key = next_key_++;
      open_[key] = cancel;
      reading_ = open_.size() < kMaxInFlight;
      if (cancelled_) cancel->Cancel();
      if (reading_) StartRead(&incoming_);
    }
    Run(key, std::move(message), cancel);
  }

  void OnWriteDone(bool ok) override {
    bool finish = false;
    {
      absl::MutexLock lock(&mu_);
      outgoing_.pop_front();
      writing_ = false;
      if (!ok) broken_ = true;
      WriteNext();
      finish = TakeFinish();
    }
    if (finish) End();
  }

  void OnCancel() override {
    std::map<uint64_t, std::shared_ptr<CancelSlot>> open;
    {
      absl::MutexLock lock(&mu_);
      cancelled_ = true;
      open = open_;
    }
    for (const auto& [key, cancel] : open) cancel->Cancel();
  }

  void OnDone() override { delete this; }

 private:
  void Run(uint64_t key, ModelInferRequest message, const std::shared_ptr<CancelSlot>& cancel) {
    const absl::Time started = front_end_->clock().Now();
    const std::string id = message.id();
    const std::string model = message.model_name();
    const Status open = front_end_->CheckOpen();
    StatusOr<DecodedProto> decoded = open.ok() ? DecodeProto(&message) : StatusOr<DecodedProto>(open);
    if (!decoded.ok()) {
      front_end_->Record("grpc", model, decoded.status(), started);
      return Done(key, ErrorAnswer(id, decoded.status()));
    }
    decoded->request.deadline = std::min(DeadlineOf(*context_, front_end_), front_end_->DeadlineAfter(decoded->timeout));
    auto done = [this, key, id, model, started, form = decoded->form](StatusOr<serve::InferResponse> result) {
      auto answer = std::make_unique<ModelStreamInferResponse>();
      const Status status =
          result.ok() ? EncodeProto(*std::move(result), form, answer->mutable_infer_response()) : result.status();
      front_end_->Record("grpc", model, status, started);
      Done(key, status.ok() ? std::move(answer) : ErrorAnswer(id, status));
    };
    cancel->Set(front_end_->server().Infer(std::move(decoded->request), std::move(done)));
  }

  static std::unique_ptr<ModelStreamInferResponse> ErrorAnswer(const std::string& id, const Status& status) {
    auto answer = std::make_unique<ModelStreamInferResponse>();
    answer->set_error_message(ToString(status));
    answer->mutable_infer_response()->set_id(id);
    return answer;
  }

  void Done(uint64_t key, std::unique_ptr<ModelStreamInferResponse> answer) {
    bool finish = false;
    {
      absl::MutexLock lock(&mu_);
      open_.erase(key);
      outgoing_.push_back(std::move(answer));
      WriteNext();
      if (!reading_ && !reads_over_ && !broken_) {
        reading_ = true;
        StartRead(&incoming_);
      }
      finish = TakeFinish();
    }
    if (finish) End();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_) return;
    if (broken_ || cancelled_) outgoing_.clear();
    if (outgoing_.empty()) return;
    writing_ = true;
    StartWrite(outgoing_.front().get());
  }

  // True once: the caller must End().
  bool TakeFinish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finished_ || writing_ || reading_ || !open_.empty() || (!reads_over_ && !broken_)) return false;
    finished_ = true;
    return true;
  }
  void End() { Finish(grpc::Status::OK); }

  grpc::CallbackServerContext* const context_;
  FrontEnd* const front_end_;
  ModelInferRequest incoming_;  // touched by gRPC while a read is outstanding, by OnReadDone otherwise
  absl::Mutex mu_;
  bool reading_ ABSL_GUARDED_BY(mu_) = true;
  bool reads_over_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_key_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<uint64_t, std::shared_ptr<CancelSlot>> open_ ABSL_GUARDED_BY(mu_);
  std::deque<std::unique_ptr<ModelStreamInferResponse>> outgoing_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

grpc::ServerBidiReactor<ModelInferRequest, ModelStreamInferResponse>* NewInferStream(grpc::CallbackServerContext* context,
                                                                                     FrontEnd* front_end) {
  return new InferStream(context, front_end);
}

}  // namespace tidepool::api
