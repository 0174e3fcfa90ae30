// Requests and answers of the HTTP front ends, and the table of routes that joins them. Nothing here knows sockets.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/cancel_slot.h"
#include "base/status.h"

namespace tidepool::api {

struct HttpRequest {
  std::string method;  // "GET"
  std::string target;  // path and query
  std::string body;
  std::optional<std::string> inference_header_length;  // Inference-Header-Content-Length
  std::string content_encoding;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  // If set, the server sends what this returns instead, and calls it on a thread of its own: for answers that are costly to
  // write, given by a thread that must not be held up.
  std::function<HttpResponse()> make;
};

HttpResponse JsonResponse(std::string body, int status = 200);
// {"error": text} with the HTTP status of the code; Retry-After where trying again later makes sense.
HttpResponse ErrorResponse(const Status& status);

// Called exactly once, on any thread.
using HttpReply = std::function<void(HttpResponse)>;
// What a handler gets; `captures` are the decoded path segments by name ("m" of "/v2/models/{m}").
struct RouteCall {
  HttpRequest request;
  std::map<std::string, std::string> captures;
  std::shared_ptr<CancelSlot> cancel;  // the client going away cancels what the handler puts in here
  HttpReply reply;
};

// Thread-compatible: routes are added first, then Handle may be called by many threads.
class Router {
 public:
  using Handler = std::function<void(RouteCall)>;
  // `pattern`: literal segments and "{name}", which takes any one segment that is not empty.
  void Add(std::string method, std::string pattern, std::string summary, Handler handler);

  // Unknown path: 404 with the list of routes. Known path, other method: 405 with Allow. Returns what a vanished client must
  // cancel.
  std::shared_ptr<CancelSlot> Handle(HttpRequest request, HttpReply reply) const;

  struct Route {
    std::string method, pattern, summary;
    std::vector<std::string> segments;
    Handler handler;
  };
  const std::vector<Route>& routes() const { return routes_; }

 private:
  std::vector<Route> routes_;
};

// "%2F" -> "/". INVALID_ARGUMENT for a broken escape or a NUL.
StatusOr<std::string> PercentDecode(std::string_view text);

}  // namespace tidepool::api
