#include "parallel/stay_alive.h"

#include <pthread.h>

namespace sluice::parallel {

StayAlive::StayAlive(Communicator& comm, const Progress& where, Duration every, Duration limit, const Clock& clock) {
  const TimePoint until = clock.now() + limit;
  comm.progress(where);
  thread_ = std::thread([this, &comm, &clock, where, every, until] {
    ::pthread_setname_np(::pthread_self(), "sluice-alive");
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, every, [&] { return over_; })) {
      if (clock.now() > until) return;
      comm.progress(where);
    }
  });
}

StayAlive::~StayAlive() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

}  // namespace sluice::parallel
