#include "net/poller.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace sluice::net {
namespace {

constexpr Duration kLongest = std::chrono::hours(1);  // what is a wait in milliseconds in any case

// epoll_wait() with a time in nanoseconds, where the kernel has it (5.11); else in milliseconds, never too short.
int wait_for_events(int epoll, epoll_event* events, int room, Duration most) {
  const bool for_ever = most == Duration::max();
  most = std::clamp(most, Duration::zero(), kLongest);
#ifdef SYS_epoll_pwait2
  static std::atomic<bool> is_there{true};
  if (!for_ever && most > Duration::zero() && is_there.load(std::memory_order_relaxed)) {
    const auto whole = std::chrono::floor<std::chrono::seconds>(most);
    const timespec time{.tv_sec = whole.count(), .tv_nsec = (most - whole).count()};
    const long found = ::syscall(SYS_epoll_pwait2, epoll, events, room, &time, nullptr, size_t{0});
    if (found >= 0 || errno == EINTR) return static_cast<int>(found);
    is_there.store(false, std::memory_order_relaxed);
  }
#endif
  const auto in_ms = std::chrono::ceil<std::chrono::milliseconds>(most);
  return ::epoll_wait(epoll, events, room, for_ever ? -1 : static_cast<int>(in_ms.count()));
}

}  // namespace

Poller::Poller() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  SLUICE_CHECK(epoll_ >= 0 && wake_ >= 0, "epoll_create1, eventfd: {}", std::strerror(errno));
  // Each write is an edge: nobody has to read it.
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
  SLUICE_CHECK(::epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event) == 0, "epoll_ctl(ADD): {}", std::strerror(errno));
}

Poller::~Poller() {
  ::close(wake_);
  ::close(epoll_);
}

void Poller::wake() {
  const uint64_t one = 1;
  // It can be full only after so many that nobody has slept through.
  (void)!::write(wake_, &one, sizeof one);
}

bool Poller::collect(Duration most) {
  collected_ = std::max(0, wait_for_events(epoll_, batch_, kBatch, most));
  told_ = 0;
  return collected_ > 0;
}

// More than a batch is found by the next call.
void Poller::dispatch() {
  for (; told_ < collected_; ++told_) {
    const epoll_event& event = batch_[told_];
    if (event.data.ptr != nullptr) static_cast<Watcher*>(event.data.ptr)->on_events(event.events);
  }
  told_ = collected_ = 0;
}

void Poller::add(int fd, Watcher& watcher, uint32_t events) {
  epoll_event event{.events = events | EPOLLET, .data = {.ptr = &watcher}};
  SLUICE_CHECK(::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl(ADD): {}", std::strerror(errno));
  watchers_.insert(&watcher);
}

void Poller::change(int fd, Watcher& watcher, uint32_t events) {
  epoll_event event{.events = events | EPOLLET, .data = {.ptr = &watcher}};
  SLUICE_CHECK(::epoll_ctl(epoll_, EPOLL_CTL_MOD, fd, &event) == 0, "epoll_ctl(MOD): {}", std::strerror(errno));
}

void Poller::remove(int fd, Watcher& watcher) {
  if (watchers_.erase(&watcher) == 0) return;
  ::epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
  for (int i = told_; i < collected_; ++i) {
    if (batch_[i].data.ptr == &watcher) batch_[i].data.ptr = nullptr;
  }
}

void Poller::shutdown() {
  collected_ = told_ = 0;
  while (!watchers_.empty()) {
    Watcher* const watcher = *watchers_.begin();
    watchers_.erase(watchers_.begin());
    watcher->on_shutdown();
  }
}

}  // namespace sluice::net
