#include "gateway/roster.h"

#include <algorithm>
#include <array>

#include "gateway/fleet.h"

namespace sluice::gateway {
namespace {

constexpr Duration kWakeInterval = std::chrono::milliseconds(2);
constexpr size_t kWokenAtOnce = 64;

}  // namespace

Roster::Roster(WorkerList workers, TimePoint now) : workers_(std::move(workers)) {
  for (const WorkerPtr& worker : workers_) members_.push_back({worker->number, worker->load.get()});
  if (workers_.size() <= kFew) return;
  order_ = std::make_unique<LoadOrder>(members_);
  for (uint32_t place = 0; place < workers_.size(); ++place) {
    if (!workers_[place]->takes_work(now)) order_->take_out(place);
  }
}

void Roster::wake(TimePoint now) const {
  if (!order_->any_outside()) return;
  int64_t due = next_wake_.load(std::memory_order_relaxed);
  const int64_t here = now.time_since_epoch().count();
  if (here < due || !next_wake_.compare_exchange_strong(due, here + kWakeInterval.count())) return;
  std::array<uint32_t, kWokenAtOnce> places;
  const size_t count = order_->some_outside(places);
  for (const uint32_t place : std::span(places).first(count)) {
    if (workers_[place]->takes_work(now)) order_->put_back(place);
  }
}

}  // namespace sluice::gateway
