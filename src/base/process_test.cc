#include "base/process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "testing/fake_clock.h"

namespace sluice {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

ProcessOptions shell(std::string script) { return {.program = "/bin/sh", .arguments = {"-c", std::move(script)}}; }

Process start(const ProcessOptions& options) {
  auto process = Process::start(options);
  EXPECT_TRUE(process.ok()) << process.error().message;
  return std::move(process).value();
}

// Both ends of a pipe; closed at the end.
struct Pipe {
  int ends[2];
  Pipe() { EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0); }
  ~Pipe() {
    close_read();
    close_write();
  }
  void close_read() {
    if (ends[0] >= 0) ::close(std::exchange(ends[0], -1));
  }
  void close_write() {
    if (ends[1] >= 0) ::close(std::exchange(ends[1], -1));
  }
  // Everything until the end of the pipe, or what came within the bound.
  std::string read_all(Duration bound = seconds(20)) {
    std::string out;
    const TimePoint end = real_clock().now() + bound;
    for (;;) {
      pollfd entry{ends[0], POLLIN, 0};
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - real_clock().now()).count();
      if (::poll(&entry, 1, static_cast<int>(std::max<int64_t>(left, 0))) <= 0) return out + "<timeout>";
      char buffer[256];
      const ssize_t n = ::read(ends[0], buffer, sizeof buffer);
      if (n <= 0) return out;
      out.append(buffer, static_cast<size_t>(n));
    }
  }
};

// This program is its own grandchild in the lifeline tests: as a child it runs one of these and never reaches main.
__attribute__((constructor)) void act_as_child() {
  const char* role = ::getenv("SLUICE_PROCESS_TEST_ROLE");
  if (role == nullptr) return;
  end_with_parent();
  if (std::string_view(role) == "replaced") {
    const std::string place = installed_executable();
    ::unlink(place.c_str());
    const std::string text = own_executable() + " " + installed_executable();
    const int out = *inherited_descriptor("SLUICE_TEST_OUT");
    ::_exit(::write(out, text.data(), text.size()) < 0 ? 9 : 0);
  }
  if (std::string_view(role) == "parent") {
    // Starts a child from a thread that ends at once, tells its pid, and waits to be killed.
    std::thread([] {
      const int out = *inherited_descriptor("SLUICE_TEST_OUT");
      static auto child = Process::start({.program = own_executable(),
                                          .environment = {{"SLUICE_PROCESS_TEST_ROLE", "sleeper"}},
                                          .descriptors = {{"SLUICE_TEST_OUT", out}}});
      const std::string text = child.ok() ? std::to_string(child->pid()) + "\n" : "failed\n";
      if (::write(out, text.data(), text.size()) < 0) ::_exit(9);
      ::close(out);
    }).join();
  }
  for (;;) ::pause();
}

TEST(ProcessTest, ReportsTheExitCode) {
  auto process = start(shell("exit 3"));
  const auto status = process.wait(seconds(20));
  ASSERT_TRUE(status);
  EXPECT_EQ(status->to_string(), "exit 3");
  EXPECT_EQ(process.poll()->code, 3) << "the status stays known after reaping";
}

TEST(ProcessTest, NamesTheSignalThatKilledIt) {
  auto process = start(shell("kill -9 $$"));
  EXPECT_EQ(process.wait(seconds(20))->to_string(), "killed by SIGKILL");
}

