#include "api/listen_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/api.h"

namespace tidepool::api {
namespace {

using ::testing::HasSubstr;

TEST(ListenAddress, KnowsLoopbackAddresses) {
  for (const char* ip : {"127.0.0.1", "127.8.0.1", "::1"}) EXPECT_TRUE(IsLoopback(ip)) << ip;
  for (const char* ip : {"0.0.0.0", "10.0.0.1", "::", "fe80::1", "128.0.0.1"}) EXPECT_FALSE(IsLoopback(ip)) << ip;
}

TEST(ListenAddress, ReadsAndWritesAddresses) {
  EXPECT_EQ(*ResolveListenAddress("localhost"), "127.0.0.1");
  EXPECT_EQ(*ResolveListenAddress("::1"), "::1");
  EXPECT_THAT(ToString(ResolveListenAddress("example.org").status()), HasSubstr("'example.org' is not an IP address"));
  EXPECT_EQ(HostAndPort("127.0.0.1", 5), "127.0.0.1:5");
  EXPECT_EQ(HostAndPort("::1", 5), "[::1]:5");
  EXPECT_EQ(ClientAddress("0.0.0.0"), "127.0.0.1");
}

TEST(ApiOptions, ReportsAllFaultsAtOnce) {
  ApiOptions options;
  options.http_port = 70000;
  options.grpc_port = -2;
  options.max_message_bytes = 0;
  options.idle_timeout = absl::ZeroDuration();
  options.metrics_compat = "vllm";
  options.address = "nowhere";
  const std::string error = ToString(options.Validate());
  for (const char* part : {"http_port is 70000", "grpc_port is -2", "max_message is 0", "idle_timeout is",
                           "metrics_compat is 'vllm'", "'nowhere' is not an IP address"}) {
    EXPECT_THAT(error, HasSubstr(part));
  }
}

TEST(ApiOptions, KeepsToLoopbackUnlessTold) {
  ApiOptions options;
  options.address = "0.0.0.0";
  EXPECT_EQ(options.Validate().code(), StatusCode::kPermissionDenied);
  EXPECT_THAT(ToString(options.Validate()), HasSubstr("--allow-public"));
  options.allow_public = true;
  EXPECT_TRUE(options.Validate().ok());
}

}  // namespace
}  // namespace tidepool::api
