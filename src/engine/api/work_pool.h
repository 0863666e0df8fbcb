// A few threads for work that would keep an event loop from its other connections for too long: reading large bodies,
// rendering and tokenizing long prompts.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/result.h"
#include "engine/api/loop_event.h"
#include "net/loop.h"
#include "net/task.h"

namespace sluice::engine {

// What `work` returns, a Result; an exception of it as an error. Whatever a client sends, the process goes on.
template <class Work>
std::invoke_result_t<Work> caught(Work& work) {
  try {
    return work();
  } catch (const std::exception& thrown) {
    return Error{ErrorCode::kInternal, fmt::format("not foreseen: {}", thrown.what())};
  }
}

class WorkPool {
 public:
  explicit WorkPool(size_t threads);
  // Nobody is waiting in run() any more.
  ~WorkPool();

  // Runs `work` on a thread of the pool and comes back to `loop`, on which this is called. The queue holds at most one
  // entry per connection. `work` returns a Result, which has the error if it throws.
  template <class Work>
  net::Task<std::invoke_result_t<Work>> run(net::EventLoop& loop, Work work) {
    struct Shared {
      Shared(Work w, net::EventLoop& l) : work(std::move(w)), done(std::make_shared<LoopEvent>(l)) {}
      Work work;
      std::optional<std::invoke_result_t<Work>> value;
      std::shared_ptr<LoopEvent> done;
    };
    auto shared = std::make_shared<Shared>(std::move(work), loop);
    post([shared] {
      shared->value.emplace(caught(shared->work));
      shared->done->notify();
    });
    while (!co_await shared->done->wait()) {
    }
    co_return std::move(*shared->value);
  }

 private:
  void post(std::function<void()> work);
  void serve();

  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;  // guarded by mu_
  bool stop_ = false;                        // guarded by mu_
  std::vector<std::thread> threads_;
};

}  // namespace sluice::engine
