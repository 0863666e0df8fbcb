#include "bench/driver.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/redirect_error.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>

#include "base/check.h"
#include "bench/reply_meter.h"
#include "net/client.h"
#include "net/stream.h"

namespace sluice::bench {
namespace {

using net::ClientExchange;
using net::Task;
using net::Timer;

constexpr Duration kTick = std::chrono::milliseconds(100);
constexpr size_t kErrorBody = 300;
constexpr size_t kMaxErrorBody = 1 << 20;
constexpr std::string_view kRoutingKey = "x-smg-routing-key";

TimePoint now() { return std::chrono::steady_clock::now(); }

// What the slots of all loops share.
struct Run {
  Run(const DriverOptions& o, const std::vector<Item>& i, const std::vector<Duration>& a)
      : options(o), items(i), arrivals(a), outcomes(i.size()) {
    for (size_t n = 0; n < i.size(); ++n) {
      outcomes[n].resize(std::max<size_t>(1, i[n].turns.size()));
      total += outcomes[n].size();
    }
    timeouts.head = timeouts.silence = o.silence_timeout;
  }

  // Constant after construction.
  const DriverOptions& options;
  const std::vector<Item>& items;
  const std::vector<Duration>& arrivals;
  net::ClientTimeouts timeouts;
  size_t total = 0;
  TimePoint start;  // constant once the slots run

  std::atomic<size_t> next{0};
  std::atomic<size_t> done{0}, failed{0};
  std::atomic<bool> stopping{false};

  // Each element is written by the slot that took the item; read when all slots have ended.
  std::vector<std::vector<Outcome>> outcomes;

  std::mutex mu;
  std::condition_variable ended;
  size_t slots = 0;  // guarded by mu
};

// What belongs to one loop. Its thread only.
struct Lane {
  Lane(Run& r, net::EventLoop& l)
      : run(r),
        loop(l),
        // Without keep-alive none is kept here either: servers need not repeat the "close" that they are sent.
        client(l, {.idle_timeout = std::chrono::seconds(3), .max_idle_per_host = r.options.keep_alive ? SIZE_MAX : 0}) {
  }

  // Wakes and cuts off everything that waits. Run::stopping is set.
  void cut_off() {
    for (Timer* timer : std::set<Timer*>(timers)) timer->cancel();
    for (ClientExchange* exchange : std::set<ClientExchange*>(exchanges)) exchange->close();
  }

  Task<> sleep_until(TimePoint at);

  Run& run;
  net::EventLoop& loop;
  net::Client client;
  std::set<Timer*> timers;
  std::set<ClientExchange*> exchanges;
};

Task<> Lane::sleep_until(TimePoint at) {
  if (at <= now() || run.stopping) co_return;
  Timer timer(loop.executor());
  timer.expires_at(at);
  timers.insert(&timer);
  boost::system::error_code cancelled;
  auto token = net::asio::redirect_error(net::use_task, cancelled);
  co_await timer.async_wait(token);
  timers.erase(&timer);
}

// Keeps an exchange in its lane's list while it can be cut off.
class Listed {
 public:
  explicit Listed(Lane& lane) : lane_(lane) {}
  Listed(const Listed&) = delete;
  Listed& operator=(const Listed&) = delete;
  ~Listed() { lane_.exchanges.erase(exchange_); }
  void set(ClientExchange& exchange) {
    exchange_ = &exchange;
    lane_.exchanges.insert(exchange_);
  }

 private:
  Lane& lane_;
  ClientExchange* exchange_ = nullptr;
};

std::string status_error(int status, std::string_view body) {
  std::string text(body.substr(0, kErrorBody));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }, ' ');
  return fmt::format("HTTP {} {}{}{}", status, net::reason_phrase(status), text.empty() ? "" : ": ", text);
}

net::RequestHead head_of(const DriverOptions& options, const Item& item) {
  net::RequestHead head{.method = "POST",
                        .target = std::string(path_of(options.form.api)),
                        .headers = {{"Content-Type", "application/json"}}};
  for (const auto& [name, value] : options.headers) head.headers.set(name, value);
  if (!item.routing_key.empty()) head.headers.set(kRoutingKey, item.routing_key);
  if (!options.keep_alive) head.headers.set("Connection", "close");
  return head;
}

// The answer, from its head to its end.
Task<> read_answer(Lane& lane, ClientExchange& exchange, TimePoint due, Outcome& outcome) {
  const auto& options = lane.run.options;
  auto head = co_await exchange.read_head();
  if (!head.ok()) {
    outcome.error = head.error().message;
    co_return;
  }
  if (head->status != 200) {
    auto body = co_await exchange.read_all(kMaxErrorBody);
    outcome.error = status_error(head->status, body.ok() ? *body : std::string());
    co_return;
  }
  ReplyMeter meter({.api = options.form.api, .stream = options.form.stream, .keep_text = options.keep_text}, due);
  std::string broken;
  for (;;) {
    const auto bytes = co_await exchange.read_some();
    if (!bytes.ok()) broken = bytes.error().message;
    if (!bytes.ok() || bytes->empty()) break;
    meter.feed(*bytes, now());
  }
  meter.finish(now(), outcome);
  if (!broken.empty()) outcome.error = std::move(broken);
}

