#include "gateway/policy/min_cost.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "gateway/policy/least.h"

namespace sluice::gateway {
namespace {

// Costs that differ by less say nothing: what is learned of two equal workers differs by as much.
constexpr double kAlike = 0.0005;     // seconds ...
constexpr double kAlikeShare = 0.02;  // ... or this part of the least

constexpr double kIdle = 0.1;  // a worker idles where one waits for less than this part of what a copy would take

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
  const double usage = std::clamp(load.known_kv_usage(), 0.5, 0.999);
  const double full = 2 * usage - 1;  // of the second half
  return std::min(10.0, full * full * full * full / (1 - full));
}

// What one request costs, worker by worker; what does not depend on the worker is worked out once. Seconds.
class Price {
 public:
  // `decode_time`: the least that anybody needs for a token, of those that tell; 0 if none does.
  Price(const RequestFacts& facts, const routing::PrefillCost& usual, float decode_time)
      : now_(facts.now),
        prompt_(static_cast<double>(facts.prompt_tokens)),
        most_held_(facts.prefix.rate()),
        pushed_out_(pushed_out(facts.prefix)),
        usual_(usual),
        decode_time_(decode_time) {}

  // `held`: share of the prompt that the index has it hold.
  double at(const WorkerLoad& load, double held) const {
    const double cached = held > 0 ? load.belief.share() * held : 0;
    const routing::PrefillCost prefill = load.prefill.known() ? load.prefill.cost() : usual_;
    const double pushed_out = load.belief.has_room() ? kPushedOut : pushed_out_;
    const double again = most_held_ - held;
    return (1 + again) * wait(load) + (1 + pushed_out) * prefill.of(prompt_ * (1 - cached)) +
           kv_penalty(load) * prefill.of(prompt_);
  }
  double wait(const WorkerLoad& load) const {
    return seconds(load.prefill.wait(now_) + load.prefill.hidden_wait(decode_time_));
  }

 private:
  const TimePoint now_;
  const double prompt_;     // tokens
  const double most_held_;  // share of the prompt that somebody holds
  const double pushed_out_;
  const routing::PrefillCost usual_;
  const float decode_time_;
};

// The workers that are compared for one request: all of few, the short list of many.
class Offers {
 public:
  Offers(const FleetView& fleet, const RequestFacts& facts, Rng& rng)
      : fleet_(fleet),
        facts_(facts),
        many_(fleet.is_many()),
        size_(many_ ? fleet.short_list(facts.prefix, list_, rng) : fleet.usable().size()) {}

  const Candidate& at(size_t i) const { return many_ ? *list_[i].candidate : fleet_.usable()[i]; }
  // The least that anybody needs for a token, of those that tell; 0 if none does.
  float decode_time() const {
    float least = 0;
    for (size_t i = 0; i < size_; ++i) {
      const routing::PrefillQueue& prefill = at(i).load->prefill;
      const float its = prefill.known() ? prefill.decode_time() : 0;
      if (its > 0 && (least == 0 || its < least)) least = its;
    }
    return least;
  }
  void appraise(const Price& of_request) {
    of_request_ = &of_request;
    for (size_t i = 0; i < std::min(size_, prices_.size()); ++i) prices_[i] = its_price(i);
  }
  // Only where a long list stands in for a view of many is it worked out more than once.
  double price(size_t i) const { return i < prices_.size() ? prices_[i] : its_price(i); }
  // False if it may not be used after all: it is refused from then on.
  bool admit(size_t i) {
    const bool admitted = !many_ || fleet_.admit(list_[i]);
    if (!admitted) prices_[i] = kRefused;
    return admitted;
  }

