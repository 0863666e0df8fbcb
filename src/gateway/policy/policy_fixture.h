// A fleet for tests of policies: loads that can be set, and the view that a policy gets.
#pragma once

#include <fmt/format.h>

#include <deque>
#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gateway/policy/policy.h"

namespace sluice::gateway {

// Workers that rest, or were tried, by place.
class TestGate final : public Gate {
 public:
  Pass of(uint32_t place) const override {
    return resting.contains(place) ? Pass::kRests : tried.contains(place) ? Pass::kTried : Pass::kYes;
  }
  std::set<uint32_t> resting, tried;
};

class TestFleet {
 public:
  TestFleet() = default;
  // Workers 0, 1, 2, ... with these requests in flight.
  explicit TestFleet(std::initializer_list<int64_t> requests) {
    uint32_t worker = 0;
    for (const int64_t count : requests) add(worker++).requests = count;
  }

  // Numbers ascend. The load stays where it is.
  WorkerLoad& add(uint32_t worker) {
    usable_.push_back({worker, &loads_.emplace_back()});
    return loads_.back();
  }
  WorkerLoad& load(size_t place) { return loads_[place]; }
  const std::vector<Candidate>& usable() const { return usable_; }
  // It stays in the ring.
  void take_out(uint32_t worker) {
    std::erase_if(usable_, [&](const Candidate& candidate) { return candidate.worker == worker; });
  }

  // The ring has the workers 0 to 31, whoever is there.
  FleetView view() const { return FleetView(usable_, ring()); }
  // As of many, whatever their number.
  FleetView many(const TestGate& gate) const {
    order_ = std::make_unique<LoadOrder>(usable_);
    return FleetView(usable_, *order_, gate, ring());
  }

 private:
  static const routing::HashRing* ring() {
    static const routing::HashRing ring = [] {
      std::vector<std::string> names;
      for (uint32_t worker = 0; worker < 32; ++worker) names.push_back(fmt::format("http://worker{}", worker));
      std::vector<routing::HashRing::Member> members;
      for (uint32_t worker = 0; worker < 32; ++worker) members.push_back({worker, names[worker]});
      return routing::HashRing(members);
    }();
    return &ring;
  }

  std::deque<WorkerLoad> loads_;
  std::vector<Candidate> usable_;
  mutable std::unique_ptr<LoadOrder> order_;  // of the last many()
};

}  // namespace sluice::gateway
