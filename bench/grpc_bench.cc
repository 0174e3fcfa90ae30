// What the gRPC front end costs: an inference request whose model only copies its input, beside a bare gRPC echo of as many
// bytes. Both servers use the callback API and run in this process; one blocking client, one channel each, loopback. p50 and p99
// are of single calls.
#include <benchmark/benchmark.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "api/api.h"
#include "api/testing/fake_server.h"
#include "base/clock.h"
#include "bench/echo.grpc.pb.h"
#include "proto/inference.grpc.pb.h"

namespace tidepool::api {
namespace {

constexpr int kMaxMessage = 64 << 20;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "grpc_bench: %s\n", what.c_str());
  std::exit(1);
}

class EchoService : public bench::Echo::CallbackService {
  grpc::ServerUnaryReactor* Call(grpc::CallbackServerContext* context, const bench::Blob* request,
                                 bench::Blob* response) override {
    response->set_data(request->data());
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

std::shared_ptr<grpc::Channel> Channel(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessage);
  arguments.SetMaxSendMessageSize(kMaxMessage);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

// Times each call of `call`, which returns a grpc::Status.
template <typename Call>
void Measure(benchmark::State& state, const Call& call) {
  std::vector<int64_t> nanos;
  for (auto _ : state) {
    const int64_t start = MonotonicNanos();
    const grpc::Status status = call();
    nanos.push_back(MonotonicNanos() - start);
    if (!status.ok()) {
      state.SkipWithError(status.error_message().c_str());
      return;
    }
  }
  std::sort(nanos.begin(), nanos.end());
  if (nanos.empty()) return;
  const auto at = [&](double q) {
    return static_cast<double>(nanos[static_cast<size_t>(q * static_cast<double>(nanos.size() - 1))]) / 1e3;
  };
  state.counters["p50_us"] = at(0.5);
  state.counters["p99_us"] = at(0.99);
  state.SetBytesProcessed(state.iterations() * state.range(0) * 2);
}

void BM_RawEcho(benchmark::State& state) {
  EchoService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(kMaxMessage);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) Fail("the echo server does not start");
  const auto stub = bench::Echo::NewStub(Channel("127.0.0.1:" + std::to_string(port)));
  bench::Blob request;
  request.set_data(std::string(static_cast<size_t>(state.range(0)), 'x'));
  Measure(state, [&] {
    grpc::ClientContext context;
    bench::Blob response;
    return stub->Call(&context, request, &response);
  });
}

void BM_Infer(benchmark::State& state) {
  FakeServer serving;
  auto api = Api::Start(&serving, {}, {.http_port = -1, .grpc_port = 0, .metrics_port = -1});
  if (!api.ok()) Fail(ToString(api.status()));
  const auto stub = inference::GRPCInferenceService::NewStub(Channel((*api)->grpc_target()));
  inference::ModelInferRequest request;
  request.set_model_name("copy");
  auto* input = request.add_inputs();
  input->set_name("x");
  input->set_datatype("UINT8");
  input->add_shape(1);
  input->add_shape(state.range(0));
  request.add_raw_input_contents(std::string(static_cast<size_t>(state.range(0)), 'x'));
  Measure(state, [&] {
    grpc::ClientContext context;
    inference::ModelInferResponse response;
    return stub->ModelInfer(&context, request, &response);
  });
}

// 600 KB is one 224x224 picture in FP32.
BENCHMARK(BM_RawEcho)->Arg(100)->Arg(16 << 10)->Arg(602112)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_Infer)->Arg(100)->Arg(16 << 10)->Arg(602112)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace tidepool::api

BENCHMARK_MAIN();
