// Answers of other threads for a coroutine on a loop, which waits for all of them and no longer than it wants.
#pragma once

#include <boost/asio/redirect_error.hpp>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "net/loop.h"
#include "net/stream.h"

namespace sluice::gateway {

template <class T>
class Mailbox {
 public:
  // Loop thread only. The loop outlives every slot.
  Mailbox(net::EventLoop& loop, size_t wanted) : state_(std::make_shared<State>(loop, wanted)) {}

  // Takes one answer, on any thread, once. It may come after the mailbox has gone.
  std::function<void(T)> slot() {
    return [state = state_](T answer) mutable {
      net::EventLoop& loop = state->loop;
      loop.post([state = std::move(state), answer = std::move(answer)]() mutable {
        state->answers.push_back(std::move(answer));
        if (state->answers.size() == state->wanted) state->timer.cancel();
      });
    };
  }

  // Once. Those that came within `bound`, in the order in which they came.
  net::Task<std::vector<T>> collect(Duration bound) {
    const auto state = state_;
    boost::system::error_code ended;
    if (state->answers.size() < state->wanted) {
      state->timer.expires_after(bound);
      co_await state->timer.async_wait(net::asio::redirect_error(net::use_task, ended));
    }
    co_return std::move(state->answers);
  }

 private:
  struct State {
    State(net::EventLoop& on, size_t number) : loop(on), wanted(number), timer(on.executor()) {}
    net::EventLoop& loop;
    const size_t wanted;
    net::Timer timer;
    std::vector<T> answers;
  };

  const std::shared_ptr<State> state_;
};

}  // namespace sluice::gateway
