#include "net/poller.h"

#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace sluice::net {
namespace {

// Each time that one of them becomes readable is an edge: nobody has to read it.
void add_edge(int epoll, int fd, const void* mark) {
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = const_cast<void*>(mark)}};
  SLUICE_CHECK(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl(ADD): {}", std::strerror(errno));
}

}  // namespace

Poller::Poller()
    : epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      alarm_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
  SLUICE_CHECK(epoll_ >= 0 && wake_ >= 0 && alarm_ >= 0, "epoll_create1, eventfd, timerfd_create: {}",
               std::strerror(errno));
  add_edge(epoll_, wake_, nullptr);
  add_edge(epoll_, alarm_, &alarm_);
}

Poller::~Poller() {
  ::close(alarm_);
  ::close(wake_);
  ::close(epoll_);
}

void Poller::wake() {
  const uint64_t one = 1;
  // It can be full only after so many that nobody has slept through.
  (void)!::write(wake_, &one, sizeof one);
}

void Poller::alarm_by(TimePoint at) {
  if (at >= alarm_at_) return;
  alarm_at_ = at;
  const Duration since = std::max<Duration>(at.time_since_epoch(), std::chrono::nanoseconds(1));  // zero would be never
  const auto whole = std::chrono::floor<std::chrono::seconds>(since);
  const itimerspec time{.it_interval = {}, .it_value = {.tv_sec = whole.count(), .tv_nsec = (since - whole).count()}};
  SLUICE_CHECK(::timerfd_settime(alarm_, TFD_TIMER_ABSTIME, &time, nullptr) == 0, "timerfd_settime: {}",
               std::strerror(errno));
}

bool Poller::collect(bool sleep) {
  collected_ = std::max(0, ::epoll_wait(epoll_, batch_, kBatch, sleep ? -1 : 0));
  told_ = 0;
  return collected_ > 0;
}

// More than a batch is found by the next call.
bool Poller::dispatch() {
  bool alarmed = false;
  for (; told_ < collected_; ++told_) {
    const epoll_event& event = batch_[told_];
    if (event.data.ptr == &alarm_) {
      alarmed = true;
      alarm_at_ = TimePoint::max();
    } else if (event.data.ptr != nullptr) {
      static_cast<Watcher*>(event.data.ptr)->on_events(event.events);
    }
  }
  told_ = collected_ = 0;
  return alarmed;
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
