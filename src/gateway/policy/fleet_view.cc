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

const Candidate* FleetView::any(Rng& rng) const {
  if (order_ == nullptr) return members_.empty() ? nullptr : &members_[rng.below(members_.size())];
  for (int draw = 0; draw < kDraws; ++draw) {
    const uint32_t place = order_->any(rng);
    if (place == LoadOrder::kNobody) return nullptr;
    if (const Candidate* candidate = admitted(place)) return candidate;
  }
  return nullptr;
}

FleetView::Pair FleetView::any_two(Rng& rng) const {
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
  for (int draw = 0; draw < kDraws && order_->size() > 1; ++draw) {
    const Candidate* candidate = any(rng);
    if (candidate == pair.first) continue;
    pair.second = candidate;
    break;
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

size_t FleetView::short_list(const routing::PrefixMatch& prefix, std::span<Listed, kShortList> list, Rng& rng) const {
  size_t size = 0;
  const auto holds = [&](uint32_t worker, size_t bytes) {
    const size_t place = place_of(members_, worker);
    if (place == members_.size()) return;
    const double held = static_cast<double>(bytes) / static_cast<double>(prefix.total_bytes);
    list[size++] = {.candidate = &members_[place], .held = held, .admitted = false};
  };
  if (prefix.matched_bytes > 0) {
    for (const uint32_t worker : prefix.workers()) holds(worker, prefix.matched_bytes);
  }
  for (const routing::PrefixMatch::Part& part : prefix.partly()) holds(part.worker, part.bytes);
  const auto add = [&](const Candidate* candidate) {
    if (candidate == nullptr || size == list.size()) return;
    const auto known = list.first(size);
    if (std::ranges::find(known, candidate, &Listed::candidate) != known.end()) return;
    list[size++] = {.candidate = candidate, .held = 0, .admitted = true};
  };
  for (size_t i = 0; i < kDrawn; ++i) add(any(rng));
  for (int round = 0; round < kDraws; ++round) {
    std::array<uint32_t, kLightest> places;
    const size_t before = order_->size();
    const size_t count = order_->lightest(places, rng);
    for (size_t i = 0; i < count; ++i) add(admitted(places[i]));
    if (order_->size() >= before) break;  // nobody of them rested
  }
  return size;
}

bool FleetView::admit(Listed& listed) const {
  if (!listed.admitted)
    listed.admitted = admitted(static_cast<uint32_t>(listed.candidate - members_.data())) != nullptr;
  return listed.admitted;
}

}  // namespace sluice::gateway
