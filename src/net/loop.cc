#include "net/loop.h"

#include <pthread.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>

#include "base/check.h"
#include "base/machine.h"

namespace sluice::net {
namespace {

constexpr asio::use_awaitable_t<Executor> use_task{};
constexpr int kMostHandlers = 256;  // before sockets and timers are looked at

// Keeps the function object, and with it the captures of a coroutine lambda, alive as long as the coroutine.
Task<> run_owned(std::function<Task<>()> coroutine) {
  Task<> task = coroutine();
  co_await std::move(task);
}

std::string describe(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "not a std::exception";
  }
}

}  // namespace

EventLoop::EventLoop(std::string name)
    : name_(std::move(name)), timers_(asio::use_service<TimerQueue>(context_)), work_(context_.get_executor()) {}

EventLoop::~EventLoop() {
  stop();
  join();
  poller_.shutdown();
}

void EventLoop::post(std::function<void()> function) {
  asio::post(context_.get_executor(), std::move(function));
  wake();
}

// After something was put into the queue: either this sees that the loop is about to sleep, or the loop, which looks
// into the queue once more then, sees what was put there.
void EventLoop::wake() {
  if (asleep_.load(std::memory_order_seq_cst) && asleep_.exchange(false, std::memory_order_seq_cst)) poller_.wake();
}

// Runs what is ready, and then sleeps until something is. Handlers may put ever more into the queue: sockets and timers
// have their turn among them.
void EventLoop::turn() {
  for (int ran = 0; context_.poll_one() != 0;) {
    if (++ran < kMostHandlers) continue;
    // What was collected before may still be in the queue.
    if (!telling_) look(false);
    return;
  }
  asleep_.store(true, std::memory_order_seq_cst);
  if (context_.poll_one() == 0 && !context_.stopped()) look(true);
  asleep_.store(false, std::memory_order_relaxed);
}

// Whether there are news, of sockets or of time. They are told from the queue, so that what is told runs on Asio's
// terms.
void EventLoop::look(bool sleep) {
  if (const auto due = timers_.next()) poller_.alarm_by(*due);
  const bool news = poller_.collect(sleep);
  asleep_.store(false, std::memory_order_relaxed);
  if (!news) return;
  telling_ = true;
  asio::post(context_.get_executor(), [this] {
    telling_ = false;
    if (poller_.dispatch()) timers_.fire(std::chrono::steady_clock::now());
  });
}

void EventLoop::spawn(std::function<Task<>()> coroutine) {
  asio::co_spawn(
      context_.get_executor(), run_owned(std::move(coroutine)), [name = name_](std::exception_ptr exception) {
        SLUICE_CHECK(exception == nullptr, "an exception left a coroutine of {}: {}", name, describe(exception));
      });
  wake();
}

Task<> EventLoop::sleep(Duration duration) {
  Timer timer(context_.get_executor(), duration);
  co_await timer.async_wait(use_task);
}

bool EventLoop::on_loop_thread() const {
  return const_cast<asio::io_context&>(context_).get_executor().running_in_this_thread();
}

void EventLoop::start() {
  SLUICE_CHECK(!thread_.joinable(), "{} was started twice", name_);
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
    while (!context_.stopped()) turn();
  });
}

void EventLoop::stop() {
  context_.stop();
  poller_.wake();
}

void EventLoop::join() {
  if (thread_.joinable()) thread_.join();
}

LoopGroup::LoopGroup(int count, const std::string& name) {
  if (count <= 0) count = static_cast<int>(usable_cores());
  for (int i = 0; i < count; ++i) {
    loops_.push_back(std::make_unique<EventLoop>(name + "-" + std::to_string(i)));
    loops_.back()->start();
  }
}

LoopGroup::~LoopGroup() { stop(); }

void LoopGroup::stop() {
  for (auto& loop : loops_) loop->stop();
  for (auto& loop : loops_) loop->join();
}

}  // namespace sluice::net
