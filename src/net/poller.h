// Which sockets of a loop have news: an edge-triggered epoll set in which each is registered once, so that waiting for
// one costs no system call. It is where the loop sleeps; one call collects the news of all sockets. What ends a sleep
// in time is an alarm among them: a sleep with a timeout would set a timer of the kernel and take it back each time.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <unordered_set>

#include "base/clock.h"

namespace sluice::net {

// Loop thread only, but for wake().
class Poller {
 public:
  class Watcher {
   public:
    // EPOLL flags: what became so since the last call. May add, change and remove any watcher, itself too.
    virtual void on_events(uint32_t events) = 0;
    // The loop is going away: nothing that waits is woken again.
    virtual void on_shutdown() = 0;

   protected:
    ~Watcher() = default;
  };

  Poller();
  ~Poller();
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  // `events` without EPOLLET, which always holds. The watcher is removed before `fd` is closed.
  void add(int fd, Watcher& watcher, uint32_t events);
  // What is so now is told again.
  void change(int fd, Watcher& watcher, uint32_t events);
  void remove(int fd, Watcher& watcher);

  // The alarm goes off then, or sooner: it stays where it was set to be sooner, which costs nothing. A time that has
  // passed is now; TimePoint::max() is never.
  void alarm_by(TimePoint at);
  // True if there are news, which dispatch() then tells; the alarm is one of them, and so is wake(). To `sleep` is to
  // wait for some.
  bool collect(bool sleep);
  // True if the alarm has gone off, and is set no more.
  bool dispatch();
  // Ends the sleep, or the next one. Any thread.
  void wake();

  // From now on nothing is told. Watchers may be removed later.
  void shutdown();

 private:
  static constexpr int kBatch = 128;

  const int epoll_;
  const int wake_;   // an eventfd of the set
  const int alarm_;  // a timerfd of the set
  TimePoint alarm_at_ = TimePoint::max();
  std::unordered_set<Watcher*> watchers_;
  // The news that are being told; those of a watcher that was removed meanwhile are nobody's.
  epoll_event batch_[kBatch];
  int told_ = 0, collected_ = 0;
};

}  // namespace sluice::net
