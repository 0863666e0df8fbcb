#include "parallel/step_sync.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <ranges>

namespace sluice::parallel {
namespace {

int64_t hash_of(std::span<const int64_t> values) {
  return static_cast<int64_t>(XXH64(values.data(), values.size_bytes(), 0));
}

struct Column {
  std::string_view name;
  int64_t StepRow::*field;
};
constexpr Column kEqual[] = {{"seq", &StepRow::seq},
                             {"kind", &StepRow::kind},
                             {"plan_hash", &StepRow::plan_hash},
                             {"controls", &StepRow::controls},
                             {"expert_places", &StepRow::expert_places}};
constexpr Column kEqualOnLeaders[] = {{"leader_controls", &StepRow::leader_controls}};

// Of every `apart`-th rank.
Result<void> check_equal(std::span<const StepRow> rows, std::span<const Column> columns, size_t apart) {
  for (const Column& column : columns) {
    for (size_t rank = apart; rank < rows.size(); rank += apart) {
      const int64_t first = rows[0].*column.field, other = rows[rank].*column.field;
      if (first == other) continue;
      const bool at_start = column.field == &StepRow::plan_hash && rows[0].seq == 1;
      return Error{ErrorCode::kProtocol,
                   fmt::format("ranks are out of step at exchange {}: {} is {} on rank 0 and {} on rank {}{}",
                               rows[0].seq, column.name, first, other, rank,
                               at_start ? "; their layout, options, version or model differ" : "")};
    }
  }
  return {};
}

}  // namespace

Result<StepPlan> derive_plan(std::span<const StepRow> rows, const Layout& layout) {
  SLUICE_TRY_VOID(check_equal(rows, kEqual, 1));
  SLUICE_TRY_VOID(check_equal(rows, kEqualOnLeaders, static_cast<size_t>(layout.attention_tp_size())));
  StepPlan plan;
  bool more_to_come = false, split = true;
  std::optional<int64_t> mode;
  std::vector<int64_t> hashed{rows[0].plan_hash, rows[0].seq};
  for (size_t rank = 0; rank < rows.size(); rank += static_cast<size_t>(layout.attention_tp_size())) {
    const StepRow& leader = rows[rank];
    plan.group_tokens.push_back(leader.num_tokens);
    plan.group_logits.push_back(leader.num_tokens_for_logprob);
    plan.batch_words.push_back(leader.batch_words);
    plan.decoding.push_back(leader.decoding);
    plan.prefill.push_back(leader.prefill);
    plan.context.push_back(leader.context);
    plan.position.push_back(leader.position);
    plan.prompt_reads.push_back(leader.prompt_reads);
    plan.prompt_logits.push_back(leader.prompt_logits);
    plan.first_half.push_back(leader.local_can_run_tbo - 1);
    split = split && leader.local_can_run_tbo > 0;
    if (leader.num_tokens > 0) split = split && leader.local_forward_mode == mode.value_or(leader.local_forward_mode);
    if (leader.num_tokens > 0) mode = leader.local_forward_mode;
    more_to_come = more_to_come || leader.more_to_come != 0;
    plan.run = plan.run || leader.num_tokens > 0;
    plan.is_extend_in_batch = plan.is_extend_in_batch || leader.is_extend_in_batch != 0;
    hashed.insert(hashed.end(), {leader.num_tokens, leader.num_tokens_for_logprob, leader.local_can_run_tbo});
  }
  if (!split) plan.first_half.clear();
  const auto [least, most] = std::ranges::minmax(rows | std::views::transform(&StepRow::work_seen));
  plan.seen_by_all = static_cast<uint64_t>(least);
  plan.park = !plan.run && !more_to_come && least == most;
  plan.hash = hash_of(hashed);
  return plan;
}

int64_t fixed_rows(const StepPlan& plan, int64_t most) {
  const int64_t tokens = plan.group_tokens.empty() ? 0 : std::ranges::max(plan.group_tokens);
  if (plan.is_extend_in_batch || tokens == 0 || tokens > most) return 0;
  const auto rows = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(tokens)));
  return std::min(rows <= 8 ? rows : (tokens + 7) / 8 * 8, most);
}

int64_t first_hash(const Layout& layout, uint64_t configuration) {
  const int64_t values[] = {layout.tp_size,
                            layout.dp_size,
                            layout.ep_size,
                            static_cast<int64_t>(layout.a2a),
                            layout.dense_data_parallel ? 1 : 0,
                            layout.dp_lm_head ? 1 : 0,
                            static_cast<int64_t>(configuration)};
  return hash_of(values);
}

}  // namespace sluice::parallel
