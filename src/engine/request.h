// One request as the scheduler knows it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/grammar/grammar.h"
#include "engine/messages.h"
#include "engine/radix_cache.h"
#include "engine/sampler.h"
#include "engine/stop_regex.h"

namespace sluice::engine {

struct Request {
  enum class Phase { kWaiting, kChunked, kRunning };

  GenerateRequest in;
  uint64_t arrival = 0;  // order among all requests of this rank
  int64_t urgency = 0;   // its priority, larger is sooner; 0 without priority scheduling
  uint64_t seed = 0;
  int64_t max_new = 0;  // sampling.max_new_tokens, clipped to what fits

  Phase phase = Phase::kWaiting;
  std::vector<int32_t> tokens;  // prompt and output; the last `pending` are what steps in flight are to choose
  int64_t prompt_len = 0;
  int64_t pending = 0;

  int64_t in_flight = 0;  // steps that it is in and that are not committed; the last of them has it in row `step_row`
  int64_t kv_in_flight = 0;  // tokens that they compute
  size_t step_row = 0;
  bool ended = false;  // it has its answer, and is kept for the steps in flight alone

  // KV of positions [0, kv_len) is in the pool once the steps in flight are computed, the slots in row `row` of the
  // slot table. Those before `owned_from`, whole pages, belong to the prefix cache and are protected by the lock on
  // `node`; the pages of the others are this request's own. So are `doubles`, pages that the cache has from somebody
  // else and that a step in flight still reads here.
  int32_t row = -1;
  int64_t kv_len = 0;
  int64_t owned_from = 0;
  RadixCache::Node* node = nullptr;
  std::vector<int32_t> doubles;

  int64_t cached_tokens = 0;
  int64_t retractions = 0;
  bool prefilled_once = false;
  TimePoint arrived{};
  std::optional<TimePoint> begun;  // its first step
  RequestTimes times;

  // Of whoever computes steps, while one is in flight (engine/step_work.h).
  std::unique_ptr<GrammarState> grammar;  // what its tokens are held to, if anything
  bool grammar_begun = false, grammar_over = false;
  Duration grammar_time{}, longest_grammar_time{};  // of finding what may come, together and at most
  int slow_grammar_tokens = 0;                      // one after the other, up to now
  int64_t grammar_tokens = 0;                       // for which that was done
  TokenCounts counts;                               // of the output, if a penalty is set

  std::optional<StopRegexes> stop_regexes;
  std::string tail;          // last bytes of the text, if there are stop strings
  bool tail_is_cut = false;  // there were others before it
  size_t longest_stop = 0;

  std::vector<float> hidden;     // GenerateRequest::return_hidden_states: of positions from 0 on
  int64_t hidden_rows = 0;       // with those of the steps in flight
  int64_t answer_promised = 0;   // Scheduler::answer_bytes(), from when it begins until it ends
  std::vector<int32_t> experts;  // GenerateRequest::return_routed_experts: of what was computed when it was retracted

  int64_t sent = 0;  // output tokens that the front knows
  std::vector<PositionLogprobs> input_logprobs;
  bool input_logprobs_done = false;
  std::vector<PositionLogprobs> output_logprobs;  // of the tokens not sent yet

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t generated() const { return length() - prompt_len; }
  int64_t known() const { return generated() - pending; }  // of the generated ones
  bool wants_input_logprobs() const { return in.logprob_start_len >= 0 && !input_logprobs_done; }
  // Longest cached prefix that may be used: one token is always computed, or there would be nothing to sample from, and
  // wanted logprobs of the prompt and hidden states come from computed rows.
  int64_t match_limit() const {
    int64_t limit = length() - 1;
    if (wants_input_logprobs()) limit = std::min(limit, std::max<int64_t>(in.logprob_start_len - 1, 0));
    if (in.return_hidden_states) limit = std::min(limit, hidden_rows);
    return limit;
  }
  std::span<const int32_t> first(int64_t n) const { return std::span(tokens).first(static_cast<size_t>(n)); }
};

}  // namespace sluice::engine
