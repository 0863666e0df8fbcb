// The deciding half of the scheduler: const, so that dropping a plan leaves no trace.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <unordered_map>

#include "base/check.h"
#include "engine/scheduler.h"

namespace sluice::engine {
namespace {

// As in SGLang: beyond it, looking for prefixes costs more than it gives.
// Nobody is overtaken for longer by requests that come later, whatever the policy.
constexpr Duration kOvertaking = std::chrono::minutes(1);
// Rows of logits of one step when logprobs of prompts are wanted: each row is a whole vocabulary of floats.
constexpr int64_t kMaxPromptLogitRows = 512;

bool contains(const std::vector<Request*>& requests, const Request* r) {
  return std::find(requests.begin(), requests.end(), r) != requests.end();
}

// Of its first token in the step.
int64_t position_of(const StepPlan::Sequence& s) {
  return s.request->phase == Request::Phase::kWaiting ? s.cached : s.request->kv_len;
}

}  // namespace

// What is left to give in this step. Tokens of the prefix cache count as free until a plan protects them; nodes that
// two admissions share are protected once.
struct Scheduler::Budget {
  int64_t total;     // free and evictable tokens, less what running requests are expected to need
  int64_t input;     // prompt tokens of this batch
  int64_t chunk;     // prompt tokens of this step
  PromptRoom room;   // likewise, for those who decode meanwhile
  int64_t logits;    // rows of prompt logits
  int64_t requests;  // that may still join
  int64_t answers;   // bytes that may be kept for them
  std::unordered_map<const RadixCache::Node*, int64_t> protected_tokens{};
  std::unordered_map<const RadixCache::Node*, int64_t> unlocked{};  // locks that the preempted hold no more

