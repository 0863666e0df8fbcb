// Waits for a time on an event loop. The loop sleeps until the first of them is due, so that setting one and taking it
// back cost no system call.
#pragma once

#include <boost/asio/async_result.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution_context.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "net/task.h"

namespace sluice::net {

class Timer;

// The timers of one loop that are waited for. Loop thread only, but for its making and its end.
class TimerQueue final : public asio::execution_context::service {
 public:
  using key_type = TimerQueue;
  static inline asio::execution_context::id id;

  explicit TimerQueue(asio::execution_context& context) : service(context) {}

  // When the first one is due; none if nobody waits.
  std::optional<TimePoint> next() const {
    return heap_.empty() ? std::nullopt : std::optional<TimePoint>(heap_.front().at);
  }
  // Tells those that are due. What they set in turn is looked at the next time.
  void fire(TimePoint now);
  // The loop is going away: nobody is told any more.
  void shutdown() override;

 private:
  friend class Timer;
  // What is told, once.
  struct Wait {
    virtual ~Wait() = default;
    virtual void end(std::unique_ptr<Wait> self, boost::system::error_code how) = 0;
  };
  struct Entry {
    TimePoint at;
    uint64_t number;  // waits for the same time end in their order
    Timer* timer;
    bool operator<(const Entry& other) const { return at != other.at ? at < other.at : number < other.number; }
  };
  void add(Timer& timer);
  void remove(Timer& timer);
  void place(size_t at, Entry entry);
  void settle(size_t at);

  std::vector<Entry> heap_;  // binary; each timer knows its place
  uint64_t added_ = 0;
};

// One time and at most one wait for it. Loop thread only, the destructor too, which ends the wait as cancel() does.
class Timer {
 public:
  explicit Timer(const Executor& executor)
      : executor_(executor), queue_(asio::use_service<TimerQueue>(executor.context())) {}
  Timer(const Executor& executor, TimePoint at) : Timer(executor) { at_ = at; }
  Timer(const Executor& executor, Duration after) : Timer(executor) { expires_after(after); }
  ~Timer() { cancel(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Both end a wait that is under way as cancel() does. TimePoint::max() never comes.
  void expires_at(TimePoint at) {
    cancel();
    at_ = at;
  }
  void expires_after(Duration after) {
    const TimePoint now = std::chrono::steady_clock::now();
    expires_at(after < TimePoint::max() - now ? now + after : TimePoint::max());
  }
  // The wait ends with operation_aborted, from the loop, later. Nothing if nobody waits, or if it is over.
  void cancel();
  // Ends without an error when the time has come, at once where that has passed; from the loop in any case.
  template <class Token>
  auto async_wait(Token&& token) {
    return asio::async_initiate<Token, void(boost::system::error_code)>(
        [this](auto&& handler) {
          using Handler = std::decay_t<decltype(handler)>;
          begin(std::make_unique<WaitOf<Handler>>(std::forward<decltype(handler)>(handler)));
        },
        token);
  }

 private:
  friend class TimerQueue;
  template <class Handler>
  struct WaitOf final : TimerQueue::Wait {
    explicit WaitOf(Handler its_handler) : handler(std::move(its_handler)) {}
    void end(std::unique_ptr<TimerQueue::Wait> self, boost::system::error_code how) override {
      Handler own = std::move(handler);
      self.reset();  // it may be asked for the memory
      own(how);
    }
    Handler handler;
  };
  void begin(std::unique_ptr<TimerQueue::Wait> wait);

  const Executor executor_;
  TimerQueue& queue_;
  TimePoint at_{};
  size_t place_ = 0;  // in the queue, while somebody waits
  std::unique_ptr<TimerQueue::Wait> wait_;
};

}  // namespace sluice::net
