#include "api/http.h"

#include <cctype>
#include <charconv>

#include "api/json_codec.h"
#include "base/text.h"

namespace tidepool::api {
namespace {

bool Matches(const std::vector<std::string>& pattern, const std::vector<std::string>& path) {
  if (pattern.size() != path.size()) return false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const bool capture = pattern[i].starts_with('{');
    if (capture ? path[i].empty() : pattern[i] != path[i]) return false;
  }
  return true;
}

}  // namespace

HttpResponse JsonResponse(std::string body, int status) { return {.status = status, .body = std::move(body)}; }

HttpResponse ErrorResponse(const Status& status) {
  HttpResponse response = JsonResponse(ErrorBody(MessageOf(status)), HttpStatusOf(status.code()));
  if (response.status == 429 || response.status == 503) response.headers.emplace_back("Retry-After", "1");
  return response;
}

void Router::Add(std::string method, std::string pattern, std::string summary, Handler handler) {
  std::vector<std::string> segments = SplitText(pattern, '/');
  routes_.push_back({std::move(method), std::move(pattern), std::move(summary), std::move(segments), std::move(handler)});
}

std::shared_ptr<CancelSlot> Router::Handle(HttpRequest request, HttpReply reply) const {
  const std::string_view raw = std::string_view(request.target).substr(0, request.target.find('?'));
  std::vector<std::string> path;
  for (const std::string& segment : SplitText(raw, '/')) {
    StatusOr<std::string> decoded = PercentDecode(segment);
    if (!decoded.ok()) {
      reply(ErrorResponse(decoded.status()));
      return nullptr;
    }
    path.push_back(*std::move(decoded));
  }
  if (path.size() > 2 && path.back().empty()) path.pop_back();  // a trailing slash changes nothing

  std::string allowed;
  for (const Route& route : routes_) {
    if (!Matches(route.segments, path)) continue;
    if (route.method != request.method) {
      allowed += (allowed.empty() ? "" : ", ") + route.method;
      continue;
    }
    RouteCall call{.request = std::move(request), .cancel = std::make_shared<CancelSlot>(), .reply = std::move(reply)};
    for (size_t i = 0; i < path.size(); ++i) {
      const std::string& name = route.segments[i];
      if (name.starts_with('{')) call.captures[name.substr(1, name.size() - 2)] = path[i];
    }
    std::shared_ptr<CancelSlot> cancel = call.cancel;
    route.handler(std::move(call));
    return cancel;
  }
  if (!allowed.empty()) {
    HttpResponse response = JsonResponse(
        ErrorBody(fmt::format("method {} is not allowed for '{}'; allowed: {}", request.method, std::string(raw), allowed)), 405);
    response.headers.emplace_back("Allow", allowed);
    reply(std::move(response));
    return nullptr;
  }
  std::vector<std::string> known;
  for (const Route& route : routes_) known.push_back(route.method + " " + route.pattern);
  reply(JsonResponse(ErrorBody(fmt::format("no route for '{}'; there are: {}", std::string(raw), JoinText(known, ", "))), 404));
  return nullptr;
}

StatusOr<std::string> PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      unsigned value = 0;
      const char* begin = text.data() + i + 1;
      const bool whole = text.size() - i > 2 && std::isxdigit(static_cast<unsigned char>(begin[0])) != 0;
      if (!whole || std::from_chars(begin, begin + 2, value, 16).ptr != begin + 2) {
        return InvalidArgument("the path has a '%' that two hexadecimal digits do not follow");
      }
      c = static_cast<char>(value);
      i += 2;
    }
    if (c == '\0') return InvalidArgument("the path has a NUL character");
    out.push_back(c);
  }
  return out;
}

}  // namespace tidepool::api
