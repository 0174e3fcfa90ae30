#include "api/rest_routes.h"

#include <charconv>

#include "api/json_codec.h"
#include "api/metrics_export.h"
#include "api/status_page.h"
#include "base/json.h"
#include "base/text.h"

namespace tidepool::api {
namespace {

using Json = nlohmann::json;
using Handler = void (*)(FrontEnd*, RouteCall);

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }
void ReplyJson(const RouteCall& call, const Json& json, int status = 200) { call.reply(JsonResponse(Dump(json), status)); }

std::string Capture(const RouteCall& call, const char* name) {
  const auto it = call.captures.find(name);
  return it == call.captures.end() ? std::string() : it->second;
}

// The model of the path, or an error reply.
StatusOr<serve::ModelStatus> ModelOf(FrontEnd* front_end, const RouteCall& call) {
  return front_end->FindModel(Capture(call, "m"), Capture(call, "v"));
}

// A handler owns its call: those that answer later keep it.
// NOLINTBEGIN(performance-unnecessary-value-param)

void Live(FrontEnd* front_end, RouteCall call) {
  const bool live = front_end->server().Live();
  ReplyJson(call, {{"live", live}, {"ready", front_end->Ready()}}, live ? 200 : 400);
}

void Ready(FrontEnd* front_end, RouteCall call) {
  const bool ready = front_end->Ready();
  ReplyJson(call, {{"live", front_end->server().Live()}, {"ready", ready}}, ready ? 200 : 400);
}

void ServerMetadata(FrontEnd*, RouteCall call) {
  ReplyJson(call, {{"name", kServerName}, {"version", kServerVersion}, {"extensions", ServerExtensions()}});
}

void ModelReady(FrontEnd* front_end, RouteCall call) {
  const StatusOr<serve::ModelStatus> model = ModelOf(front_end, call);
  if (!model.ok()) return call.reply(ErrorResponse(model.status()));
  const bool ready = front_end->Ready() && IsReady(*model);
  Json body = {{"name", model->name}, {"ready", ready}};
  if (!ready) body["error"] = model->reason.empty() ? "the model is not ready" : model->reason;
  ReplyJson(call, body, ready ? 200 : 400);
}

Json TensorsJson(const std::vector<serve::TensorMetadata>& tensors) {
  Json array = Json::array();
  for (const serve::TensorMetadata& tensor : tensors) {
    array.push_back({{"name", tensor.name}, {"datatype", InferenceName(tensor.datatype)}, {"shape", tensor.shape}});
  }
  return array;
}

void ModelMetadata(FrontEnd* front_end, RouteCall call) {
  const StatusOr<serve::ModelStatus> model = ModelOf(front_end, call);
  if (!model.ok()) return call.reply(ErrorResponse(model.status()));
  ReplyJson(call, {{"name", model->name},
                   {"versions", model->versions},
                   {"platform", model->platform},
                   {"inputs", TensorsJson(model->inputs)},
                   {"outputs", TensorsJson(model->outputs)}});
}

void ModelConfig(FrontEnd* front_end, RouteCall call) {
  const StatusOr<serve::ModelStatus> model = ModelOf(front_end, call);
  if (!model.ok()) return call.reply(ErrorResponse(model.status()));
  const auto tensors = [](const std::vector<serve::TensorMetadata>& list) {
    Json array = Json::array();
    for (const serve::TensorMetadata& tensor : list) {
      const std::string_view datatype = InferenceName(tensor.datatype);
      // Dimensions of a configuration leave the batch out.
      const size_t skip = tensor.shape.empty() || tensor.shape[0] != -1 ? 0 : 1;
      array.push_back({{"name", tensor.name},
                       {"data_type", fmt::format("TYPE_{}", datatype == "BYTES" ? "STRING" : datatype)},
                       {"dims", std::vector<int64_t>(tensor.shape.begin() + static_cast<ptrdiff_t>(skip), tensor.shape.end())}});
    }
    return array;
  };
  ReplyJson(call, {{"name", model->name},
                   {"platform", model->platform},
                   {"backend", kServerName},
                   {"max_batch_size", model->max_batch_size},
                   {"input", tensors(model->inputs)},
                   {"output", tensors(model->outputs)},
                   {"parameters",
                    {{"family", model->family},
                     {"spec", model->spec},
                     {"slo_seconds", absl::ToDoubleSeconds(model->slo)},
                     {"solo_latency_seconds", absl::ToDoubleSeconds(model->solo_latency)}}}});
}

Json StatsJson(const serve::ModelStatus& model, absl::Time now) {
  const auto duration = [](int64_t count, absl::Duration total) {
    return Json{{"count", count}, {"ns", absl::ToInt64Nanoseconds(total)}};
  };
  return {{"name", model.name},
          {"version", model.versions.empty() ? "" : model.versions.back()},
          {"state", serve::Name(model.state)},
          {"last_inference", model.requests > 0 ? absl::ToUnixMillis(now - model.last_used_ago) : 0},
          {"inference_count", model.batched_requests},
          {"execution_count", model.executions},
          {"inference_stats",
           {{"success", duration(model.requests - model.failures, model.queue_time + model.compute_time)},
            {"fail", duration(model.failures, absl::ZeroDuration())},
            {"queue", duration(model.requests, model.queue_time)},
            {"compute_infer", duration(model.executions, model.compute_time)}}},
          {"rejected", model.rejected},
          {"within_slo", model.within_slo},
          {"loads", duration(model.loads, model.load_time)},
          {"evictions", model.evictions},
          {"weight_bytes", model.weight_bytes},
          {"resident_bytes", model.resident_bytes}};
}

void ModelStats(FrontEnd* front_end, RouteCall call) {
  Json stats = Json::array();
  if (call.captures.contains("m")) {
    const StatusOr<serve::ModelStatus> model = ModelOf(front_end, call);
    if (!model.ok()) return call.reply(ErrorResponse(model.status()));
    stats.push_back(StatsJson(*model, front_end->clock().Now()));
  } else {
    for (const serve::ModelStatus& model : front_end->server().Models())
      stats.push_back(StatsJson(model, front_end->clock().Now()));
  }
  ReplyJson(call, {{"model_stats", std::move(stats)}});
}

StatusOr<DecodedJson> DecodeCall(FrontEnd* front_end, const RouteCall& call) {
  TIDEPOOL_RETURN_IF_ERROR(front_end->CheckOpen());
  const HttpRequest& request = call.request;
  std::optional<int64_t> json_length;
  if (request.inference_header_length.has_value()) {
    const std::string& text = *request.inference_header_length;
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0) {
      return InvalidArgument("Inference-Header-Content-Length is '{}'; allowed: 0 to the size of the body, {}", text,
                             request.body.size());
    }
    json_length = value;
  }
  return DecodeInferBody(request.body, json_length, front_end->options().max_json_bytes);
}

