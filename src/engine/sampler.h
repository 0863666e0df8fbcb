// Turns one row of logits into a token, and into the log-probabilities that a client asked for. A pure function of its
// input: the random number comes from (seed, position) alone, so a request gets the same tokens whatever else is in the
// batch.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/messages.h"

namespace sluice::engine {

// How often each token was generated so far; what the penalties go by. Prompt tokens do not count.
using TokenCounts = std::unordered_map<int32_t, int32_t>;

struct SampleInput {
  std::span<const float> logits;  // [vocab]
  const SamplingParams* params = nullptr;
  const TokenCounts* counts = nullptr;  // null: nothing generated yet, or no penalty is set
  std::span<const uint32_t> allowed;    // bits, as in grammar/grammar.h; empty: every token may come
  std::span<const int32_t> forbidden;   // tokens that must not come: those that end, below min_new_tokens
  uint64_t seed = 0;
  uint64_t position = 0;  // tokens generated so far
};

// Uniform in [0, 1), a function of its arguments (two rounds of the splitmix64 finaliser, Steele et al. 2014).
double random_unit(uint64_t seed, uint64_t position);

// True if any of the three penalties is set: only then counts are needed.
bool has_penalties(const SamplingParams& params);

// Used by one thread at a time: it keeps scratch memory of a few rows.
class Sampler {
 public:
  // Order: frequency and presence penalty, repetition penalty, logit bias, allowed and forbidden tokens, temperature;
  // then of the tokens by falling probability (ties by id) those stay that are among the first top_k, have less than
  // top_p of probability before them, and at least min_p of the largest probability.
  //
  // Cost: O(vocab) without a sort. A nucleus is a prefix of the sorted order, so only tokens above a threshold are
  // gathered and sorted, and the threshold is lowered until they are enough.
  // A row whose logits are all NaN gives token 0.
  int32_t sample(const SampleInput& input);

  // Of the log-softmax of the raw logits: the chosen token, the `top` best and the `requested` ones.
  PositionLogprobs logprobs(std::span<const float> logits, int32_t chosen, int64_t top,
                            std::span<const int32_t> requested);

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };

  std::span<const float> adjusted(const SampleInput& input);
  void gather(std::span<const float> logits, float threshold);
  int32_t draw_from_all(std::span<const float> logits, float max, float inverse_temperature, double unit);

  std::vector<float> row_;
  std::vector<Candidate> candidates_;
};

}  // namespace sluice::engine
