#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "api/api.h"
#include "api/http_client.h"
#include "api/testing/fake_server.h"
#include "base/fd.h"
#include "base/json.h"

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;

constexpr absl::Duration kPatience = absl::Seconds(30);

// A client that sends exactly the bytes it is told to.
class RawClient {
 public:
  explicit RawClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  void Send(const std::string& bytes) {
    EXPECT_EQ(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  // Everything until the server closes; fails the test if it does not within kPatience.
  std::string ReadToEnd() {
    std::string all;
    char buffer[4096];
    while (true) {
      pollfd entry{.fd = fd_.get(), .events = POLLIN};
      if (::poll(&entry, 1, static_cast<int>(absl::ToInt64Milliseconds(kPatience))) != 1) {
        ADD_FAILURE() << "the server kept the connection open after: " << all;
        return all;
      }
      const ssize_t bytes = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
      if (bytes <= 0) return all;
      all.append(buffer, static_cast<size_t>(bytes));
    }
  }
  void Close() { fd_.reset(); }

 private:
  UniqueFd fd_;
};

class RestServer : public ::testing::Test {
 protected:
  void SetUp() override { Start({}); }
  void Start(ApiOptions options) {
    api_.reset();
    options.http_port = 0;
    options.grpc_port = -1;
    options.metrics_port = 0;
    StatusOr<std::unique_ptr<Api>> api = Api::Start(&server_, {}, options);
    ASSERT_TRUE(api.ok()) << ToString(api.status());
    api_ = *std::move(api);
  }
  HttpAnswer Call(const std::string& method, const std::string& path, const std::string& body = "",
                  std::vector<std::pair<std::string, std::string>> headers = {}) {
    StatusOr<HttpAnswer> answer = CallHttp(
        {.url = api_->http_url() + path, .method = method, .headers = std::move(headers), .body = body, .timeout = kPatience});
    EXPECT_TRUE(answer.ok()) << ToString(answer.status());
    return answer.ok() ? *answer : HttpAnswer{};
  }
  Json CallJson(const std::string& method, const std::string& path, const std::string& body = "", int status = 200) {
    const HttpAnswer answer = Call(method, path, body);
    EXPECT_EQ(answer.status, status) << answer.body;
    return Json::parse(answer.body, nullptr, false);
  }
  std::string ErrorOf(const std::string& path, const std::string& body, int status) {
    const Json json = CallJson("POST", path, body, status);
    return json.is_object() && json.contains("error") ? json["error"].get<std::string>() : json.dump();
  }
  void ExpectStillServing() { EXPECT_EQ(CallJson("POST", "/v2/models/scale/infer", kScale)["outputs"][0]["data"][0], 2); }

  static constexpr char kScale[] = R"({"id":"a","inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4.5]}]})";
  FakeServer server_;
  std::unique_ptr<Api> api_;
};

TEST_F(RestServer, AnswersHealthMetadataAndConfiguration) {
  EXPECT_EQ(CallJson("GET", "/v2/health/live"), (Json{{"live", true}, {"ready", true}}));
  EXPECT_EQ(CallJson("GET", "/v2/health/ready"), (Json{{"live", true}, {"ready", true}}));
  const Json server = CallJson("GET", "/v2");
  EXPECT_EQ(server["name"], "tidepool");
  EXPECT_THAT(server["extensions"].dump(), HasSubstr("binary_tensor_data"));
  const Json model = CallJson("GET", "/v2/models/scale");
  EXPECT_EQ(model["versions"], (Json{"1", "2"}));
  EXPECT_EQ(model["platform"], "tidepool_graph");
  EXPECT_EQ(model["inputs"][0], (Json{{"name", "x"}, {"datatype", "FP32"}, {"shape", {-1, 4}}}));
  EXPECT_EQ(CallJson("GET", "/v2/models/scale/versions/1")["name"], "scale");
  const Json config = CallJson("GET", "/v2/models/text/config");
  EXPECT_EQ(config["max_batch_size"], 8);
  EXPECT_EQ(config["input"][0], (Json{{"name", "text"}, {"data_type", "TYPE_STRING"}, {"dims", {1}}}));
  EXPECT_EQ(CallJson("GET", "/v2/models/scale/ready")["ready"], true);
  const Json broken = CallJson("GET", "/v2/models/broken/ready", "", 400);
  EXPECT_EQ(broken["ready"], false);
  EXPECT_THAT(broken["error"].get<std::string>(), HasSubstr("'nonsense' is not known"));
}

