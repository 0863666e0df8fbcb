// Signs of life while a rank does what may take as long as it takes: reading or writing files, getting memory. Whoever
// waits for it meanwhile waits on. A thread gives them, and only as long as this lives and its limit is not over; of a
// process that is stopped there are none.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "parallel/communicator.h"

namespace sluice::parallel {

// The thread knows nothing of what it speaks for, which may hang for ever. What is longer than a server may take to
// start is no slow disk any more, and silence again.
inline constexpr std::chrono::minutes kStayAliveLimit{30};

class StayAlive {
 public:
  // `comm`, which outlives this, hears of `where` at once and again `every` so often: more than once in its silence
  // limit. No more once `limit` has passed by `clock`, which outlives this too.
  StayAlive(Communicator& comm, const Progress& where, Duration every = std::chrono::milliseconds(500),
            Duration limit = kStayAliveLimit, const Clock& clock = real_clock());
  ~StayAlive();
  StayAlive(const StayAlive&) = delete;
  StayAlive& operator=(const StayAlive&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace sluice::parallel
