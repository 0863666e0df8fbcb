// What the front process and the ranks say to each other. Plain structs; engine/codec.h turns them into versioned
// binary frames and back. Token ids only: text stays in the front process, except the stop strings that the scheduler
// checks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "moe/rebalance.h"

namespace sluice::engine {

// What the text of SamplingParams::grammar is.
enum class GrammarKind : uint8_t { kNone, kJsonSchema, kRegex, kEbnf, kStructuralTag };

struct SamplingParams {
  int64_t max_new_tokens = 128;
  int64_t min_new_tokens = 0;
  double temperature = 1.0;  // below 1e-6 = greedy
  double top_p = 1.0;
  int64_t top_k = -1;  // -1 = all
  double min_p = 0.0;
  double frequency_penalty = 0.0;
  double presence_penalty = 0.0;
  double repetition_penalty = 1.0;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::optional<uint64_t> seed;  // the same seed, prompt and parameters: the same draws, whatever the batch
  std::map<int32_t, double> logit_bias;
  GrammarKind grammar_kind = GrammarKind::kNone;
  std::string grammar;
  std::string grammar_field;   // the client's name for it, for errors
  int32_t grammar_after = -1;  // it begins after this token, the end of reasoning; -1: at once
  std::vector<std::string> stop_regex;
};

// Front → rank. One sample of one prompt: n > 1 and batches are split by the front.
struct GenerateRequest {
  std::string rid;
  std::vector<int32_t> input_ids;
  SamplingParams sampling;
  int64_t stream_interval = 1;     // output is sent every so many tokens; non-stream requests use 50
  bool return_logprob = false;     // of output tokens
  int64_t logprob_start_len = -1;  // first prompt position whose logprob is wanted; -1 = none
  int64_t top_logprobs_num = 0;
  std::vector<int32_t> token_ids_logprob;
  std::string extra_key;            // namespace of the prefix cache
  std::optional<int64_t> priority;  // for --enable-priority-scheduling
  std::string routing_key;          // for --schedule-policy routing-key
  bool embed = false;               // its last token's hidden state is wanted, and no token
  bool return_hidden_states = false;
  bool return_routed_experts = false;
  std::vector<float> input_embeds;  // [input_ids, hidden] in place of the ids' embeddings; the ids are -1 then
  bool is_health_check = false;     // of the server itself: answered without a token where there is work
  uint64_t dispatch_seq = 0;        // set by the DataParallelController
};

// Front → rank. An exact rid, or everything.
struct AbortRequest {
  std::string rid;
  bool all = false;
};

enum class ControlKind : uint8_t {
  kFlushCache,
  kPauseAbort,    // computes nothing any more; what is in flight is aborted,
  kPauseRetract,  // goes back to the queue,
  kPauseInPlace,  // or stays where it is
  kContinue,
  kStartProfile,  // text: StepTraceOptions as JSON
  kStopProfile,
  kLoadWeights,    // text: a model as models/locate.h resolved it
  kRecordExperts,  // text: start, stop or dump; the answer to a dump is this rank's record
  kReadWeight,     // text: a tensor's name and how many of its rows (engine/weight_query.h); the answer is JSON
  kShutdown
};
struct ControlRequest {
  uint64_t id = 0;
  ControlKind kind = ControlKind::kFlushCache;
  std::string text;
};

// Front → every rank of an instance of several: something was sent to one of them, whom the others must step with.
struct WakeRequest {
  uint64_t work = 0;  // number of that piece of work; it grows
};

using ToRank = std::variant<GenerateRequest, AbortRequest, ControlRequest, WakeRequest>;

struct TokenLogprob {
  float logprob = 0;
  int32_t token_id = 0;
};
struct PositionLogprobs {
  // Absent for the first prompt token, which nothing predicts.
  std::optional<TokenLogprob> chosen;
  std::vector<TokenLogprob> top;        // top_logprobs_num best, descending
  std::vector<TokenLogprob> requested;  // token_ids_logprob, in the order asked
};

enum class FinishKind : uint8_t { kNone, kStopToken, kStopString, kLength, kAbort };
struct FinishReason {
  FinishKind kind = FinishKind::kNone;
  int32_t matched_token = -1;  // kStopToken; -1: none, the grammar has come to its end
  std::string matched_string;  // kStopString
  std::string message;         // kAbort
  int32_t status_code = 0;     // kAbort: 400, 500 or 503; 0 = asked for by the client
  bool rank_ended = false;     // kAbort: the front says so of a rank, which can not; it is in no frame
  bool ended_two = false;      // likewise: a second one, after the request had moved on from a first
};

// Of a request's way through its rank.
struct RequestTimes {
  int64_t begun_unix_nanos = 0;      // its first step; 0: it had none
  int64_t prefilled_unix_nanos = 0;  // its prompt was computed; 0: not yet
  double queue = 0;                  // seconds from its arrival to its first step
  double prefill = 0;                // seconds from there until its prompt was computed
};

// Rank → front. News of one request since the last message.
struct RequestOutput {
  std::string rid;
  std::vector<int32_t> new_ids;  // a stop token is included; the front trims
  FinishReason finish;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // so far
  int64_t cached_tokens = 0;      // prompt tokens served from the prefix cache at the first prefill
  int64_t retractions = 0;
  RequestTimes times;
  int64_t dp_rank = 0;                            // whom it comes from; the front knows
  std::vector<PositionLogprobs> input_logprobs;   // once, with the first message
  std::vector<PositionLogprobs> output_logprobs;  // of new_ids, if asked for
  std::vector<float> embedding;                   // GenerateRequest::embed: of unit length
  // With the last message, of prompt and output but its last token: [positions, hidden] of the final norm's output, and
  // [positions, layers, top_k] of the routers' choices, zeros in layers without experts.
  std::vector<float> hidden_states;
  std::vector<int32_t> routed_experts;
};
struct OutputBatch {
  std::vector<RequestOutput> outputs;
};

// Rank → front, at start: the rank is ready, or why it is not.
struct RankReady {
  int64_t max_total_num_tokens = 0;
  int64_t max_req_input_len = 0;
  int64_t max_running_requests = 0;
  int64_t context_length = 0;
  int64_t vocab_size = 0;
  uint64_t weight_bytes = 0;  // of those that ranks share its part, as in planned_bytes
  uint64_t kv_bytes = 0;
  uint64_t kv_bytes_per_token = 0;
  std::string dtype;
  double load_seconds = 0;     // that reading and packing the weights took
  double startup_seconds = 0;  // from the start of the process until it was ready
  uint64_t planned_bytes = 0;  // MemoryPlan::total_bytes(), so with its part of shared weights
};
struct RankProgress {
  double share = 0;  // 0..1 of loading
  std::string what;
};
struct RankFailed {
  std::string cause;
};
struct ControlReply {
  uint64_t id = 0;
  bool ok = false;
  std::string message;
};

// Observations in buckets, with the sum of each bucket: what was observed since is told from two of them.
template <size_t kBounds>
struct BucketCounts {
  uint64_t counts[kBounds + 1] = {};
  double sums[kBounds + 1] = {};

