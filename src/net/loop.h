// Event loops: one thread each, one per core. A connection lives and dies on one loop, so what belongs to a connection
// needs no lock. Asio's context is the queue of what is ready to run; the loop sleeps in the poller, until sockets have
// news, a timer is due or another thread calls. Nothing that needs Asio's own reactor (its sockets, timers and
// resolvers) is woken here.
#pragma once

#include <boost/asio/executor_work_guard.hpp>

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/result.h"
#include "net/poller.h"
#include "net/task.h"
#include "net/timer.h"

namespace sluice::net {

class EventLoop {
 public:
  explicit EventLoop(std::string name);
  ~EventLoop();  // stops and joins
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Runs `function` on the loop's thread, soon. Any thread, which is done with the call before the loop is destroyed.
  void post(std::function<void()> function);
  // Starts a coroutine on the loop. An exception that leaves it is a broken invariant. Any thread.
  void spawn(std::function<Task<>()> coroutine);
  // Runs the coroutine on the loop and waits here for its result. Any thread but the loop's own.
  template <class T>
  T run(std::function<Task<T>()> coroutine);

  // Loop thread only.
  Task<> sleep(Duration duration);

  bool on_loop_thread() const;
  asio::io_context& context() { return context_; }
  Executor executor() { return context_.get_executor(); }
  Poller& poller() { return poller_; }

  void start();
  // Ends the loop after the handler that is running now. Any thread; idempotent.
  void stop();
  void join();

 private:
  void turn();
  void look(bool sleep);
  void wake();

  std::string name_;
  Poller poller_;                    // outlives what waits in the context
  std::atomic<bool> asleep_{false};  // or about to be
  bool telling_ = false;             // news that were collected are in the queue
  asio::io_context context_{1};      // one thread: Asio takes no locks that it can avoid
  TimerQueue& timers_;               // of the context
  asio::executor_work_guard<Executor> work_;
  std::thread thread_;
};

// `count` loops, started. 0 = one per core.
class LoopGroup {
 public:
  explicit LoopGroup(int count, const std::string& name = "loop");
  ~LoopGroup();

  size_t size() const { return loops_.size(); }
  EventLoop& operator[](size_t i) { return *loops_[i]; }
  void stop();

 private:
  std::vector<std::unique_ptr<EventLoop>> loops_;
};

// The promise is shared because set_value() may still be inside it when the waiting thread goes on.
template <class T>
T EventLoop::run(std::function<Task<T>()> coroutine) {
  SLUICE_CHECK(!on_loop_thread(), "EventLoop::run on the loop's own thread would wait for ever");
  auto promise = std::make_shared<std::promise<T>>();
  auto future = promise->get_future();
  spawn([promise, &coroutine]() -> Task<> {
    // The inner coroutine is gone before the waiting thread, which owns what it may refer to, goes on.
    if constexpr (std::is_void_v<T>) {
      co_await coroutine();
      promise->set_value();
    } else {
      T value = co_await coroutine();
      promise->set_value(std::move(value));
    }
  });
  return future.get();
}

}  // namespace sluice::net
