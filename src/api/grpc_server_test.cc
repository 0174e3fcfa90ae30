#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "api/api.h"
#include "api/testing/fake_server.h"
#include "proto/inference.grpc.pb.h"

namespace tidepool::api {
namespace {

using inference::ModelInferRequest;
using inference::ModelInferResponse;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

ModelInferRequest ScaleRequest(const std::string& model = "scale") {
  ModelInferRequest request;
  request.set_model_name(model);
  request.set_id("r1");
  auto* input = request.add_inputs();
  input->set_name("x");
  input->set_datatype("FP32");
  input->add_shape(1);
  input->add_shape(4);
  const float values[] = {1, 2, 3, 4.5};
  request.add_raw_input_contents(values, sizeof(values));
  return request;
}

class GrpcServerTest : public ::testing::Test {
 protected:
  void SetUp() override { Start({}); }
  void Start(ApiOptions options) {
    stub_.reset();
    api_.reset();
    options.http_port = -1;
    options.grpc_port = 0;
    options.metrics_port = -1;
    StatusOr<std::unique_ptr<Api>> api = Api::Start(&server_, {}, options);
    ASSERT_TRUE(api.ok()) << ToString(api.status());
    api_ = *std::move(api);
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(api_->grpc_target(), grpc::InsecureChannelCredentials(), arguments);
    stub_ = inference::GRPCInferenceService::NewStub(channel_);
  }
  static void SetDeadline(grpc::ClientContext* context, absl::Duration limit = kPatience) {
    context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(limit));
  }
  grpc::Status Infer(const ModelInferRequest& request, ModelInferResponse* response) {
    grpc::ClientContext context;
    SetDeadline(&context);
    return stub_->ModelInfer(&context, request, response);
  }
  grpc::Status ErrorOf(const ModelInferRequest& request) {
    ModelInferResponse response;
    return Infer(request, &response);
  }
  void ExpectStillServing() {
    ModelInferResponse response;
    EXPECT_TRUE(Infer(ScaleRequest(), &response).ok());
  }

