// The worker at which the request costs least: the time until its prefill would begin, the time to compute what the
// worker's cache does not hold, and a penalty as its KV pool fills. There is no switch for the whole fleet: a saturated
// worker changes the choice of nobody who does not want it, and a prefix gets another holder when waiting for the ones
// it has is dearer than computing it again: for one request, or for those of the prefix together
// (routing/copy_credit).
//
// Of many workers it asks those that hold some of the prefix, a few with the fewest requests, and two at random: where
// those with few requests have them because they are stuck, the drawn ones are not.
//
// Times are learned for each worker from its answers (routing/prefill_queue), and what it is believed to hold is scaled
// by what it reports to have held (routing/cache_belief). One that has answered little yet is taken to be as fast as
// the one that was chosen last.
#pragma once

#include <atomic>

#include "gateway/policy/policy.h"
#include "routing/copy_credit.h"

namespace sluice::gateway {

class MinCost final : public Policy {
 public:
  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;
  double weigh(const Candidate& candidate, const RequestFacts& facts) const override;
  bool needs_prefix() const override { return true; }
  bool needs_all() const override { return false; }
  bool needs_engine_load() const override { return true; }

 private:
  // Of the worker that was chosen last, of those that are known. Threads write it one over the other: any will do.
  mutable std::atomic<double> per_request_{routing::PrefillQueue::kUnknown.per_request};
  mutable std::atomic<double> per_token_{routing::PrefillQueue::kUnknown.per_token};
  mutable std::atomic<float> decode_time_{0};  // of the last choice, the least that anybody needs for a token
  mutable routing::CopyCredit copies_;
  routing::PrefillCost usual() const {
    return {per_request_.load(std::memory_order_relaxed), per_token_.load(std::memory_order_relaxed)};
  }
};

}  // namespace sluice::gateway
