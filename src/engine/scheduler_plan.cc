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

}  // namespace

// What is left to give in this step. Tokens of the prefix cache count as free until a plan protects them; nodes that
// two admissions share are protected once.
struct Scheduler::Budget {
  int64_t total;   // free and evictable tokens, less what running requests are expected to need
  int64_t input;   // prompt tokens of this batch
  int64_t chunk;   // prompt tokens of this step
  int64_t logits;  // rows of prompt logits
  std::unordered_map<const RadixCache::Node*, int64_t> protected_tokens;

  struct Path {
    int64_t newly_protected = 0;
    std::vector<std::pair<const RadixCache::Node*, int64_t>> nodes;
  };
  void visit(Path& path, const RadixCache::Node* node, int64_t tokens) const {
    if (RadixCache::is_locked(node)) return;
    const auto found = protected_tokens.find(node);
    path.newly_protected += std::max<int64_t>(0, tokens - (found == protected_tokens.end() ? 0 : found->second));
    path.nodes.emplace_back(node, tokens);
  }
  void protect(const Path& path) {
    total -= path.newly_protected;
    for (const auto& [node, tokens] : path.nodes) {
      int64_t& held = protected_tokens[node];
      held = std::max(held, tokens);
    }
  }
  void take(int64_t tokens, int64_t output, int64_t logit_rows) {
    total -= tokens + output;
    input -= tokens;
    chunk -= tokens;
    logits -= logit_rows;
  }
};

StepPlan Scheduler::plan() const {
  StepPlan prefill = plan_prefill();
  return prefill.sequences.empty() ? plan_decode() : prefill;
}

double Scheduler::reserved_tokens() const {
  double reserved = 0;
  for (const Request* r : running_) reserved += static_cast<double>(expected_output(*r)) * new_token_ratio_;
  return reserved;
}

std::vector<Request*> Scheduler::admission_order() const {
  std::vector<Request*> order;
  order.reserve(waiting_.size());
  for (const auto& [arrival, request] : waiting_) order.push_back(request);
  if (!options_.longest_prefix_first || !options_.prefix_cache || order.size() > kLongestQueueForLpm) return order;

  std::unordered_map<const Request*, int64_t> matched;
  std::set<std::pair<std::string_view, std::vector<int32_t>>> heads;
  std::erase_if(order, [&](Request* r) {
    const int64_t n = matched[r] = cache_.peek(r->in.extra_key, r->first(r->match_limit()));
    if (n > kInBatchCheckTokens || r->length() < kInBatchCheckTokens) return false;
    // An earlier request starts like this one: wait a round, so that it fills the cache first.
    const auto head = r->first(kInBatchCheckTokens);
    return !heads.emplace(r->in.extra_key, std::vector<int32_t>(head.begin(), head.end())).second;
  });
  std::stable_sort(order.begin(), order.end(),
                   [&](const Request* a, const Request* b) { return matched.at(a) > matched.at(b); });
  return order;
}

StepPlan Scheduler::plan_prefill() const {
  StepPlan plan{.kind = StepPlan::Kind::kPrefill};
  if (!chunked_ && (waiting_.empty() || static_cast<int64_t>(running_.size()) >= options_.max_running_requests)) {
    return plan;
  }
  const int64_t free = pool_.available() + cache_.evictable();
  Budget budget{
      .total = free - static_cast<int64_t>(reserved_tokens()),
      .input = options_.max_prefill_tokens,
      .chunk = options_.chunked_prefill_size > 0 ? options_.chunked_prefill_size : std::numeric_limits<int64_t>::max(),
      .logits = kMaxPromptLogitRows};
  auto sequences = static_cast<int64_t>(running_.size());

  if (chunked_) {
    // What it holds is held already, so it goes on as long as there is any room at all.
    const int64_t left = chunked_->length() - chunked_->kv_len;
    const bool logits = chunked_->wants_input_logprobs();
    const int64_t n = std::min({left, budget.chunk, free, logits ? budget.logits : left});
    if (n <= 0) return plan;
    plan.sequences.push_back({.request = chunked_, .new_tokens = n, .last = n == left});
    if (n < left) return plan;
    budget.take(n, expected_output(*chunked_), logits ? n : 0);
    ++sequences;
  }

  for (Request* r : admission_order()) {
    if (sequences >= options_.max_running_requests) break;
    if (options_.prefill_max_requests &&
        static_cast<int64_t>(plan.sequences.size()) >= *options_.prefill_max_requests) {
      break;
    }
    if (budget.total <= 0 || budget.input <= 0 || budget.chunk <= 0) break;
    Budget::Path path;
    const int64_t cached = options_.prefix_cache
                               ? cache_.peek(r->in.extra_key, r->first(r->match_limit()),
                                             [&](const RadixCache::Node* n, int64_t k) { budget.visit(path, n, k); })
                               : 0;
    const int64_t computed = r->length() - cached;
    if (computed + expected_output(*r) >= budget.total - path.newly_protected) break;
    if (computed >= budget.input && !plan.sequences.empty()) break;
    const bool logits = r->wants_input_logprobs();
    const int64_t n = std::min({computed, budget.chunk, logits ? budget.logits : computed});
    if (n <= 0) break;
    budget.protect(path);
    plan.sequences.push_back({.request = r, .cached = cached, .new_tokens = n, .last = n == computed});
    if (n < computed) break;  // it becomes the chunked request
    budget.take(n, expected_output(*r), logits ? n : 0);
    ++sequences;
  }
  return plan;
}

StepPlan Scheduler::plan_decode() const {
  StepPlan plan{.kind = StepPlan::Kind::kDecode};
  std::vector<Request*> keep = running_;
  int64_t free = pool_.available() + cache_.evictable();
  if (free < static_cast<int64_t>(keep.size())) {
    std::unordered_map<const RadixCache::Node*, int64_t> unlocked;
    const auto give_up = [&](Request* r) {
      free += r->kv_len - r->owned_from;
      for (const RadixCache::Node* n = r->node; n; n = RadixCache::parent(n)) {
        if (++unlocked[n] == RadixCache::locks(n)) free += RadixCache::length(n);
      }
      plan.retract.push_back(r);
    };
    if (chunked_) give_up(chunked_);  // it has no output yet to lose
    std::sort(keep.begin(), keep.end(), [](const Request* a, const Request* b) {
      if (a->generated() != b->generated()) return a->generated() > b->generated();
      if (a->prompt_len != b->prompt_len) return a->prompt_len < b->prompt_len;
      return a->arrival < b->arrival;
    });
    while (keep.size() > 1 && free < static_cast<int64_t>(keep.size())) {
      give_up(keep.back());
      keep.pop_back();
    }
    // A request alone always fits: max_req_len is below the capacity.
    SLUICE_CHECK(free >= static_cast<int64_t>(keep.size()), "no room for one request in a pool of {}",
                 pool_.capacity());
  }
  for (Request* r : running_) {
    if (std::find(plan.retract.begin(), plan.retract.end(), r) != plan.retract.end()) continue;
    plan.sequences.push_back({.request = r, .new_tokens = 1});
  }
  if (plan.sequences.empty()) plan.kind = StepPlan::Kind::kIdle;
  return plan;
}

}  // namespace sluice::engine