  bool full() const { return input <= 0 || chunk <= 0 || room.spent(); }
  // Of `left` tokens of a prompt from `position` on. The first of a step gets one at least.
  int64_t tokens_for(int64_t left, int64_t position, bool wants_logits, bool first) const {
    const int64_t fit = std::max<int64_t>(room.fit(position, wants_logits ? 2 : 1), first ? 1 : 0);
    return std::min({left, chunk, fit, wants_logits ? logits : left});
  }
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
  void take(int64_t position, int64_t tokens, int64_t slots, int64_t output, bool wants_logits) {
    total -= slots + output;
    input -= tokens;
    chunk -= tokens;
    room.take(position, tokens, wants_logits ? 2 : 1);
    if (wants_logits) logits -= tokens;
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

StepOutlook Scheduler::outlook(const StepPlan& plan) const {
  StepOutlook outlook{.position = plan.prompts_wait_at.value_or(0)};
  if (!paused_) {
    for (const Request* r : running_) {
      if (contains(plan.retract, r) || contains(plan.preempt, r)) continue;
      ++outlook.decoding;
      outlook.context += r->length() + 1;
    }
  }
  for (const auto& s : plan.sequences) {
    if (s.request->phase == Request::Phase::kRunning) continue;
    const int64_t end = position_of(s) + s.new_tokens;
    if (s.last) {
      ++outlook.decoding;
      outlook.context += end + 1;
    } else {
      outlook.position = end;
    }
    outlook.prompt_reads += reads_of(position_of(s), s.new_tokens);
    outlook.prompt_logits += s.request->wants_input_logprobs() ? s.new_tokens : 0;
  }
  return outlook;
}

StepShape Scheduler::shape_of(const StepPlan& plan) const {
  StepShape shape;
  for (const auto& s : plan.sequences) {
    const Request& r = *s.request;
    if (r.phase == Request::Phase::kRunning) {
      ++shape.decoding;
      shape.context += r.length();
      continue;
    }
    shape.prompt_tokens += s.new_tokens * (r.wants_input_logprobs() ? 2 : 1);
    shape.prompt_reads += reads_of(position_of(s), s.new_tokens);
  }
  shape.all_decoding = shape.decoding;
  shape.all_prompt_tokens = shape.prompt_tokens;
  return shape;
}

StepPlan Scheduler::plan() const {
  if (observer_) planning_since_ = clock_.now();
  StepPlan prefill = plan_prefill();
  if (prefill.sequences.empty()) return plan_decode();
  if (prompts_must_wait()) return plan_without_prompts(prefill);
  if (options_.mixed_chunk) plan_decoding(prefill);
  return prefill;
}

StepPlan Scheduler::plan_without_prompts(const StepPlan& plan) const {
  StepPlan decode = plan_decode();
  decode.prompts_wait_at = position_of(plan.sequences.front());
  return decode;
}

// ---- prompts beside decoding

// Those who decode beside the plan's prompts, here or in another group.
StepShape Scheduler::decoding_beside(const StepPlan& plan) const {
  StepShape shape;
  for (const Request* r : running_) {
    if (contains(plan.preempt, r)) continue;
    ++shape.decoding;
    shape.context += r->length();
  }
  shape.all_decoding = shape.decoding + others_.all_decoding;
  shape.decoding = std::max(shape.decoding, others_.decoding);
  shape.context = std::max(shape.context, others_.context);
  return shape;
}

bool Scheduler::prompts_must_wait() const {
  if (!options_.mixed_chunk) return false;
  const StepShape decoding = decoding_beside({});
  if (decoding.decoding == 0) return false;
  // The others have to leave room for this group's prompts, and must know of them first.
  if (options_.joint_steps && !others_.expect_prompts) return true;
  return times_.wants_decode_step(decoding);
}

PromptRoom Scheduler::room_for(const StepPlan& plan, int64_t position) const {
  if (!options_.mixed_chunk) return PromptRoom::boundless();
  const StepShape decoding = decoding_beside(plan);
  if (decoding.decoding == 0) return PromptRoom::boundless();
  // By what all groups know, so that all choose alike: a step lasts as long as its longest part.
  if (options_.joint_steps) position = others_.position;
  return times_.room(decoding, position, options_.mixed_chunk_gap, 1 + others_.with_prompts);
}

// ---- who waits

std::vector<Request*> Scheduler::admission_order() const {
  std::vector<Request*> order;
  order.reserve(waiting_.size());
  for (const auto& [arrival, request] : waiting_) order.push_back(request);
  const SchedulePolicy* policy = options_.policy;
  const bool by_cache = policy->by_cache && options_.prefix_cache && order.size() <= policy->longest_queue;
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
  if (policy->order != schedule_policies().front().order) {
    // Minute by minute; a policy that can be told of priorities goes by them first.
    std::ranges::stable_sort(sorted, {}, [](const Request* r) {
      return std::pair(-r->urgency, r->arrived.time_since_epoch() / kOvertaking);
    });
  }
  return sorted;
}

// Looks the requests up in the prefix cache. A request that begins as an earlier one that the cache knows little of
// waits a round, so that the first of them fills the cache; but not one that has begun before, for whose end the first
// may wait.
std::vector<Request*> Scheduler::wait_for_twins(std::vector<Request*> order, std::vector<WaitingRequest>& seen) const {
  const SchedulerTuning& tuning = options_.tuning;
  std::set<std::pair<std::string_view, std::vector<int32_t>>> heads;
  std::vector<RadixCache::PathStep> path;
  std::erase_if(order, [&](const Request* r) {
    const int64_t cached = cache_.peek(r->in.extra_key, r->first(r->match_limit()), &path);
    if (r->answer_promised == 0 && cached <= tuning.twin_cached && r->length() >= tuning.twin_shared) {
      const auto head = r->first(tuning.twin_shared);
      if (!heads.emplace(r->in.extra_key, std::vector<int32_t>(head.begin(), head.end())).second) return true;
    }
    auto& request = seen.emplace_back(WaitingRequest{.max_new_tokens = r->max_new, .cached_tokens = cached});
    for (const auto& step : path) request.path.push_back(step.node);
    return false;
  });
  return order;
}

// ---- prefill

int64_t Scheduler::expected_output(const Request& r) const {
  return std::min(r.max_new - r.generated(), options_.tuning.clip_max_new_tokens);
}

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
  const bool crowded = free_rows_.empty();
  if (!chunked_ && (waiting_.empty() || (crowded && !options_.priorities.enabled))) return plan;

  int64_t free = pool_.available() + cache_.evictable();
  double reserved = 0;
  for (const Request* r : running_) reserved += reserved_for(*r);
  const int64_t chunk =
      options_.chunked_prefill_size > 0 ? options_.chunked_prefill_size : std::numeric_limits<int64_t>::max();
  if (options_.mixed_chunk && !running_.empty()) {
    for (const Request* r : running_) free -= new_slots(*r, 1);
    if (free <= 0) return plan;  // a decode step finds out who has to go
  }
  Budget budget{.total = free - static_cast<int64_t>(reserved),
                .input = options_.max_prefill_tokens,
                .chunk = chunk,
                .room = PromptRoom::boundless(),
                .logits = kMaxPromptLogitRows,
                .requests = std::ssize(free_rows_) + (chunked_ ? 1 : 0),
                .answers = answer_promised_ == 0 ? std::numeric_limits<int64_t>::max()
                                                 : options_.most_answer_bytes - answer_promised_};
  if (chunked_) {
    // What it holds is held already, so it goes on as long as there is any room at all.
    const int64_t left = chunked_->length() - chunked_->kv_len;
    const bool logits = chunked_->wants_input_logprobs();
    const int64_t in_last_page = pool_.ceil(chunked_->kv_len) - chunked_->kv_len;
    budget.room = room_for(plan, chunked_->kv_len);
    const int64_t n = std::min(budget.tokens_for(left, chunked_->kv_len, logits, /*first=*/true), free + in_last_page);
    if (n <= 0) return plan;
    plan.sequences.push_back({.request = chunked_, .new_tokens = n, .last = n == left});
    if (n < left) return plan;
    budget.take(chunked_->kv_len, n, new_slots(*chunked_, n), expected_output(*chunked_), logits);
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
  if (knows_length(r)) a.has_room = budget.requests > 0 && all_will_fit(r, plan);
  return a;
}

// Lengths that are known need no estimate: whether the pool holds everybody to the end, each giving back all that it
// has when it ends.
bool Scheduler::all_will_fit(const Request& r, const StepPlan& plan) const {
  struct Sequence {
    int64_t left;   // decode steps until it ends
    int64_t slots;  // that it holds before them
  };
  std::vector<Sequence> sequences;
  int64_t free = pool_.available();
  const auto decodes = [&](const Request& of, int64_t kv_len) {
    const int64_t left =
        knows_length(of) ? of.prompt_len + of.max_new - 1 - kv_len : static_cast<int64_t>(std::ceil(reserved_for(of)));
    sequences.push_back({std::max<int64_t>(0, left), pool_.ceil(kv_len)});
  };
  const auto begins = [&](const Request& of, int64_t held) {
    free -= pool_.ceil(of.length()) - pool_.ceil(held);
    decodes(of, of.length());
  };
  for (const Request* running : running_) {
    if (contains(plan.preempt, running)) {
      free += pool_.ceil(running->kv_len);
    } else {
      if (options_.mixed_chunk) free -= new_slots(*running, 1);  // in the step of the prompts
      decodes(*running, running->kv_len);
    }
  }
  for (const auto& s : plan.sequences) begins(*s.request, position_of(s));
  begins(r, 0);
  // One alone ends, whatever its pages, once those whose last step is in flight have given back theirs.
  if (sequences.size() == 1) return free >= 0;
  std::ranges::sort(sequences, {}, &Sequence::left);
  // When the i-th ends, it and those after it have grown by as many tokens as it.
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (free < pool_.ceil(sequences[i].left) * static_cast<int64_t>(sequences.size() - i)) return false;
    free += sequences[i].slots;
  }
  return true;
}

void Scheduler::plan_admissions(StepPlan& plan, Budget& budget) const {
  if (!options_.priorities.enabled && (budget.full() || (budget.total <= 0 && options_.prefix_cache))) return;
  std::vector<Request*> order = admission_order();
  bool blocked = false;
  for (size_t i = 0; i < order.size(); ++i) {
    Request* const r = order[i];
    if (budget.full()) break;
    if (options_.prefill_max_requests &&
        static_cast<int64_t>(plan.sequences.size()) >= *options_.prefill_max_requests) {
      break;
    }
    const int64_t answer = unpromised_bytes(*r);
    if (answer > 0 && answer > budget.answers) {
      budget.answers = 0;  // nobody who came later takes what it waits for
      // Who has it was preempted, or runs: it goes on before all that come later, and keeps its place until it ends.
      blocked = true;
      std::stable_partition(order.begin() + static_cast<std::ptrdiff_t>(i) + 1, order.end(),
                            [](const Request* other) { return other->answer_promised > 0; });
      continue;
    }
    auto a = admission(*r, plan, budget);
    const size_t preempted = plan.preempt.size();
    if (a && !a->has_room && !blocked && preempt_for(*r, plan, budget)) a = admission(*r, plan, budget);
    if (!a || !a->has_room) break;
    const bool logits = r->wants_input_logprobs(), first = plan.sequences.empty();
    // With those who leave goes some of the time that prompts have beside them.
    if (first || plan.preempt.size() > preempted) {
      budget.room = room_for(plan, a->cached);
      for (const auto& s : plan.sequences) {
        budget.room.take(position_of(s), s.new_tokens, s.request->wants_input_logprobs() ? 2 : 1);
      }
    }
    int64_t n = budget.tokens_for(a->computed, a->cached, logits, first);
    // Whole pages, so that all of it can be shared.
    if (n < a->computed && n > pool_.page_size()) n = pool_.floor(n);
    if (n <= 0) break;
    budget.protect(a->path);
    if (answer > 0) budget.answers = std::min(budget.answers, options_.most_answer_bytes - answer_promised_) - answer;
    plan.sequences.push_back({.request = r, .cached = a->cached, .new_tokens = n, .last = n == a->computed});
    if (n < a->computed) break;  // it becomes the chunked request
    budget.take(a->cached, n, pool_.ceil(n) + pool_.page_size(), expected_output(*r), logits);
    --budget.requests;
  }
}

// Hidden states are kept to the end, log-probabilities until the front gets them.
int64_t Scheduler::answer_bytes(const Request& r) const {
  int64_t positions = 0;
  if (r.in.logprob_start_len >= 0) positions += r.prompt_len - r.in.logprob_start_len;
  if (r.in.return_logprob) positions += std::min(r.max_new, std::max<int64_t>(1, r.in.stream_interval));
  const int64_t alternatives = r.in.top_logprobs_num + std::ssize(r.in.token_ids_logprob);
  constexpr int64_t kPosition = sizeof(PositionLogprobs), kAlternative = sizeof(TokenLogprob);
  int64_t bytes = positions * (kPosition + alternatives * kAlternative);
  if (r.in.return_hidden_states) {
    bytes += (r.prompt_len + r.max_new) * runner_.info().hidden_size * static_cast<int64_t>(sizeof(float));
  }
  return bytes;
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
