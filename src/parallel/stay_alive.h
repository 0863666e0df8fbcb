// Signs of life while a rank does what may take as long as it takes: reading or writing files, getting memory. Whoever
// waits for it meanwhile waits on. A thread gives them, and only as long as this lives; of a process that is stopped
// there are none.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "parallel/communicator.h"

namespace sluice::parallel {

class StayAlive {
 public:
  // `comm`, which outlives this, hears of `where` at once and again `every` so often: more than once in its silence
  // limit.
  StayAlive(Communicator& comm, const Progress& where, Duration every = std::chrono::milliseconds(500));
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
