// SIGINT, SIGTERM and SIGQUIT, and others that are asked for, as events: a handler could do next to nothing, so the
// signals are blocked and somebody waits for them.
#pragma once

#include <signal.h>

#include <initializer_list>
#include <optional>

#include "base/clock.h"

namespace sluice {

// Make one in main's thread before any other thread starts: threads inherit the blocked signals. While it lives, the
// signals end nothing by themselves. A second one at the same time shares the same signals.
class StopSignals {
 public:
  explicit StopSignals(std::initializer_list<int> others = {});
  ~StopSignals();  // those that are waiting are dropped; later ones act as before
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // The next signal's number, waiting for it at most `bound`. One thread at a time.
  std::optional<int> wait(Duration bound);
  // The same without a bound: for the thread whose only work is this.
  int wait();
  // Readable when a signal is waiting: for poll, together with pidfds. wait(Duration{0}) then takes it.
  int descriptor() const { return descriptor_; }

 private:
  sigset_t set_;
  sigset_t before_;
  int descriptor_;
};

}  // namespace sluice
