#include "routing/hash_ring.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace sluice::routing {
namespace {

struct Names {
  explicit Names(size_t count) {
    for (size_t i = 0; i < count; ++i) names.push_back(fmt::format("http://10.0.0.{}:8000", i));
  }
  HashRing ring_without(int64_t missing = -1) const {
    std::vector<HashRing::Member> members;
    for (size_t i = 0; i < names.size(); ++i) {
      if (static_cast<int64_t>(i) != missing) members.push_back({static_cast<uint32_t>(i), names[i]});
    }
    return HashRing(members);
  }
  std::vector<std::string> names;
};

uint32_t owner(const HashRing& ring, const std::string& key) {
  uint32_t found = 0;
  EXPECT_TRUE(ring.walk(HashRing::position(key), [&](uint32_t worker) {
    found = worker;
    return true;
  }));
  return found;
}

TEST(HashRingTest, RemovingAWorkerMovesOnlyItsOwnKeys) {
  const Names names(8);
  const HashRing all = names.ring_without(), fewer = names.ring_without(3);
  int moved = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::string key = fmt::format("session-{}", i);
    const uint32_t before = owner(all, key), after = owner(fewer, key);
    if (before == 3) {
      EXPECT_NE(after, 3u);
      ++moved;
    } else {
      ASSERT_EQ(before, after) << key;
    }
  }
  EXPECT_GT(moved, 0);
}

TEST(HashRingTest, SharesAreNearlyEqual) {
  const HashRing ring = Names(8).ring_without();
  std::vector<int> keys(8);
  for (int i = 0; i < 80'000; ++i) ++keys[owner(ring, fmt::format("session-{}", i))];
  // 150 places give a share a standard deviation of about 1/sqrt(150) = 8 % of the mean; three of them are allowed.
  for (const int count : keys) EXPECT_NEAR(count, 10'000, 2'500);
}

TEST(HashRingTest, AWalkMeetsEveryWorkerAndEndsWhereNobodyIsTaken) {
  const HashRing ring = Names(5).ring_without();
  std::vector<int> met(5);
  EXPECT_FALSE(ring.walk(HashRing::position("k"), [&](uint32_t worker) {
    ++met[worker];
    return false;
  }));
  for (const int count : met) EXPECT_EQ(count, static_cast<int>(HashRing::kPlacesPerWorker));
  EXPECT_FALSE(HashRing().walk(7, [](uint32_t) { return true; }));
}

}  // namespace
}  // namespace sluice::routing