TEST_F(RestServer, TurnsUnreadyWhileDraining) {
  api_->BeginDrain();
  EXPECT_EQ(CallJson("GET", "/v2/health/ready", "", 400)["ready"], false);
  EXPECT_EQ(CallJson("GET", "/v2/health/live")["live"], true);
  const HttpAnswer refused = Call("POST", "/v2/models/scale/infer", kScale);
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.body, HasSubstr("the server is draining"));
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
}

TEST_F(RestServer, InfersFromJson) {
  const Json answer = CallJson("POST", "/v2/models/scale/infer", kScale);
  EXPECT_EQ(answer["id"], "a");
  EXPECT_EQ(answer["model_name"], "scale");
  EXPECT_EQ(answer["model_version"], "2");
  EXPECT_EQ(answer["outputs"][0], (Json{{"name", "y"}, {"datatype", "FP32"}, {"shape", {1, 4}}, {"data", {2.0, 4.0, 6.0, 9.0}}}));
  EXPECT_EQ(CallJson("POST", "/v2/models/scale/versions/1/infer", kScale)["model_version"], "1");
  const Json text = CallJson("POST", "/v2/models/text/infer",
                             R"({"inputs":[{"name":"text","datatype":"BYTES","shape":[2,1],"data":[["ab"],["c"]]}]})");
  EXPECT_EQ(text["outputs"][0]["data"], (Json{"AB", "C"}));
}

TEST_F(RestServer, InfersFromBinaryTensors) {
  const float values[] = {1, 2, 3, 4};
  const std::string json = R"({"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}],)"
                           R"("outputs":[{"name":"y","parameters":{"binary_data":true}}]})";
  const std::string body = json + std::string(reinterpret_cast<const char*>(values), sizeof(values));
  const HttpAnswer answer =
      Call("POST", "/v2/models/scale/infer", body, {{"Inference-Header-Content-Length", std::to_string(json.size())}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.headers.at("content-type"), "application/octet-stream");
  const size_t length = std::stoul(answer.headers.at("inference-header-content-length"));
  const Json head = Json::parse(answer.body.substr(0, length));
  EXPECT_EQ(head["outputs"][0]["parameters"]["binary_data_size"], 16);
  const float doubled[] = {2, 4, 6, 8};
  EXPECT_EQ(answer.body.substr(length), std::string(reinterpret_cast<const char*>(doubled), sizeof(doubled)));
}

TEST_F(RestServer, GivesRequestsADeadline) {
  CallJson("POST", "/v2/models/scale/infer", kScale);
  EXPECT_LT(server_.last_deadline(), Clock::Real()->Now() + absl::Seconds(31));
  CallJson("POST", "/v2/models/scale/infer",
           R"({"parameters":{"timeout":3600000000},"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]})");
  EXPECT_GT(server_.last_deadline(), Clock::Real()->Now() + absl::Minutes(50));
}

TEST_F(RestServer, ControlsTheRepository) {
  const Json index = CallJson("POST", "/v2/repository/index");
  EXPECT_EQ(index.size(), 8u);
  EXPECT_EQ(index[0]["name"], "broken");
  EXPECT_EQ(index[0]["state"], "UNAVAILABLE");
  EXPECT_EQ(CallJson("POST", "/v2/repository/index", R"({"ready":true})").size(), 7u);
  EXPECT_EQ(CallJson("POST", "/v2/repository/models/scale/unload")["freed_bytes"], 1 << 20);
  EXPECT_EQ(CallJson("POST", "/v2/repository/models/scale/load", "{}"), Json::object());
  EXPECT_THAT(ErrorOf("/v2/repository/models/nothing/load", "", 404), HasSubstr("model 'nothing' is not in the repository"));
  EXPECT_THAT(ErrorOf("/v2/repository/models/broken/load", "", 412), HasSubstr("cannot be served"));
  EXPECT_THAT(ErrorOf("/v2/repository/index", "[]", 400), HasSubstr("the body is not a JSON object"));
  EXPECT_THAT(ErrorOf("/v2/repository/index", R"({"ready":1})", 400), HasSubstr("\"ready\" is of type number"));
}

TEST_F(RestServer, CountsInStatisticsAndMetrics) {
  for (int i = 0; i < 3; ++i) CallJson("POST", "/v2/models/scale/infer", kScale);
  const Json stats = CallJson("GET", "/v2/models/scale/stats")["model_stats"][0];
  EXPECT_EQ(stats["inference_count"], 3);
  EXPECT_EQ(stats["inference_stats"]["success"]["count"], 3);
  EXPECT_EQ(CallJson("GET", "/v2/models/stats")["model_stats"].size(), 8u);
  const HttpAnswer metrics = Call("GET", "/metrics");
  EXPECT_THAT(metrics.headers.at("content-type"), StartsWith("text/plain"));
  EXPECT_THAT(metrics.body, HasSubstr("tidepool_requests_total{model=\"scale\"} 3"));
  EXPECT_THAT(metrics.body, Not(HasSubstr("nv_inference")));
  const StatusOr<HttpAnswer> own_port = CallHttp({.url = api_->metrics_url()});
  ASSERT_TRUE(own_port.ok());
  EXPECT_THAT(own_port->body, HasSubstr("tidepool_requests_total{model=\"scale\"} 3"));
  Start({.metrics_compat = "triton"});
  EXPECT_THAT(Call("GET", "/metrics").body, HasSubstr("nv_inference_request_success{model=\"scale\",version=\"2\"} 3"));
}

