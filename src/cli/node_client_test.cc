#include "cli/node_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"

namespace tidepool::cli {
namespace {

using ::testing::HasSubstr;

constexpr char kStatus[] = R"({"mode":"colocate","ready":true,"worker_pid":42,
  "pool":{"page_bytes":2097152,"total_pages":256,"granted_pages":128,"free_pages":128,"violations":0,
          "leases":[{"name":"train","class":"reclaimable","pid":7,"held_bytes":209715200,"limit_bytes":419430400}]},
  "models":[{"name":"resnet18-a","state":"ready","weight_bytes":46837248,"resident_bytes":46837248,"requests":4,"within_slo":3,"slo_ms":20.5}],
  "training":{"name":"train","state":"running","step":12,"loss":1.5,"last_error":"ABORTED: was killed"}})";

TEST(NodeClient, ShowsMemoryModelsAndTraining) {
  const auto text = StatusText(kStatus);
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  EXPECT_THAT(*text, HasSubstr("256 MiB of 512 MiB granted"));
  EXPECT_THAT(*text, HasSubstr("resnet18-a"));
  EXPECT_THAT(*text, HasSubstr("75.0 %"));
  EXPECT_THAT(*text, HasSubstr("train is running"));
  EXPECT_THAT(*text, HasSubstr("last end: ABORTED: was killed"));
  const auto tenants = TenantsText(kStatus);
  ASSERT_TRUE(tenants.ok());
  EXPECT_THAT(*tenants, HasSubstr("reclaimable"));
  EXPECT_THAT(*tenants, HasSubstr("200 MiB"));
  const auto json = TenantsJson(kStatus);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(nlohmann::json::parse(*json)[0]["name"], "train");
}

TEST(NodeClient, SaysWhereTheTimesOfAnEmulatedDeviceComeFrom) {
  const auto text =
      StatusText(R"({"device":"emulated:v100","emulation":{"description":"times of profile 'v100', not measured","elapsed_s":12.3,
    "compute_busy_s":1.25,"host_to_device_busy_s":0.5,"host_limited":true,"host_limited_reason":"results took longer"},
    "training":{"name":"train","state":"running","device_samples_per_s":250.5,"device_seconds":2}})");
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  EXPECT_THAT(*text, HasSubstr("device  emulated:v100: times of profile 'v100', not measured"));
  EXPECT_THAT(*text, HasSubstr("compute busy 1.250 s"));
  EXPECT_THAT(*text, HasSubstr("HOST-LIMITED: latencies and rates are this machine's, not the device's: results took longer"));
  EXPECT_THAT(*text, HasSubstr("on the emulated device: 250.5 samples/s"));
  EXPECT_TRUE(StatusText(R"({"emulation":{"host_limited":7,"elapsed_s":"x"}})").ok());
}

TEST(NodeClient, ShowsEachOfSeveralDevices) {
  constexpr char kSeveral[] = R"({"mode":"colocate","ready":true,"device":"emulated:h200",
    "pool":{"page_bytes":1048576,"total_pages":200,"granted_pages":30,"free_pages":170,
            "leases":[{"name":"model:m","class":"pinned","pid":8,"held_bytes":1048576,"device":1}]},
    "devices":[{"device":0,"ready":true,"worker_pid":41,"trains":true,"pool":{"page_bytes":1048576,"granted_pages":10,"free_pages":90},
                "emulation":{"compute_busy_s":1.5,"host_to_device_busy_s":0.25}},
               {"device":1,"ready":false,"worker_pid":0,"pool":{"page_bytes":1048576,"granted_pages":20,"free_pages":80}}],
    "models":[{"name":"m","state":"ready","devices":[0,1]},{"name":"n","state":"absent","devices":[]}],
    "training":{"name":"train","state":"running","device":0}})";
  const auto text = StatusText(kSeveral);
  ASSERT_TRUE(text.ok()) << ToString(text.status());
  EXPECT_THAT(*text, HasSubstr("node    mode colocate, ready, 2 devices"));
  EXPECT_THAT(*text, HasSubstr("30.0 MiB of 200 MiB granted"));
  EXPECT_THAT(*text, HasSubstr("     0 ready           41   10.0 MiB   90.0 MiB      1.500      0.250  trains\n"));
  EXPECT_THAT(*text, HasSubstr("     1 not ready        0   20.0 MiB   80.0 MiB          -          -\n"));
  EXPECT_THAT(*text, HasSubstr("  0,1\n"));
  EXPECT_THAT(*text, HasSubstr("  -\n"));
  EXPECT_THAT(*text, HasSubstr("train is running (pid 0) on device 0"));
  EXPECT_THAT(*TenantsText(kSeveral), HasSubstr("       1\n"));
  EXPECT_TRUE(StatusText(R"({"devices":[3,{"pool":7}],"models":[{"devices":["x"]}]})").ok());
  EXPECT_TRUE(StatusText(R"({"devices":[{},{"pool":[],"emulation":4}]})").ok());
}

