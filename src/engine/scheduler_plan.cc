// The deciding half of the scheduler: const, so that dropping a plan leaves no trace.
#include <algorithm>
#include <limits>
#include <set>
#include <unordered_map>

#include "base/check.h"
#include "engine/scheduler.h"

namespace sluice::engine {
namespace {

// engine-reference.md 10.3 and 10.5.
constexpr int64_t kClipMaxNewTokens = 4096;
constexpr int64_t kInBatchCheckTokens = 32;
constexpr size_t kLongestQueueForLpm = 128;
// Rows of logits of one step when logprobs of prompts are wanted: each row is a whole vocabulary of floats.
constexpr int64_t kMaxPromptLogitRows = 512;

int64_t expected_output(const Request& r) { return std::min(r.max_new - r.generated(), kClipMaxNewTokens); }

bool contains(const std::vector<Request*>& requests, const Request* r) {
  return std::find(requests.begin(), requests.end(), r) != requests.end();
}

}  // namespace

// What is left to give in this step. Tokens of the prefix cache count as free until a plan protects them; nodes that
// two admissions share are protected once.
struct Scheduler::Budget {
  int64_t total;     // free and evictable tokens, less what running requests are expected to need
  int64_t input;     // prompt tokens of this batch
  int64_t chunk;     // prompt tokens of this step
  int64_t logits;    // rows of prompt logits
  int64_t requests;  // that may still join
  std::unordered_map<const RadixCache::Node*, int64_t> protected_tokens{};
  std::unordered_map<const RadixCache::Node*, int64_t> unlocked{};  // locks that the preempted hold no more