  void observe(const double (&bounds)[kBounds], double value) {
    const auto at = static_cast<size_t>(std::lower_bound(bounds, bounds + kBounds, value) - bounds);
    counts[at] += 1;
    sums[at] += value;
  }
};
// The runtime's upper bounds.
inline constexpr double kEvictionSeconds[] = {.001, .002, .003, .004, .005, .006, .007, .008, .009, .01, .02, .03,
                                              .04,  .05,  .1,   .2,   .5,   1,    2,    5,    10,   30,  60};
inline constexpr double kGrammarSeconds[] = {0, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 30, 60, 90, 120, 240};
inline constexpr double kGrammarSchemas[] = {0,   1,   2,   5,   10,  20,  30,  40,  60,  80,  100,
                                             120, 140, 160, 180, 200, 300, 400, 500, 700, 1000};
inline constexpr double kEbnfBytes[] = {0,    50,   100,   200,   300,   500,   1000,  2000,
                                        3000, 5000, 10000, 20000, 30000, 50000, 100000};
inline constexpr double kGrammarWalkSeconds[] = {0, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 90, 120, 240};
inline constexpr double kDelayPasses[] = {0, 5, 20, 29, 50, 100, 200};  // 29: the last before the usual limit
inline constexpr double kDelaySeconds[] = {0, 1, 2, 5, 10, 20, 50, 100, 200, 500};
inline constexpr int64_t kRequestsPerKey[] = {1, 2, 3, 5, 7, 10, 20, 50, 100, 200};

// What became of the grammars of a rank's requests.
struct GrammarCounts {
  uint64_t requests = 0;
  uint64_t cache_hits = 0;  // of those, with a grammar that was compiled already
  uint64_t aborted = 0;     // that ended while they waited for theirs, or because it does not compile
  uint64_t timeouts = 0;    // of compiling
  BucketCounts<std::size(kGrammarSeconds)> compile_seconds;
  BucketCounts<std::size(kGrammarSchemas)> schemas;  // of each that was compiled
  BucketCounts<std::size(kEbnfBytes)> ebnf_bytes;    // of those in EBNF
};
// Of each request with a grammar: how long finding the tokens that may come took, on the mean and at most.
struct GrammarWalks {
  BucketCounts<std::size(kGrammarWalkSeconds)> mean, longest;
};

// What became of prompts that could begin in a step (engine/prefill_delayer.h), and what those that began waited for.
enum class DelayOutcome : uint8_t { kHeldBack, kAllCould, kAllCouldAtLast, kMuchRoom, kNobodyDecodes, kLongEnough };
struct PrefillDelays {
  uint64_t outcomes[6] = {};  // by DelayOutcome
  BucketCounts<std::size(kDelayPasses)> passes;
  BucketCounts<std::size(kDelaySeconds)> seconds;
};

// With DP attention: what a rank computed in steps in which so many attention groups prefilled, the last for as many or
// more. Tokens that were computed, cached and generated; seconds of steps that prefill, decode, and do both.
struct DpCooperation {
  static constexpr size_t kMostGroups = 64;
  uint64_t tokens[kMostGroups + 1][3] = {};
  double seconds[kMostGroups + 1][3] = {};
};

// How many requests the routing keys have: keys by number, up to each of kRequestsPerKey, and above.
struct RoutingKeyCounts {
  int64_t unique_running = 0;
  int64_t running[std::size(kRequestsPerKey) + 1] = {};
  int64_t all[std::size(kRequestsPerKey) + 1] = {};
};

// One rank's load as it stands, published in shared memory (engine/load_board.h) by every rank, idle or not.
struct LoadSnapshot {
  int64_t unix_nanos = 0;
  uint64_t last_dispatch_seq = 0;  // newest GenerateRequest::dispatch_seq that the rank has taken in
  int64_t num_running_reqs = 0;
  int64_t num_waiting_reqs = 0;
  int64_t num_grammar_reqs = 0;    // of those, waiting for their grammar
  int64_t num_paused_reqs = 0;     // of both, held by a pause
  int64_t num_used_tokens = 0;     // KV slots in use that are not evictable cache
  int64_t num_cached_tokens = 0;   // evictable cache
  int64_t num_waiting_tokens = 0;  // sequence lengths that wait
  int64_t max_total_num_tokens = 0;
  int64_t max_running_requests = 0;
  double gen_throughput = 0;  // output tokens per second over the last seconds
  double cache_hit_rate = 0;  // of the last prefill batch
  double new_token_ratio = 0;
  int64_t decode_sum_seq_lens = 0;
  int64_t num_retracted_reqs = 0;  // of those that wait, that ran before
  RoutingKeyCounts routing_keys;
  uint64_t prompt_tokens_total = 0;
  uint64_t cached_tokens_total = 0;
  uint64_t generation_tokens_total = 0;
  uint64_t requests_total = 0;
  uint64_t aborted_total = 0;
  uint64_t retracted_total = 0;
  uint64_t retracted_input_tokens_total = 0;
  uint64_t retracted_output_tokens_total = 0;
  uint64_t evicted_tokens_total = 0;
  BucketCounts<std::size(kEvictionSeconds)> eviction_seconds;
  GrammarCounts grammars;
  GrammarWalks grammar_walks;
  // Rows for what a sequence keeps whatever its length, for models that have some: of those in flight, and all.
  int64_t num_used_states = 0;
  int64_t max_total_states = 0;
  PrefillDelays prefill_delays;
  DpCooperation cooperation;
  double forward_seconds[3] = {};  // of steps that prefill, decode, and do both
  uint64_t steps_total = 0;
  // Of an instance of several ranks: its steps, and what this attention group's ranks have got from other ranks.
  uint64_t group_steps_total = 0;
  uint64_t wire_bytes_total = 0;
  uint64_t split_steps_total = 0;  // of its steps, those in two halves
  uint64_t fixed_steps_total = 0;  // and those of a fixed shape
  // Time in which rows of this rank were on their way that something could be computed beside, and was.
  double wire_seconds = 0;
  double covered_seconds = 0;
  moe::RebalanceCounts rebalance;  // of such an instance
};
// Rank → front, from another host: its row of the load board.
struct LoadReport {
  LoadSnapshot load;
};

// moe::RankTokens come from the first rank of an instance with --enable-eplb, after each window of steps.
using FromRank =
    std::variant<OutputBatch, RankReady, RankProgress, RankFailed, ControlReply, LoadReport, moe::RankTokens>;

}  // namespace sluice::engine
