// Sends a request to a worker that holds the longest part of its prefix, unless the fleet is out of balance: the rules
// that users of the SGLang gateway tune with three flags (gateway-reference 4.2), applied to the whole set of holders.
#pragma once

#include "gateway/policy/policy.h"

namespace sluice::gateway {

class CacheAware final : public Policy {
 public:
  // What the rules depend on.
  struct Rules {
    double cache_threshold;         // affinity counts only above this match rate
    int64_t balance_abs_threshold;  // imbalanced: max - min requests in flight above this ...
    double balance_rel_threshold;   // ... and max above min times this
    // Imbalanced as well, as the workers report their KV pools; 1 = never.
    double balance_token_usage_threshold = 1;   // max - min share in use above this
    double overload_token_usage_threshold = 1;  // a share in use above this
  };
  explicit CacheAware(const GatewayOptions& options)
      : CacheAware(Rules{.cache_threshold = options.cache_threshold,
                         .balance_abs_threshold = options.balance_abs_threshold,
                         .balance_rel_threshold = options.balance_rel_threshold,
                         .balance_token_usage_threshold = options.balance_token_usage_threshold,
                         .overload_token_usage_threshold = options.overload_token_usage_threshold}) {}
  explicit CacheAware(Rules rules) : rules_(rules) {}

  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;
  bool needs_prefix() const override { return true; }
  bool needs_all() const override { return needs_engine_load(); }
  bool needs_engine_load() const override {
    return rules_.balance_token_usage_threshold < 1 || rules_.overload_token_usage_threshold < 1;
  }

 private:
  bool pools_imbalanced(const FleetView& fleet) const;

  const Rules rules_;
};

}  // namespace sluice::gateway
