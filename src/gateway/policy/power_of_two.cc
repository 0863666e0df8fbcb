#include "gateway/policy/power_of_two.h"

#include <utility>

namespace sluice::gateway {

double PowerOfTwo::weigh(const Candidate& candidate, const RequestFacts& facts) const {
  const int64_t polled = candidate.load->polled_tokens.load(std::memory_order_relaxed);
  if (polled < 0) return Policy::weigh(candidate, facts);
  return static_cast<double>(candidate.load->known_tokens());
}

Choice PowerOfTwo::choose(const FleetView& fleet, const RequestFacts& /*facts*/, Rng& rng) const {
  auto [a, b] = fleet.any_two(rng);
  if (a == nullptr) return Choice::none();
  if (b == nullptr) return Choice::of(a->worker, Reason::kOnlyCandidate);

  const int64_t polled_a = a->load->polled_tokens.load(std::memory_order_relaxed);
  const int64_t polled_b = b->load->polled_tokens.load(std::memory_order_relaxed);
  int64_t cost_a = a->load->requests.load(std::memory_order_relaxed);
  int64_t cost_b = b->load->requests.load(std::memory_order_relaxed);
  if (polled_a >= 0 && polled_b >= 0) {
    cost_a = a->load->known_tokens();
    cost_b = b->load->known_tokens();
  }
  // A tie goes to the first draw, which is random already: ties never pile up on one worker.
  if (cost_b < cost_a) {
    std::swap(a, b);
    std::swap(cost_a, cost_b);
  }
  return Choice::of(a->worker, Reason::kLessWork)
      .with_score(a->worker, static_cast<double>(cost_a))
      .with_score(b->worker, static_cast<double>(cost_b));
}

}  // namespace sluice::gateway