HttpResponse EncodeAnswer(const serve::InferResponse& response, const OutputForms& forms) {
  StatusOr<EncodedJson> encoded = EncodeInferBody(response, forms);
  if (!encoded.ok()) return ErrorResponse(encoded.status());
  HttpResponse http = JsonResponse(std::move(encoded->body));
  if (encoded->json_length.has_value()) {
    http.content_type = "application/octet-stream";
    http.headers.emplace_back("Inference-Header-Content-Length", fmt::format("{}", *encoded->json_length));
  }
  return http;
}

void Infer(FrontEnd* front_end, RouteCall call) {
  const absl::Time started = front_end->clock().Now();
  const std::string& encoding = call.request.content_encoding;
  if (!encoding.empty() && encoding != "identity") {
    return call.reply(
        JsonResponse(ErrorBody(fmt::format("Content-Encoding '{}' is not supported; allowed: identity", encoding)), 415));
  }
  StatusOr<DecodedJson> decoded = DecodeCall(front_end, call);
  const std::string model = Capture(call, "m");
  if (!decoded.ok()) {
    front_end->Record("rest", model, decoded.status(), started);
    return call.reply(ErrorResponse(decoded.status()));
  }
  decoded->request.model = model;
  decoded->request.version = Capture(call, "v");
  decoded->request.deadline = front_end->DeadlineAfter(decoded->timeout);
  auto done = [front_end, model, started, forms = std::move(decoded->forms),
               reply = call.reply](StatusOr<serve::InferResponse> response) {
    front_end->Record("rest", model, response.status(), started);
    if (!response.ok()) return reply(ErrorResponse(response.status()));
    // Serve's thread must not spend its time on writing numbers.
    auto answer = std::make_shared<const serve::InferResponse>(*std::move(response));
    reply({.make = [answer = std::move(answer), forms] { return EncodeAnswer(*answer, forms); }});
  };
  call.cancel->Set(front_end->server().Infer(std::move(decoded->request), std::move(done)));
}

