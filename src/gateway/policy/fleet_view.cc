#include "gateway/policy/fleet_view.h"

#include <algorithm>

#include "gateway/load.h"
#include "gateway/policy/least.h"

namespace sluice::gateway {
namespace {

int64_t requests_of(const Candidate& candidate) { return candidate.load->requests.load(std::memory_order_relaxed); }

}  // namespace

size_t place_of(std::span<const Candidate> members, uint32_t worker) {
  if (members.empty() || worker < members.front().worker) return members.size();
  // Numbers ascend one by one but for workers that have gone: it is not behind this place, and mostly near it.
  size_t end = std::min<size_t>(worker - members.front().worker, members.size() - 1) + 1;
  size_t step = 1, begin = end - 1;
  while (begin > 0 && members[begin].worker > worker) {
    end = begin;
    begin -= std::min(begin, step);
    step *= 2;
  }
  const auto part = members.subspan(begin, end - begin);
  const auto at = std::ranges::lower_bound(part, worker, {}, &Candidate::worker);
  return at == part.end() || at->worker != worker ? members.size() : begin + static_cast<size_t>(at - part.begin());
}

const Candidate* FleetView::admitted(uint32_t place) const {
  if (order_ == nullptr) return &members_[place];
  switch (gate_->of(place)) {
    case Gate::Pass::kYes:
      return &members_[place];
    case Gate::Pass::kRests:
      order_->take_out(place);
      return nullptr;
    case Gate::Pass::kTried:
      return nullptr;
  }
  return nullptr;
}

const Candidate* FleetView::find(uint32_t worker) const {
  const size_t place = place_of(members_, worker);
  return place == members_.size() ? nullptr : admitted(static_cast<uint32_t>(place));
}

uint32_t FleetView::draw(Rng& rng, Draw what_for) const {
  const uint32_t fresh = order_->any(rng);
  if (fresh == LoadOrder::kNobody) return fresh;
  if (what_for == Draw::kToChoose) {
    gate_->expect(fresh);
  } else {
    members_[fresh].load->prefetch_for_choice();
  }
  if (ahead_ == nullptr) return fresh;
  const uint32_t drawn = ahead_->exchange(fresh, *order_);
  return drawn < members_.size() ? drawn : fresh;  // the order of more may have stood where this one does
}

const Candidate* FleetView::any(Rng& rng) const {
  if (order_ == nullptr) return members_.empty() ? nullptr : &members_[rng.below(members_.size())];
  for (int i = 0; i < kDraws; ++i) {
    const uint32_t place = draw(rng);
    if (place == LoadOrder::kNobody) return nullptr;
    if (const Candidate* candidate = admitted(place)) return candidate;
  }
  return nullptr;
}

FleetView::Pair FleetView::any_two(Rng& rng) const {
  const uint32_t ahead = order_ == nullptr ? LoadOrder::kNobody : draw(rng);
  Pair pair{.first = any(rng)};
  if (pair.first == nullptr) return pair;
  if (order_ == nullptr) {
    if (members_.size() == 1) return pair;
    const auto first = static_cast<uint64_t>(pair.first - members_.data());
    uint64_t second = rng.below(members_.size() - 1);
    if (second >= first) ++second;
    pair.second = &members_[second];
    return pair;
  }
  pair.second = ahead == LoadOrder::kNobody ? nullptr : admitted(ahead);
  if (pair.second == pair.first) pair.second = nullptr;
  for (int i = 0; i < kDraws && pair.second == nullptr && order_->size() > 1; ++i) {
    const Candidate* candidate = any(rng);
    if (candidate == nullptr) break;
    if (candidate != pair.first) pair.second = candidate;
  }
  return pair;
}

const Candidate* FleetView::in_turn(std::atomic<uint64_t>& turn) const {
  for (int draw = 0; draw < kDraws && !members_.empty(); ++draw) {
    const uint64_t place = turn.fetch_add(1, std::memory_order_relaxed) % members_.size();
    if (const Candidate* candidate = admitted(static_cast<uint32_t>(place))) return candidate;
  }
  return nullptr;
}

FleetView::Spread FleetView::spread(Rng& rng) const {
  Spread spread;
  if (order_ == nullptr) {
    Least<int64_t> lightest(rng);
    for (const Candidate& candidate : members_) {
      const int64_t requests = requests_of(candidate);
      if (lightest.offer(candidate.worker, requests)) spread.lightest = &candidate;
      spread.most = std::max(spread.most, requests);
    }
    if (spread.lightest != nullptr) spread.least = lightest.cost();
    return spread;
  }
  if (const uint32_t place = order_->heaviest(); place != LoadOrder::kNobody)
    members_[place].load->prefetch_for_choice();
  // Those that rest leave the order as they are met.
  for (int round = 0; round < kDraws && spread.lightest == nullptr; ++round) {
    std::array<uint32_t, kLightest> places;
    const size_t count = order_->lightest(places, rng);
    for (size_t i = 0; i < count && spread.lightest == nullptr; ++i) spread.lightest = admitted(places[i]);
    if (count == 0) return spread;
  }
  if (spread.lightest == nullptr) return spread;
  spread.least = requests_of(*spread.lightest);
  for (int round = 0; round < kDraws; ++round) {
    const uint32_t place = order_->heaviest();
    if (place == LoadOrder::kNobody) break;
    spread.most = std::max(spread.least, requests_of(members_[place]));
    if (gate_->of(place) != Gate::Pass::kRests) break;
    order_->take_out(place);
  }
  return spread;
}

void FleetView::expect(std::span<const uint32_t> workers) const {
  if (order_ == nullptr) return;
  for (const uint32_t worker : workers) {
    const size_t place = place_of(members_, worker);
    if (place != members_.size()) members_[place].load->prefetch_for_choice();
  }
}

size_t FleetView::short_list(const routing::PrefixMatch& prefix, std::span<Listed, kShortList> list, Rng& rng) const {
  // Whoever will be asked is on the way from memory before the first one is asked.
  std::array<uint32_t, kDrawn> drawn;
  for (uint32_t& place : drawn) place = draw(rng, Draw::kToWeigh);
  std::array<uint32_t, kLightest> lightest;
  size_t num_lightest = order_->lightest(lightest, rng);
  for (const uint32_t place : std::span(lightest).first(num_lightest)) members_[place].load->prefetch_for_choice();

  size_t size = 0;
  const auto holds = [&](uint32_t worker, double held) {
    const size_t place = place_of(members_, worker);
    if (place == members_.size()) return;
    members_[place].load->prefetch_for_choice();
    list[size++] = {.candidate = &members_[place], .held = held, .admitted = false};
  };
  const std::span<const uint32_t> holders = prefix.matched_bytes > 0 ? prefix.workers() : std::span<const uint32_t>();
  const bool others_hold = holders.size() > kHolders;  // perhaps one of those that follow
  const double rate = prefix.rate();
  if (others_hold) {
    const size_t begin = rng.below(holders.size());
    for (size_t i = 0; i < kHolders; ++i) {
      const size_t at = begin + i * holders.size() / kHolders;
      holds(holders[at < holders.size() ? at : at - holders.size()], rate);
    }
  } else {
    for (const uint32_t worker : holders) holds(worker, rate);
  }
  const double each_byte = 1 / static_cast<double>(std::max<size_t>(prefix.total_bytes, 1));
  for (const routing::PrefixMatch::Part& part : prefix.partly()) holds(part.worker, each_byte * part.bytes);
  // It may be listed already: twice at the same price, or once more as if it held nothing, changes no choice.
  const auto add = [&](const Candidate* candidate) {
    if (candidate == nullptr || size == list.size()) return;
    list[size++] = {
        .candidate = candidate, .held = others_hold ? prefix.rate_of(candidate->worker) : 0, .admitted = true};
  };
  for (const uint32_t place : drawn) {
    const Candidate* candidate = place == LoadOrder::kNobody ? nullptr : admitted(place);
    add(candidate != nullptr ? candidate : any(rng));
  }
  const size_t before_lightest = size;
  for (int round = 0; round < kDraws; ++round) {
    const size_t before = order_->size();
    size = before_lightest;
    for (const uint32_t place : std::span(lightest).first(num_lightest)) add(admitted(place));
    if (order_->size() >= before) break;  // nobody of them rested
    num_lightest = order_->lightest(lightest, rng);
  }
  return size;
}

bool FleetView::admit(Listed& listed) const {
  if (!listed.admitted)
    listed.admitted = admitted(static_cast<uint32_t>(listed.candidate - members_.data())) != nullptr;
  return listed.admitted;
}

}  // namespace sluice::gateway