TEST_F(RestServer, ShowsAPageAndTheNodesStatus) {
  const HttpAnswer page = Call("GET", "/");
  EXPECT_THAT(page.headers.at("content-type"), StartsWith("text/html"));
  EXPECT_THAT(page.body, HasSubstr("<td>scale</td>"));
  EXPECT_EQ(Call("GET", "/v2/tidepool/status").status, 404);
  Start({.status_json = [] { return std::string(R"({"mode":"colocate"})"); }});
  EXPECT_EQ(CallJson("GET", "/v2/tidepool/status")["mode"], "colocate");
}

TEST_F(RestServer, RefusesMalformedRequestsAndStaysUp) {
  const std::string infer = "/v2/models/scale/infer";
  EXPECT_THAT(ErrorOf(infer, "{", 400), HasSubstr("the request is not JSON"));
  EXPECT_THAT(ErrorOf(infer, "", 400), HasSubstr("the request is not JSON"));
  EXPECT_THAT(ErrorOf(infer, R"({"inputs":[]})", 400), HasSubstr("got 0 inputs; allowed: 1"));
  EXPECT_THAT(ErrorOf(infer, R"({"inputs":[{"name":"z","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]})", 400),
              HasSubstr("has no input 'z'; it has: x"));
  EXPECT_THAT(ErrorOf(infer, R"({"inputs":[{"name":"x","datatype":"INT32","shape":[1,4],"data":[1,2,3,4]}]})", 400),
              HasSubstr("is of type INT32; allowed: FP32"));
  EXPECT_THAT(ErrorOf(infer, R"({"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]})", 400),
              HasSubstr("has shape [1,3]; allowed: [-1,4]"));
  EXPECT_THAT(ErrorOf(infer, R"({"inputs":[{"name":"x","datatype":"FP32","shape":[-1,-4],"data":[1,2,3,4]}]})", 400),
              HasSubstr("allowed: dimensions of 0 and above"));
  EXPECT_THAT(
      ErrorOf(infer, R"({"inputs":[{"name":"x","datatype":"FP32","shape":[4611686018427387904,4611686018427387904],"data":[]}]})",
              400),
      HasSubstr("which is more than"));
  EXPECT_THAT(ErrorOf("/v2/models/none/infer", kScale, 404), HasSubstr("model 'none' is not in the repository"));
  EXPECT_THAT(ErrorOf("/v2/models/scale/versions/9/infer", kScale, 404), HasSubstr("has no version '9'"));
  EXPECT_THAT(ErrorOf("/v2/models/broken/infer", kScale, 412), HasSubstr("cannot be served"));
  for (const char* length : {"-1", "999999", "x", "1e3", "99999999999999999999999", ""}) {
    const HttpAnswer answer = Call("POST", infer, kScale, {{"Inference-Header-Content-Length", length}});
    EXPECT_EQ(answer.status, 400) << length;
    EXPECT_THAT(answer.body, HasSubstr("Inference-Header-Content-Length is")) << length;
  }
  EXPECT_EQ(Call("POST", infer, kScale, {{"Content-Encoding", "gzip"}}).status, 415);
  ExpectStillServing();
}

TEST_F(RestServer, SaysWhenToComeBackIfAQueueIsFull) {
  const HttpAnswer full = Call("POST", "/v2/models/full/infer", kScale);
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(full.headers.at("retry-after"), "1");
  EXPECT_THAT(full.body, HasSubstr("the queue of model 'full' has 256 requests"));
}

TEST_F(RestServer, RefusesWrongPathsAndMethods) {
  const HttpAnswer unknown = Call("GET", "/v3");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_THAT(unknown.body, HasSubstr("POST /v2/models/{m}/infer"));
  const HttpAnswer wrong = Call("GET", "/v2/models/scale/infer");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "POST");
}

