#include "api/http.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;

class RouterTest : public ::testing::Test {
 protected:
  RouterTest() {
    for (const char* pattern : {"/", "/v2", "/v2/models/stats", "/v2/models/{m}", "/v2/models/{m}/versions/{v}"}) {
      router_.Add("GET", pattern, "", [pattern](RouteCall call) {
        std::string text = pattern;
        for (const auto& [name, value] : call.captures) text += " " + name + "=" + value;
        call.reply(JsonResponse(text));
      });
    }
    router_.Add("POST", "/v2/models/{m}", "", [](RouteCall call) { call.reply(JsonResponse("posted")); });
  }
  HttpResponse Ask(const std::string& method, const std::string& target) {
    HttpResponse answer{.status = 0};
    router_.Handle({.method = method, .target = target}, [&](HttpResponse response) { answer = std::move(response); });
    return answer;
  }
  Router router_;
};

TEST_F(RouterTest, PrefersALiteralAndDecodesCaptures) {
  EXPECT_EQ(Ask("GET", "/").body, "/");
  EXPECT_EQ(Ask("GET", "/v2?x=1").body, "/v2");
  EXPECT_EQ(Ask("GET", "/v2/").body, "/v2");
  EXPECT_EQ(Ask("GET", "/v2/models/stats").body, "/v2/models/stats");
  EXPECT_EQ(Ask("GET", "/v2/models/a%2Fb%20c").body, "/v2/models/{m} m=a/b c");
  EXPECT_EQ(Ask("GET", "/v2/models/a/versions/2").body, "/v2/models/{m}/versions/{v} m=a v=2");
  EXPECT_EQ(Ask("POST", "/v2/models/a").body, "posted");
}

TEST_F(RouterTest, ListsWhatThereIsForAnUnknownPath) {
  const HttpResponse answer = Ask("GET", "/v1/models");
  EXPECT_EQ(answer.status, 404);
  EXPECT_THAT(answer.body, HasSubstr("no route for '/v1/models'; there are: GET /, GET /v2"));
  EXPECT_EQ(Ask("GET", "/v2/models//versions/1").status, 404);
  EXPECT_EQ(Ask("GET", "").status, 404);
}

TEST_F(RouterTest, NamesTheMethodsOfAKnownPath) {
  const HttpResponse answer = Ask("DELETE", "/v2/models/a");
  EXPECT_EQ(answer.status, 405);
  EXPECT_THAT(answer.body, HasSubstr("method DELETE is not allowed for '/v2/models/a'; allowed: GET, POST"));
  ASSERT_EQ(answer.headers.size(), 1u);
  EXPECT_EQ(answer.headers[0], (std::pair<std::string, std::string>("Allow", "GET, POST")));
}

TEST_F(RouterTest, RefusesBrokenEscapes) {
  for (const char* target : {"/v2/models/a%", "/v2/models/a%2", "/v2/models/a%zz", "/v2/models/a%-1", "/v2/models/a%00"}) {
    EXPECT_EQ(Ask("GET", target).status, 400) << target;
  }
}

TEST(ErrorResponse, SaysWhenToTryAgain) {
  const HttpResponse full = ErrorResponse(ResourceExhausted("queue full"));
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(full.body, R"({"error":"queue full"})");
  ASSERT_EQ(full.headers.size(), 1u);
  EXPECT_EQ(full.headers[0].first, "Retry-After");
  EXPECT_TRUE(ErrorResponse(NotFound("x")).headers.empty());
}

}  // namespace
}  // namespace tidepool::api