Task<> request(Lane& lane, const Item& item, const std::string& body, TimePoint due, Outcome& outcome) {
  Run& run = lane.run;
  auto head = head_of(run.options, item);
  const TimePoint sent = now();
  outcome.due = due - run.start;
  outcome.sent = sent - run.start;
  outcome.prompt_len = item.prompt_len;
  {
    Listed listed(lane);
    std::function<void(ClientExchange&)> list = [&listed](ClientExchange& exchange) { listed.set(exchange); };
    auto exchange = co_await lane.client.send(run.options.url, std::move(head), body, run.timeouts, std::move(list));
    if (exchange.ok()) {
      co_await read_answer(lane, **exchange, due, outcome);
    } else {
      outcome.error = exchange.error().message;
    }
  }
  if (!outcome.ok() && run.stopping) outcome.cut_off = true;
  run.done.fetch_add(1, std::memory_order_relaxed);
  if (!outcome.ok()) run.failed.fetch_add(1, std::memory_order_relaxed);
}

// One item, which is due: a request, or a conversation whose next question goes out when the answer before it has come.
Task<> converse(Lane& lane, size_t index, TimePoint due) {
  Run& run = lane.run;
  const Item& item = run.items[index];
  Prompt prompt{.ids = item.ids, .output_len = item.output_len};
  auto& outcomes = run.outcomes[index];
  for (size_t turn = 0; turn < outcomes.size(); ++turn) {
    if (!item.turns.empty()) prompt.messages.push_back(item.turns[turn]);
    const std::string body = request_body(run.options.form, prompt);
    co_await request(lane, item, body, due, outcomes[turn]);
    if (turn + 1 == outcomes.size() || run.stopping) break;
    if (!outcomes[turn].ok()) {
      for (size_t rest = turn + 1; rest < outcomes.size(); ++rest) {
        outcomes[rest].due = outcomes[rest].sent = now() - run.start;
        outcomes[rest].error = "not sent: an earlier turn of the conversation failed";
        run.done.fetch_add(1, std::memory_order_relaxed);
        run.failed.fetch_add(1, std::memory_order_relaxed);
      }
      co_return;
    }
    prompt.messages.push_back(outcomes[turn].text);
    due = now();
  }
}

void start_slot(Lane& lane);

// Takes items in their order, one after the other, and waits until each is due. With a limit on the requests under way
// there are as many slots. Without one, a slot serves one item, and starts its successor before: one slot waits, and
// those at work are as many as needed.
Task<> slot(Lane& lane) {
  Run& run = lane.run;
  const bool limited = run.options.max_concurrency > 0;
  while (!run.stopping) {
    const size_t index = run.next.fetch_add(1);
    if (index >= run.items.size()) break;
    const TimePoint arrival = run.start + run.arrivals[index];
    co_await lane.sleep_until(arrival);
    if (run.stopping) break;
    if (!limited) start_slot(lane);
    co_await converse(lane, index, run.options.closed_loop ? now() : arrival);
    if (!limited) break;
  }
  const std::lock_guard lock(run.mu);
  if (--run.slots == 0) run.ended.notify_all();
}

void start_slot(Lane& lane) {
  {
    const std::lock_guard lock(lane.run.mu);
    ++lane.run.slots;
  }
  // Posted, so that slots that start each other do not nest.
  lane.loop.post([&lane] { lane.loop.spawn([&lane] { return slot(lane); }); });
}

// True when all slots have ended, false if `on_tick` asked for the end.
bool wait_for_slots(Run& run, const std::function<bool(const Progress&)>& on_tick) {
  std::unique_lock lock(run.mu);
  for (;;) {
    if (run.ended.wait_for(lock, kTick, [&] { return run.slots == 0; })) return true;
    if (!on_tick) continue;
    lock.unlock();
    const bool go_on =
        on_tick({.total = run.total, .done = run.done, .failed = run.failed, .elapsed = now() - run.start});
    lock.lock();
    if (!go_on) return false;
  }
}

}  // namespace

DriverResult drive(const DriverOptions& options, const std::vector<Item>& items, const std::vector<Duration>& arrivals,
                   const std::function<bool(const Progress&)>& on_tick) {
  SLUICE_CHECK(items.size() == arrivals.size(), "{} items, {} arrivals", items.size(), arrivals.size());
  DriverResult result;
  if (items.empty()) return result;
  Run run(options, items, arrivals);
  net::LoopGroup loops(options.threads, "bench");
  std::vector<std::unique_ptr<Lane>> lanes;
  for (size_t i = 0; i < loops.size(); ++i) lanes.push_back(std::make_unique<Lane>(run, loops[i]));

  size_t slots = lanes.size();
  if (options.max_concurrency > 0) slots = std::min(items.size(), static_cast<size_t>(options.max_concurrency));
  run.start = now();
  for (size_t i = 0; i < slots; ++i) start_slot(*lanes[i % lanes.size()]);
  if (!wait_for_slots(run, on_tick)) {
    result.interrupted = true;
    run.stopping = true;
    for (auto& lane : lanes) lane->loop.post([&lane] { lane->cut_off(); });
    wait_for_slots(run, {});
  }
  result.duration = now() - run.start;
  loops.stop();
  lanes.clear();  // with no thread left that could use them
  const size_t taken = std::min(run.next.load(), items.size());
  for (size_t i = 0; i < taken; ++i) {
    for (auto& outcome : run.outcomes[i]) {
      // Taken and not sent: it was still waiting for its time when the run was ended.
      if (result.interrupted && outcome.ok() && outcome.latency == Duration::zero()) continue;
      result.cut_off += outcome.cut_off;
      if (outcome.cut_off) continue;
      result.outcomes.push_back(std::move(outcome));
    }
  }
  return result;
}

}  // namespace sluice::bench
