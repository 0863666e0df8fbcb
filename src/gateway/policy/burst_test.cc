// L6 of docs/results/reliability.md: ten thousand equal requests come before any of them has ended.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "gateway/policy/policy_fixture.h"
#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

TEST(BurstTest, L6TenThousandEqualRequestsAreOneApartOn64Ranks) {
  for (const char* name : {"cache_aware", "min_cost", "least_load", "round_robin"}) {
    GatewayOptions options = gateway_option_table().defaults();
    options.policy = name;
    const auto policy = make_policy(options);
    const sluice::testing::FakeClock clock;
    TestFleet fleet;
    for (uint32_t rank = 0; rank < 64; ++rank) fleet.add(rank);
    Rng rng(7);
    std::vector<WorkerLease> leases;
    for (int i = 0; i < 10'000; ++i) {
      const Choice choice = policy->choose(fleet.view(), {.prompt_tokens = 500, .now = clock.now(), .prefix = {}}, rng);
      const std::shared_ptr<WorkerLoad> load(std::shared_ptr<void>(), &fleet.load(*choice.worker));
      leases.emplace_back(load, Work{.prompt_tokens = 500, .new_tokens = 16}, clock);
    }
    int64_t least = 10'000, most = 0;
    for (uint32_t rank = 0; rank < 64; ++rank) {
      least = std::min(least, fleet.load(rank).requests.load());
      most = std::max(most, fleet.load(rank).requests.load());
    }
    EXPECT_LE(most - least, 1) << name;
  }
}

}  // namespace
}  // namespace sluice::gateway
