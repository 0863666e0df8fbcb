#include "base/stop_signals.h"

#include <pthread.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace sluice {

StopSignals::StopSignals(std::initializer_list<int> others) {
  sigemptyset(&set_);
  for (int number : {SIGINT, SIGTERM, SIGQUIT}) sigaddset(&set_, number);
  for (int number : others) sigaddset(&set_, number);
  pthread_sigmask(SIG_BLOCK, &set_, &before_);
  descriptor_ = ::signalfd(-1, &set_, SFD_CLOEXEC | SFD_NONBLOCK);
  SLUICE_CHECK(descriptor_ >= 0, "signalfd: {}", std::strerror(errno));
}

StopSignals::~StopSignals() {
  ::close(descriptor_);
  // One that was seen on the descriptor and not taken would act now. Not where they stay blocked: they are somebody's.
  if (sigismember(&before_, SIGTERM) == 0) {
    while (wait(Duration{0})) {
    }
  }
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

std::optional<int> StopSignals::wait(Duration bound) {
  const TimePoint end = real_clock().now() + bound;
  for (;;) {
    const int64_t left = std::max<int64_t>(0, (end - real_clock().now()).count());
    const timespec time{left / 1'000'000'000, left % 1'000'000'000};
    const int number = ::sigtimedwait(&set_, nullptr, &time);
    if (number > 0) return number;
    if (errno == EAGAIN) return std::nullopt;
  }
}

int StopSignals::wait() {
  for (;;) {
    const int number = ::sigwaitinfo(&set_, nullptr);
    if (number > 0) return number;
  }
}

}  // namespace sluice
