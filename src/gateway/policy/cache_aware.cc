#include "gateway/policy/cache_aware.h"

#include <algorithm>
#include <limits>

namespace sluice::gateway {
namespace {

// The least of what it has been shown; among equals each is equally likely to stay.
class Lightest {
 public:
  explicit Lightest(Rng& rng) : rng_(rng) {}

  void offer(const Candidate& candidate, int64_t requests) {
    if (requests > least_) return;
    ties_ = requests < least_ ? 1 : ties_ + 1;
    least_ = requests;
    if (ties_ == 1 || rng_.below(ties_) == 0) worker_ = candidate.worker;
  }
  bool found() const { return ties_ > 0; }
  uint32_t worker() const { return worker_; }
  int64_t requests() const { return least_; }

 private:
  Rng& rng_;
  int64_t least_ = std::numeric_limits<int64_t>::max();
  uint64_t ties_ = 0;
  uint32_t worker_ = 0;
};

}  // namespace

Choice CacheAware::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  const auto usable = fleet.usable();
  if (usable.empty()) return Choice::none();

  Lightest lightest(rng);
  int64_t most = 0;
  for (const Candidate& candidate : usable) {
    const int64_t requests = candidate.load->requests.load(std::memory_order_relaxed);
    lightest.offer(candidate, requests);
    most = std::max(most, requests);
  }
  const auto least_loaded = [&](Reason reason) {
    Choice choice = Choice::of(lightest.worker(), reason).with_score(lightest.worker(), lightest.requests());
    choice.insert_prefix = true;
    // It may be a holder all the same.
    if (std::ranges::find(facts.prefix.workers(), lightest.worker()) != facts.prefix.workers().end()) {
      choice.match_rate = facts.prefix.rate();
    }
    return choice;
  };

  const int64_t least = lightest.requests();
  if (most - least > rules_.balance_abs_threshold &&
      static_cast<double>(most) > static_cast<double>(least) * rules_.balance_rel_threshold) {
    return least_loaded(Reason::kImbalanced);
  }
  if (!(facts.prefix.rate() > rules_.cache_threshold)) return least_loaded(Reason::kPrefixMiss);

  Lightest holder(rng);
  for (const uint32_t worker : facts.prefix.workers()) {
    if (const Candidate* candidate = fleet.find(worker); candidate != nullptr) {
      holder.offer(*candidate, candidate->load->requests.load(std::memory_order_relaxed));
    }
  }
  if (!holder.found()) return least_loaded(Reason::kHoldersGone);
  Choice choice = Choice::of(holder.worker(), Reason::kPrefixHeld).with_score(holder.worker(), holder.requests());
  if (lightest.worker() != holder.worker()) choice.with_score(lightest.worker(), lightest.requests());
  choice.insert_prefix = true;
  choice.match_rate = facts.prefix.rate();
  return choice;
}

}  // namespace sluice::gateway
