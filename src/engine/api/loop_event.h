// Wakes a coroutine from another thread: the backend's, or one of the pool's.
#pragma once

#include <memory>
#include <mutex>

#include "base/clock.h"
#include "net/loop.h"
#include "net/stream.h"
#include "net/task.h"

namespace sluice::engine {

// Shared by the coroutine that waits and whoever may notify. The one that waits closes it before it ends, so that
// notifications that come later touch no loop, which may be gone by then.
class LoopEvent : public std::enable_shared_from_this<LoopEvent> {
 public:
  explicit LoopEvent(net::EventLoop& loop);

  // Any thread. Notifications that nobody has waited for yet are one.
  void notify();
  // Loop thread, one coroutine at a time. True: notified since the last wait. False: `at_most` is over.
  net::Task<bool> wait(Duration at_most = Duration::max());
  // Loop thread.
  void close();

 private:
  bool take();

  net::EventLoop& loop_;
  net::Timer* timer_ = nullptr;  // of the wait in progress; loop thread

  std::mutex mu_;
  bool notified_ = false;  // guarded by mu_
  bool closed_ = false;    // guarded by mu_
};

}  // namespace sluice::engine
