// What every policy must do, whatever it is: each row of the registry is held to this without being named here.
#include <gtest/gtest.h>

#include <deque>
#include <numeric>
#include <string>

#include "gateway/policy/policy.h"

namespace sluice::gateway {
namespace {

// A fleet with its loads; the loads stay where they are.
struct Fleet {
  std::deque<WorkerLoad> loads;
  std::vector<Candidate> usable;

  FleetView view() const { return FleetView(usable); }
  void add(uint32_t worker, int64_t requests, int64_t polled) {
    loads.emplace_back();
    loads.back().requests = requests;
    loads.back().polled_tokens = polled;
    usable.push_back({worker, &loads.back()});
  }
};

void draw_fleet(Rng& rng, Fleet& fleet) {
  const uint64_t size = rng.below(6);
  uint32_t worker = 0;
  for (uint64_t i = 0; i < size; ++i) {
    worker += 1 + static_cast<uint32_t>(rng.below(3));
    fleet.add(worker, static_cast<int64_t>(rng.below(200)), static_cast<int64_t>(rng.below(1000)) - 1);
  }
}

RequestFacts draw_request(Rng& rng) {
  RequestFacts facts;
  facts.routing_text = "some text";
  facts.prefix.total_bytes = 9;
  facts.prefix.matched_bytes = rng.below(10);
  facts.prefix.num_holders = static_cast<uint8_t>(facts.prefix.matched_bytes == 0 ? 0 : rng.below(4));
  for (size_t i = 0; i < facts.prefix.num_holders; ++i) {
    facts.prefix.holders[i] = static_cast<uint32_t>(rng.below(20));
  }
  return facts;
}

class PolicyConformance : public testing::TestWithParam<PolicyRow> {
 protected:
  std::unique_ptr<Policy> policy_ = GetParam().make(gateway_option_table().defaults());
  Rng rng_{/*seed=*/7};
};

TEST_P(PolicyConformance, PicksOnlyUsableWorkersAndNoneFromAnEmptyFleet) {
  for (int round = 0; round < 10'000; ++round) {
    Fleet fleet;
    draw_fleet(rng_, fleet);
    const Choice choice = policy_->choose(fleet.view(), draw_request(rng_), rng_);
    ASSERT_EQ(choice.worker.has_value(), !fleet.usable.empty());
    if (choice.worker) {
      ASSERT_NE(fleet.view().find(*choice.worker), nullptr);
    } else {
      ASSERT_EQ(choice.reason, Reason::kNoUsableWorker);
    }
  }
}

TEST_P(PolicyConformance, IdleEqualWorkersGetEqualShares) {
  constexpr int kWorkers = 8;
  constexpr int kRequests = 80'000;
  Fleet fleet;
  for (uint32_t worker = 0; worker < kWorkers; ++worker) fleet.add(worker, 0, -1);
  RequestFacts facts;
  facts.routing_text = "a prompt that nobody holds";
  facts.prefix.total_bytes = facts.routing_text.size();
  std::vector<double> picks(kWorkers);
  for (int i = 0; i < kRequests; ++i) ++picks[*policy_->choose(fleet.view(), facts, rng_).worker];
  const double expected = static_cast<double>(kRequests) / kWorkers;
  double chi_square = 0;
  for (const double count : picks) chi_square += (count - expected) * (count - expected) / expected;
  EXPECT_LT(chi_square, 18.48) << "chi-square with 7 degrees of freedom, 1 %";
}

TEST_P(PolicyConformance, IsAFunctionOfItsInputsAndTheRandomSource) {
  const auto run = [&] {
    const auto policy = GetParam().make(gateway_option_table().defaults());
    Rng rng(3);
    std::vector<int64_t> chosen;
    for (int i = 0; i < 1000; ++i) {
      Fleet fleet;
      draw_fleet(rng, fleet);
      const Choice choice = policy->choose(fleet.view(), draw_request(rng), rng);
      chosen.push_back(choice.worker ? static_cast<int64_t>(*choice.worker) : -1);
    }
    return chosen;
  };
  EXPECT_EQ(run(), run());
}

INSTANTIATE_TEST_SUITE_P(Registry, PolicyConformance, testing::ValuesIn(policies().begin(), policies().end()),
                         [](const auto& row) { return std::string(row.param.name); });

}  // namespace
}  // namespace sluice::gateway
