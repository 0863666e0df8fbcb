#include "gateway/ask.h"

#include "net/stream.h"

namespace sluice::gateway {

// Closes the exchange that is under way when the time is over, or nobody wants the answer.
class Watchdog {
 public:
  Watchdog(net::EventLoop& loop, Duration bound, std::shared_ptr<Interruption> interruption)
      : state_(std::make_shared<State>(loop.executor())), interruption_(std::move(interruption)) {
    if (interruption_ != nullptr) interruption_->under_way_.insert(this);
    state_->timer.expires_after(bound);
    state_->timer.async_wait([state = state_](const boost::system::error_code& error) {
      if (error) return;
      state->expired = true;
      if (state->exchange != nullptr) state->exchange->close();
    });
  }
  ~Watchdog() {
    if (interruption_ != nullptr) interruption_->under_way_.erase(this);
    state_->exchange = nullptr;
    state_->timer.cancel();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void watch(net::ClientExchange* exchange) { state_->exchange = exchange; }
  void interrupt() {
    if (state_->exchange != nullptr) state_->exchange->close();
  }
  bool expired() const { return state_->expired; }
  bool interrupted() const { return interruption_ != nullptr && interruption_->ended(); }

 private:
  struct State {
    explicit State(net::Executor executor) : timer(executor) {}
    net::Timer timer;
    net::ClientExchange* exchange = nullptr;
    bool expired = false;
  };
  const std::shared_ptr<State> state_;
  const std::shared_ptr<Interruption> interruption_;
};

void Interruption::end() {
  if (std::exchange(ended_, true)) return;
  while (!under_way_.empty()) under_way_.extract(under_way_.begin()).value()->interrupt();
}

namespace {

// What it found, and whether the connection was dead before it was used.
struct Try {
  std::optional<Result<net::Response>> answer;
  bool was_stale = false;
};

net::Task<Try> try_once(net::Client& client, const Worker& worker, const Question& question, Watchdog& dog,
                        Duration bound) {
  Try result;
  net::RequestHead head;
  head.method = question.method;
  head.target = question.target;
  head.headers = question.headers;
  const net::ClientTimeouts timeouts{.connect = bound, .head = bound, .silence = bound};
  std::function<void(net::ClientExchange&)> on_exchange = [&dog](net::ClientExchange& exchange) {
    dog.watch(&exchange);
  };
  const std::string_view body = question.body == nullptr ? std::string_view() : std::string_view(*question.body);
  auto sent = co_await client.send(worker.address, std::move(head), body, timeouts, std::move(on_exchange));
  if (!sent.ok()) {
    dog.watch(nullptr);
    result.answer.emplace(std::move(sent).error());
    co_return result;
  }
  const auto exchange = std::move(sent).value();
  auto answered = co_await exchange->read_head();
  if (answered.ok()) {
    auto body_read = co_await exchange->read_all();
    if (body_read.ok()) {
      net::Response response{answered->status, std::move(answered->headers), std::move(body_read).value(),
                             std::move(answered->reason), exchange->trailers()};
      result.answer.emplace(std::move(response));
    } else {
      result.answer.emplace(std::move(body_read).error());
    }
  } else {
    result.was_stale = answered.error().code == ErrorCode::kReset && exchange->reused() && !exchange->answered() &&
                       !dog.expired() && !dog.interrupted();
    result.answer.emplace(std::move(answered).error());
  }
  dog.watch(nullptr);
  co_return result;
}

}  // namespace

net::Task<Result<net::Response>> ask_worker(net::EventLoop& loop, net::Client& client, WorkerPtr worker,
                                            Question question, Duration bound,
                                            std::shared_ptr<Interruption> interruption) {
  Watchdog dog(loop, bound, std::move(interruption));
  const auto cancelled = [&] {
    return Error{ErrorCode::kCancelled,
                 fmt::format("{} {} was given up: nobody waits for it", question.method, question.target)};
  };
  if (dog.interrupted()) co_return cancelled();
  Try found = co_await try_once(client, *worker, question, dog, bound);
  if (found.was_stale) found = co_await try_once(client, *worker, question, dog, bound);
  if (dog.expired()) {
    co_return Error{ErrorCode::kTimeout,
                    fmt::format("no answer to {} {} within {:g} s", question.method, question.target, seconds(bound))};
  }
  if (!found.answer->ok() && dog.interrupted()) co_return cancelled();
  co_return std::move(*found.answer);
}

}  // namespace sluice::gateway
