// What every policy must do, whatever it is: each row of the registry is held to this without being named here.
#include <gtest/gtest.h>

#include <numeric>
#include <span>
#include <string>

#include "gateway/policy/policy_fixture.h"

namespace sluice::gateway {
namespace {

void draw_fleet(Rng& rng, TestFleet& fleet) {
  const uint64_t size = rng.below(6);
  uint32_t worker = 0;
  for (uint64_t i = 0; i < size; ++i) {
    worker += 1 + static_cast<uint32_t>(rng.below(3));
    WorkerLoad& load = fleet.add(worker);
    load.requests = static_cast<int64_t>(rng.below(200));
    load.polled_tokens = static_cast<int64_t>(rng.below(1000)) - 1;
    load.polled_kv_usage = static_cast<double>(rng.below(101)) / 100;
  }
}

RequestFacts draw_request(Rng& rng) {
  RequestFacts facts;
  facts.routing_text = "some text";
  constexpr std::string_view kKeys[] = {"", "session-1", "session-2", "session-12"};
  facts.routing_key = kKeys[rng.below(4)];
  facts.identity = kKeys[rng.below(4)];
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
    TestFleet fleet;
    draw_fleet(rng_, fleet);
    const Choice choice = policy_->choose(fleet.view(), draw_request(rng_), rng_);
    ASSERT_EQ(choice.worker.has_value(), !fleet.usable().empty());
    if (choice.worker) {
      ASSERT_NE(fleet.view().find(*choice.worker), nullptr);
    } else {
      ASSERT_EQ(choice.reason, Reason::kNoUsableWorker);
    }
  }
}

TEST_P(PolicyConformance, WeighsByWhatItComparesBy) {
  for (int round = 0; round < 2000; ++round) {
    TestFleet fleet;
    draw_fleet(rng_, fleet);
    for (size_t place = 0; place < fleet.usable().size(); ++place) fleet.load(place).polled_tokens = 100;
    const RequestFacts facts = draw_request(rng_);
    const Choice choice = policy_->choose(fleet.view(), facts, rng_);
    for (const Score& score : std::span(choice.scores).first(choice.num_scores)) {
      ASSERT_DOUBLE_EQ(policy_->weigh(*fleet.view().find(score.worker), facts), score.cost) << round;
    }
  }
}

TEST_P(PolicyConformance, PicksOnlyThoseOfManyThatPass) {
  if (policy_->needs_all()) return;  // it is never given many
  for (int round = 0; round < 2000; ++round) {
    TestFleet fleet;
    TestGate gate;
    const auto size = static_cast<uint32_t>(33 + rng_.below(60));
    for (uint32_t place = 0; place < size; ++place) {
      fleet.add(2 * place).requests = static_cast<int64_t>(rng_.below(5));
      if (rng_.below(3) == 0) gate.resting.insert(place);
      if (rng_.below(40) == 0) gate.tried.insert(place);
    }
    const Choice choice = policy_->choose(fleet.many(gate), draw_request(rng_), rng_);
    ASSERT_TRUE(choice.worker) << "two thirds of them may be used";
    ASSERT_LT(*choice.worker, 2 * size);
    ASSERT_EQ(*choice.worker % 2, 0u);
    ASSERT_EQ(gate.of(*choice.worker / 2), Gate::Pass::kYes);
  }
}

class CountingGate final : public Gate {
 public:
  Pass of(uint32_t) const override {
    ++looks;
    return Pass::kYes;
  }
  mutable int looks = 0;
};

TEST_P(PolicyConformance, L1AChoiceAmong10000WorkersLooksAtFewOfThem) {
  if (policy_->needs_all()) return;
  TestFleet fleet;
  for (uint32_t worker = 0; worker < 10'000; ++worker) fleet.add(worker).requests = static_cast<int64_t>(rng_.below(9));
  LoadOrder order(fleet.usable());
  const CountingGate gate;
  const FleetView view(fleet.usable(), order, gate, fleet.view().ring());
  for (int i = 0; i < 100; ++i) {
    gate.looks = 0;
    ASSERT_TRUE(policy_->choose(view, draw_request(rng_), rng_).worker);
    ASSERT_GT(gate.looks, 0);
    ASSERT_LT(gate.looks, 32);
  }
}

// As the models of one loop do.
TEST_P(PolicyConformance, FleetsThatShareTheirDrawsDoNotSkewEachOther) {
  if (!policy_->is_balanced() || policy_->needs_all()) return;
  constexpr int kRequests = 20'000;
  TestFleet few, many;
  for (uint32_t worker = 0; worker < 40; ++worker) few.add(worker);
  for (uint32_t worker = 0; worker < 400; ++worker) many.add(worker);
  LoadOrder order_of_few(few.usable()), order_of_many(many.usable());
  const TestGate gate;
  DrawsAhead ahead;
  const FleetView view_of_few(few.usable(), order_of_few, gate, few.view().ring(), &ahead);
  const FleetView view_of_many(many.usable(), order_of_many, gate, many.view().ring(), &ahead);
  RequestFacts facts;
  facts.routing_text = "a prompt that nobody holds";
  facts.prefix.total_bytes = facts.routing_text.size();
  int among_first = 0;
  for (int i = 0; i < kRequests; ++i) {
    // In no fixed order, of which a policy that draws once may come out even.
    for (uint64_t others = rng_.below(3); others > 0; --others) {
      ASSERT_LT(*policy_->choose(view_of_few, facts, rng_).worker, 40u);
    }
    if (*policy_->choose(view_of_many, facts, rng_).worker < 40) ++among_first;
  }
  EXPECT_NEAR(static_cast<double>(among_first) / kRequests, 0.1, 0.01) << "they are a tenth of the workers";
}

TEST_P(PolicyConformance, IdleEqualWorkersGetEqualShares) {
  if (!policy_->is_balanced()) return;  // it sends equal requests to one worker on purpose
  constexpr int kWorkers = 8;
  constexpr int kRequests = 80'000;
  TestFleet fleet;
  for (uint32_t worker = 0; worker < kWorkers; ++worker) fleet.add(worker);
  RequestFacts facts;
  facts.routing_text = "a prompt that nobody holds";
  facts.prefix.total_bytes = facts.routing_text.size();
  std::vector<double> picks(kWorkers);
  for (int i = 0; i < kRequests; ++i) ++picks[*policy_->choose(fleet.view(), facts, rng_).worker];
  const double expected = static_cast<double>(kRequests) / kWorkers;
  const auto chi_square = [&] {
    double sum = 0;
    for (const double count : picks) sum += (count - expected) * (count - expected) / expected;
    return sum;
  };
  EXPECT_LT(chi_square(), 18.48) << "chi-square with 7 degrees of freedom, 1 %";
  if (policy_->needs_all()) return;
  picks.assign(kWorkers, 0);
  const TestGate gate;
  const FleetView many = fleet.many(gate);
  for (int i = 0; i < kRequests; ++i) ++picks[*policy_->choose(many, facts, rng_).worker];
  EXPECT_LT(chi_square(), 18.48) << "as of many";
}

TEST_P(PolicyConformance, IsAFunctionOfItsInputsAndTheRandomSource) {
  const auto run = [&] {
    const auto policy = GetParam().make(gateway_option_table().defaults());
    Rng rng(3);
    std::vector<int64_t> chosen;
    for (int i = 0; i < 1000; ++i) {
      TestFleet fleet;
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
