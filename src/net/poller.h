// Which sockets of a loop have news: an edge-triggered epoll set in which each is registered once, so that waiting for
// one costs no system call. It is where the loop sleeps; one call collects the news of all sockets.
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

  // Sleeps until there are news, wake() is called or `most` has passed; Duration::max() = for ever. True if there are
  // news, which dispatch() then tells.
  bool collect(Duration most);
  void dispatch();
  // Ends the sleep, or the next one. Any thread.
  void wake();

  // From now on nothing is told. Watchers may be removed later.
  void shutdown();

 private:
  static constexpr int kBatch = 128;

  const int epoll_;
  const int wake_;  // an eventfd of the set
  std::unordered_set<Watcher*> watchers_;
  // The news that are being told; those of a watcher that was removed meanwhile are nobody's.
  epoll_event batch_[kBatch];
  int told_ = 0, collected_ = 0;
};

}  // namespace sluice::net
