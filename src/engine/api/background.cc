#include "engine/api/background.h"

#include "base/check.h"

namespace sluice::engine {
namespace {

// Each needs a turn of its loop, no more.
constexpr Duration kLimit = std::chrono::seconds(60);

}  // namespace

std::unique_ptr<Background::Entry> Background::try_begin(std::shared_ptr<LoopEvent> event) {
  const std::lock_guard lock(mu_);
  if (stopping_) return nullptr;
  events_.push_front(std::move(event));
  return std::make_unique<Entry>(*this, events_.begin());
}

Background::Entry::~Entry() {
  // Under the lock to the end: whoever waits in stop() may destroy what this is part of afterwards.
  const std::lock_guard lock(background_.mu_);
  background_.events_.erase(place_);
  background_.changed_.notify_all();
}

bool Background::stopping() const {
  const std::lock_guard lock(mu_);
  return stopping_;
}

void Background::stop() {
  std::unique_lock lock(mu_);
  stopping_ = true;
  for (const auto& event : events_) event->notify();
  const bool all = changed_.wait_for(lock, kLimit, [this] { return events_.empty(); });
  SLUICE_CHECK(all, "{} requests in the background did not end within {} s", events_.size(), seconds(kLimit));
}

}  // namespace sluice::engine
