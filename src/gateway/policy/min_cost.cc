#include "gateway/policy/min_cost.h"

#include <algorithm>
#include <array>
#include <limits>

#include "gateway/policy/least.h"

namespace sluice::gateway {
namespace {

// Costs that differ by less say nothing: what is learned of two equal workers differs by as much.
constexpr double kAlike = 0.0005;     // seconds ...
constexpr double kAlikeShare = 0.02;  // ... or this part of the least

// What is computed pushes as much out of a cache once that is full, and of that a part has to be computed again for
// somebody else, which pushes out as much in its turn, and so on: p + p^2 + ... = p / (1 - p). The part is what the
// index sees full workers drop, and a tenth where it sees nothing or nothing is full yet.
constexpr double kPushedOut = 0.1, kMostPushedOut = 4;
double pushed_out(const routing::PrefixMatch& prefix) {
  const double part = prefix.shared_drops;
  return std::clamp(part / (1 - std::min(part, 0.99)), kPushedOut, kMostPushedOut);
}

// What waits for KV blocks waits for others to finish. In units of the prompt's own prefill: nothing while half of the
// pool is free, for a prompt finds room there, 0.3 at eight tenths, 2 at nine, 10 at most. Reports are seconds old:
// what differs meanwhile between two workers that both have room must not tell them apart.
double kv_penalty(const WorkerLoad& load) {
  if (load.polled_tokens.load(std::memory_order_relaxed) < 0) return 0;
  const double usage = std::clamp(load.polled_kv_usage.load(std::memory_order_relaxed), 0.5, 0.999);
  const double full = 2 * usage - 1;  // of the second half
  return std::min(10.0, full * full * full * full / (1 - full));
}

// What one request costs, worker by worker; what does not depend on the worker is worked out once.
class Price {
 public:
  // `decode_time`: the least that anybody needs for a token, of those that tell; 0 if none does.
  Price(const RequestFacts& facts, const routing::PrefillCost& usual, float decode_time)
      : now_(facts.now),
        prompt_(static_cast<double>(facts.prompt_tokens)),
        pushed_out_(pushed_out(facts.prefix)),
        usual_(usual),
        decode_time_(decode_time) {}

  // `held`: share of the prefix that the index has it hold.
  double at(const WorkerLoad& load, double held) const {
    const double cached = held > 0 ? load.belief.share() * held : 0;
    const routing::PrefillCost prefill = load.prefill.known() ? load.prefill.cost() : usual_;
    const double pushed_out = load.belief.has_room() ? kPushedOut : pushed_out_;
    const Duration wait = load.prefill.wait(now_) + load.prefill.hidden_wait(decode_time_);
    return seconds(wait) + (1 + pushed_out) * prefill.of(prompt_ * (1 - cached)) +
           kv_penalty(load) * prefill.of(prompt_);
  }

 private:
  const TimePoint now_;
  const double prompt_;  // tokens
  const double pushed_out_;
  const routing::PrefillCost usual_;
  const float decode_time_;
};

}  // namespace

double MinCost::weigh(const Candidate& candidate, const RequestFacts& facts) const {
  return Price(facts, usual(), decode_time_.load(std::memory_order_relaxed))
      .at(*candidate.load, facts.prefix.rate_of(candidate.worker));
}

Choice MinCost::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  using Listed = FleetView::Listed;
  constexpr double kRefused = std::numeric_limits<double>::infinity();  // the price of one that may not be used
  std::array<Listed, FleetView::kShortList> list;
  std::array<double, FleetView::kShortList> costs;
  const bool many = fleet.is_many();
  const size_t size = many ? fleet.short_list(facts.prefix, list, rng) : fleet.usable().size();
  const auto candidate = [&](size_t i) -> const Candidate& { return many ? *list[i].candidate : fleet.usable()[i]; };
  float decode_time = 0;
  for (size_t i = 0; i < size; ++i) {
    const routing::PrefillQueue& prefill = candidate(i).load->prefill;
    const float its = prefill.known() ? prefill.decode_time() : 0;
    if (its > 0 && (decode_time == 0 || its < decode_time)) decode_time = its;
  }
  decode_time_.store(decode_time, std::memory_order_relaxed);
  const Price of_request(facts, usual(), decode_time);
  const auto cost_of = [&](size_t i) {
    const Candidate& its = candidate(i);
    return of_request.at(*its.load, many ? list[i].held : facts.prefix.rate_of(its.worker));
  };
  // Only where a long list stands in for a view of many is a cost worked out more than once.
  for (size_t i = 0; i < std::min(size, costs.size()); ++i) costs[i] = cost_of(i);
  const auto price = [&](size_t i) { return i < costs.size() ? costs[i] : cost_of(i); };
  size_t pick = 0;
  for (bool admitted = false; !admitted;) {
    double least = kRefused;
    for (size_t i = 0; i < size; ++i) {
      const double its = price(i);
      if (its >= least) continue;
      least = its;
      pick = i;
    }
    if (least == kRefused) return Choice::none();
    const size_t cheapest = pick;
    // Of those that cost as good as the same, the one with fewest requests.
    const double bound = least + std::max(kAlike, least * kAlikeShare);
    Least<int64_t> lightest(rng);
    for (size_t i = 0; i < size; ++i) {
      if (i != cheapest && price(i) > bound) continue;  // its own price may have risen since
      const Candidate& its = candidate(i);
      if (lightest.offer(its.worker, its.load->requests.load(std::memory_order_relaxed))) pick = i;
    }
    admitted = !many || fleet.admit(list[pick]);
    if (!admitted) costs[pick] = kRefused;
  }
  const WorkerLoad* chosen = candidate(pick).load;
  if (chosen->prefill.known()) {
    const routing::PrefillCost its = chosen->prefill.cost();
    per_request_.store(its.per_request, std::memory_order_relaxed);
    per_token_.store(its.per_token, std::memory_order_relaxed);
  }
  const uint32_t worker = candidate(pick).worker;
  const double rate = facts.prefix.rate_of(worker);
  const Reason reason = rate > 0 ? Reason::kPrefixHeld : Reason::kLeastCost;
  Choice choice = Choice::of(worker, reason).with_score(worker, price(pick));
  choice.insert_prefix = true;
  choice.match_rate = rate;
  return choice;
}

}  // namespace sluice::gateway
