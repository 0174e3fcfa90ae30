#include "base/unix_socket.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <thread>

#include "base/testing.h"

namespace tidepool {
namespace {

using ::testing::HasSubstr;
using testing::Soon;
using testing::TempDir;

absl::Time Now() { return Clock::Real()->Now(); }

struct Ends {
  PacketSocket a, b;
};

Ends MakePair() {
  auto pair = PacketSocket::Pair();
  EXPECT_TRUE(pair.ok()) << pair.status();
  return {std::move(pair->first), std::move(pair->second)};
}

TEST(PacketSocket, KeepsTheBoundsOfMessages) {
  Ends ends = MakePair();
  ASSERT_TRUE(ends.a.Send("one", Soon()).ok());
  ASSERT_TRUE(ends.a.Send(std::string(kMaxPacketBytes, 'x'), Soon()).ok());
  EXPECT_EQ(ends.b.Receive(Soon())->data, "one");
  EXPECT_EQ(ends.b.Receive(Soon())->data.size(), static_cast<size_t>(kMaxPacketBytes));
}

TEST(PacketSocket, PassesDescriptors) {
  Ends ends = MakePair();
  auto file = CreateMemFd("passed", 4096);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(::pwrite(file->get(), "hello", 5, 0), 5);
  const int fds[] = {file->get(), file->get()};
  ASSERT_TRUE(ends.a.Send("take", fds, Soon()).ok());
  file->reset();
  auto packet = ends.b.Receive(Soon());
  ASSERT_TRUE(packet.ok()) << packet.status();
  ASSERT_EQ(packet->fds.size(), 2u);
  char text[6] = {};
  EXPECT_EQ(::pread(packet->fds[1].get(), text, 5, 0), 5);
  EXPECT_STREQ(text, "hello");
  EXPECT_NE(::fcntl(packet->fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(PacketSocket, RefusesPacketsThatAreEmptyOrTooLarge) {
  Ends ends = MakePair();
  const Status large = ends.a.Send(std::string(kMaxPacketBytes + 1, 'x'), Soon());
  EXPECT_EQ(large.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(large), HasSubstr("packet of 65537 bytes and 0 descriptors; allowed: 1 to 65536 bytes, 16 descriptors"));
  EXPECT_FALSE(ends.a.Send("", Soon()).ok());
  const std::vector<int> many(17, 0);
  EXPECT_FALSE(ends.a.Send("x", many, Soon()).ok());
}

TEST(PacketSocket, DropsAnOversizedPacketOfAPeerAndGoesOn) {
  Ends ends = MakePair();
  const std::string large(kMaxPacketBytes + 1, 'x');
  ASSERT_EQ(::send(ends.a.fd(), large.data(), large.size(), 0), static_cast<ssize_t>(large.size()));
  ASSERT_TRUE(ends.a.Send("next", Soon()).ok());
  const Status status = ends.b.Receive(Soon()).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("more than 65536 bytes or 16 descriptors"));
  EXPECT_EQ(ends.b.Receive(Soon())->data, "next");
}

TEST(PacketSocket, LeaksNoDescriptorOfATruncatedControlMessage) {
  Ends ends = MakePair();
  // More descriptors than we take in one packet, sent past our own Send.
  int fds[40];
  for (int& fd : fds) fd = STDERR_FILENO;
  char byte = 'x';
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(fds))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(fds));
  std::memcpy(CMSG_DATA(header), fds, sizeof(fds));
  auto open_files = [] { return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}); };
  const auto before = open_files();
  ASSERT_EQ(::sendmsg(ends.a.fd(), &message, 0), 1);
  EXPECT_EQ(ends.b.Receive(Soon()).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(open_files(), before);
}

TEST(PacketSocket, SeesTheEndOfThePeer) {
  Ends ends = MakePair();
  ASSERT_TRUE(ends.a.Send("last", Soon()).ok());
  ends.a = PacketSocket();
  EXPECT_EQ(ends.b.Receive(Soon())->data, "last");
  const Status status = ends.b.Receive(Soon()).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(status), HasSubstr("peer closed"));
  EXPECT_EQ(ends.b.Send("x", Soon()).code(), StatusCode::kUnavailable);
}

