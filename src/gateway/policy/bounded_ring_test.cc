#include "gateway/policy/bounded_ring.h"

#include <gtest/gtest.h>

#include <map>

#include "gateway/policy/consistent_hashing.h"
#include "gateway/policy/policy_fixture.h"
#include "gateway/policy/prefix_hash.h"

namespace sluice::gateway {
namespace {

constexpr LoadBound kBound{.factor = 1.25, .margin = 10};

class BoundedRingTest : public testing::Test {
 protected:
  GatewayOptions options_ = gateway_option_table().defaults();
  Rng rng_{1};
};

TEST_F(BoundedRingTest, TheOwnerKeepsTheKeyUntilItHasClearlyTooMuch) {
  TestFleet fleet({0, 0, 0, 0});
  const uint64_t position = routing::HashRing::position("a session");
  const uint32_t owner = *choose_on_ring(fleet.view(), position, kBound, rng_).worker;
  fleet.load(owner).requests = 13;  // mean 3.25, 13 > (13 + 1) / 4 * 1.25, and not above 3.25 + 10
  Choice choice = choose_on_ring(fleet.view(), position, kBound, rng_);
  EXPECT_EQ(choice.worker, owner);
  EXPECT_EQ(choice.reason, Reason::kHashed);
  fleet.load(owner).requests = 14;  // mean 3.5, 14 > 13.5
  choice = choose_on_ring(fleet.view(), position, kBound, rng_);
  EXPECT_NE(choice.worker, owner);
  EXPECT_EQ(choice.reason, Reason::kHashSpilled);
  EXPECT_EQ(choose_on_ring(fleet.view(), position, kBound, rng_).worker, choice.worker) << "spilled to the same one";
}

TEST_F(BoundedRingTest, AWorkerThatIsOutHasItsKeysAtItsNeighbours) {
  TestFleet fleet({0, 0, 0, 0});
  std::map<int, uint32_t> before;
  for (int key = 0; key < 200; ++key) {
    before[key] = *choose_on_ring(fleet.view(), routing::HashRing::position(std::to_string(key)), kBound, rng_).worker;
  }
  fleet.take_out(2);
  for (const auto& [key, owner] : before) {
    const auto now = choose_on_ring(fleet.view(), routing::HashRing::position(std::to_string(key)), kBound, rng_);
    EXPECT_EQ(now.reason, Reason::kHashed);
    if (owner != 2) {
      EXPECT_EQ(now.worker, owner);
    }
  }
}

TEST_F(BoundedRingTest, PrefixHashLooksAtTheFirstTokensOnly) {
  options_.prefix_token_count = 2;
  const PrefixHash policy(options_);
  const TestFleet fleet({0, 0, 0, 0, 0, 0, 0, 0});
  const auto worker_of = [&](std::string_view text) {
    return policy.choose(fleet.view(), {.routing_text = text, .prefix = {}}, rng_).worker;
  };
  EXPECT_EQ(worker_of("12345678 and so on"), worker_of("12345678 otherwise"));
  std::map<uint32_t, int> used;
  for (int i = 0; i < 100; ++i) ++used[*worker_of(std::to_string(i) + "------- the same end")];
  EXPECT_EQ(used.size(), 8u) << "different beginnings use the whole fleet";
}

TEST_F(BoundedRingTest, ConsistentHashingGoesByKeyThenIdentity) {
  const ConsistentHashing policy(options_);
  const TestFleet fleet({0, 0, 0, 0, 0, 0, 0, 0});
  const auto choose = [&](std::string_view key, std::string_view identity) {
    return policy.choose(fleet.view(), {.routing_key = key, .identity = identity, .prefix = {}}, rng_);
  };
  EXPECT_EQ(choose("session-1", "i").worker, choose("session-1", "j").worker);
  EXPECT_EQ(choose("", "Bearer a").worker, choose("Bearer a", "").worker);
  EXPECT_EQ(choose("", "").reason, Reason::kRandom);
}

}  // namespace
}  // namespace sluice::gateway
