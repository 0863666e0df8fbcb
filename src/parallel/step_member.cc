#include "parallel/step_member.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace sluice::parallel {

StepMember::StepMember(const Layout& layout, uint64_t configuration) : layout_(layout) {
  plan_.hash = first_hash(layout, configuration);
  plan_.decoding.resize(static_cast<size_t>(layout.dp_size));
}

void StepMember::heard() {
  SLUICE_CHECK(next_ != Next::kGather, "rank {} takes a message within exchange {}", layout_.tp_rank, seq_);
  if (next_ != Next::kEnd) next_ = Next::kPost;
}

void StepMember::heard_of(uint64_t number) {
  heard();
  heard_of_ = std::max(heard_of_, number);
  for (Held& control : held_) {
    if (control.number == 0) control.number = number;
  }
}

void StepMember::hold(uint64_t message, bool for_all) {
  heard();
  held_.push_back({.message = message, .for_all = for_all});
}

bool StepMember::take_control() {
  if (held_.empty() || held_.front().number == 0 || held_.front().number > plan_.seen_by_all) return false;
  const uint64_t message = held_.front().message;
  int64_t& so_far = held_.front().for_all ? controls_ : leader_controls_;
  so_far = static_cast<int64_t>(XXH64(&message, sizeof(message), static_cast<uint64_t>(so_far)));
  held_.pop_front();
  return true;
}

StepRow StepMember::post(StepRow row, bool unready) {
  SLUICE_CHECK(next_ == Next::kPost || next_ == Next::kAgain, "rank {} posts a row after exchange {} in state {}",
               layout_.tp_rank, seq_, static_cast<int>(next_));
  row.seq = ++seq_;
  row.plan_hash = plan_.hash;
  row.work_seen = static_cast<int64_t>(heard_of_);
  row.controls = controls_;
  row.leader_controls = leader_controls_;
  row.more_to_come = layout_.leads() && row.num_tokens == 0 && (unready || !held_.empty());
  next_ = Next::kGather;
  return row;
}

Result<void> StepMember::gathered(std::span<const StepRow> rows) {
  SLUICE_CHECK(next_ == Next::kGather, "rank {} has rows of exchange {} in state {}", layout_.tp_rank, seq_,
               static_cast<int>(next_));
  next_ = Next::kEnd;
  SLUICE_TRY(StepPlan plan, derive_plan(rows, layout_));
  before_ = std::exchange(plan_, std::move(plan));
  next_ = plan_.run ? Next::kPost : plan_.park ? Next::kSleep : Next::kAgain;
  return {};
}

std::optional<uint64_t> WorkNumbers::tell(bool ready) {
  if (std::exchange(told_, sent_) == sent_ || !ready) return std::nullopt;
  return sent_;
}

}  // namespace sluice::parallel
