#include "gateway/policy/least_load.h"

#include <algorithm>

#include "gateway/policy/least.h"

namespace sluice::gateway {
namespace {

constexpr double kFullest = 0.999;  // a full pool is very dear, not infinitely so

bool has_reported(const WorkerLoad& load) { return load.polled_tokens.load(std::memory_order_relaxed) >= 0; }

}  // namespace

// In seconds.
double LeastLoad::cost(const WorkerLoad& load) const {
  if (!has_reported(load)) {
    return static_cast<double>(load.requests.load(std::memory_order_relaxed)) * rules_.mean_prefill_tokens /
           rules_.default_throughput;
  }
  const int64_t tokens = std::max<int64_t>(0, load.polled_waiting_tokens.load(std::memory_order_relaxed) +
                                                  load.prompt_since_poll.load(std::memory_order_relaxed));
  const double reported = load.polled_throughput.load(std::memory_order_relaxed);
  const double usage = std::clamp(load.polled_kv_usage.load(std::memory_order_relaxed), 0.0, kFullest);
  return static_cast<double>(tokens) / (reported > 0 ? reported : rules_.default_throughput) +
         rules_.kv_pressure_weight * usage / (1 - usage);
}

Choice LeastLoad::choose(const FleetView& fleet, const RequestFacts& /*facts*/, Rng& rng) const {
  const auto usable = fleet.usable();
  if (usable.empty()) return Choice::none();
  // Where nobody reports, requests in flight alone decide.
  const bool any_report = std::ranges::any_of(usable, [](const auto& c) { return has_reported(*c.load); });
  Least<double> least(rng);
  for (const Candidate& candidate : usable) {
    least.offer(candidate.worker, any_report
                                      ? cost(*candidate.load)
                                      : static_cast<double>(candidate.load->requests.load(std::memory_order_relaxed)));
  }
  return Choice::of(least.worker(), Reason::kLeastCost).with_score(least.worker(), least.cost());
}

}  // namespace sluice::gateway
