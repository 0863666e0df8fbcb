// One step's batch in the making: the arrays that models::StepBatch shows to the runner. They are kept from step to
// step, so a steady state allocates nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/runner.h"

namespace sluice::engine {

// Used by one thread.
class BatchBuilder {
 public:
  void clear();

  struct Sequence {
    std::span<const int32_t> tokens;  // of this step
    std::span<const int32_t> slots;   // where their K and V go; as many
    int64_t first_position = 0;
    int32_t table_row = 0;
    // The logits of tokens [logits_from, tokens.size()) are wanted, `logits_count` of them from there on, and those of
    // the last token if `last_logit`.
    int64_t logits_from = 0;
    int64_t logits_count = 0;
    bool last_logit = true;
    std::span<const float> embeds;  // of those of `tokens` that are -1, rows one after another
  };
  void add(const Sequence& sequence);
  int64_t tokens() const { return static_cast<int64_t>(token_ids_.size()); }
  // In place of the one that was given, by its place among all tokens.
  void set_token(size_t at, int32_t token) { token_ids_[at] = token; }

  int64_t sequences() const { return static_cast<int64_t>(seq_lens_.size()); }
  // Valid until the next add() or clear().
  models::StepBatch view() const;

 private:
  std::vector<int32_t> token_ids_, positions_, kv_slots_, query_start_{0}, seq_lens_, table_rows_, logit_rows_;
  std::vector<float> embeds_;
};

}  // namespace sluice::engine