// Runs `work` where it may block.
void OnAdmin(FrontEnd* front_end, RouteCall call, std::function<HttpResponse(const RouteCall&)> work) {
  front_end->admin().Submit([call = std::move(call), work = std::move(work)](const Status& admitted) {
    call.reply(admitted.ok() ? work(call) : ErrorResponse(admitted));
  });
}

// Bodies of repository calls are optional JSON objects.
StatusOr<Json> OptionalObject(const HttpRequest& request) {
  if (TrimText(request.body).empty()) return Json::object();
  Json json = Json::parse(request.body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("the body is not a JSON object; allowed: none, or an object");
  return json;
}

void RepositoryIndex(FrontEnd* front_end, RouteCall call) {
  const StatusOr<Json> body = OptionalObject(call.request);
  if (!body.ok()) return call.reply(ErrorResponse(body.status()));
  const auto ready = body->find("ready");
  if (ready != body->end() && !ready->is_boolean()) {
    return call.reply(ErrorResponse(InvalidArgument("\"ready\" is of type {}; allowed: true, false", ready->type_name())));
  }
  const bool only_ready = ready != body->end() && ready->get<bool>();
  OnAdmin(front_end, std::move(call), [front_end, only_ready](const RouteCall&) {
    const Status scanned = front_end->server().Rescan();
    if (!scanned.ok()) return ErrorResponse(scanned);
    Json index = Json::array();
    for (const serve::ModelStatus& model : front_end->server().Models()) {
      if (only_ready && !IsReady(model)) continue;
      Json entry = {{"name", model.name}, {"state", IndexState(model)}, {"resident", model.resident_bytes > 0}};
      if (!model.versions.empty()) entry["version"] = model.versions.back();
      if (!model.reason.empty()) entry["reason"] = model.reason;
      index.push_back(std::move(entry));
    }
    return JsonResponse(Dump(index));
  });
}

void RepositoryLoad(FrontEnd* front_end, RouteCall call) {
  const StatusOr<Json> body = OptionalObject(call.request);
  if (!body.ok()) return call.reply(ErrorResponse(body.status()));
  OnAdmin(front_end, std::move(call), [front_end](const RouteCall& admitted) {
    const Status loaded = LoadModel(front_end, Capture(admitted, "m"));
    return loaded.ok() ? JsonResponse("{}") : ErrorResponse(loaded);
  });
}

void RepositoryUnload(FrontEnd* front_end, RouteCall call) {
  const StatusOr<Json> body = OptionalObject(call.request);
  if (!body.ok()) return call.reply(ErrorResponse(body.status()));
  OnAdmin(front_end, std::move(call), [front_end](const RouteCall& admitted) {
    const StatusOr<int64_t> freed = front_end->server().Unload(Capture(admitted, "m"), front_end->AdminDeadline());
    return freed.ok() ? JsonResponse(fmt::format("{{\"freed_bytes\":{}}}", *freed)) : ErrorResponse(freed.status());
  });
}

void ScrapeMetrics(FrontEnd* front_end, RouteCall call) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = RenderMetrics(&front_end->server(), front_end->brokers(),
                                {.triton_names = front_end->options().metrics_compat == "triton"});
  call.reply(std::move(response));
}

