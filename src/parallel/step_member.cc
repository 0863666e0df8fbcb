#include "parallel/step_member.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace sluice::parallel {

StepMember::StepMember(const Layout& layout) : layout_(layout) {
  plan_.hash = first_hash(layout);
  plan_.decoding.resize(static_cast<size_t>(layout.dp_size));
}

void StepMember::heard() {
  SLUICE_CHECK(next_ != Next::kGather, "rank {} takes a message within exchange {}", layout_.tp_rank, seq_);
  if (next_ != Next::kEnd) next_ = Next::kPost;
}

void StepMember::heard_of(uint64_t number) {
  heard();
  heard_of_ = std::max(heard_of_, number);
  for (uint64_t& its : held_) {
    if (its == 0) its = number;
  }
}

void StepMember::hold() {
  heard();
  held_.push_back(0);
}

bool StepMember::take_control() {
  if (held_.empty() || held_.front() == 0 || held_.front() > plan_.seen_by_all) return false;
  held_.pop_front();
  return true;
}

StepRow StepMember::post(StepRow row, bool unready) {
  SLUICE_CHECK(next_ == Next::kPost || next_ == Next::kAgain, "rank {} posts a row after exchange {} in state {}",
               layout_.tp_rank, seq_, static_cast<int>(next_));
  row.seq = ++seq_;
  row.plan_hash = plan_.hash;
  row.work_seen = static_cast<int64_t>(heard_of_);
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
