// Which sockets of a loop have news. An edge-triggered epoll set within the loop's own: a socket is registered once,
// and waiting for it costs no system call, where each wait through Asio costs one. One wake-up of the loop collects the
// news of all sockets.
#pragma once

#include <sys/epoll.h>

#include <boost/asio/posix/basic_stream_descriptor.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_set>

#include "net/task.h"

namespace sluice::net {

// Loop thread only.
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

  // Between these two it tells. Watchers may be removed later.
  void start(Executor executor);
  void shutdown();

 private:
  static constexpr int kBatch = 128;

  void arm();
  void dispatch();

  const int epoll_;
  // Wakes the loop when a socket of the set has news.
  std::optional<asio::posix::basic_stream_descriptor<Executor>> outer_;
  std::unordered_set<Watcher*> watchers_;
  // The news that are being told; those of a watcher that was removed meanwhile are nobody's.
  epoll_event batch_[kBatch];
  int told_ = 0, collected_ = 0;
};

}  // namespace sluice::net