TEST(PacketSocket, SeesTheDeathOfAProcess) {
  Ends ends = MakePair();
  const int pid = ::fork();
  if (pid == 0) {
    ends.a = PacketSocket();
    ::pause();
    ::_exit(0);
  }
  ends.b = PacketSocket();
  ::kill(pid, SIGKILL);
  EXPECT_EQ(ends.a.Receive(Soon()).status().code(), StatusCode::kUnavailable);
  ::waitpid(pid, nullptr, 0);
}

TEST(PacketSocket, GivesUpAtTheDeadline) {
  Ends ends = MakePair();
  EXPECT_EQ(ends.b.Receive(Now()).status().code(), StatusCode::kDeadlineExceeded);
  Status status;
  while (status.ok()) status = ends.a.Send(std::string(4096, 'x'), Now());
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
}

TEST(PacketSocket, ShutdownWakesAReceiver) {
  Ends ends = MakePair();
  std::thread receiver([&] { EXPECT_EQ(ends.b.Receive(absl::InfiniteFuture()).status().code(), StatusCode::kUnavailable); });
  ends.b.Shutdown();
  receiver.join();
}

TEST(PacketListener, AcceptsAndNamesItsPeer) {
  TempDir directory;
  auto listener = PacketListener::Listen(directory.File("s"));
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_EQ(listener->Accept().status().code(), StatusCode::kUnavailable);
  struct stat info;
  ASSERT_EQ(::stat(directory.File("s").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  auto client = PacketSocket::Connect(directory.File("s"));
  ASSERT_TRUE(client.ok()) << client.status();
  pollfd entry{listener->fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 30000), 1);
  auto server = listener->Accept();
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(server->Peer()->pid, ::getpid());
  EXPECT_EQ(server->Peer()->uid, ::getuid());
  ASSERT_TRUE(client->Send("hi", Soon()).ok());
  EXPECT_EQ(server->Receive(Soon())->data, "hi");
}

TEST(PacketListener, RemovesItsPathAtTheEnd) {
  TempDir directory;
  const std::string path = directory.File("s"), other = directory.File("t");
  {
    auto listener = PacketListener::Listen(path);
    ASSERT_TRUE(listener.ok());
    auto next = PacketListener::Listen(other);
    ASSERT_TRUE(next.ok());
    *listener = std::move(*next);
    EXPECT_FALSE(std::filesystem::exists(path));
    EXPECT_TRUE(std::filesystem::exists(other));
  }
  EXPECT_FALSE(std::filesystem::exists(other));
}

TEST(PacketListener, ReplacesADeadSocketButNeitherALiveOneNorAFile) {
  TempDir directory;
  const std::string path = directory.File("s");
  {
    UniqueFd dead(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  auto listener = PacketListener::Listen(path);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const Status live = PacketListener::Listen(path).status();
  EXPECT_EQ(live.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(MessageOf(live), HasSubstr("already has a live listener"));
  const std::string file = directory.Write("f", "precious");
  EXPECT_THAT(MessageOf(PacketListener::Listen(file).status()), HasSubstr("exists and is no socket"));
  EXPECT_EQ(testing::ReadAll(file), "precious");
}

TEST(PacketListener, RefusesAPathThatIsTooLong) {
  const Status status = PacketListener::Listen("/tmp/" + std::string(200, 'x')).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("has 205 characters; allowed: 1 to 107"));
  EXPECT_FALSE(PacketSocket::Connect("").ok());
}

TEST(PacketSocket, ConnectsToNobody) {
  TempDir directory;
  EXPECT_EQ(PacketSocket::Connect(directory.File("none")).status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace tidepool
