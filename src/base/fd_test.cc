#include "base/fd.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "base/testing.h"

namespace tidepool {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

bool IsOpen(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

TEST(UniqueFd, ClosesWhatItOwnsOnce) {
  int number;
  {
    UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    number = fd.get();
    UniqueFd moved(std::move(fd));
    EXPECT_FALSE(fd.valid());
    EXPECT_TRUE(IsOpen(number));
    moved = UniqueFd(::dup(number));
    EXPECT_FALSE(IsOpen(number));
    number = moved.get();
  }
  EXPECT_FALSE(IsOpen(number));
}

TEST(MemFd, HasItsSizeAndKeepsIt) {
  auto fd = CreateMemFd("test", 12345);
  ASSERT_TRUE(fd.ok()) << fd.status();
  struct stat info;
  ASSERT_EQ(::fstat(fd->get(), &info), 0);
  EXPECT_EQ(info.st_size, 12345);
  EXPECT_NE(::ftruncate(fd->get(), 1), 0);
  EXPECT_NE(::ftruncate(fd->get(), 99999), 0);
  EXPECT_NE(::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(MemFd, RefusesANegativeSize) {
  const Status status = CreateMemFd("pool", -1).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("memory file 'pool' to -1 bytes"));
}

TEST(Inheritable, ClearsCloseOnExec) {
  UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(SetInheritable(fd.get()).ok());
  EXPECT_EQ(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_THAT(MessageOf(SetInheritable(-1)), HasSubstr("making descriptor -1 inheritable"));
}

TEST(PidFd, OfNoProcessIsAnError) {
  EXPECT_TRUE(OpenPidFd(::getpid()).ok());
  EXPECT_THAT(MessageOf(OpenPidFd(1 << 30).status()), HasSubstr("pidfd_open of process 1073741824"));
}

TEST(ReadFile, SaysWhatIsWrongWithAFile) {
  TempDir directory;
  EXPECT_EQ(*ReadFile(directory.Write("a", "hello"), 5), "hello");
  EXPECT_EQ(ReadFile(directory.File("none"), 5).status().code(), StatusCode::kNotFound);
  const Status large = ReadFile(directory.Write("b", "hello!"), 5).status();
  EXPECT_EQ(large.code(), StatusCode::kOutOfRange);
  EXPECT_THAT(MessageOf(large), HasSubstr("/b' is larger than 5 bytes"));
  EXPECT_EQ(ReadFile(directory.path(), 5).status().code(), StatusCode::kInvalidArgument);
}

TEST(WriteFileAtomically, ReplacesAFileAndLeavesNothingBeside) {
  TempDir directory;
  const std::string path = directory.Write("a", "old content");
  ASSERT_TRUE(WriteFileAtomically(path, "new").ok());
  EXPECT_EQ(testing::ReadAll(path), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

TEST(WriteFileAtomically, OfTwoThreadsLeavesOneWholeContent) {
  TempDir directory;
  const std::string path = directory.File("a");
  const std::vector<std::string> contents = {std::string(300000, 'a'), std::string(300000, 'b')};
  std::vector<std::thread> threads;
  for (const std::string& content : contents) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) EXPECT_TRUE(WriteFileAtomically(path, content).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string result = testing::ReadAll(path);
  EXPECT_TRUE(result == contents[0] || result == contents[1]);
}

TEST(WriteFileAtomically, IntoNoDirectoryIsAnError) {
  const Status status = WriteFileAtomically("/proc/nonexistent/x", "a");
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(status), HasSubstr("creating '/proc/nonexistent/x"));
}

}  // namespace
}  // namespace tidepool
