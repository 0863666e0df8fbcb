#include "net/poller.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace sluice::net {

Poller::Poller() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
  SLUICE_CHECK(epoll_ >= 0, "epoll_create1: {}", std::strerror(errno));
}

Poller::~Poller() { ::close(epoll_); }

void Poller::start(Executor executor) {
  outer_.emplace(executor, epoll_);
  arm();
}

void Poller::arm() {
  outer_->async_wait(asio::posix::descriptor_base::wait_read, [this](const boost::system::error_code& error) {
    if (error) return;
    dispatch();
    arm();
  });
}

void Poller::dispatch() {
  // More than a batch is found by the next wait.
  collected_ = ::epoll_wait(epoll_, batch_, kBatch, 0);
  for (told_ = 0; told_ < collected_; ++told_) {
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
  if (outer_) outer_->release();
  outer_.reset();
  while (!watchers_.empty()) {
    Watcher* const watcher = *watchers_.begin();
    watchers_.erase(watchers_.begin());
    watcher->on_shutdown();
  }
}

}  // namespace sluice::net
