#include "api/http_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;

TEST(HttpClient, ReadsStatusHeadersAndBody) {
  const auto answer =
      ParseHttpAnswer("HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-LENGTH: 2\r\n\r\n{}trailing");
  ASSERT_TRUE(answer.ok()) << ToString(answer.status());
  EXPECT_EQ(answer->status, 404);
  EXPECT_EQ(answer->headers.at("content-type"), "application/json");
  EXPECT_EQ(answer->body, "{}");
}

TEST(HttpClient, ReadsAChunkedBody) {
  const auto answer =
      ParseHttpAnswer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n");
  ASSERT_TRUE(answer.ok()) << ToString(answer.status());
  EXPECT_EQ(answer->body, "abc0123456789");
}

TEST(HttpClient, RefusesAnswersThatAreBrokenOrCutShort) {
  const std::pair<const char*, const char*> cases[] = {
      {"SSH-2.0-x\r\n\r\n", "not HTTP/1"},
      {"HTTP/1.1 200 OK\r\n", "not HTTP/1"},
      {"HTTP/1.1 abc\r\n\r\n", "no status"},
      {"HTTP/1.1 200 OK\r\nbroken\r\n\r\n", "broken header line"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "ended after 3 of 10 bytes"},
      {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc", "the length '-1'"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab", "ends within a chunk"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broken chunk"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "'gzip'"},
  };
  for (const auto& [text, message] : cases) {
    const auto answer = ParseHttpAnswer(text);
    ASSERT_FALSE(answer.ok()) << text;
    EXPECT_THAT(MessageOf(answer.status()), HasSubstr(message));
  }
}

TEST(HttpClient, NamesTheUrlOrThePlaceThatIsWrong) {
  for (const char* url : {"ftp://x", "http://", "http://a:b/", "http://127.0.0.1:80/a b"}) {
    const auto answer = CallHttp({.url = url});
    EXPECT_TRUE(absl::IsInvalidArgument(answer.status())) << url;
    EXPECT_THAT(MessageOf(answer.status()), HasSubstr(url));
  }
  // Port 1 is reserved and nobody listens there.
  const auto nobody = CallHttp({.url = "http://127.0.0.1:1/", .timeout = absl::Seconds(5)});
  EXPECT_TRUE(absl::IsUnavailable(nobody.status())) << ToString(nobody.status());
  EXPECT_THAT(MessageOf(nobody.status()), HasSubstr("127.0.0.1:1"));
}

}  // namespace
}  // namespace tidepool::api
