#include "pool/protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace tidepool::pool {
namespace {

using testing::HasSubstr;

std::vector<Message> Samples() {
  return {
      HelloMessage{.name = "worker"},
      WelcomeMessage{.paused = true,
                     .mapping = device::MappingMode::kStrict,
                     .capacity_bytes = int64_t{3} << 32,
                     .page_bytes = 1 << 21,
                     .device_name = "host",
                     .device_kind = "host"},
      StatusMessage{.code = 8, .text = "no room"},
      OpenLeaseMessage{.options = {.name = "train:demo",
                                   .lease_class = LeaseClass::kReclaimable,
                                   .guaranteed_pages = 3,
                                   .burst_pages = 700,
                                   .placement = Placement::kHigh,
                                   .trust_label = "acme"}},
      LeaseOpenedMessage{.lease = LeaseId(4), .limit_pages = 12},
      CloseLeaseMessage{.lease = LeaseId(0xfffffffe)},
      GrowMessage{.lease = LeaseId(1), .pages = -2, .min_run_pages = INT64_MAX, .timeout_ns = INT64_MIN},
      GrantedMessage{.lease = LeaseId(2), .extents = {{0, 5}, {-1, INT32_MAX}}},
      ReturnMessage{.lease = LeaseId(2), .extents = {}},
      SetGuaranteedMessage{.lease = LeaseId(2), .pages = 17},
      RevokeMessage{.lease = LeaseId(2), .demand = DemandId(0x0102030405060708), .limit_pages = 9, .slack_ns = 200'000'000},
      FinishRevokeMessage{.lease = LeaseId(2),
                          .demand = DemandId(7),
                          .received_ns = 1,
                          .cached_ns = 2,
                          .wait_ns = 3,
                          .unwind_ns = 4,
                          .give_back_ns = 5,
                          .aborted = true,
                          .boundary = false},
      LimitMessage{.lease = LeaseId(2), .limit_pages = 3},
      PausedMessage{.paused = true},
      DetachMessage{},
      SetPreferredMessage{.lease = LeaseId(2), .pages = 23},
  };
}

TEST(Protocol, ReadsWhatItWrites) {
  const std::vector<Message> samples = Samples();
  ASSERT_EQ(samples.size(), std::variant_size_v<Message>);
  for (size_t i = 0; i < samples.size(); ++i) {
    ASSERT_EQ(samples[i].index(), i);
    const std::string packet = Encode(0xdeadbeef, samples[i]);
    auto envelope = Decode(packet);
    ASSERT_TRUE(envelope.ok()) << NameOf(samples[i]) << ": " << ToString(envelope.status());
    EXPECT_EQ(envelope->call, 0xdeadbeef);
    EXPECT_TRUE(envelope->message == samples[i]) << NameOf(samples[i]);
    EXPECT_EQ(CallOf(packet), 0xdeadbeef);
  }
}

TEST(Protocol, LooksAsTheDocumentationSays) {
  using namespace std::string_literals;
  EXPECT_EQ(Encode(7, HelloMessage{.name = "ab"}),
            "\x01\0\0\0\x07\0\0\0"
            "TPOL\x02\0\x02\0ab"s);
  EXPECT_EQ(Encode(0x01020304, GrowMessage{.lease = LeaseId(5), .pages = 0x11, .min_run_pages = 2, .timeout_ns = -1}),
            "\x07\0\0\0\x04\x03\x02\x01"
            "\x05\0\0\0"
            "\x11\0\0\0\0\0\0\0"
            "\x02\0\0\0\0\0\0\0"
            "\xff\xff\xff\xff\xff\xff\xff\xff"s);
  EXPECT_EQ(Encode(1, ReturnMessage{.lease = LeaseId(2), .extents = {{3, 4}}}),
            "\x09\0\0\0\x01\0\0\0"
            "\x02\0\0\0\x01\0\0\0\x03\0\0\0\x04\0\0\0"s);
  EXPECT_EQ(Encode(1, SetPreferredMessage{.lease = LeaseId(2), .pages = 23}),
            "\x10\0\0\0\x01\0\0\0"
            "\x02\0\0\0\x17\0\0\0\0\0\0\0"s);
  EXPECT_EQ(Encode(1, OpenLeaseMessage{.options = {.name = "n",
                                                   .lease_class = LeaseClass::kReclaimable,
                                                   .guaranteed_pages = 1,
                                                   .burst_pages = 2,
                                                   .placement = Placement::kHigh,
                                                   .trust_label = "t"}}),
            "\x04\0\0\0\x01\0\0\0"
            "\x01\x01"
            "\x01\0\0\0\0\0\0\0"
            "\x02\0\0\0\0\0\0\0"
            "\x01\0n\x01\0t"s);
}

TEST(Protocol, RefusesEveryMessageThatIsCutShortOrTooLong) {
  for (const Message& sample : Samples()) {
    const std::string packet = Encode(1, sample);
    for (size_t size = 0; size < packet.size(); ++size) {
      auto envelope = Decode(std::string_view(packet).substr(0, size));
      ASSERT_EQ(envelope.status().code(), StatusCode::kInvalidArgument) << NameOf(sample) << " cut to " << size;
    }
    auto longer = Decode(packet + "x");
    ASSERT_EQ(longer.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(MessageOf(longer.status()), HasSubstr("has 1 bytes too many")) << NameOf(sample);
  }
}

TEST(Protocol, SaysWhatIsWrong) {
  std::string paused = Encode(1, PausedMessage{.paused = true});
  paused[8] = 2;
  EXPECT_THAT(MessageOf(Decode(paused).status()), HasSubstr("Paused message of 1 bytes has a flag that is neither 0 nor 1"));
  std::string open = Encode(1, OpenLeaseMessage{});
  open[8] = 9;
  EXPECT_THAT(MessageOf(Decode(open).status()), HasSubstr("OpenLease message of 22 bytes has an unknown enumerator"));
  std::string unknown = Encode(1, DetachMessage{});
  unknown[0] = 99;
  EXPECT_EQ(Decode(unknown).status().code(), StatusCode::kUnimplemented);
  EXPECT_THAT(MessageOf(Decode(unknown).status()), HasSubstr("message type 99 is unknown; allowed: 1 to 16"));
  std::string reserved = Encode(1, DetachMessage{});
  reserved[2] = 1;
  EXPECT_THAT(MessageOf(Decode(reserved).status()), HasSubstr("has 1 in bytes 2 and 3; allowed: 0"));
  std::string many = Encode(1, ReturnMessage{});
  many[12] = many[13] = '\xff';
  EXPECT_THAT(MessageOf(Decode(many).status()), HasSubstr("has too many extents"));
  std::string magic = Encode(1, HelloMessage{.name = "x"});
  magic[8] = 'X';
  EXPECT_THAT(MessageOf(Decode(magic).status()), HasSubstr("does not start with the protocol's magic number"));
  std::string name = Encode(1, HelloMessage{.name = std::string(kMaxNameBytes, 'n')});
  name[14] = 1;
  name.push_back('n');
  EXPECT_THAT(MessageOf(Decode(name).status()), HasSubstr("has a text that is too long"));
  EXPECT_THAT(MessageOf(Decode("abc").status()), HasSubstr("message of 3 bytes; allowed: 8 or more"));
  EXPECT_EQ(CallOf("abc"), 0u);
}

TEST(Protocol, ReadsTheVersionOfAnyHello) {
  std::string hello = Encode(1, HelloMessage{});
  hello[12] = kProtocolVersion + 1;
  hello += "fields of another version";
  auto envelope = Decode(hello);
  ASSERT_TRUE(envelope.ok());
  EXPECT_EQ(std::get<HelloMessage>(envelope->message).version, kProtocolVersion + 1);
}

TEST(Protocol, SurvivesRandomAndDamagedPackets) {
  std::mt19937_64 random(11);
  auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const std::vector<Message> samples = Samples();
  int64_t accepted = 0;
  for (int round = 0; round < 200'000; ++round) {
    std::string packet;
    if (round % 2 == 0) {
      packet.resize(below(80));
      for (char& byte : packet) byte = static_cast<char>(random());
      if (packet.size() > 4) {
        packet[0] = static_cast<char>(below(20));
        packet[1] = packet[2] = packet[3] = 0;
      }
    } else {
      packet = Encode(static_cast<uint32_t>(random()), samples[below(samples.size())]);
      for (size_t i = 0; i < 1 + below(3); ++i) packet[below(packet.size())] = static_cast<char>(random());
      if (below(4) == 0) packet.resize(below(packet.size() + 1));
    }
    CallOf(packet);
    auto envelope = Decode(packet);
    if (!envelope.ok()) continue;
    ++accepted;
    // What is accepted means one thing only.
    auto again = Decode(Encode(envelope->call, envelope->message));
    const auto* hello = std::get_if<HelloMessage>(&envelope->message);
    if (hello != nullptr && hello->version != kProtocolVersion) continue;
    ASSERT_TRUE(again.ok());
    ASSERT_TRUE(again->message == envelope->message);
  }
  EXPECT_GT(accepted, 1000);
}

TEST(Protocol, CarriesEveryStatus) {
  const Status status = ResourceExhausted("lease 'a' is full");
  EXPECT_EQ(ToStatus(ToMessage(status)), status);
  EXPECT_TRUE(ToStatus(ToMessage(Status())).ok());
  EXPECT_EQ(ToStatus({.code = 999, .text = "from the future"}).code(), StatusCode::kUnknown);
  EXPECT_EQ(ToMessage(InvalidArgument("{}", std::string(100'000, 'x'))).text.size(), kMaxStatusBytes);
}

}  // namespace
}  // namespace tidepool::pool
