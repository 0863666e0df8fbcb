#include "engine/kv_pool.h"

#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"

namespace sluice::engine {
namespace {

TEST(KvPoolTest, HandsOutEverySlotButTheDummyOnce) {
  KvPool pool(100);
  EXPECT_EQ(pool.capacity(), 99);
  std::vector<int32_t> slots;
  ASSERT_TRUE(pool.alloc(99, slots));
  EXPECT_EQ(std::set<int32_t>(slots.begin(), slots.end()).size(), 99u);
  EXPECT_EQ(*std::min_element(slots.begin(), slots.end()), 1);
  EXPECT_EQ(*std::max_element(slots.begin(), slots.end()), 99);
  EXPECT_EQ(pool.available(), 0);
}

TEST(KvPoolTest, ARequestThatDoesNotFitChangesNothing) {
  KvPool pool(10);
  std::vector<int32_t> slots;
  EXPECT_FALSE(pool.alloc(10, slots));
  EXPECT_TRUE(slots.empty());
  EXPECT_EQ(pool.available(), 9);
}

TEST(KvPoolTest, PagesLieSideBySideAndGoBackWhole) {
  KvPool pool(50, /*page_size=*/8);  // six whole pages, the first of which is the dummy
  EXPECT_EQ(pool.capacity(), 40);
  EXPECT_EQ(pool.floor(17), 16);
  EXPECT_EQ(pool.ceil(17), 24);
  std::vector<int32_t> slots;
  ASSERT_TRUE(pool.alloc(24, slots));
  for (size_t i = 0; i < slots.size(); ++i) {
    EXPECT_EQ(slots[i] % 8, static_cast<int32_t>(i % 8));
    EXPECT_EQ(slots[i] / 8, slots[i - i % 8] / 8);
    EXPECT_GE(slots[i], 8);
  }
  EXPECT_EQ(pool.available(), 16);
  pool.free(std::span(slots).first(17));  // of the third page the first slot only
  EXPECT_EQ(pool.available(), 40);
}

TEST(KvPoolTest, KeepsExactCountsUnderRandomOperations) {
  Rng rng(/*seed=*/5);
  KvPool pool(500);
  std::set<int32_t> held;  // the oracle
  for (int i = 0; i < 200'000; ++i) {
    if (rng.below(2) == 0) {
      std::vector<int32_t> slots;
      const auto n = static_cast<int64_t>(rng.below(20));
      const bool fits = n <= 499 - static_cast<int64_t>(held.size());
      ASSERT_EQ(pool.alloc(n, slots), fits);
      ASSERT_EQ(static_cast<int64_t>(slots.size()), fits ? n : 0);
      for (const int32_t slot : slots) {
        ASSERT_TRUE(slot > 0 && slot < 500);
        ASSERT_TRUE(held.insert(slot).second) << "slot " << slot << " was handed out twice";
      }
    } else {
      std::vector<int32_t> back;
      for (auto n = rng.below(20); n > 0 && !held.empty(); --n) {
        auto at = held.lower_bound(static_cast<int32_t>(rng.below(500)));
        if (at == held.end()) at = held.begin();
        back.push_back(*at);
        held.erase(at);
      }
      pool.free(back);
    }
    ASSERT_EQ(pool.available(), 499 - static_cast<int64_t>(held.size()));
  }
}

TEST(KvPoolDeathTest, ASlotThatIsFreedTwiceEndsTheProcess) {
  KvPool pool(4);
  std::vector<int32_t> slots;
  ASSERT_TRUE(pool.alloc(1, slots));
  pool.free(slots);
  EXPECT_DEATH(pool.free(slots), "freed twice");
  EXPECT_DEATH(pool.free(std::vector<int32_t>{0}), "freeing slot 0");
}

}  // namespace
}  // namespace sluice::engine