TEST_F(RestServer, RefusesBodiesAboveItsLimit) {
  Start({.max_message_bytes = 1 << 20});
  const HttpAnswer large = Call("POST", "/v2/models/scale/infer", std::string((1 << 20) + 1, ' '));
  EXPECT_EQ(large.status, 413);
  EXPECT_THAT(large.body, HasSubstr("the body is larger than 1048576 bytes"));
  RawClient chunked(api_->http_port());
  chunked.Send("POST /v2/models/scale/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n");
  chunked.Send(std::string(0x200000, ' ') + "\r\n0\r\n\r\n");
  EXPECT_THAT(chunked.ReadToEnd(), StartsWith("HTTP/1.1 413"));
  ExpectStillServing();
}

TEST_F(RestServer, RefusesHeadersAboveItsLimit) {
  RawClient client(api_->http_port());
  client.Send("GET /v2 HTTP/1.1\r\nHost: x\r\nX-Long: " + std::string(40 << 10, 'a') + "\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), StartsWith("HTTP/1.1 431"));
  ExpectStillServing();
}

TEST_F(RestServer, RefusesWhatIsNotHttp) {
  for (const char* bytes :
       {"hello\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "POST /v2 HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        "POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "\x16\x03\x01\x02garbage of TLS\r\n\r\n"}) {
    RawClient client(api_->http_port());
    client.Send(bytes);
    EXPECT_THAT(client.ReadToEnd(), StartsWith("HTTP/1.1 400")) << bytes;
  }
  ExpectStillServing();
}

TEST_F(RestServer, DisconnectsClientsThatAreTooSlow) {
  Start({.header_timeout = absl::Milliseconds(100),
         .body_timeout = absl::Milliseconds(100),
         .idle_timeout = absl::Milliseconds(100)});
  RawClient idle(api_->http_port()), header(api_->http_port()), body(api_->http_port());
  header.Send("POST /v2/models/scale/infer HTTP/1.1\r\nHos");
  body.Send("POST /v2/models/scale/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
  idle.ReadToEnd();
  header.ReadToEnd();
  body.ReadToEnd();
  ExpectStillServing();
}

TEST_F(RestServer, KeepsAConnectionForSeveralRequests) {
  RawClient client(api_->http_port());
  client.Send(
      "GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nHEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
      "GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string all = client.ReadToEnd();
  size_t answers = 0;
  for (size_t at = all.find("HTTP/1.1 200"); at != std::string::npos; at = all.find("HTTP/1.1 200", at + 1)) ++answers;
  EXPECT_EQ(answers, 3u) << all;
  EXPECT_THAT(all, Not(HasSubstr("extensions"))) << "HEAD has no body";
}

TEST_F(RestServer, LimitsItsConnections) {
  Start({.max_connections = 2});
  RawClient first(api_->http_port()), second(api_->http_port());
  // A request on each makes sure that both are counted.
  for (RawClient* client : {&first, &second}) client->Send("GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n");
  RawClient third(api_->http_port());
  const std::string answer = third.ReadToEnd();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(answer, HasSubstr("connections already; allowed: 2"));
}

TEST_F(RestServer, CancelsTheRequestOfAClientThatLeaves) {
  RawClient client(api_->http_port());
  const std::string body = kScale;
  client.Send("POST /v2/models/held/infer HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
              body);
  ASSERT_TRUE(server_.WaitForHeld(1, kPatience));
  client.Close();
  EXPECT_TRUE(server_.WaitForCancelled(1, kPatience));
  ExpectStillServing();
}

TEST_F(RestServer, LetsRunningRequestsEndWhenItShutsDown) {
  HttpAnswer answer;
  std::thread client([&] { answer = Call("POST", "/v2/models/held/infer", kScale); });
  ASSERT_TRUE(server_.WaitForHeld(1, kPatience));
  std::thread shutdown([&] { api_->Shutdown(Clock::Real()->Now() + kPatience); });
  server_.Release();
  shutdown.join();
  client.join();
  EXPECT_EQ(answer.status, 200) << answer.body;
}

TEST_F(RestServer, CancelsWhatDoesNotEndInTime) {
  RawClient client(api_->http_port());
  const std::string body = kScale;
  client.Send("POST /v2/models/held/infer HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
              body);
  ASSERT_TRUE(server_.WaitForHeld(1, kPatience));
  api_->Shutdown(Clock::Real()->Now());
  EXPECT_TRUE(server_.WaitForCancelled(1, kPatience));
  EXPECT_EQ(client.ReadToEnd(), "");
  api_.reset();
}

TEST_F(RestServer, NamesThePortThatIsTaken) {
  ApiOptions options{.http_port = api_->http_port(), .grpc_port = -1, .metrics_port = -1};
  const StatusOr<std::unique_ptr<Api>> second = Api::Start(&server_, {}, options);
  EXPECT_EQ(second.status().code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(ToString(second.status()), HasSubstr("REST port " + std::to_string(api_->http_port())));
}

}  // namespace
}  // namespace tidepool::api
