#include "base/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidepool {
namespace {

using ::testing::ElementsAre;

TEST(NearestName, FindsATypingError) {
  const std::vector<std::string> names = {"serve.grpc_port", "serve.http_port", "pool.fit"};
  EXPECT_EQ(NearestName("serve.grpc_prot", names), "serve.grpc_port");
  EXPECT_EQ(NearestName("pool.fits", names), "pool.fit");
  EXPECT_EQ(NearestName("tarin", std::vector<std::string>{"trace", "train"}), "train");
  EXPECT_EQ(NearestName("train.batch", names), "");
  EXPECT_EQ(NearestName("", names), "");
}

TEST(NearestName, DoesNotCompareWordsThatAreMuchLonger) {
  const std::vector<std::string> names = {"serve.grpc_port", "pool.fit"};
  EXPECT_EQ(NearestName(std::string(4 << 20, 'p'), names), "");
  EXPECT_EQ(NearestName("fit", std::vector<std::string>{std::string(4 << 20, 'f'), "fits"}), "fits");
}

TEST(SplitText, KeepsEmptyPartsButNotAnEmptyText) {
  EXPECT_THAT(SplitText("a,,b", ','), ElementsAre("a", "", "b"));
  EXPECT_THAT(SplitText("a,", ','), ElementsAre("a", ""));
  EXPECT_TRUE(SplitText("", ',').empty());
}

TEST(JoinText, PutsTheSeparatorBetween) {
  EXPECT_EQ(JoinText(std::vector<std::string>{"a", "b"}, ", "), "a, b");
  EXPECT_EQ(JoinText({}, ", "), "");
}

TEST(TrimText, TakesBlanksOffBothEnds) {
  EXPECT_EQ(TrimText("  a b\n"), "a b");
  EXPECT_EQ(TrimText(" \t"), "");
}

TEST(JsonQuoted, EscapesAndRepairs) {
  EXPECT_EQ(JsonQuoted("a\"b\n"), R"("a\"b\n")");
  EXPECT_EQ(JsonQuoted("\xff"), "\"\xEF\xBF\xBD\"");
}

}  // namespace
}  // namespace tidepool