void StatusPage(FrontEnd* front_end, RouteCall call) {
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.body = RenderStatusPage(front_end);
  call.reply(std::move(response));
}

void NodeStatus(FrontEnd* front_end, RouteCall call) { call.reply(JsonResponse(front_end->options().status_json())); }

// NOLINTEND(performance-unnecessary-value-param)

struct RestRoute {
  const char* method;
  const char* pattern;
  const char* summary;
  Handler handler;
};

const RestRoute kRestRoutes[] = {
    {"GET", "/v2/health/live", "whether the process lives", Live},
    {"GET", "/v2/health/ready", "whether requests are taken", Ready},
    {"GET", "/v2", "name, version and extensions of the server", ServerMetadata},
    {"GET", "/v2/models/stats", "statistics of every model", ModelStats},
    {"GET", "/v2/models/{m}", "inputs, outputs and versions of a model", ModelMetadata},
    {"GET", "/v2/models/{m}/versions/{v}", "the same, of one version", ModelMetadata},
    {"GET", "/v2/models/{m}/ready", "whether a model can be asked", ModelReady},
    {"GET", "/v2/models/{m}/versions/{v}/ready", "the same, of one version", ModelReady},
    {"GET", "/v2/models/{m}/config", "configuration of a model", ModelConfig},
    {"GET", "/v2/models/{m}/versions/{v}/config", "the same, of one version", ModelConfig},
    {"GET", "/v2/models/{m}/stats", "statistics of a model", ModelStats},
    {"GET", "/v2/models/{m}/versions/{v}/stats", "the same, of one version", ModelStats},
    {"POST", "/v2/models/{m}/infer", "inference", Infer},
    {"POST", "/v2/models/{m}/versions/{v}/infer", "the same, with one version", Infer},
    {"POST", "/v2/repository/index", "reads the repository again and lists its models", RepositoryIndex},
    {"POST", "/v2/repository/models/{m}/load", "makes a model resident", RepositoryLoad},
    {"POST", "/v2/repository/models/{m}/unload", "frees a model's device memory", RepositoryUnload},
    {"GET", "/metrics", "metrics for Prometheus", ScrapeMetrics},
    {"GET", "/", "a page with the state of the server", StatusPage},
};

}  // namespace

Router MakeRestRouter(FrontEnd* front_end) {
  Router router;
  if (front_end->options().status_json) {
    router.Add("GET", "/v2/tidepool/status", "state of the whole node: memory, tenants, models, training",
               [front_end](RouteCall call) { NodeStatus(front_end, std::move(call)); });
  }
  for (const RestRoute& route : kRestRoutes) {
    router.Add(route.method, route.pattern, route.summary,
               [front_end, handler = route.handler](RouteCall call) { handler(front_end, std::move(call)); });
  }
  if (front_end->options().status_json) {
    router.Add("GET", "/v2/tidepool/status", "state of the whole node", [front_end](RouteCall call) {
      OnAdmin(front_end, std::move(call),
              [front_end](const RouteCall&) { return JsonResponse(front_end->options().status_json()); });
    });
  }
  return router;
}

Router MakeMetricsRouter(FrontEnd* front_end) {
  Router router;
  router.Add("GET", "/metrics", "metrics for Prometheus",
             [front_end](RouteCall call) { ScrapeMetrics(front_end, std::move(call)); });
  return router;
}

}  // namespace tidepool::api
