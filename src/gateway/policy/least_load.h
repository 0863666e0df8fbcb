// The worker whose queue is emptied first, from what the engines report: tokens in front of
// a new request over the engine's throughput, and a penalty that grows without bound as the KV pool fills.
#pragma once

#include "gateway/policy/policy.h"

namespace sluice::gateway {

class LeastLoad final : public Policy {
 public:
  struct Rules {
    double kv_pressure_weight;   // seconds
    double default_throughput;   // tokens per second, of an engine that reports none
    double mean_prefill_tokens;  // what a request is taken for at a worker that has not reported
  };
  explicit LeastLoad(const GatewayOptions& options)
      : LeastLoad(Rules{.kv_pressure_weight = options.least_load_kv_pressure_weight,
                        .default_throughput = options.least_load_default_throughput,
                        .mean_prefill_tokens = static_cast<double>(options.least_load_mean_prefill_tokens)}) {}
  explicit LeastLoad(Rules rules) : rules_(rules) {}

  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;
  double weigh(const Candidate& candidate, const RequestFacts& /*facts*/) const override {
    return cost(*candidate.load);
  }
  bool needs_engine_load() const override { return true; }

 private:
  double cost(const WorkerLoad& load) const;

  const Rules rules_;
};

}  // namespace sluice::gateway
