#include "routing/fixed_heap.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>

#include "base/rng.h"
#include "testing/seed.h"

namespace sluice::routing {
namespace {

TEST(FixedHeapTest, GivesOutNearlyAllAndThenNothing) {
  FixedHeap heap(1 << 20);
  size_t blocks = 0;
  while (heap.allocate(100) != 0) ++blocks;
  EXPECT_EQ(blocks, (size_t{1} << 20) / 104);
  EXPECT_LE(heap.used_bytes(), heap.bytes());
  EXPECT_EQ(heap.allocate(200), 0u);
}

TEST(FixedHeapTest, NeighboursThatAreFreedBecomeOneBlock) {
  FixedHeap heap(1 << 20);
  const size_t all = (1 << 20) - 2 * FixedHeap::kUnit - sizeof(uint32_t);
  for (const int first : {0, 1, 2}) {
    FixedHeap::Ref blocks[3];
    for (auto& block : blocks) block = heap.allocate(300'000);
    for (int i = 0; i < 3; ++i) heap.free(blocks[(first + i) % 3]);
    EXPECT_EQ(heap.used_bytes(), 0u);
    const FixedHeap::Ref whole = heap.allocate(all);
    ASSERT_NE(whole, 0u) << "freed from the " << first << "th on";
    heap.free(whole);
  }
}

TEST(FixedHeapTest, RefusesWhatItCannotHave) {
  FixedHeap heap(1 << 16);
  EXPECT_EQ(heap.allocate(1 << 16), 0u);
  EXPECT_EQ(heap.allocate(~size_t{0} / 2), 0u);
  EXPECT_NE(heap.allocate(0), 0u);
}

TEST(FixedHeapTest, BlocksNeverOverlapAndKeepTheirBytes) {
  const uint64_t seed = testing::test_seed(21);
  SCOPED_TRACE("SLUICE_TEST_SEED=" + std::to_string(seed));
  Rng rng(seed);
  FixedHeap heap(1 << 18);
  std::map<FixedHeap::Ref, std::string> blocks;
  size_t used = 0;
  size_t refused = 0;
  for (int step = 0; step < 100'000; ++step) {
    if (rng.below(100) < 52) {
      const size_t bytes = rng.below(1 + (size_t{1} << rng.below(14)));
      const FixedHeap::Ref block = heap.allocate(bytes);
      if (block == 0) {
        ++refused;
        continue;
      }
      ASSERT_GE(heap.usable_bytes(block), bytes);
      ASSERT_LE(heap.footprint(block), bytes + 24);
      std::string content(heap.usable_bytes(block), static_cast<char>(rng.next()));
      std::memcpy(heap.at<char>(block), content.data(), content.size());
      used += heap.footprint(block);
      ASSERT_TRUE(blocks.emplace(block, std::move(content)).second);
    } else if (!blocks.empty()) {
      auto it = blocks.lower_bound(static_cast<FixedHeap::Ref>(rng.below(heap.bytes() / FixedHeap::kUnit)));
      if (it == blocks.end()) it = blocks.begin();
      ASSERT_EQ(std::string(heap.at<char>(it->first), it->second.size()), it->second);
      used -= heap.footprint(it->first);
      heap.free(it->first);
      blocks.erase(it);
    }
    ASSERT_EQ(heap.used_bytes(), used);
  }
  EXPECT_GT(refused, 0u);
  for (const auto& [block, content] : blocks) heap.free(block);
  EXPECT_NE(heap.allocate((1 << 18) - 64), 0u) << "what was freed was not put together again";
}

}  // namespace
}  // namespace sluice::routing
