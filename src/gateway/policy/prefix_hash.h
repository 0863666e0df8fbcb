// Requests that begin alike go to one worker: the first bytes of the routing text are hashed onto a ring with bounded
// loads. Knows nothing of caches and keeps nothing, so several gateways agree without talking.
#pragma once

#include "gateway/policy/bounded_ring.h"

namespace sluice::gateway {

class PrefixHash final : public Policy {
 public:
  explicit PrefixHash(const GatewayOptions& options)
      : prefix_bytes_(static_cast<size_t>(options.prefix_token_count) * kBytesPerToken),
        bound_(LoadBound::from(options)) {}

  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override {
    const std::string_view prefix = facts.routing_text.substr(0, prefix_bytes_);
    if (!prefix.empty()) return choose_on_ring(fleet, routing::HashRing::position(prefix), bound_, rng);
    // A request without text belongs nowhere.
    Choice choice = choose_on_ring(fleet, rng.next(), bound_, rng);
    if (choice.worker) choice.reason = Reason::kRandom;
    return choice;
  }
  bool needs_ring() const override { return true; }
  bool is_balanced() const override { return false; }

 private:
  static constexpr size_t kBytesPerToken = 4;

  const size_t prefix_bytes_;
  const LoadBound bound_;
};

}  // namespace sluice::gateway
