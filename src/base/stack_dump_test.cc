#include "base/stack_dump.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

namespace sluice {
namespace {

using ::testing::Test;

[[gnu::noinline]] void wait_in_a_function_with_a_name(int ready) {
  (void)!::write(ready, "x", 1);
  for (;;) {
    ::pause();
    asm volatile("");  // no tail call
  }
}

// A child that leaves its stacks in memory that both see, and then waits.
class StackDumpTest : public Test {
 protected:
  StackDumpTest() {
    void* memory = ::mmap(nullptr, sizeof(StackBoard), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    board_ = static_cast<StackBoard*>(memory);
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    child_ = ::fork();
    if (child_ == 0) {
      leave_stacks_in(*board_);
      wait_in_a_function_with_a_name(ready[1]);
    }
    char byte;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
    ::close(ready[1]);
  }
  ~StackDumpTest() override {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    ::munmap(board_, sizeof(StackBoard));
  }

  std::vector<std::string> stacks() {
    ask_for_stacks(child_, *board_);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (;;) {
      auto lines = left_stacks(child_, *board_);
      if (!lines.empty() || std::chrono::steady_clock::now() > end) return lines;
      std::this_thread::yield();
    }
  }

  StackBoard* board_;
  pid_t child_;
};

TEST_F(StackDumpTest, NamesTheFunctionsOfAProcessThatWaits) {
  const auto lines = stacks();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("wait_in_a_function_with_a_name"), std::string::npos) << lines[0];
  EXPECT_TRUE(lines[0].starts_with("thread base_test: ")) << lines[0];
}

TEST_F(StackDumpTest, AlsoOfOneThatIsStoppedWhichDoesNotGoOn) {
  ::kill(child_, SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(child_, &status, WUNTRACED), child_);
  const auto lines = stacks();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("wait_in_a_function_with_a_name"), std::string::npos) << lines[0];
}

TEST(StackDump, OfAProcessThatIsGoneIsNothing) {
  StackBoard board{};
  EXPECT_TRUE(left_stacks(0x3ffffff, board).empty());
}

}  // namespace
}  // namespace sluice
