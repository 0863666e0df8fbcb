// Which process answers at a worker's address, of workers whose answers name it (those of `sluice server` do): so a
// restart is noticed that nobody reports and that falls between two health checks.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string_view>

#include "base/clock.h"

namespace sluice::gateway {

// Any thread.
class ProcessMark {
 public:
  // Of an answer: a name that no two processes share.
  static constexpr std::string_view kHeader = "x-sluice-process";

  // An answer has that name. True if a new process has taken the place of the one that answered before, once for each.
  // One that has answered before is not new: answers come in any order. Where that happens again and again several
  // share the address, and none is news any more until it has not happened for a while: two that overlapped once, as in
  // an upgrade without a pause, hide no later restart.
  bool changes_to(std::string_view name, TimePoint now);
  // Whoever comes next is known to be new, and has been dealt with.
  void expect_new();

 private:
  static constexpr size_t kRemembered = 32;
  static constexpr int kOfSeveral = 6;
  static constexpr Duration kForgotten = std::chrono::minutes(1);

  std::atomic<uint64_t> latest_{0};  // 0: nobody has said
  std::mutex mutex_;                 // guards what follows
  std::array<uint64_t, kRemembered> seen_{};
  size_t next_ = 0;
  bool expects_new_ = true;
  int came_back_ = 0;  // processes that had answered before another one did
  TimePoint came_back_at_{};
};

}  // namespace sluice::gateway