TEST(ProcessTest, SaysWhichProgramCannotBeStarted) {
  auto process = Process::start({.program = "/nowhere/at/all"});
  ASSERT_FALSE(process.ok());
  EXPECT_EQ(process.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(process.error().message, HasSubstr("/nowhere/at/all"));
}

TEST(ProcessTest, WithoutDescriptorsNothingIsStartedAndNobodyKilled) {
  auto other = start(shell("exec sleep 100"));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto process = Process::start({.program = "/bin/true"});
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_FALSE(process.ok());
  EXPECT_FALSE(other.poll());
}

TEST(ProcessTest, AProgramThatWasReplacedStartsItselfAgainAndKnowsItsPlace) {
  const std::filesystem::path copy =
      std::filesystem::temp_directory_path() / fmt::format("sluice-replaced-{}", ::getpid());
  std::filesystem::copy_file(own_executable(), copy);
  Pipe pipe;
  auto child = start({.program = copy.string(),
                      .environment = {{"SLUICE_PROCESS_TEST_ROLE", "replaced"}},
                      .descriptors = {{"SLUICE_TEST_OUT", pipe.ends[1]}}});
  pipe.close_write();
  EXPECT_EQ(pipe.read_all(), "/proc/self/exe " + copy.string());
  EXPECT_TRUE(child.wait(seconds(20)));
  EXPECT_NE(own_executable(), "/proc/self/exe");
}

TEST(ProcessTest, WaitHasABound) {
  auto process = start(shell("exec sleep 100"));
  EXPECT_FALSE(process.poll());
  EXPECT_FALSE(process.wait(std::chrono::milliseconds(5)));
}

TEST(ProcessTest, PidfdBecomesReadableAtTheEnd) {
  auto process = start(shell("exit 0"));
  pollfd entry{process.pidfd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
  EXPECT_TRUE(process.poll()->ok());
}

TEST(ProcessTest, PassesEnvironmentAndDescriptors) {
  Pipe pipe;
  auto options = shell("echo $GREETING > /dev/fd/$SLUICE_TEST_OUT");
  options.environment = {{"GREETING", "hello"}};
  options.descriptors = {{"SLUICE_TEST_OUT", pipe.ends[1]}};
  auto process = start(options);
  pipe.close_write();
  EXPECT_EQ(pipe.read_all(), "hello\n");
}

TEST(ProcessTest, PassesDescriptorsWhoseNumbersCross) {
  // Within 3, 4, 5, ... whatever order the two numbers have here, one of these two children gets them crossed.
  for (const bool swapped : {false, true}) {
    Pipe a;
    Pipe b;
    auto options = shell("echo a > /dev/fd/$OUT_A; echo b > /dev/fd/$OUT_B");
    options.descriptors = {{swapped ? "OUT_B" : "OUT_A", a.ends[1]}, {swapped ? "OUT_A" : "OUT_B", b.ends[1]}};
    auto process = start(options);
    a.close_write();
    b.close_write();
    EXPECT_EQ(a.read_all() + b.read_all(), swapped ? "b\na\n" : "a\nb\n");
  }
}

TEST(ProcessTest, KeepsOtherDescriptorsFromTheChild) {
  const int leaky = ::open("/dev/null", O_RDONLY);  // without close-on-exec, as some libraries open theirs
  ASSERT_GE(leaky, 3);
  auto process = start(shell(fmt::format("test ! -e /proc/self/fd/{}", std::max(leaky, 10))));
  EXPECT_EQ(process.wait(seconds(20))->to_string(), "exit 0");
  ::close(leaky);
}

TEST(ProcessTest, StartsTheChildWithDefaultSignals) {
  sigset_t term;
  sigset_t before;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, &before);
  auto process = start(shell("exec sleep 100"));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(process.terminate(seconds(20)).to_string(), "killed by SIGTERM");
}

TEST(ProcessTest, KillsAfterTheGraceWhatIgnoresTheRequest) {
  Pipe pipe;
  auto options = shell("trap '' TERM; echo ready > /dev/fd/$OUT; while :; do sleep 100; done");
  options.descriptors = {{"OUT", pipe.ends[1]}};
  auto process = start(options);
  char byte;
  ASSERT_EQ(::read(pipe.ends[0], &byte, 1), 1);
  EXPECT_EQ(process.terminate(std::chrono::milliseconds(20)).to_string(), "killed by SIGKILL");
  // The sleep of the shell held the pipe as well; it was killed with the group.
  pipe.close_write();
  EXPECT_EQ(pipe.read_all(), "eady\n");
}

TEST(ProcessTest, TerminatesManyWithinOneGrace) {
  auto a = start(shell("exec sleep 100"));
  auto b = start(shell("exec sleep 100"));
  terminate_all({&a, &b}, seconds(20));
  EXPECT_EQ(a.poll()->to_string(), "killed by SIGTERM");
  EXPECT_EQ(b.poll()->to_string(), "killed by SIGTERM");
}

TEST(ProcessTest, KeepsTheLastLinesOfStderr) {
  auto options = shell("for i in $(seq 30); do echo line $i >&2; done; printf 'no such file' >&2; exit 1");
  options.keep_stderr_tail = true;
  auto process = start(options);
  ASSERT_TRUE(process.wait(seconds(20)));
  const auto tail = process.stderr_tail();
  EXPECT_THAT(tail, HasSubstr("line 30\nno such file"));
  EXPECT_THAT(tail, Not(HasSubstr("line 9\n")));
}

TEST(ProcessTest, HandsOverTheLinesOfStdoutAndStderr) {
  std::vector<std::string> lines;
  auto options = shell("echo one; echo two >&2");
  options.keep_stderr_tail = true;
  options.stdout_to_stderr = true;
  options.on_stderr_line = [&](std::string_view line) { lines.emplace_back(line); };
  auto process = start(options);
  ASSERT_TRUE(process.wait(seconds(20)));  // its reader has ended by then
  EXPECT_THAT(lines, ::testing::ElementsAre("one", "two"));
}

TEST(ProcessTest, DroppingAProcessKillsIt) {
  Pipe pipe;
  auto options = shell("exec sleep 100");
  options.descriptors = {{"HELD", pipe.ends[1]}};
  { auto process = start(options); }
  pipe.close_write();
  EXPECT_EQ(pipe.read_all(), "");
}

TEST(ProcessTest, NoGrandchildOutlivesAParentKilledByForce) {
  Pipe pipe;
  auto parent = start({.program = own_executable(),
                       .environment = {{"SLUICE_PROCESS_TEST_ROLE", "parent"}},
                       .descriptors = {{"SLUICE_TEST_OUT", pipe.ends[1]}}});
  pipe.close_write();
  char first;
  ASSERT_EQ(::read(pipe.ends[0], &first, 1), 1);  // the grandchild runs, and its launching thread is about to end
  parent.signal(SIGKILL);
  const std::string rest = pipe.read_all();  // ends when the grandchild, the last holder of the pipe, has ended
  EXPECT_THAT(rest, Not(HasSubstr("timeout")));
  EXPECT_THAT(rest, Not(HasSubstr("failed")));
}

TEST(ProcessTest, OrphansAreReapedAndItsOwnChildrenAreNot) {
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);  // as PID 1 is
  auto own = start(shell("exit 3"));
  pollfd entry{own.pidfd(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 20'000), 1);
  Pipe go;
  auto options = shell("read line <&3 & exit 0");
  options.descriptors = {{"SLUICE_TEST_IN", go.ends[0]}};
  EXPECT_TRUE(start(options).wait(seconds(20))->ok());
  EXPECT_EQ(reap_orphans(), 0) << "it runs";
  EXPECT_EQ(own.poll()->code, 3);
  go.close_write();
  const TimePoint end = real_clock().now() + seconds(20);
  int reaped = 0;
  while (reaped == 0 && real_clock().now() < end) reaped = reap_orphans();
  EXPECT_EQ(reaped, 1);
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

TEST(RestartBackoffTest, DoublesUpToItsBoundAndForgetsAfterAStableRun) {
  sluice::testing::FakeClock clock;
  RestartBackoff backoff({}, clock);
  const int expected[] = {1, 2, 4, 8, 16, 32, 60, 60};
  for (int want : expected) {
    backoff.started();
    clock.advance(seconds(5));
    EXPECT_EQ(backoff.ended(), seconds(want));
  }
  backoff.started();
  clock.advance(seconds(60));
  EXPECT_EQ(backoff.ended(), seconds(1));
}

TEST(ProcessTest, OneThatIsLetGoOutlivesItsProcess) {
  ProcessOptions options = shell("exec sleep 60");
  options.outlives_parent = true;
  pid_t pid = 0;
  {
    Process process = start(options);
    pid = process.pid();
    process.let_go();
  }
  EXPECT_EQ(::kill(pid, 0), 0);
  EXPECT_EQ(::waitpid(pid, nullptr, WNOHANG), 0);
  ::kill(pid, SIGKILL);
  EXPECT_EQ(::waitpid(pid, nullptr, 0), pid);
}

}  // namespace
}  // namespace sluice
