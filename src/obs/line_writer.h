// Lines to a file, a pipe or a terminal, written by a thread of its own. Whoever adds a line never waits: while the
// sink is slow or full, lines are dropped and counted.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "base/result.h"

namespace sluice::obs {

class LineWriter {
 public:
  static constexpr size_t kMostBytes = size_t{1} << 20;  // that wait

  // Appends to the file, which is made if it is not there; empty = stdout. A file that was renamed or removed is made
  // anew within a second, so that whoever rotates it need tell nobody. kBadOption if it cannot be opened.
  static Result<std::unique_ptr<LineWriter>> open(std::string path);
  // Writes what waits, for a second at most.
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  // `line` without its end. Any thread; a lock for the time of a copy, and no system call but to wake the writer, which
  // then gathers lines for a while.
  void add(std::string_view line);

  // Lines that were not written, or in part only. Any thread.
  uint64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }

 private:
  LineWriter(std::string path, int fd);
  void run();
  void write(std::string_view lines);
  bool wait_writable();
  void follow_path();

  // Constant after construction.
  const std::string path_;

  std::atomic<uint64_t> dropped_{0};
  std::atomic<bool> stop_{false};

  std::mutex mutex_;  // guards waiting_
  std::condition_variable wake_;
  std::string waiting_;

  // Writer's thread.
  int fd_;
  bool is_file_ = false;
  int64_t give_up_at_ = 0;  // monotonic nanoseconds, once stopped

  std::thread thread_;
};

}  // namespace sluice::obs
