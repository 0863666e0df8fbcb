#include "engine/group_runner.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "models/batch_split.h"

namespace sluice::engine {
namespace {

using models::StepBatch;
using parallel::ForwardMode;
using parallel::StepRow;

constexpr std::string_view kComponent = "engine/group_runner";

// Of a batch: whether sequences get more than the one token that decoding gives them.
ForwardMode mode_of(const StepBatch& batch) {
  const size_t sequences = batch.seq_lens.size();
  if (sequences == 0) return ForwardMode::kIdle;
  size_t single = 0;
  for (size_t i = 0; i < sequences; ++i) single += batch.query_start[i + 1] - batch.query_start[i] == 1;
  if (single == sequences) return ForwardMode::kDecode;
  return single == 0 ? ForwardMode::kExtend : ForwardMode::kMixed;
}

}  // namespace

GroupRunner::GroupRunner(std::unique_ptr<models::Runner> runner, const parallel::Groups& groups,
                         parallel::Overlap* overlap, std::optional<double> split_threshold, uint64_t configuration)
    : runner_(std::move(runner)),
      groups_(groups),
      overlap_(overlap),
      split_threshold_(split_threshold),
      member_(groups.layout, configuration),
      rows_(static_cast<size_t>(groups.layout.tp_size)),
      exchanges_(groups.layout) {}

Result<void> GroupRunner::allocate_kv(const models::KvPlan& plan) {
  SLUICE_TRY_VOID(runner_->allocate_kv(plan));
  table_width_ = plan.table_width;
  if (groups_.layout.leads() && groups_.attention_tp->size() > 1) sent_table_.assign(slot_table().size(), 0);
  return {};
}

void GroupRunner::copy_state(int32_t from, int32_t to) {
  runner_->copy_state(from, to);
  if (groups_.attention_tp->size() > 1) copies_.insert(copies_.end(), {from, to});
}

Result<void> GroupRunner::exchange(StepRow row) {
  row.expert_places = static_cast<int64_t>(runner_->expert_places());
  row.received_bytes =
      static_cast<int64_t>(groups_.received_bytes() + (overlap_ == nullptr ? 0 : overlap_->received_bytes()));
  if (groups_.layout.leads()) {
    tell(outlook_.step, row);
    row.prefill =
        (outlook_.can_prefill ? parallel::kCanPrefill : 0) | (outlook_.force_prefill ? parallel::kForcePrefill : 0);
  }
  row = member_.post(row, std::exchange(outlook_, {}).more_to_come);
  phase_clock_.arrive(row.seq);
  auto met = groups_.all->all_gather(host_, parallel::Element::kI64, &row, rows_.data(), parallel::kStepColumns);
  phase_clock_.leave();
  // Else those that left first compute for a time slice before the others know of the step, whose devices wait.
  if (crowded_ && met.ok()) met = groups_.all->barrier();
  if (!met.ok()) {
    member_.fail();
    return failed(std::move(met).error());
  }
  exchanges_.record(rows_);
  if (auto agreed = member_.gathered(rows_); !agreed.ok()) return failed(std::move(agreed).error());
  shape_ = shape_of(member_.plan_before(), last_plan());
  prefilling_ = 0;
  for (const StepRow& leader : rows_) prefilling_ += leader.is_extend_in_batch;  // leaders' alone
  count_wire();
  return {};
}

Error GroupRunner::failed(Error error) {
  // All have the same rows: the first rank tells of them, and the second one in case the first is what has failed.
  if (groups_.layout.tp_rank < 2) {
    const std::string last = exchanges_.text();
    SLUICE_LOG(error, kComponent, "rank {} of its instance: {}", groups_.layout.tp_rank,
               last.empty() ? "no exchange of rows was complete" : "the last " + last);
  }
  return error;
}

void GroupRunner::count_wire() {
  steps_ += last_plan().run;
  split_steps_ += last_plan().run && !last_plan().first_half.empty();
  const auto members = static_cast<size_t>(groups_.layout.attention_tp_size());
  const auto own = std::span(rows_).subspan(static_cast<size_t>(groups_.layout.attention_dp().rank) * members, members);
  wire_bytes_ = 0;
  for (const StepRow& row : own) wire_bytes_ += static_cast<uint64_t>(row.received_bytes);
}

Result<std::span<const float>> GroupRunner::forward(const StepBatch& batch) {
  const bool has_followers = groups_.attention_tp->size() > 1;
  if (has_followers) words_ = pack(batch);
  const ForwardMode mode = mode_of(batch);
  SLUICE_TRY_VOID(exchange({.num_tokens = std::ssize(batch.token_ids),
                            .num_tokens_for_logprob = std::ssize(batch.logit_rows),
                            .is_extend_in_batch = mode == ForwardMode::kExtend || mode == ForwardMode::kMixed,
                            .local_can_run_tbo = can_split(batch),
                            .local_forward_mode = static_cast<int64_t>(mode),
                            .batch_words = has_followers ? std::ssize(words_) : 0}));
  if (has_followers) {
    SLUICE_TRY_VOID(
        groups_.attention_tp->broadcast(host_, parallel::Element::kI32, words_.data(), std::ssize(words_), 0));
  }
  return run(batch);
}

int64_t GroupRunner::can_split(const StepBatch& batch) const {
  if (!split_threshold_ || !groups_.layout.leads() || !runner_->can_split()) return 0;
  const int64_t first = models::split_batch(batch, *split_threshold_);
  return batch.token_ids.empty() || first > 0 ? 1 + first : 0;
}

parallel::Turns::Times GroupRunner::overlapped() const {
  return overlap_ == nullptr ? parallel::Turns::Times{} : overlap_->turns().times();
}

Result<bool> GroupRunner::join() {
  SLUICE_TRY_VOID(exchange({.local_can_run_tbo = can_split({})}));
  const parallel::StepPlan& plan = last_plan();
  if (!plan.run) return false;
  const auto group = static_cast<size_t>(groups_.layout.attention_dp().rank);
  StepBatch batch;
  static constexpr int32_t kNoStarts[] = {0};
  batch.query_start = kNoStarts;
  if (plan.group_tokens[group] > 0) {
    SLUICE_CHECK(!groups_.layout.leads(), "a leader joins a step for which its row has {} tokens",
                 plan.group_tokens[group]);
    words_.resize(static_cast<size_t>(plan.batch_words[group]));
    SLUICE_TRY_VOID(
        groups_.attention_tp->broadcast(host_, parallel::Element::kI32, words_.data(), std::ssize(words_), 0));
    batch = unpack();
  }
  SLUICE_TRY_VOID([&]() -> Result<void> {
    SLUICE_TRY(const auto logits, run(batch));
    (void)logits;  // none: only leaders with work get some
    return {};
  }());
  return true;
}

Result<std::span<const float>> GroupRunner::run(StepBatch batch) {
  const parallel::StepPlan& plan = last_plan();
  batch.extend = plan.is_extend_in_batch;
  batch.first_half = plan.first_half;
  if (groups_.layout.dp_attention()) {
    batch.group_tokens = plan.group_tokens;
    batch.group_logits = plan.group_logits;
    if (plan.first_half.empty()) batch.padded_rows = parallel::fixed_rows(plan, most_fixed_rows_);
    fixed_steps_ += batch.padded_rows > 0;
  }
  parallel::PhaseClock::enter(parallel::Phase::kEmbed);
  auto logits = runner_->forward(batch);
  Result<void> gathered;
  if (gathers_routing_ && logits.ok()) gathered = gather_routing_of(std::ssize(batch.token_ids));
  phase_clock_.end_step(std::ssize(batch.token_ids), batch.extend);
  if (!logits.ok()) return failed(std::move(logits).error());
  if (!gathered.ok()) return failed(std::move(gathered).error());
  return logits;
}

Result<void> GroupRunner::gather_routing_of(int64_t tokens) {
  const int64_t members = groups_.attention_tp->size();
  if (groups_.layout.a2a == parallel::MoeAllToAll::kNone || members == 1 || tokens == 0) return {};
  const models::Routing own = runner_->last_routing();
  const auto part = [&](int64_t rank) { return parallel::part_of(tokens, {rank, members}); };
  std::vector<int64_t> counts;
  for (int64_t rank = 0; rank < members; ++rank) counts.push_back(own.layers * part(rank).count * own.top_k);
  std::vector<int32_t> pieces(static_cast<size_t>(own.layers * tokens * own.top_k));
  SLUICE_TRY_VOID(
      groups_.attention_tp->all_gather_v(host_, parallel::Element::kI32, own.experts.data(), pieces.data(), counts));
  gathered_ = models::Routing{
      .layers = own.layers, .top_k = own.top_k, .numbers = own.numbers, .experts = pieces, .margins = {}};
  const int32_t* from = pieces.data();
  for (int64_t rank = 0; rank < members; ++rank) {
    const int64_t values = part(rank).count * own.top_k;
    for (int64_t layer = 0; layer < own.layers; ++layer, from += values) {
      std::copy_n(from, values, gathered_->experts.data() + (layer * tokens + part(rank).first) * own.top_k);
    }
  }
  return {};
}

// [sequences], [copies of states], from and to of each, the batch's arrays, then of each sequence the part of its row
// of the slot table that is new: [first], and the slots from there to its length.
std::vector<int32_t> GroupRunner::pack(const StepBatch& batch) {
  std::vector<int32_t> words = std::move(words_);
  words.clear();
  words.push_back(static_cast<int32_t>(batch.seq_lens.size()));
  words.push_back(static_cast<int32_t>(copies_.size() / 2));
  words.insert(words.end(), copies_.begin(), copies_.end());
  copies_.clear();
  for (const auto array : {batch.token_ids, batch.positions, batch.kv_slots, batch.logit_rows, batch.query_start,
                           batch.seq_lens, batch.table_rows}) {
    words.insert(words.end(), array.begin(), array.end());
  }
  const std::span<const int32_t> table = slot_table();
  for (size_t i = 0; i < batch.seq_lens.size(); ++i) {
    const int64_t row = batch.table_rows[i] * table_width_;
    const auto now = table.begin() + row, end = now + batch.seq_lens[i];
    const auto sent = sent_table_.begin() + row;
    const auto [differs, old] = std::mismatch(now, end, sent);
    words.push_back(static_cast<int32_t>(differs - now));
    words.insert(words.end(), differs, end);
    std::copy(differs, end, old);
  }
  return words;
}

StepBatch GroupRunner::unpack() {
  const auto group = static_cast<size_t>(groups_.layout.attention_dp().rank);
  std::span<const int32_t> rest = words_;
  const auto take = [&](int64_t count) {
    SLUICE_CHECK(count >= 0 && count <= std::ssize(rest), "a batch of {} words ends {} too early", words_.size(),
                 count - std::ssize(rest));
    const auto part = rest.first(static_cast<size_t>(count));
    rest = rest.subspan(static_cast<size_t>(count));
    return part;
  };
  const int64_t tokens = last_plan().group_tokens[group], sequences = take(1)[0];
  for (int32_t left = take(1)[0]; left > 0; --left) {
    const auto copy = take(2);
    runner_->copy_state(copy[0], copy[1]);
  }
  StepBatch batch;
  batch.token_ids = take(tokens);
  batch.positions = take(tokens);
  batch.kv_slots = take(tokens);
  batch.logit_rows = take(last_plan().group_logits[group]);
  batch.query_start = take(sequences + 1);
  batch.seq_lens = take(sequences);
  batch.table_rows = take(sequences);
  const std::span<int32_t> table = slot_table();
  for (int64_t i = 0; i < sequences; ++i) {
    const auto at = static_cast<size_t>(i);
    const int32_t first = take(1)[0];
    const auto slots = take(batch.seq_lens[at] - first);
    std::ranges::copy(slots, table.begin() + batch.table_rows[at] * table_width_ + first);
  }
  return batch;
}

}  // namespace sluice::engine
