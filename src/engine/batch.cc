#include "engine/batch.h"

#include "base/check.h"

namespace sluice::engine {

void BatchBuilder::clear() {
  for (auto* array : {&token_ids_, &positions_, &kv_slots_, &query_start_, &seq_lens_, &table_rows_, &logit_rows_}) {
    array->clear();
  }
  embeds_.clear();
  query_start_.push_back(0);
}

void BatchBuilder::add(const Sequence& s) {
  SLUICE_CHECK(s.tokens.size() == s.slots.size() && !s.tokens.empty(), "{} tokens with {} slots", s.tokens.size(),
               s.slots.size());
  const auto first_row = static_cast<int32_t>(token_ids_.size());
  const auto n = static_cast<int32_t>(s.tokens.size());
  token_ids_.insert(token_ids_.end(), s.tokens.begin(), s.tokens.end());
  kv_slots_.insert(kv_slots_.end(), s.slots.begin(), s.slots.end());
  for (int32_t i = 0; i < n; ++i) positions_.push_back(static_cast<int32_t>(s.first_position) + i);
  query_start_.push_back(first_row + n);
  seq_lens_.push_back(static_cast<int32_t>(s.first_position) + n);
  table_rows_.push_back(s.table_row);
  for (int64_t i = 0; i < s.logits_count; ++i) {
    logit_rows_.push_back(first_row + static_cast<int32_t>(s.logits_from + i));
  }
  embeds_.insert(embeds_.end(), s.embeds.begin(), s.embeds.end());
  if (s.last_logit) logit_rows_.push_back(first_row + n - 1);
}

models::StepBatch BatchBuilder::view() const {
  return {.token_ids = token_ids_,
          .positions = positions_,
          .kv_slots = kv_slots_,
          .query_start = query_start_,
          .seq_lens = seq_lens_,
          .table_rows = table_rows_,
          .logit_rows = logit_rows_,
          .embeds = embeds_};
}

}  // namespace sluice::engine
