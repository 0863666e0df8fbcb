// Sessions that name themselves: a routing key keeps the worker that it was given first, and gets another one, beside
// it, only when that one may not be used. Under --routing-key-override the same in front of
// another policy, which then decides what the keys do not.
#pragma once

#include <memory>

#include "gateway/policy/policy.h"
#include "gateway/policy/routing_keys.h"

namespace sluice::gateway {

class Manual final : public Policy {
 public:
  // How a key without a worker gets one.
  enum class Assignment : uint8_t { kRandom, kMinLoad, kMinGroup };

  explicit Manual(const GatewayOptions& options);
  Manual(Assignment assignment, Duration max_idle) : assignment_(assignment), keys_(max_idle) {}
  // `otherwise` decides for requests without a key, and where a key goes.
  Manual(std::unique_ptr<Policy> otherwise, Duration max_idle)
      : assignment_(Assignment::kRandom), otherwise_(std::move(otherwise)), keys_(max_idle) {}

  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;
  double weigh(const Candidate& candidate, const RequestFacts& facts) const override;
  bool needs_keys() const override { return true; }
  bool needs_prefix() const override { return otherwise_ && otherwise_->needs_prefix(); }
  bool needs_ring() const override { return otherwise_ && otherwise_->needs_ring(); }
  bool needs_all() const override {
    return otherwise_ ? otherwise_->needs_all() : assignment_ == Assignment::kMinGroup;
  }
  bool needs_engine_load() const override { return otherwise_ && otherwise_->needs_engine_load(); }
  bool is_balanced() const override { return !otherwise_ || otherwise_->is_balanced(); }
  const RoutingKeys* routing_keys() const override { return &keys_; }

 private:
  Choice assign(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const;

  const Assignment assignment_;
  const std::unique_ptr<Policy> otherwise_;
  mutable RoutingKeys keys_;
};

}  // namespace sluice::gateway
