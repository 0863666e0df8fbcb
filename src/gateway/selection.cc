#include "gateway/selection.h"

#include <algorithm>

#include "gateway/fleet.h"

namespace sluice::gateway {
namespace {

void list_usable(const WorkerList& workers, std::span<const uint32_t> tried, TimePoint now,
                 std::vector<Candidate>& usable) {
  for (const int effort : {0, 1, 2, 3}) {
    usable.clear();
    for (const WorkerPtr& worker : workers) {
      if (effort < 1 ? !worker->takes_work(now) : !worker->usable()) continue;
      if (effort == 1 && worker->suspect.load(std::memory_order_relaxed)) continue;  // one that may be tried takes work
      if (effort < 3 && std::ranges::find(tried, worker->number) != tried.end()) continue;
      usable.push_back({worker->number, worker->load.get()});
    }
    if (!usable.empty()) return;
  }
}

}  // namespace

std::string_view why_not(const Worker& worker, std::span<const uint32_t> tried, TimePoint now) {
  const WorkerLoad& load = *worker.load;
  if (worker.draining.load(std::memory_order_relaxed)) return "draining";
  if (!worker.healthy.load(std::memory_order_relaxed)) return "not_ready";
  const BreakerState breaker = worker.breaker.state();
  if (!worker.breaker.admits()) return breaker == BreakerState::kHalfOpen ? "breaker_half_open" : "breaker_open";
  if (load.is_busy(now)) return "busy";
  if (load.is_full()) {
    if (worker.suspect.load(std::memory_order_relaxed)) return "suspect";
    const bool begins_slowly = load.requests.load(std::memory_order_relaxed) >= worker.limit.allowed();
    return begins_slowly ? "slow_start" : "busy";
  }
  return std::ranges::find(tried, worker.number) == tried.end() ? std::string_view() : "tried";
}

Gate::Pass RequestGate::of(uint32_t place) const {
  const Candidate& member = roster_.members()[place];
  const WorkerLoad& load = *member.load;
  const bool closed = load.breaker.load(std::memory_order_relaxed) == BreakerState::kClosed;
  if (!(closed ? load.takes_work(now_) : roster_.workers()[place]->takes_work(now_))) return Pass::kRests;
  return std::ranges::find(tried_, member.worker) == tried_.end() ? Pass::kYes : Pass::kTried;
}

void RequestGate::expect(uint32_t place) const {
  roster_.members()[place].load->prefetch_for_lease();
  __builtin_prefetch(roster_.workers()[place].get());
}

std::optional<Choice> select_worker(const Roster& roster, const Policy& policy, const RequestFacts& facts,
                                    std::span<const uint32_t> tried, const routing::HashRing* ring,
                                    ChoiceScratch& scratch, Rng& rng) {
  if (roster.order() != nullptr && !policy.needs_all()) {
    roster.wake(facts.now);
    const RequestGate gate(roster, tried, facts.now);
    const Choice choice =
        policy.choose(FleetView(roster.members(), *roster.order(), gate, ring, &scratch.ahead), facts, rng);
    if (choice.worker) {
      gate.expect(static_cast<uint32_t>(place_of(roster.members(), *choice.worker)));
      return choice;
    }
  }
  list_usable(roster.workers(), tried, facts.now, scratch.usable);
  if (scratch.usable.empty()) return std::nullopt;
  Choice choice = policy.choose(FleetView(scratch.usable, ring), facts, rng);
  choice.takes_work = choice.worker && roster.worker(*choice.worker)->takes_work(facts.now);
  return choice;
}

std::optional<uint32_t> select_of(const WorkerList& workers, std::span<const uint32_t> tried, TimePoint now,
                                  ChoiceScratch& scratch) {
  list_usable(workers, tried, now, scratch.usable);
  if (scratch.usable.empty()) return std::nullopt;
  const auto requests = [](const Candidate& candidate) { return candidate.load->requests.load(); };
  return std::ranges::min_element(scratch.usable, {}, requests)->worker;
}

WorkerPtr usable_at(const Roster& roster, uint64_t place) {
  for (const WorkerPtr& worker : roster.workers()) {
    if (worker->usable() && place-- == 0) return worker;
  }
  return nullptr;
}

void weigh_all(const Roster& roster, const Policy& policy, const RequestFacts& facts, std::span<const uint32_t> tried,
               std::vector<obs::RequestRecord::Score>& scores) {
  const auto members = roster.members();
  if (members.size() > kMostWeighed) return;
  scores.reserve(members.size());
  for (uint32_t place = 0; place < members.size(); ++place) {
    scores.push_back({.worker = members[place].worker,
                      .why_not = why_not(*roster.workers()[place], tried, facts.now),
                      .cost = policy.weigh(members[place], facts),
                      .matched_share = facts.prefix.rate_of(members[place].worker)});
  }
}

std::optional<Duration> comes_back(const WorkerList& workers, TimePoint now) {
  std::optional<Duration> soonest;
  for (const WorkerPtr& worker : workers) {
    if (worker->draining || worker->breaker.state() == BreakerState::kHalfOpen) continue;
    Duration left = worker->breaker.open_for().value_or(Duration(0));
    if (!worker->healthy) {
      const int64_t checked_at = worker->checked_at;
      if (checked_at == 0) continue;
      left = std::max(left, Duration(checked_at) - now.time_since_epoch());
    }
    soonest = std::min(soonest.value_or(left), left);
  }
  return soonest;
}

bool any_untried(const Roster& roster, std::span<const uint32_t> tried, TimePoint now) {
  const RequestGate gate(roster, tried, now);
  for (uint32_t place = 0; place < roster.workers().size(); ++place) {
    if (gate.of(place) == Gate::Pass::kYes) return true;
  }
  return false;
}

}  // namespace sluice::gateway
