#include "gateway/load_order.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "gateway/load.h"

namespace sluice::gateway {

void LoadSeats::tell() {
  std::lock_guard lock(mutex_);
  if (first_.order == nullptr) return;
  first_.order->moved(first_.place);
  for (const Seat& seat : others_) seat.order->moved(seat.place);
}

void LoadSeats::take(Seat seat) {
  std::lock_guard lock(mutex_);
  if (first_.order == nullptr) {
    first_ = seat;
  } else {
    others_.push_back(seat);
  }
  taken_.store(true, std::memory_order_seq_cst);
}

void LoadSeats::leave(const LoadOrder* order) {
  std::lock_guard lock(mutex_);
  std::erase_if(others_, [&](const Seat& seat) { return seat.order == order; });
  if (first_.order == order) {
    first_ = {};
    if (!others_.empty()) {
      first_ = others_.back();
      others_.pop_back();
    }
  }
  taken_.store(first_.order != nullptr, std::memory_order_seq_cst);
}

LoadOrder::LoadOrder(std::span<const Candidate> members)
    : num_members_(members.size()), row_(std::make_unique<std::atomic<uint32_t>[]>(members.size())) {
  for (const Candidate& candidate : members) members_.push_back({.load = candidate.load, .at = 0, .run = 0});
  size_.store(num_members_, std::memory_order_release);
  arrange();
}

// All that stand in the row, by what is counted of them.
void LoadOrder::arrange() {
  std::vector<std::pair<int64_t, uint32_t>> by_requests;
  for (uint32_t place = 0; place < num_members_; ++place) {
    if (members_[place].run != kNone) by_requests.emplace_back(members_[place].counted, place);
  }
  std::ranges::sort(by_requests);
  runs_.clear();
  free_runs_.clear();
  first_ = last_ = kNone;
  for (uint32_t at = 0; at < by_requests.size(); ++at) {
    const auto [requests, place] = by_requests[at];
    if (last_ == kNone || runs_[last_].requests != requests) add_run({requests, at, at, last_, kNone});
    runs_[last_].end = at + 1;
    members_[place].at = at;
    members_[place].run = last_;
    row_[at].store(place, std::memory_order_relaxed);
  }
  publish();
}

void LoadOrder::follow() {
  std::lock_guard attaching(attaching_);
  if (detached_ || follows()) return;
  for (uint32_t place = 0; place < num_members_; ++place) members_[place].load->seats.take({this, place});
  // What changed before the seat was taken was told to nobody.
  std::lock_guard lock(mutex_);
  for (Member& member : members_) member.counted = member.load->requests.load(std::memory_order_seq_cst);
  arrange();
  follows_.store(true, std::memory_order_release);
}

void LoadOrder::detach() {
  std::lock_guard attaching(attaching_);
  if (std::exchange(detached_, true) || !follows()) return;
  for (const Member& member : members_) member.load->seats.leave(this);
}

// ---- reading ----

uint32_t LoadOrder::any(Rng& rng) const {
  const size_t size = this->size();
  return size == 0 ? kNobody : row_[rng.below(size)].load(std::memory_order_relaxed);
}

uint32_t LoadOrder::heaviest() {
  if (!follows()) follow();
  const size_t size = this->size();
  return size == 0 ? kNobody : row_[size - 1].load(std::memory_order_relaxed);
}

size_t LoadOrder::lightest(std::span<uint32_t> places, Rng& rng) {
  if (!follows()) follow();
  const size_t size = this->size();
  const size_t count = std::min(places.size(), size);
  if (count == 0) return 0;
  const size_t run = std::clamp<size_t>(lightest_end_.load(std::memory_order_relaxed), 1, size);
  // Of the first run from anywhere on; what follows it is in the order of the row.
  size_t at = rng.below(run);
  for (size_t i = 0; i < count; ++i) {
    places[i] = row_[i < run ? at : i].load(std::memory_order_relaxed);
    at = at + 1 == run ? 0 : at + 1;
  }
  return count;
}

// ---- changing ----

void LoadOrder::moved(uint32_t place) {
  std::lock_guard lock(mutex_);
  Member& member = members_[place];
  const int64_t requests = member.load->requests.load(std::memory_order_seq_cst);
  member.counted = requests;
  if (member.run == kNone) return;
  settle(place, requests);
  publish();
}

void LoadOrder::take_out(uint32_t place) {
  std::lock_guard lock(mutex_);
  Member& member = members_[place];
  if (member.run == kNone) return;
  settle(place, std::numeric_limits<int64_t>::max());  // last, and alone
  drop_run(member.run);
  size_.store(size() - 1, std::memory_order_release);
  member.run = kNone;
  member.at = static_cast<uint32_t>(outside_.size());
  outside_.push_back(place);
  publish();
}

void LoadOrder::put_back(uint32_t place) {
  std::lock_guard lock(mutex_);
  Member& member = members_[place];
  if (member.run != kNone) return;
  const uint32_t moved = outside_.back();
  outside_[member.at] = moved;
  members_[moved].at = member.at;
  outside_.pop_back();
  append(place);
  settle(place, member.counted);
  publish();
}

size_t LoadOrder::some_outside(std::span<uint32_t> places) {
  std::lock_guard lock(mutex_);
  const size_t count = std::min(places.size(), outside_.size());
  for (size_t i = 0; i < count; ++i) {
    if (next_outside_ >= outside_.size()) next_outside_ = 0;
    places[i] = outside_[next_outside_++];
  }
  return count;
}

void LoadOrder::append(uint32_t place) {
  const auto at = static_cast<uint32_t>(size());
  row_[at].store(place, std::memory_order_relaxed);
  members_[place].at = at;
  members_[place].run = add_run({std::numeric_limits<int64_t>::max(), at, at + 1, last_, kNone});
  size_.store(at + 1, std::memory_order_release);
}

void LoadOrder::settle(uint32_t place, int64_t requests) {
  while (runs_[members_[place].run].requests < requests) step_up(place, requests);
  while (runs_[members_[place].run].requests > requests) step_down(place, requests);
}

// Over the border to the next run, which is a new one if the next has more than `requests`.
void LoadOrder::step_up(uint32_t place, int64_t requests) {
  const uint32_t from = members_[place].run;
  uint32_t to = runs_[from].heavier;
  if (to == kNone || runs_[to].requests > requests) {
    if (runs_[from].end - runs_[from].begin == 1) {
      runs_[from].requests = requests;
      return;
    }
    to = add_run({requests, runs_[from].end, runs_[from].end, from, to});
  }
  swap_to(place, runs_[from].end - 1);
  --runs_[from].end;
  --runs_[to].begin;
  members_[place].run = to;
  if (runs_[from].begin == runs_[from].end) drop_run(from);
}

void LoadOrder::step_down(uint32_t place, int64_t requests) {
  const uint32_t from = members_[place].run;
  uint32_t to = runs_[from].lighter;
  if (to == kNone || runs_[to].requests < requests) {
    if (runs_[from].end - runs_[from].begin == 1) {
      runs_[from].requests = requests;
      return;
    }
    to = add_run({requests, runs_[from].begin, runs_[from].begin, to, from});
  }
  swap_to(place, runs_[from].begin);
  ++runs_[from].begin;
  ++runs_[to].end;
  members_[place].run = to;
  if (runs_[from].begin == runs_[from].end) drop_run(from);
}

uint32_t LoadOrder::add_run(Run run) {
  uint32_t added = static_cast<uint32_t>(runs_.size());
  if (free_runs_.empty()) {
    runs_.push_back(run);
  } else {
    added = free_runs_.back();
    free_runs_.pop_back();
    runs_[added] = run;
  }
  (run.lighter == kNone ? first_ : runs_[run.lighter].heavier) = added;
  (run.heavier == kNone ? last_ : runs_[run.heavier].lighter) = added;
  return added;
}

void LoadOrder::drop_run(uint32_t run) {
  const Run& gone = runs_[run];
  (gone.lighter == kNone ? first_ : runs_[gone.lighter].heavier) = gone.heavier;
  (gone.heavier == kNone ? last_ : runs_[gone.heavier].lighter) = gone.lighter;
  free_runs_.push_back(run);
}

void LoadOrder::swap_to(uint32_t place, uint32_t at) {
  Member& member = members_[place];
  const uint32_t other = row_[at].load(std::memory_order_relaxed);
  row_[member.at].store(other, std::memory_order_relaxed);
  row_[at].store(place, std::memory_order_relaxed);
  members_[other].at = member.at;
  member.at = at;
}

void LoadOrder::publish() {
  lightest_end_.store(first_ == kNone ? 0 : runs_[first_].end, std::memory_order_relaxed);
  num_outside_.store(outside_.size(), std::memory_order_relaxed);
}

}  // namespace sluice::gateway
