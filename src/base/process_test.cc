#include "base/process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "base/testing.h"

namespace tidepool {
namespace {

using ::testing::HasSubstr;
using testing::Soon;
using testing::TempDir;

ProcessOptions Shell(const std::string& script) { return {.command = {"sh", "-c", script}, .capture_stdout = true}; }

std::string ReadToEnd(int fd) {
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t got = ::read(fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
}

TEST(ChildProcess, RunsAndTellsItsCode) {
  auto child = ChildProcess::Start(Shell("echo $WORD; exit 3"));
  ASSERT_TRUE(child.ok()) << child.status();
  auto ended = child->Wait(Soon());
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_FALSE(ended->ok());
  EXPECT_EQ(ended->Describe(), "exited with code 3");
  EXPECT_FALSE(child->Running());
  EXPECT_EQ(child->Wait(Soon())->code, 3);
  EXPECT_EQ(child->Signal(SIGTERM).code(), StatusCode::kFailedPrecondition);
}

TEST(ChildProcess, GetsItsEnvironmentAndDirectory) {
  TempDir directory;
  ::setenv("TIDEPOOL_TEST_WORD", "parent", 1);
  ProcessOptions options = Shell("echo $TIDEPOOL_TEST_WORD $HOME; pwd");
  options.environment = {{"TIDEPOOL_TEST_WORD", "child"}, {"HOME", "/h"}};
  options.working_directory = directory.path();
  auto child = ChildProcess::Start(options);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(ReadToEnd(child->stdout_fd()), "child /h\n" + directory.path() + "\n");
  EXPECT_TRUE(child->Wait(Soon())->ok());
}

TEST(ChildProcess, ReportsWhatCannotBeStarted) {
  const Status missing = ChildProcess::Start({.command = {"/proc/nonexistent/program"}}).status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(missing), HasSubstr("starting '/proc/nonexistent/program': No such file"));
  ProcessOptions nowhere = Shell("true");
  nowhere.working_directory = "/proc/nonexistent";
  EXPECT_EQ(ChildProcess::Start(nowhere).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ChildProcess::Start({}).status().code(), StatusCode::kInvalidArgument);
  ProcessOptions many = Shell("true");
  many.descriptors.assign(33, {0, 5});
  EXPECT_THAT(MessageOf(ChildProcess::Start(many).status()), HasSubstr("33 descriptors"));
  ProcessOptions closed = Shell("true");
  closed.descriptors = {{1000000, 5}};
  EXPECT_FALSE(ChildProcess::Start(closed).ok());
}

TEST(ChildProcess, PassesDescriptorsToTheirNumbersAlsoWhenTheyCross) {
  int first[2], second[2];
  ASSERT_EQ(::pipe2(first, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(second, O_CLOEXEC), 0);
  UniqueFd first_read(first[0]), first_write(first[1]), second_read(second[0]), second_write(second[1]);
  ProcessOptions options = {.command = {"bash", "-c", fmt::format("echo one >&{}; echo two >&{}", second[1], first[1])}};
  options.descriptors = {{first[1], second[1]}, {second[1], first[1]}};
  auto child = ChildProcess::Start(options);
  ASSERT_TRUE(child.ok()) << child.status();
  first_write.reset();
  second_write.reset();
  EXPECT_EQ(ReadToEnd(first_read.get()), "one\n");
  EXPECT_EQ(ReadToEnd(second_read.get()), "two\n");
  EXPECT_TRUE(child->Wait(Soon())->ok());
}

TEST(ChildProcess, InheritsNoOtherDescriptor) {
  // Without close-on-exec, as a careless library would open it.
  UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  UniqueFd careless(::fcntl(null.get(), F_DUPFD, 50));
  auto child = ChildProcess::Start(Shell("ls /proc/self/fd"));
  ASSERT_TRUE(child.ok()) << child.status();
  const std::string listed = ReadToEnd(child->stdout_fd());
  EXPECT_THAT(listed, ::testing::Not(HasSubstr(fmt::format("{}\n", careless.get()))));
  EXPECT_TRUE(child->Wait(Soon())->ok());
}

TEST(ChildProcess, StartsWithCleanSignals) {
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  auto child = ChildProcess::Start(Shell("echo up; exec sleep 1000"));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_TRUE(child->Signal(SIGTERM).ok());
  auto ended = child->Wait(Soon());
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->Describe(), "was killed by signal 15 (Terminated)");
}

TEST(ChildProcess, PidFdBecomesReadableAtTheEnd) {
  auto child = ChildProcess::Start(Shell("exec sleep 1000"));
  ASSERT_TRUE(child.ok());
  EXPECT_TRUE(child->Running());
  EXPECT_EQ(child->Wait(Clock::Real()->Now()).status().code(), StatusCode::kDeadlineExceeded);
  ::kill(child->pid(), SIGKILL);
  pollfd entry{child->pid_fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 30000), 1);
  EXPECT_TRUE(child->Wait(Soon())->signalled);
}

TEST(ChildProcess, StopKillsWhatDoesNotListen) {
  auto child = ChildProcess::Start(Shell("trap '' TERM; echo ready; exec sleep 1000"));
  ASSERT_TRUE(child.ok());
  char byte;
  ASSERT_EQ(::read(child->stdout_fd(), &byte, 1), 1);
  const ExitStatus ended = child->Stop(absl::Milliseconds(20));
  EXPECT_TRUE(ended.signalled);
  EXPECT_EQ(ended.code, SIGKILL);
}

TEST(ChildProcess, StopLetsAListenerEndByItself) {
  auto child = ChildProcess::Start(Shell("trap 'exit 5' TERM; echo ready; while true; do sleep 0.01; done"));
  ASSERT_TRUE(child.ok());
  char byte;
  ASSERT_EQ(::read(child->stdout_fd(), &byte, 1), 1);
  EXPECT_EQ(child->Stop(absl::Seconds(30)).Describe(), "exited with code 5");
}

TEST(ChildProcess, IsKilledAndReapedWithItsObject) {
  int pid;
  {
    auto child = ChildProcess::Start(Shell("exec sleep 1000"));
    ASSERT_TRUE(child.ok());
    pid = child->pid();
    ChildProcess moved(std::move(*child));
    EXPECT_EQ(moved.pid(), pid);
    EXPECT_FALSE(child->Running());
    child->Stop(absl::ZeroDuration());  // of a moved-from object: signals nobody
    EXPECT_TRUE(moved.Running());
  }
  EXPECT_NE(::kill(pid, 0), 0);
}

TEST(ExecutableDirectory, HoldsThisTest) { EXPECT_TRUE(std::filesystem::exists(ExecutableDirectory() + "/base_test")); }

}  // namespace
}  // namespace tidepool