  FakeServer server_;
  std::unique_ptr<Api> api_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
};

template <typename Request, typename Response, typename Method>
Response CallOk(inference::GRPCInferenceService::Stub* stub, Method method, const Request& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  Response response;
  const grpc::Status status = (stub->*method)(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

using Stub = inference::GRPCInferenceService::Stub;

TEST_F(GrpcServerTest, AnswersHealthAndMetadata) {
  EXPECT_TRUE((CallOk<inference::ServerLiveRequest, inference::ServerLiveResponse>(stub_.get(), &Stub::ServerLive, {}).live()));
  EXPECT_TRUE(
      (CallOk<inference::ServerReadyRequest, inference::ServerReadyResponse>(stub_.get(), &Stub::ServerReady, {}).ready()));
  const auto server =
      CallOk<inference::ServerMetadataRequest, inference::ServerMetadataResponse>(stub_.get(), &Stub::ServerMetadata, {});
  EXPECT_EQ(server.name(), "tidepool");
  inference::ModelReadyRequest ready;
  ready.set_name("scale");
  EXPECT_TRUE(
      (CallOk<inference::ModelReadyRequest, inference::ModelReadyResponse>(stub_.get(), &Stub::ModelReady, ready).ready()));
  ready.set_name("broken");
  EXPECT_FALSE(
      (CallOk<inference::ModelReadyRequest, inference::ModelReadyResponse>(stub_.get(), &Stub::ModelReady, ready).ready()));
  server_.SetSlo("tokens", absl::Milliseconds(8), absl::Milliseconds(2));
  inference::ModelMetadataRequest named;
  named.set_name("tokens");
  const auto metadata =
      CallOk<inference::ModelMetadataRequest, inference::ModelMetadataResponse>(stub_.get(), &Stub::ModelMetadata, named);
  EXPECT_EQ(metadata.platform(), "tidepool_graph");
  ASSERT_EQ(metadata.inputs_size(), 1);
  EXPECT_EQ(metadata.inputs(0).datatype(), "INT64");
  EXPECT_EQ(metadata.inputs(0).shape(0), -1);
  EXPECT_EQ(metadata.properties().at("slo_us"), "8000");
  EXPECT_EQ(metadata.properties().at("solo_latency_us"), "2000");
}

TEST_F(GrpcServerTest, InfersFromRawAndFromTypedContents) {
  ModelInferResponse response;
  ASSERT_TRUE(Infer(ScaleRequest(), &response).ok());
  EXPECT_EQ(response.id(), "r1");
  EXPECT_EQ(response.model_version(), "2");
  ASSERT_EQ(response.raw_output_contents_size(), 1);
  float doubled[4];
  ASSERT_EQ(response.raw_output_contents(0).size(), sizeof(doubled));
  std::memcpy(doubled, response.raw_output_contents(0).data(), sizeof(doubled));
  EXPECT_EQ(doubled[3], 9);

  ModelInferRequest typed = ScaleRequest();
  typed.clear_raw_input_contents();
  for (const float x : {1.f, 2.f, 3.f, 4.f}) typed.mutable_inputs(0)->mutable_contents()->add_fp32_contents(x);
  ModelInferResponse typed_response;
  ASSERT_TRUE(Infer(typed, &typed_response).ok());
  EXPECT_EQ(typed_response.raw_output_contents_size(), 0);
  EXPECT_EQ(typed_response.outputs(0).contents().fp32_contents(3), 8);
}

TEST_F(GrpcServerTest, MapsErrorsToCodes) {
  EXPECT_EQ(ErrorOf(ScaleRequest("none")).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(ErrorOf(ScaleRequest("full")).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ErrorOf(ScaleRequest("broken")).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  ModelInferRequest request = ScaleRequest();
  request.set_model_version("9");
  EXPECT_EQ(ErrorOf(request).error_code(), grpc::StatusCode::NOT_FOUND);
  request = ScaleRequest();
  request.mutable_inputs(0)->set_datatype("FP99");
  EXPECT_EQ(ErrorOf(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request = ScaleRequest();
  request.mutable_inputs(0)->set_shape(0, -1);
  EXPECT_THAT(ErrorOf(request).error_message(), HasSubstr("allowed: dimensions of 0 and above"));
  request = ScaleRequest();
  request.mutable_inputs(0)->set_shape(0, int64_t{1} << 62);
  EXPECT_THAT(ErrorOf(request).error_message(), HasSubstr("which is more than"));
  request = ScaleRequest();
  request.mutable_raw_input_contents(0)->resize(15);
  EXPECT_THAT(ErrorOf(request).error_message(), HasSubstr("has 15 bytes of data; its type FP32 and shape [1,4] need 16"));
  request = ScaleRequest();
  request.clear_raw_input_contents();
  EXPECT_THAT(ErrorOf(request).error_message(), HasSubstr("has 0 bytes of data"));
  request.clear_inputs();
  EXPECT_THAT(ErrorOf(request).error_message(), HasSubstr("got 0 inputs; allowed: 1"));
  EXPECT_THAT(ErrorOf({}).error_message(), HasSubstr("model_name is empty"));
  ExpectStillServing();
}

TEST_F(GrpcServerTest, RefusesMessagesAboveItsLimit) {
  Start({.max_message_bytes = 1 << 20});
  ModelInferRequest request = ScaleRequest();
  request.mutable_raw_input_contents(0)->resize(2 << 20);
  EXPECT_EQ(ErrorOf(request).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectStillServing();
}

TEST_F(GrpcServerTest, SurvivesBytesThatAreNoMessage) {
  grpc::ClientContext context;
  SetDeadline(&context);
  // Field 1 says that it is a string of 268 million bytes, and then the message ends.
  const grpc::Slice slice(std::string("\x0a\xff\xff\xff\x7f", 5));
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::GenericStub stub(channel_);
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, "/inference.GRPCInferenceService/ModelInfer", grpc::StubOptions(), &request, &response,
                 [&](grpc::Status status) { done.set_value(std::move(status)); });
  EXPECT_FALSE(done.get_future().get().ok());
  ExpectStillServing();
}

TEST_F(GrpcServerTest, PassesTheDeadlineOnAndCancels) {
  grpc::ClientContext context;
  SetDeadline(&context, absl::Minutes(5));
  ModelInferResponse response;
  ASSERT_TRUE(stub_->ModelInfer(&context, ScaleRequest(), &response).ok());
  const absl::Duration left = server_.last_deadline() - Clock::Real()->Now();
  EXPECT_GT(left, absl::Minutes(4));
  EXPECT_LT(left, absl::Minutes(5) + absl::Seconds(1));

  grpc::ClientContext held;
  std::thread client([&] {
    ModelInferResponse ignored;
    EXPECT_EQ(stub_->ModelInfer(&held, ScaleRequest("held"), &ignored).error_code(), grpc::StatusCode::CANCELLED);
  });
  ASSERT_TRUE(server_.WaitForHeld(1, kPatience));
  EXPECT_LT(server_.last_deadline(), Clock::Real()->Now() + absl::Seconds(31)) << "a call without a deadline gets the default";
  held.TryCancel();
  EXPECT_TRUE(server_.WaitForCancelled(1, kPatience));
  client.join();

  grpc::ClientContext late;
  SetDeadline(&late, absl::Milliseconds(50));
  EXPECT_EQ(stub_->ModelInfer(&late, ScaleRequest("held"), &response).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(server_.WaitForCancelled(2, kPatience)) << "a call past its deadline is cancelled";
}

TEST_F(GrpcServerTest, StreamsAnswersAsTheyComeWithErrorsInBetween) {
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto stream = stub_->ModelStreamInfer(&context);
  ModelInferRequest held = ScaleRequest("held");
  held.set_id("slow");
  ModelInferRequest wrong = ScaleRequest("none");
  wrong.set_id("wrong");
  ASSERT_TRUE(stream->Write(held));
  ASSERT_TRUE(stream->Write(wrong));
  inference::ModelStreamInferResponse answer;
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_EQ(answer.infer_response().id(), "wrong");
  EXPECT_THAT(answer.error_message(), HasSubstr("NOT_FOUND: model 'none' is not in the repository"));
  ASSERT_TRUE(server_.WaitForHeld(1, kPatience));
  ASSERT_TRUE(stream->WritesDone());
  server_.Release();
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_EQ(answer.infer_response().id(), "slow");
  EXPECT_EQ(answer.error_message(), "");
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GrpcServerTest, StreamsMoreRequestsThanMayBeOpenAtOnce) {
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto stream = stub_->ModelStreamInfer(&context);
  constexpr int kRequests = 500;
  std::thread writer([&] {
    for (int i = 0; i < kRequests; ++i) EXPECT_TRUE(stream->Write(ScaleRequest()));
    stream->WritesDone();
  });
  inference::ModelStreamInferResponse answer;
  int answers = 0;
  while (stream->Read(&answer)) ++answers;
  writer.join();
  EXPECT_EQ(answers, kRequests);
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GrpcServerTest, CancelsTheRequestsOfAStreamThatEnds) {
  {
    grpc::ClientContext context;
    const auto stream = stub_->ModelStreamInfer(&context);
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(stream->Write(ScaleRequest("held")));
    ASSERT_TRUE(server_.WaitForHeld(64, kPatience));
    context.TryCancel();
    EXPECT_FALSE(stream->Finish().ok());
  }
  EXPECT_TRUE(server_.WaitForCancelled(64, kPatience));
  ExpectStillServing();
}

TEST_F(GrpcServerTest, ControlsTheRepositoryAndCounts) {
  inference::RepositoryIndexRequest all;
  EXPECT_EQ(
      (CallOk<inference::RepositoryIndexRequest, inference::RepositoryIndexResponse>(stub_.get(), &Stub::RepositoryIndex, all)
           .models_size()),
      8);
  all.set_ready(true);
  EXPECT_EQ(
      (CallOk<inference::RepositoryIndexRequest, inference::RepositoryIndexResponse>(stub_.get(), &Stub::RepositoryIndex, all)
           .models_size()),
      7);
  inference::RepositoryModelUnloadRequest unload;
  unload.set_model_name("scale");
  CallOk<inference::RepositoryModelUnloadRequest, inference::RepositoryModelUnloadResponse>(stub_.get(),
                                                                                            &Stub::RepositoryModelUnload, unload);
  EXPECT_EQ(server_.Model("scale")->resident_bytes, 0);
  inference::RepositoryModelLoadRequest load;
  load.set_model_name("scale");
  CallOk<inference::RepositoryModelLoadRequest, inference::RepositoryModelLoadResponse>(stub_.get(), &Stub::RepositoryModelLoad,
                                                                                        load);
  EXPECT_GT(server_.Model("scale")->resident_bytes, 0);
  ExpectStillServing();
  inference::ModelStatisticsRequest stats;
  stats.set_name("scale");
  const auto counted =
      CallOk<inference::ModelStatisticsRequest, inference::ModelStatisticsResponse>(stub_.get(), &Stub::ModelStatistics, stats);
  ASSERT_EQ(counted.model_stats_size(), 1);
  EXPECT_EQ(counted.model_stats(0).inference_count(), 1u);
}

TEST_F(GrpcServerTest, RefusesNewRequestsWhileDraining) {
  api_->BeginDrain();
  EXPECT_EQ(ErrorOf(ScaleRequest()).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GrpcServerTest, EndsWithRequestsStillOpen) {
  std::thread client([&] {
    ModelInferResponse ignored;
    EXPECT_FALSE(Infer(ScaleRequest("held"), &ignored).ok());
  });
  ASSERT_TRUE(server_.WaitForHeld(1, kPatience));
  api_->Shutdown(Clock::Real()->Now());
  EXPECT_TRUE(server_.WaitForCancelled(1, kPatience));
  client.join();
}

TEST_F(GrpcServerTest, NamesThePortThatIsTaken) {
  const ApiOptions options{.http_port = -1, .grpc_port = api_->grpc_port(), .metrics_port = -1};
  const StatusOr<std::unique_ptr<Api>> second = Api::Start(&server_, {}, options);
  EXPECT_EQ(second.status().code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(ToString(second.status()), HasSubstr("gRPC cannot listen on 127.0.0.1:" + std::to_string(api_->grpc_port())));
}

}  // namespace
}  // namespace tidepool::api
