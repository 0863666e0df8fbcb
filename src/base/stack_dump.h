// The stacks of a process that hangs, for the process that watches it. The threads leave their return addresses in
// shared memory from a signal handler, which does nothing else, and stay there: a process whose stacks were asked for
// does not go on. A process that was stopped leaves them, too: the handlers are the first to run when it is continued.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sluice {

struct StackBoard {
  static constexpr size_t kThreads = 16;
  static constexpr size_t kFrames = 24;
  struct Thread {
    std::atomic<int32_t> id;
    std::atomic<uint32_t> frames;  // 0: it has not written yet
    std::atomic<uint64_t> pcs[kFrames];
  };
  std::atomic<uint32_t> threads;  // more than kThreads: the others were left out
  alignas(8) Thread thread[kThreads];
};

// In the process that is watched: from now on SIGUSR2 is for this. `board` stays.
void leave_stacks_in(StackBoard& board);

// In the one that watches. Empties the board, signals all threads of the process and lets it go on, if it was stopped.
void ask_for_stacks(pid_t process, StackBoard& board);
// What has been left: a line for each thread, its innermost function first. While the process still exists.
std::vector<std::string> left_stacks(pid_t process, const StackBoard& board);

}  // namespace sluice
