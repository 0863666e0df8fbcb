#include "parallel/stay_alive.h"

#include <pthread.h>

namespace sluice::parallel {

StayAlive::StayAlive(Communicator& comm, const Progress& where, Duration every) {
  comm.progress(where);
  thread_ = std::thread([this, &comm, where, every] {
    ::pthread_setname_np(::pthread_self(), "sluice-alive");
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, every, [&] { return over_; })) comm.progress(where);
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
