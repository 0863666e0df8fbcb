// What the scheduler says about itself.
#include <algorithm>
#include <iterator>
#include <string_view>
#include <unordered_map>

#include "base/check.h"
#include "engine/scheduler.h"

namespace sluice::engine {
namespace {

constexpr Duration kCountKeysEvery = std::chrono::milliseconds(100);

}  // namespace

void Scheduler::report(const Flight& done) {
  StepReport report = done.times;
  report.started = done.work.started;
  report.computed = done.work.computed;
  report.committed = clock_.now();
  report.kind = done.plan.kind;
  report.sequences = static_cast<int64_t>(done.plan.sequences.size());
  for (const auto& s : done.plan.sequences) {
    report.tokens += s.new_tokens;
    report.cached += s.cached;
  }
  report.retracted = static_cast<int64_t>(done.plan.retract.size());
  report.running = num_running();
  report.waiting = static_cast<int64_t>(waiting_.size());
  report.cached_tokens = cache_.evictable();
  report.used_tokens = pool_.capacity() - pool_.available() - report.cached_tokens;
  observer_(report);
}

double Scheduler::token_usage() const {
  return 1 - static_cast<double>(pool_.available() + cache_.evictable()) / static_cast<double>(pool_.capacity());
}

LoadSnapshot Scheduler::snapshot() {
  const TimePoint now = clock_.now();
  if (now - window_start_ >= kThroughputWindow) {
    totals_.gen_throughput = static_cast<double>(window_tokens_) / seconds(now - window_start_);
    window_start_ = now;
    window_tokens_ = 0;
  }
  LoadSnapshot s = totals_;
  s.unix_nanos = clock_.unix_nanos();
  s.num_running_reqs = num_running();
  s.num_waiting_reqs = static_cast<int64_t>(waiting_.size());
  s.num_paused_reqs = paused_ ? static_cast<int64_t>(requests_.size()) : 0;
  s.num_cached_tokens = cache_.evictable();
  s.num_used_tokens = pool_.capacity() - pool_.available() - cache_.evictable();
  for (const auto& [arrival, r] : waiting_) {
    s.num_waiting_tokens += r->length();
    s.num_retracted_reqs += r->retractions > 0;
  }
  for (const Request* r : running_) s.decode_sum_seq_lens += r->length() - r->pending;
  s.new_token_ratio = new_token_ratio_;
  keys_changed_ = now < next_key_count_;
  if (!keys_changed_) count_routing_keys(now);
  s.routing_keys = totals_.routing_keys;
  s.max_total_num_tokens = pool_.capacity();
  s.max_running_requests = options_.max_running_requests;
  if (runner_.info().state_bytes_per_sequence > 0) {
    s.num_used_states = options_.max_running_requests - std::ssize(free_rows_);
    s.max_total_states = options_.max_running_requests + options_.radix.state_rows;
  }
  return s;
}

// Now and then only: it visits every request.
void Scheduler::count_routing_keys(TimePoint now) {
  next_key_count_ = now + kCountKeysEvery;
  struct Numbers {
    int64_t running = 0, all = 0;
  };
  std::unordered_map<std::string_view, Numbers> keys;
  for (const auto& [rid, r] : requests_) {
    if (r->in.routing_key.empty()) continue;
    Numbers& numbers = keys[r->in.routing_key];
    ++numbers.all;
    numbers.running += r->phase != Request::Phase::kWaiting;
  }
  const auto bucket = [](int64_t number) {
    return std::lower_bound(std::begin(kRequestsPerKey), std::end(kRequestsPerKey), number) -
           std::begin(kRequestsPerKey);
  };
  RoutingKeyCounts& counts = totals_.routing_keys = {};
  for (const auto& [key, numbers] : keys) {
    ++counts.all[bucket(numbers.all)];
    if (numbers.running == 0) continue;
    ++counts.unique_running;
    ++counts.running[bucket(numbers.running)];
  }
}

void Scheduler::check_invariants() const {
  cache_.check_invariants();
  int64_t own = 0, promised = 0;
  size_t rows = 0;
  const auto check = [&](const Request& r) {
    promised += r.answer_promised;
    own += pool_.ceil(r.kv_len) - r.owned_from + std::ssize(r.doubles);
    SLUICE_CHECK(r.doubles.empty() || flights_ > 0, "request {} holds {} slots twice", r.in.rid, r.doubles.size());
    rows += r.row >= 0;
    SLUICE_CHECK(pool_.floor(r.owned_from) == r.owned_from, "request {} shares {} tokens", r.in.rid, r.owned_from);
    SLUICE_CHECK(r.in_flight <= flights_ && r.pending <= r.in_flight && r.kv_in_flight >= r.in_flight,
                 "request {} is in {} steps with {} tokens to come", r.in.rid, r.in_flight, r.pending);
    SLUICE_CHECK(r.kv_len <= r.length() - r.pending || r.in_flight > 1, "request {} has KV of {} tokens of {}",
                 r.in.rid, r.kv_len, r.length() - r.pending);
    SLUICE_CHECK(std::count(r.tokens.begin(), r.tokens.end(), kFutureToken) == r.pending, "tokens of {} are missing",
                 r.in.rid);
  };
  for (const auto& [rid, owned] : requests_) {
    const Request& r = *owned;
    check(r);
    SLUICE_CHECK((r.phase == Request::Phase::kWaiting) == (r.row < 0), "request {} has row {}", rid, r.row);
    SLUICE_CHECK((r.phase == Request::Phase::kWaiting) == waiting_.contains(r.arrival), "request {} waits", rid);
    SLUICE_CHECK((r.phase == Request::Phase::kChunked) == (chunked_ == &r), "request {} is no chunk", rid);
    // Who reaches its length in a step in flight is in no further one.
    const bool leaves = r.in_flight > 0 && r.generated() >= r.max_new;
    const bool runs = r.phase == Request::Phase::kRunning && !leaves;
    SLUICE_CHECK(std::ranges::count(running_, &r) == (runs ? 1 : 0), "request {} decodes", rid);
  }
  for (const auto& r : ended_) {
    check(*r);
    SLUICE_CHECK(r->ended && r->in_flight > 0 && r->row >= 0, "request {} is kept for nothing", r->in.rid);
  }
  SLUICE_CHECK(pool_.available() + cache_.evictable() + cache_.locked() + own == pool_.capacity(),
               "{} free + {} evictable + {} locked + {} owned of {}", pool_.available(), cache_.evictable(),
               cache_.locked(), own, pool_.capacity());
  SLUICE_CHECK(promised == answer_promised_, "{} bytes of answers are promised, {} to requests", answer_promised_,
               promised);
  SLUICE_CHECK(rows + free_rows_.size() == static_cast<size_t>(options_.max_running_requests), "{} rows used, {} free",
               rows, free_rows_.size());
  for (int i = 0; i < flights_; ++i) {
    for (const int32_t slot : ring_[static_cast<size_t>(first_flight_ + i) % 2].work.batch.view().kv_slots) {
      SLUICE_CHECK(pool_.in_use(slot), "slot {} is free, and a step in flight writes to it", slot);
    }
  }
  if (requests_.empty() && ended_.empty()) SLUICE_CHECK(cache_.locked() == 0, "{} tokens stay locked", cache_.locked());
}

}  // namespace sluice::engine
