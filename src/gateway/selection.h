// Which worker a request goes to, of those of its destination: the policy's choice among those that take work and were
// not tried, else among those that were not tried, not suspect ones first, else among all that may be used.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "gateway/policy/policy.h"
#include "gateway/roster.h"
#include "obs/journal.h"

namespace sluice::gateway {

// Lets those through that take work now and were not tried.
class RequestGate final : public Gate {
 public:
  // All outlive this.
  RequestGate(const Roster& roster, std::span<const uint32_t> tried, TimePoint now)
      : roster_(roster), tried_(tried), now_(now) {}
  Pass of(uint32_t place) const override;
  void expect(uint32_t place) const override;

 private:
  const Roster& roster_;
  const std::span<const uint32_t> tried_;  // numbers
  const TimePoint now_;
};

// What choices of one thread keep from one to the next.
struct ChoiceScratch {
  std::vector<Candidate> usable;
  DrawsAhead ahead;
};

// None if no worker may be used. Of many workers all are looked at only if the policy must see them all, or most rest.
std::optional<Choice> select_worker(const Roster& roster, const Policy& policy, const RequestFacts& facts,
                                    std::span<const uint32_t> tried, const routing::HashRing* ring,
                                    ChoiceScratch& scratch, Rng& rng);

// Of a few workers, where no policy chooses: the one with the fewest requests of those that are the first choice, as
// above. None if no worker may be used.
std::optional<uint32_t> select_of(const WorkerList& workers, std::span<const uint32_t> tried, TimePoint now,
                                  ChoiceScratch& scratch);

// The worker at that place of those that may be used; null if there are fewer.
WorkerPtr usable_at(const Roster& roster, uint64_t place);

// Why a request that was at the workers `tried` cannot go there now, in one word; empty if it can. "busy": the worker
// asked to be left alone, or has as many as it may since it said so. "breaker_half_open": a trial is under way.
std::string_view why_not(const Worker& worker, std::span<const uint32_t> tried, TimePoint now);

// What the policy weighs of each worker, usable or not, for a record. Of more than kMostWeighed workers nothing: that
// would cost a choice more than the choice.
inline constexpr size_t kMostWeighed = 64;
void weigh_all(const Roster& roster, const Policy& policy, const RequestFacts& facts, std::span<const uint32_t> tried,
               std::vector<obs::RequestRecord::Score>& scores);

// How long until the first of them may be used again, if all goes well: when its health checks have passed and its
// breaker lets a trial in. None where nobody can say: without workers, and of those that are at a trial.
std::optional<Duration> comes_back(const WorkerList& workers, TimePoint now);

// Whether a worker takes work now that was not tried.
bool any_untried(const Roster& roster, std::span<const uint32_t> tried, TimePoint now);

}  // namespace sluice::gateway
