#include "pool/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <vector>

#include "base/clock.h"

namespace tidepool::pool {
namespace {

absl::Time Soon() { return Clock::Real()->Now() + absl::Seconds(20); }

TEST(Wire, NamesTheSenderOnAPairThatIsHandedOut) {
  auto pair = PacketSocket::Pair();
  ASSERT_TRUE(pair.ok());
  ASSERT_TRUE(AskForCredentials(pair->first.fd()).ok());
  ASSERT_TRUE(pair->second.Send("hello", Soon()).ok());
  std::vector<char> buffer(16);
  auto packet = ReceivePacket(pair->first.fd(), buffer);
  ASSERT_TRUE(packet.ok()) << ToString(packet.status());
  EXPECT_EQ(packet->data, "hello");
  ASSERT_TRUE(packet->sender.has_value());
  EXPECT_EQ(packet->sender->pid, ::getpid());
  EXPECT_EQ(packet->sender->uid, ::geteuid());
}

TEST(Wire, NeverNamesAWrongSenderOfWhatCameBeforeTheAccept) {
  char name[] = "/tmp/tidepool-wire-XXXXXX";
  ASSERT_NE(::mkdtemp(name), nullptr);
  const std::string path = std::string(name) + "/s";
  auto listener = PacketListener::Listen(path);
  ASSERT_TRUE(listener.ok());
  ASSERT_TRUE(AskForCredentials(listener->fd()).ok());
  auto client = PacketSocket::Connect(path);
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE(client->Send("early", Soon()).ok());
  auto accepted = listener->Accept();
  ASSERT_TRUE(accepted.ok());
  ASSERT_TRUE(AskForCredentials(accepted->fd()).ok());
  std::vector<char> buffer(16);
  auto packet = ReceivePacket(accepted->fd(), buffer);
  ASSERT_TRUE(packet.ok());
  EXPECT_EQ(packet->data, "early");
  // Kernels differ in whether they stamp it.
  EXPECT_TRUE(!packet->sender || packet->sender->pid == ::getpid());
  std::filesystem::remove_all(name);
}

TEST(Wire, ClosesDescriptorsThatNobodyAskedFor) {
  auto pair = PacketSocket::Pair();
  ASSERT_TRUE(pair.ok());
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd reader(ends[0]), writer(ends[1]);
  ASSERT_TRUE(SendPacket(pair->second.fd(), "x", writer.get()).ok());
  writer.reset();
  std::vector<char> buffer(16);
  ASSERT_TRUE(ReceivePacket(pair->first.fd(), buffer).ok());
  char byte;
  EXPECT_EQ(::read(reader.get(), &byte, 1), 0) << "no writer is left";
}

TEST(Wire, TellsAFullQueueAnEndAndAnOversizedPacketApart) {
  auto pair = PacketSocket::Pair();
  ASSERT_TRUE(pair.ok());
  std::vector<char> buffer(16);
  EXPECT_EQ(ReceivePacket(pair->first.fd(), buffer).status().code(), StatusCode::kUnavailable);
  ASSERT_TRUE(SendPacket(pair->second.fd(), std::string(17, 'x')).ok());
  EXPECT_THAT(MessageOf(ReceivePacket(pair->first.fd(), buffer).status()), testing::HasSubstr("packet is larger than 16 bytes"));
  Status sent;
  for (int i = 0; i < 1'000'000 && sent.ok(); ++i) sent = SendPacket(pair->second.fd(), std::string(1000, 'x'));
  EXPECT_EQ(sent.code(), StatusCode::kUnavailable);
  pair->first = PacketSocket();
  EXPECT_EQ(SendPacket(pair->second.fd(), "x").code(), StatusCode::kAborted);
}

}  // namespace
}  // namespace tidepool::pool
