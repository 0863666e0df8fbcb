// One step on its way through the model: what the thread that computes it needs of the requests, and what comes back
// for the scheduler to commit. So whoever computes never touches what the scheduler changes meanwhile.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "engine/batch.h"
#include "engine/messages.h"
#include "engine/request.h"
#include "engine/routed_experts.h"
#include "engine/sampler.h"
#include "models/runner.h"

namespace sluice::engine {

// Stands in Request::tokens and in batches for a token that a step in flight is about to choose.
inline constexpr int32_t kFutureToken = INT32_MIN;

struct StepWork {
  // Some of a sequence's tokens in the step, relative to the first.
  struct Range {
    int64_t from = 0;
    int64_t count = 0;
  };
  struct Row {
    // What is to be done, of one sequence.
    Request* request = nullptr;
    bool prompt = false;   // it did not decode before
    bool last = false;     // after it the request can sample
    bool samples = false;  // and does
    bool scores = false;   // logprobs of its prompt are wanted
    int64_t cached = 0;    // taken from the prefix cache
    int64_t first_position = 0;
    int64_t new_tokens = 0;
    int64_t generated = 0;                    // tokens before the one to choose
    Range head;                               // through the head, beside the one that a token is chosen from
    Range scored;                             // of those the ones for input logprobs
    std::vector<int32_t> targets;             // of `scored`: the tokens that follow
    std::optional<int64_t> hidden_from = {};  // position from which on hidden states are wanted

    // What came of it.
    int32_t token = kFutureToken;
    bool rejected = false;      // the grammar allows no token, or ...
    bool too_slow = false;      // ... takes too long to say which
    bool grammar_over = false;  // and wants none after this one
    std::optional<PositionLogprobs> logprobs = {};
    std::vector<PositionLogprobs> input_logprobs = {};
    std::vector<float> hidden = {};     // of positions from `hidden_from` on
    std::vector<float> embedding = {};  // GenerateRequest::embed
  };
  // A token of the batch that the step before chooses.
  struct Future {
    size_t at = 0;   // in the batch
    size_t row = 0;  // of the step before
  };

  void clear();

  BatchBuilder batch;
  std::vector<Row> rows;
  std::vector<Future> futures;

  TimePoint started{}, computed{};  // by whom it was computed, sampling included
  Duration forward_time{};          // of the model alone
  bool cancelled = false;           // nobody wanted it any more, and nothing came of it
};

// Runs the model and takes everything that is wanted from its logits. Used by one thread at a time; steps in order.
//
// Of a request with steps in flight it reads what does not change (Request::in, seed), and alone has what choosing a
// token changes: counts and grammar.
class StepComputer {
 public:
  // `runner` and `clock` outlive it. `keep_routed_experts`: with KV of `slots`.
  StepComputer(models::Runner& runner, const Clock& clock, int64_t slots, bool keep_routed_experts);

  // An error is the runner's, but for kCancelled, which is no error: StepWork::cancelled.
  Result<void> compute(StepWork& work);

  // Of tokens whose steps have been computed, while another step may be. Empty: they are not kept.
  std::vector<int32_t> routed_experts(std::span<const int32_t> slots) const;

 private:
  void take_input_logprobs(StepWork::Row& row, std::span<const float> logits);
  void take_hidden(StepWork::Row& row, size_t first_row);
  void take_embedding(StepWork::Row& row, size_t index);
  void choose(StepWork::Row& row, std::span<const float> logits);
  std::span<const uint32_t> allowed_tokens(Request& request, std::vector<int32_t>& forbidden);

  models::Runner& runner_;
  const Clock& clock_;
  Sampler sampler_;
  std::vector<uint32_t> mask_;   // of the grammar of the request whose token is chosen
  std::vector<int32_t> chosen_;  // by the last step, row by row
  std::optional<RoutedExperts> routed_experts_;
};

}  // namespace sluice::engine
