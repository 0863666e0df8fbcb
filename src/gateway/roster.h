// The workers of one destination (a model, a data-parallel rank) as they are chosen from. It is made anew when workers
// come, go, or turn out to serve another model; whether one can be used now is asked when it comes up.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "gateway/policy/fleet_view.h"

namespace sluice::gateway {

struct Worker;
using WorkerPtr = std::shared_ptr<Worker>;
using WorkerList = std::vector<WorkerPtr>;  // ascending number

// Any thread. Constant but for the order.
class Roster {
 public:
  // So few are looked at one by one, which is as quick.
  static constexpr size_t kFew = 32;

  Roster(WorkerList workers, TimePoint now);

  const WorkerList& workers() const { return workers_; }
  // By place in workers().
  std::span<const Candidate> members() const { return members_; }
  const WorkerPtr& worker(uint32_t number) const { return workers_[place_of(members_, number)]; }
  // Null where they are few.
  LoadOrder* order() const { return order_.get(); }
  // Puts those back into the order that rested and do no more, some at a time: a choice takes as long as ever however
  // many rest.
  void wake(TimePoint now) const;

 private:
  const WorkerList workers_;
  std::vector<Candidate> members_;
  std::unique_ptr<LoadOrder> order_;
  mutable std::atomic<int64_t> next_wake_{0};  // steady nanoseconds
};

}  // namespace sluice::gateway