  // Of those that cost as good as the least, the one with fewest requests. None if all are refused.
  std::optional<size_t> cheapest(Rng& rng) const {
    size_t cheapest = 0;
    double least = kRefused;
    for (size_t i = 0; i < size_; ++i) {
      const double its = price(i);
      if (its >= least) continue;
      least = its;
      cheapest = i;
    }
    if (least == kRefused) return std::nullopt;
    const double bound = least + std::max(kAlike, least * kAlikeShare);
    size_t pick = cheapest;
    Least<int64_t> lightest(rng);
    for (size_t i = 0; i < size_; ++i) {
      if (i != cheapest && price(i) > bound) continue;  // its own price may have risen since
      if (lightest.offer(at(i).worker, at(i).load->requests.load(std::memory_order_relaxed))) pick = i;
    }
    return pick;
  }

  // Of those that idle the worker at which the request would cost least if that held as much of it as the one that was
  // chosen does.
  struct Copier {
    size_t at;
    double saves;  // what it would cost less
    double price;  // what it costs more, as it is
  };
  // None where that is hardly less.
  std::optional<Copier> copier(size_t chosen) const {
    const double held = held_by(chosen);
    if (held <= 0 || of_request_->wait(*at(chosen).load) <= kAlike) return std::nullopt;
    std::optional<Copier> best;
    for (size_t i = 0; i < size_; ++i) {
      if (held_by(i) >= held || price(i) == kRefused) continue;
      const double as_holder = of_request_->at(*at(i).load, held);
      const Copier its{.at = i, .saves = price(chosen) - as_holder, .price = price(i) - as_holder};
      if (of_request_->wait(*at(i).load) > kIdle * its.price) continue;
      if (its.price > kAlike && its.saves > (best ? best->saves : kAlike)) best = its;
    }
    return best;
  }

 private:
  static constexpr double kRefused = std::numeric_limits<double>::infinity();  // the price of one that may not be used

  double held_by(size_t i) const { return many_ ? list_[i].held : facts_.prefix.rate_of(at(i).worker); }
  double its_price(size_t i) const { return of_request_->at(*at(i).load, held_by(i)); }

  const FleetView& fleet_;
  const RequestFacts& facts_;
  const bool many_;
  std::array<FleetView::Listed, FleetView::kShortList> list_;
  const size_t size_;  // after list_, which it fills
  std::array<double, FleetView::kShortList> prices_;
  const Price* of_request_ = nullptr;
};

}  // namespace

double MinCost::weigh(const Candidate& candidate, const RequestFacts& facts) const {
  return Price(facts, usual(), decode_time_.load(std::memory_order_relaxed))
      .at(*candidate.load, facts.prefix.rate_of(candidate.worker));
}

Choice MinCost::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  Offers offers(fleet, facts, rng);
  const float decode_time = offers.decode_time();
  decode_time_.store(decode_time, std::memory_order_relaxed);
  const Price of_request(facts, usual(), decode_time);
  offers.appraise(of_request);
  std::optional<size_t> pick = offers.cheapest(rng);
  while (pick && !offers.admit(*pick)) pick = offers.cheapest(rng);
  if (!pick) return Choice::none();
  Reason reason = facts.prefix.rate_of(offers.at(*pick).worker) > 0 ? Reason::kPrefixHeld : Reason::kLeastCost;
  const auto copier = offers.copier(*pick);
  if (copier && copies_.earn(facts.prefix.place, copier->saves, copier->price, facts.now) && offers.admit(copier->at)) {
    pick = copier->at;
    reason = Reason::kHoldersBusy;
  }
  const Candidate& chosen = offers.at(*pick);
  if (chosen.load->prefill.known()) {
    const routing::PrefillCost its = chosen.load->prefill.cost();
    per_request_.store(its.per_request, std::memory_order_relaxed);
    per_token_.store(its.per_token, std::memory_order_relaxed);
  }
  Choice choice = Choice::of(chosen.worker, reason).with_score(chosen.worker, offers.price(*pick));
  choice.insert_prefix = true;
  choice.match_rate = facts.prefix.rate_of(chosen.worker);
  return choice;
}

}  // namespace sluice::gateway
