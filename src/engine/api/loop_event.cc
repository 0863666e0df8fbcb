#include "engine/api/loop_event.h"

#include <boost/asio/redirect_error.hpp>

namespace sluice::engine {

LoopEvent::LoopEvent(net::EventLoop& loop) : loop_(loop) {}

void LoopEvent::notify() {
  const std::lock_guard lock(mu_);
  if (notified_ || closed_) return;
  notified_ = true;
  // Under the lock, so that close() is never between the question and the post.
  loop_.post([self = shared_from_this()] {
    if (self->timer_ != nullptr) self->timer_->cancel();
  });
}

net::Task<bool> LoopEvent::wait(Duration at_most) {
  using Clock = std::chrono::steady_clock;
  net::Timer timer(loop_.executor());
  timer.expires_at(at_most == Duration::max() ? Clock::time_point::max() : Clock::now() + at_most);
  timer_ = &timer;
  bool over = false;
  bool notified = take();
  while (!notified && !over) {
    boost::system::error_code interrupted;
    co_await timer.async_wait(net::asio::redirect_error(net::use_task, interrupted));
    over = !interrupted;
    notified = take();  // not so after a notification that an earlier wait has taken
  }
  timer_ = nullptr;
  co_return notified;
}

void LoopEvent::close() {
  const std::lock_guard lock(mu_);
  closed_ = true;
}

bool LoopEvent::take() {
  const std::lock_guard lock(mu_);
  return std::exchange(notified_, false);
}

}  // namespace sluice::engine