TEST(NodeClient, StandsAnswersOfAnotherKind) {
  EXPECT_THAT(MessageOf(StatusText("<html>").status()), HasSubstr("not a JSON object: '<html>'"));
  EXPECT_TRUE(StatusText("{}").ok());
  EXPECT_TRUE(StatusText(R"({"pool":{"page_bytes":"x"},"models":[3,{"name":7}],"training":[]})").ok());
  EXPECT_THAT(MessageOf(TenantsText("{}").status()), HasSubstr("no list of leases"));
}

TEST(NodeClient, FillsEveryInputOfAModelWithRandomValues) {
  const std::string metadata =
      R"({"inputs":[{"name":"image","datatype":"FP32","shape":[-1,3,4,4]},{"name":"ids","datatype":"INT64","shape":[-1,5]}]})";
  const auto request = RandomRequest(metadata, 2, 7);
  ASSERT_TRUE(request.ok()) << ToString(request.status());
  const auto json = nlohmann::json::parse(*request);
  EXPECT_EQ(json["inputs"][0]["shape"], nlohmann::json({2, 3, 4, 4}));
  EXPECT_EQ(json["inputs"][0]["data"].size(), 96u);
  EXPECT_TRUE(json["inputs"][1]["data"][0].is_number_integer());
  EXPECT_EQ(*request, *RandomRequest(metadata, 2, 7));
  EXPECT_NE(*request, *RandomRequest(metadata, 2, 8));
}

TEST(NodeClient, RefusesInputsThatItCannotFill) {
  const auto message = [](const char* metadata) { return MessageOf(RandomRequest(metadata, 1, 1).status()); };
  EXPECT_THAT(message(R"({"inputs":[{"name":"t","datatype":"BYTES","shape":[1]}]})"),
              HasSubstr("'BYTES', which has no random values"));
  EXPECT_THAT(message(R"({"inputs":[{"name":"t","datatype":"FP32","shape":[1000000,1000000]}]})"), HasSubstr("more than"));
  EXPECT_THAT(message(R"({"inputs":[{"name":"t","datatype":"FP32"}]})"), HasSubstr("without a shape"));
  EXPECT_THAT(message("{}"), HasSubstr("names no inputs"));
}

TEST(NodeClient, ShowsTheFirstValuesOfEachOutput) {
  const auto text =
      AnswerText(R"({"outputs":[{"name":"logits","datatype":"FP32","shape":[1,10],"data":[1,2,3,4,5,6,7,8,9,10]}]})");
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "logits FP32 [1,10]: 1, 2, 3, 4, 5, 6, 7, 8, ... 2 more\n");
}

TEST(NodeClient, EncodesNamesForAPath) {
  EXPECT_EQ(EncodePathSegment("resnet18-a_1.0~x"), "resnet18-a_1.0~x");
  EXPECT_EQ(EncodePathSegment("a/b c%"), "a%2Fb%20c%25");
}

TEST(NodeClient, SaysWhereItLookedForANode) {
  const NodeClient client{.url = "http://127.0.0.1:1/", .timeout = absl::Seconds(5)};
  EXPECT_THAT(MessageOf(client.Status().status()), HasSubstr("127.0.0.1:1"));
  EXPECT_THAT(MessageOf(client.Status().status()), HasSubstr("is a node running there?"));
}

}  // namespace
}  // namespace tidepool::cli
