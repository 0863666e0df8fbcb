#include "testing/sim_rank.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <optional>

namespace sluice::testing {
namespace {

using net::Task;
constexpr net::asio::use_awaitable_t<net::Executor> use_task{};

// The longest silence that a waiting handler sleeps through before it looks around again.
constexpr Duration kPatience = std::chrono::minutes(10);

}  // namespace

void SimWait::leave() {
  gone = true;
  timer_.cancel();
}

void SimWait::push(Event event) {
  events.push_back(event);
  timer_.cancel();
}

Task<bool> SimWait::wait_event() {
  while (!gone && events.empty()) co_await doze(kPatience);
  co_return !gone;
}

Task<bool> SimWait::sleep(Duration duration) {
  const auto end = std::chrono::steady_clock::now() + duration;
  for (;;) {
    const auto left = end - std::chrono::steady_clock::now();
    if (gone || left <= Duration::zero()) co_return !gone;
    co_await doze(left);
  }
}

Task<> SimWait::wait_gone() {
  while (!gone) co_await doze(kPatience);
}

Task<> SimWait::doze(Duration bound) {
  timer_.expires_after(bound);
  boost::system::error_code cancelled;
  auto token = net::asio::redirect_error(use_task, cancelled);
  co_await timer_.async_wait(token);
}

size_t SimRank::deliver(const std::vector<SimEngine::Emission>& emissions) {
  for (const auto& emission : emissions) {
    const auto it = targets.find(emission.id);
    if (it == targets.end()) continue;
    const SimWait::Event event{it->second.sequence, emission.tokens, emission.cached_tokens, false};
    it->second.wait->loop.post([wait = it->second.wait, event] { wait->push(event); });
    if (emission.finished) targets.erase(it);
  }
  return emissions.size();
}

Result<SimEngine::Id> SimRank::submit(std::vector<uint64_t> prompt, std::vector<uint64_t> output) {
  if (!cache) return engine.submit(std::move(prompt), std::move(output));
  const SimEngine::Id id = cache->submit(prompt, static_cast<int64_t>(output.size()));
  if (wake && cache->next_event() < next_look) wake();
  return id;
}

bool SimRank::flush() {
  if (!cache) return engine.flush();
  if (cache->has_work()) return false;
  cache->flush();
  return true;
}

Task<> drive(net::EventLoop& loop, std::shared_ptr<SimRank> rank, double time_scale) {
  net::Timer timer(loop.executor());
  auto due = std::chrono::steady_clock::now();
  for (;;) {
    std::optional<Duration> duration;
    {
      const std::lock_guard lock(rank->mu);
      if (!rank->stopped) duration = rank->engine.begin();
      if (!duration) {
        rank->driven = false;
        co_return;
      }
    }
    due += from_seconds(seconds(*duration) / time_scale);
    timer.expires_at(due);
    co_await timer.async_wait(use_task);
    {
      const std::lock_guard lock(rank->mu);
      rank->deliver(rank->engine.commit());
    }
    // Behind by much: the machine was busy or asleep, and catching up would burst.
    const auto now = std::chrono::steady_clock::now();
    if (now - due > std::chrono::milliseconds(50)) due = now;
  }
}

Task<> drive_cache(net::EventLoop& loop, std::shared_ptr<SimRank> rank) {
  const auto alarm = std::make_shared<net::Timer>(loop.executor());
  for (;;) {
    {
      const std::lock_guard lock(rank->mu);
      std::optional<TimePoint> next;
      if (!rank->stopped) {
        rank->deliver(rank->cache->advance());
        next = rank->cache->next_event();
      }
      if (!next) {
        rank->driven = false;
        rank->wake = {};
        co_return;
      }
      if (!rank->wake) {
        rank->wake = [&loop, alarm] { loop.post([alarm] { alarm->cancel(); }); };
      }
      rank->next_look = *next;
      alarm->expires_at(*next);
    }
    boost::system::error_code woken;
    auto token = net::asio::redirect_error(use_task, woken);
    co_await alarm->async_wait(token);
  }
}

SimSubmission::~SimSubmission() {
  const std::lock_guard lock(rank_->mu);
  for (const auto id : ids_) {
    if (rank_->targets.erase(id) > 0) rank_->abort(id);
  }
}

}  // namespace sluice::testing