  bool spent() const { return total <= 0 || input <= 0 || chunk <= 0; }
  // Tokens of the path that are evictable now and would not be.
  int64_t newly_protected(const std::vector<RadixCache::PathStep>& path) const {
    int64_t tokens = 0;
    for (const auto& step : path) {
      const auto freed = unlocked.find(step.node);
      if (RadixCache::locks(step.node) > (freed == unlocked.end() ? 0 : freed->second)) continue;
      const auto found = protected_tokens.find(step.node);
      tokens += std::max<int64_t>(0, step.tokens - (found == protected_tokens.end() ? 0 : found->second));
    }
    return tokens;
  }
  void protect(const std::vector<RadixCache::PathStep>& path) {
    total -= newly_protected(path);
    for (const auto& [node, tokens] : path) {
      int64_t& held = protected_tokens[node];
      held = std::max(held, tokens);
    }
  }
  // `slots`: of the tokens, in whole pages.
  void take(int64_t tokens, int64_t slots, int64_t output, int64_t logit_rows) {
    total -= slots + output;
    input -= tokens;
    chunk -= tokens;
    logits -= logit_rows;
  }
};

struct Scheduler::Admission {
  int64_t cached = 0;
  int64_t computed = 0;  // the rest of its tokens
  std::vector<RadixCache::PathStep> path{};
  bool has_room = false;
};

bool StepPlan::has_prompt() const {
  return std::ranges::any_of(sequences, [](const Sequence& s) { return s.request->phase != Request::Phase::kRunning; });
}

bool StepPlan::continues_prompt() const {
  return std::ranges::any_of(sequences, [](const Sequence& s) { return s.request->phase == Request::Phase::kChunked; });
}

int64_t Scheduler::decoding_after(const StepPlan& plan) const {
  const auto runs = [](const Request* r) { return r->phase == Request::Phase::kRunning; };
  return std::ssize(running_) - std::ranges::count_if(plan.retract, runs) - std::ssize(plan.preempt) +
         std::ranges::count_if(plan.sequences, [](const StepPlan::Sequence& s) {
           return s.last && s.request->phase != Request::Phase::kRunning;
         });
}

StepPlan Scheduler::plan() const {
  if (observer_) planning_since_ = clock_.now();
  StepPlan prefill = plan_prefill();
  if (prefill.sequences.empty()) return plan_decode();
  if (options_.mixed_chunk) plan_decoding(prefill);
  return prefill;
}

// ---- who waits

std::vector<Request*> Scheduler::admission_order() const {
  std::vector<Request*> order;
  order.reserve(waiting_.size());
  for (const auto& [arrival, request] : waiting_) order.push_back(request);
  const SchedulePolicy* policy = options_.policy;
  const bool by_cache = policy->by_cache && options_.prefix_cache && order.size() <= kLongestQueueForLpm;
  if (policy->by_cache && !by_cache) policy = &schedule_policies().front();

  std::vector<WaitingRequest> seen;
  seen.reserve(order.size());
  if (by_cache) {
    order = wait_for_twins(std::move(order), seen);
  } else {
    for (const Request* r : order) {
      seen.push_back({.max_new_tokens = r->max_new, .urgency = r->urgency, .routing_key = r->in.routing_key});
    }
  }
  QueueView queue{.waiting = seen, .round = options_.seed ^ totals_.steps_total};
  for (const Request* r : running_) {
    if (!r->in.routing_key.empty()) ++queue.running_per_key[r->in.routing_key];
  }
  std::vector<Request*> sorted;
  sorted.reserve(order.size());
  for (const size_t place : policy->order(queue)) sorted.push_back(order[place]);
  return sorted;
}

// Looks the requests up in the prefix cache. A request that begins as an earlier one that the cache knows little of
// waits a round, so that the first of them fills the cache.
std::vector<Request*> Scheduler::wait_for_twins(std::vector<Request*> order, std::vector<WaitingRequest>& seen) const {
  std::set<std::pair<std::string_view, std::vector<int32_t>>> heads;
  std::vector<RadixCache::PathStep> path;
  std::erase_if(order, [&](const Request* r) {
    const int64_t cached = cache_.peek(r->in.extra_key, r->first(r->match_limit()), &path);
    if (cached <= kInBatchCheckTokens && r->length() >= kInBatchCheckTokens) {
      const auto head = r->first(kInBatchCheckTokens);
      if (!heads.emplace(r->in.extra_key, std::vector<int32_t>(head.begin(), head.end())).second) return true;
    }
    auto& request = seen.emplace_back(WaitingRequest{.max_new_tokens = r->max_new, .cached_tokens = cached});
    for (const auto& step : path) request.path.push_back(step.node);
    return false;
  });
  return order;
}

// ---- prefill

double Scheduler::reserved_for(const Request& r) const {
  return static_cast<double>(expected_output(r)) * new_token_ratio_;
}

// Slots that are free once the request is retracted. `unlocked` counts the locks that are gone by then.
int64_t Scheduler::freed_by(const Request& r, std::unordered_map<const RadixCache::Node*, int64_t>& unlocked) const {
  int64_t freed = pool_.ceil(r.kv_len) - r.owned_from;
  for (const RadixCache::Node* n = r.node; n; n = RadixCache::parent(n)) {
    if (++unlocked[n] == RadixCache::locks(n)) freed += RadixCache::length(n);
  }
  return freed;
}

StepPlan Scheduler::plan_prefill() const {
  StepPlan plan{.kind = StepPlan::Kind::kPrefill};
  const bool crowded = static_cast<int64_t>(running_.size()) >= options_.max_running_requests;
  if (!chunked_ && (waiting_.empty() || (crowded && !options_.priorities.enabled))) return plan;

  int64_t free = pool_.available() + cache_.evictable();
  double reserved = 0;
  for (const Request* r : running_) reserved += reserved_for(*r);
  int64_t chunk =
      options_.chunked_prefill_size > 0 ? options_.chunked_prefill_size : std::numeric_limits<int64_t>::max();
  const int64_t decoding = std::max(std::ssize(running_), others_decode_);
  if (options_.mixed_chunk && decoding > 0) {
    if (times_.wants_decode_step(decoding)) return plan;
    chunk = std::min(chunk, times_.prompt_tokens(decoding, options_.mixed_chunk_gap));
    for (const Request* r : running_) free -= new_slots(*r, 1);
    if (free <= 0) return plan;  // a decode step finds out who has to go
  }
  Budget budget{.total = free - static_cast<int64_t>(reserved),
                .input = options_.max_prefill_tokens,
                .chunk = chunk,
                .logits = kMaxPromptLogitRows,
                .requests = options_.max_running_requests - static_cast<int64_t>(running_.size())};
  if (chunked_) {
    // What it holds is held already, so it goes on as long as there is any room at all.
    const int64_t left = chunked_->length() - chunked_->kv_len;
    const bool logits = chunked_->wants_input_logprobs();
    const int64_t in_last_page = pool_.ceil(chunked_->kv_len) - chunked_->kv_len;
    const int64_t n = std::min({left, budget.chunk, free + in_last_page, logits ? budget.logits : left});
    if (n <= 0) return plan;
    plan.sequences.push_back({.request = chunked_, .new_tokens = n, .last = n == left});
    if (n < left) return plan;
    budget.take(n, new_slots(*chunked_, n), expected_output(*chunked_), logits ? n : 0);
    --budget.requests;
  }
  plan_admissions(plan, budget);
  return plan;
}

std::optional<Scheduler::Admission> Scheduler::admission(const Request& r, const StepPlan& plan,
                                                         const Budget& budget) const {
  Admission a;
  if (options_.prefix_cache) a.cached = cache_.peek(r.in.extra_key, r.first(r.match_limit()), &a.path);
  a.computed = r.length() - a.cached;
  if (a.computed >= budget.input && !plan.sequences.empty()) return std::nullopt;
  const int64_t needed = pool_.ceil(a.computed) + expected_output(r) + budget.newly_protected(a.path);
  a.has_room = budget.requests > 0 && needed < budget.total;
  return a;
}

void Scheduler::plan_admissions(StepPlan& plan, Budget& budget) const {
  if (budget.spent() && !options_.priorities.enabled) return;
  for (Request* r : admission_order()) {
    if (budget.input <= 0 || budget.chunk <= 0) break;
    if (options_.prefill_max_requests &&
        static_cast<int64_t>(plan.sequences.size()) >= *options_.prefill_max_requests) {
      break;
    }
    auto a = admission(*r, plan, budget);
    if (a && !a->has_room && preempt_for(*r, plan, budget)) a = admission(*r, plan, budget);
    if (!a || !a->has_room) break;
    const bool logits = r->wants_input_logprobs();
    int64_t n = std::min({a->computed, budget.chunk, logits ? budget.logits : a->computed});
    // Whole pages, so that all of it can be shared.
    if (n < a->computed && n > pool_.page_size()) n = pool_.floor(n);
    if (n <= 0) break;
    budget.protect(a->path);
    plan.sequences.push_back({.request = r, .cached = a->cached, .new_tokens = n, .last = n == a->computed});
    if (n < a->computed) break;  // it becomes the chunked request
    budget.take(n, pool_.ceil(n) + pool_.page_size(), expected_output(*r), logits ? n : 0);
    --budget.requests;
  }
}

// Takes the places of running requests that are less urgent by more than the threshold, the least urgent and newest
// first, if that makes room. Otherwise nothing changes.
bool Scheduler::preempt_for(const Request& r, StepPlan& plan, Budget& budget) const {
  if (!options_.priorities.enabled) return false;
  std::vector<Request*> victims;
  for (Request* running : running_) {
    if (r.urgency - running->urgency > options_.priorities.preemption_threshold && !contains(plan.preempt, running)) {
      victims.push_back(running);
    }
  }
  std::ranges::sort(victims, {}, [](const Request* v) { return std::pair(v->urgency, ~v->arrival); });
  StepPlan with = plan;
  Budget left = budget;
  for (Request* victim : victims) {
    left.total += freed_by(*victim, left.unlocked) + static_cast<int64_t>(reserved_for(*victim));
    ++left.requests;
    with.preempt.push_back(victim);
    const auto a = admission(r, with, left);
    if (a && a->has_room) {
      plan = std::move(with);
      budget = std::move(left);
      return true;
    }
  }
  return false;
}

// ---- decode

// Everybody who runs and stays.
void Scheduler::plan_decoding(StepPlan& plan) const {
  for (Request* r : running_) {
    if (contains(plan.retract, r) || contains(plan.preempt, r)) continue;
    plan.sequences.push_back({.request = r, .new_tokens = 1});
    if (plan.kind == StepPlan::Kind::kPrefill) plan.kind = StepPlan::Kind::kMixed;
  }
}

StepPlan Scheduler::plan_decode() const {
  StepPlan plan{.kind = StepPlan::Kind::kDecode};
  int64_t free = pool_.available() + cache_.evictable();
  int64_t needed = 0;
  for (const Request* r : running_) needed += new_slots(*r, 1);
  if (free < needed) {
    std::unordered_map<const RadixCache::Node*, int64_t> unlocked;
    const auto give_up = [&](Request* r) {
      free += freed_by(*r, unlocked);
      plan.retract.push_back(r);
    };
    if (chunked_) give_up(chunked_);  // it has no output yet to lose
    std::vector<Request*> keep = running_;
    std::sort(keep.begin(), keep.end(), [](const Request* a, const Request* b) {
      if (a->generated() != b->generated()) return a->generated() > b->generated();
      if (a->prompt_len != b->prompt_len) return a->prompt_len < b->prompt_len;
      return a->arrival < b->arrival;
    });
    while (keep.size() > 1 && free < needed) {
      needed -= new_slots(*keep.back(), 1);
      give_up(keep.back());
      keep.pop_back();
    }
    // A request alone always fits: max_req_len is below the capacity.
    SLUICE_CHECK(free >= needed, "no room for one request in a pool of {}", pool_.capacity());
  }
  plan_decoding(plan);
  if (plan.sequences.empty()) plan.kind = StepPlan::Kind::kIdle;
  return plan;
}

}  // namespace sluice::engine
