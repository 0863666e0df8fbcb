#include "engine/dp_budget.h"

#include <algorithm>
#include <utility>

namespace sluice::engine {
namespace {

// Reading costs some hundred nanoseconds per rank; ranks write once per step.
constexpr Duration kReadEvery = std::chrono::milliseconds(20);

}  // namespace

DpBudget::DpBudget(const LoadBoard& board, const Clock& clock)
    : board_(board),
      clock_(clock),
      ranks_(static_cast<size_t>(board.size())),
      loads_(static_cast<size_t>(board.size())) {}

void DpBudget::dispatched(int64_t rank, uint64_t seq, int64_t tokens, int64_t fresh) {
  const auto i = static_cast<size_t>(rank);
  ranks_[i].not_in_word.push_back({seq, tokens, fresh});
  loads_[i].requests += 1;
  loads_[i].tokens += tokens;
  loads_[i].waiting += fresh;
}

void DpBudget::computed(int64_t rank, uint64_t seq) {
  const auto i = static_cast<size_t>(rank);
  const auto found = std::ranges::find(ranks_[i].not_in_word, seq, &Dispatched::seq);
  if (found != ranks_[i].not_in_word.end()) loads_[i].waiting -= std::exchange(found->fresh, 0);
}

void DpBudget::ended(int64_t rank, uint64_t seq) {
  const auto i = static_cast<size_t>(rank);
  auto& not_in_word = ranks_[i].not_in_word;
  const auto found = std::ranges::find(not_in_word, seq, &Dispatched::seq);
  if (found == not_in_word.end()) return;  // the rank's words tell of it
  loads_[i].requests -= 1;
  loads_[i].tokens -= found->tokens;
  loads_[i].waiting -= found->fresh;
  not_in_word.erase(found);
}

void DpBudget::set_active(int64_t rank, bool active) {
  const auto i = static_cast<size_t>(rank);
  if (!active) {
    const auto last = board_.read(rank);
    ranks_[i] = {.stale_word = last ? last->unix_nanos : 0};
    loads_[i] = {};
  }
  loads_[i].active = active;
}

std::span<RankLoad> DpBudget::loads() {
  const TimePoint now = clock_.now();
  if (last_read_ && now - *last_read_ < kReadEvery) return loads_;
  last_read_ = now;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    Rank& rank = ranks_[i];
    const auto word = read(static_cast<int64_t>(i));
    if (!word || word->unix_nanos == rank.word.unix_nanos) continue;
    rank.word = *word;
    while (!rank.not_in_word.empty() && rank.not_in_word.front().seq <= word->last_dispatch_seq) {
      rank.not_in_word.pop_front();
    }
    loads_[i].requests = word->num_running_reqs + word->num_waiting_reqs;
    loads_[i].tokens = word->num_used_tokens + word->num_waiting_tokens;
    loads_[i].waiting = word->num_waiting_tokens;
    loads_[i].capacity = word->max_total_num_tokens;
    for (const Dispatched& request : rank.not_in_word) {
      loads_[i].requests += 1;
      loads_[i].tokens += request.tokens;
      loads_[i].waiting += request.fresh;
    }
  }
  return loads_;
}

LoadSnapshot DpBudget::word(int64_t rank) {
  (void)read(rank);
  return ranks_[static_cast<size_t>(rank)].last;
}

std::optional<LoadSnapshot> DpBudget::read(int64_t rank) {
  Rank& its = ranks_[static_cast<size_t>(rank)];
  auto word = board_.read(rank);
  if (word && word->unix_nanos == its.stale_word) word.reset();
  if (word) its.last = *word;
  return word;
}

}  // namespace sluice::engine
