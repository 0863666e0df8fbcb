#include "routing/block_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <thread>

#include "base/rng.h"

namespace sluice::routing {
namespace {

using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using Stored = BlockIndex::Stored;
using Tokens = std::vector<int32_t>;

constexpr size_t kBlock = 4;

Tokens prompt_of(int32_t first, size_t blocks) {
  Tokens tokens;
  for (size_t i = 0; i < blocks * kBlock; ++i) tokens.push_back(first + static_cast<int32_t>(i));
  return tokens;
}

std::span<const int32_t> block(const Tokens& tokens, size_t i) { return std::span(tokens).subspan(i * kBlock, kBlock); }

std::map<uint32_t, uint32_t> depths(const BlockIndex& index, const Tokens& tokens, size_t stride = 1) {
  std::vector<BlockName> names;
  name_blocks(tokens, kBlock, names);
  std::vector<BlockIndex::Depth> found;
  index.match(names, found, stride);
  std::map<uint32_t, uint32_t> out;
  for (const auto& depth : found) out[depth.worker] = depth.blocks;
  EXPECT_EQ(out.size(), found.size()) << "each worker once";
  return out;
}

// The engine's hash of a block: any number that is another one for other beginnings.
uint64_t hash_of(const Tokens& tokens, size_t i) {
  uint64_t hash = 1469598103934665603ULL;
  for (size_t t = 0; t < (i + 1) * kBlock; ++t) hash = (hash ^ static_cast<uint64_t>(tokens[t])) * 1099511628211ULL;
  return hash;
}

Stored store(BlockIndex& index, uint32_t worker, const Tokens& tokens, size_t i) {
  return index.store(worker, hash_of(tokens, i), i == 0 ? std::nullopt : std::optional(hash_of(tokens, i - 1)),
                     block(tokens, i));
}

TEST(BlockIndexTest, SaysHowFarEachWorkerHoldsAPrompt) {
  BlockIndex index(1 << 20);
  const Tokens prompt = prompt_of(100, 5);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(store(index, 7, prompt, i), Stored::kNew);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(store(index, 9, prompt, i), Stored::kNew);
  EXPECT_EQ(store(index, 9, prompt, 1), Stored::kKnown);
  EXPECT_THAT(depths(index, prompt), UnorderedElementsAre(Pair(7, 4), Pair(9, 2)));
  Tokens other = prompt;
  other[6] = 1;  // in the second block
  EXPECT_THAT(depths(index, other), UnorderedElementsAre(Pair(7, 1), Pair(9, 1)));
  EXPECT_TRUE(depths(index, prompt_of(101, 5)).empty());
  EXPECT_TRUE(depths(index, {100, 101, 102}).empty()) << "an incomplete block";
}

TEST(BlockIndexTest, BlocksOfAnotherSizeAreOtherBlocks) {
  BlockIndex index(1 << 20);
  const Tokens prompt = prompt_of(0, 4);
  EXPECT_EQ(index.store(1, 1, std::nullopt, std::span(prompt).first(2 * kBlock)), Stored::kNew);
  EXPECT_TRUE(depths(index, prompt).empty());
}

TEST(BlockIndexTest, WhatIsRemovedEndsThePrefixThere) {
  BlockIndex index(1 << 20);
  const Tokens prompt = prompt_of(0, 4);
  for (size_t i = 0; i < 4; ++i) store(index, 1, prompt, i);
  for (size_t i = 0; i < 4; ++i) store(index, 2, prompt, i);
  EXPECT_TRUE(index.remove(1, hash_of(prompt, 1)));
  EXPECT_FALSE(index.remove(1, hash_of(prompt, 1)));
  EXPECT_THAT(depths(index, prompt), UnorderedElementsAre(Pair(1, 1), Pair(2, 4)));
  index.clear(2);
  EXPECT_THAT(depths(index, prompt), UnorderedElementsAre(Pair(1, 1)));
  EXPECT_EQ(index.held(), 3U);
  EXPECT_EQ(index.blocks_of(2), 0U);
}

TEST(BlockIndexTest, AChildOfAnUnknownBlockIsLeftOut) {
  BlockIndex index(1 << 20);
  const Tokens prompt = prompt_of(0, 3);
  EXPECT_EQ(store(index, 1, prompt, 1), Stored::kNoParent);
  EXPECT_EQ(store(index, 1, prompt, 0), Stored::kNew);
  EXPECT_EQ(store(index, 2, prompt, 1), Stored::kNoParent) << "what another worker holds is no parent here";
  EXPECT_EQ(store(index, 1, prompt, 1), Stored::kNew);
}

TEST(BlockIndexTest, TheNewerWordOfAHashCounts) {
  BlockIndex index(1 << 20);
  const Tokens one = prompt_of(0, 1), other = prompt_of(50, 1);
  EXPECT_EQ(index.store(1, 5, std::nullopt, one), Stored::kNew);
  EXPECT_EQ(index.store(1, 5, std::nullopt, other), Stored::kConflict);
  EXPECT_TRUE(depths(index, one).empty());
  EXPECT_THAT(depths(index, other), UnorderedElementsAre(Pair(1, 1)));
  EXPECT_EQ(index.held(), 1U);
}

TEST(BlockIndexTest, AHotBlockMayHaveManyHolders) {
  BlockIndex index(1 << 20);
  const Tokens prompt = prompt_of(0, 2);
  for (uint32_t worker = 0; worker < 1000; ++worker) {
    store(index, worker, prompt, 0);
    if (worker % 10 == 0) store(index, worker, prompt, 1);
  }
  const auto found = depths(index, prompt);
  ASSERT_EQ(found.size(), 1000U);
  for (const auto& [worker, blocks] : found) ASSERT_EQ(blocks, worker % 10 == 0 ? 2U : 1U);
  for (uint32_t worker = 0; worker < 1000; ++worker) index.clear(worker);
  EXPECT_TRUE(depths(index, prompt).empty());
  EXPECT_EQ(index.held(), 0U);
}

TEST(BlockIndexTest, TheBudgetIsNeverPassedAndWhatHasNoRoomIsRefused) {
  constexpr size_t kBudget = 1 << 20;
  BlockIndex index(kBudget);
  size_t refused = 0;
  for (int32_t i = 0; i < 50000; ++i) {
    const Tokens prompt = prompt_of(i * 64, 1);
    const Stored stored = store(index, static_cast<uint32_t>(i % 3), prompt, 0);
    ASSERT_TRUE(stored == Stored::kNew || stored == Stored::kFull);
    refused += stored == Stored::kFull ? 1 : 0;
    ASSERT_LE(index.bytes(), kBudget);
  }
  EXPECT_GT(refused, 0U);
  EXPECT_GT(index.held(), kBudget / 150) << "a block of one worker takes some hundred bytes";
  index.clear(0);
  EXPECT_EQ(store(index, 4, prompt_of(1 << 28, 1), 0), Stored::kNew) << "there is room again";
}

// Prompts that share beginnings, stored and given up as a cache does it: a block goes after all that follow on it.
class Oracle {
 public:
  explicit Oracle(uint64_t seed) : rng_(seed) {
    for (int32_t p = 0; p < 40; ++p) {
      Tokens prompt = p < 4 ? prompt_of(p * 1000, 24) : prompts_[rng_.below(prompts_.size())];
      for (size_t t = (1 + rng_.below(20)) * kBlock; p >= 4 && t < prompt.size(); ++t) prompt[t] = p * 100000;
      prompts_.push_back(prompt);
    }
  }
  void step(BlockIndex& index) {
    const auto worker = static_cast<uint32_t>(rng_.below(5));
    const Tokens& prompt = prompts_[rng_.below(prompts_.size())];
    auto& held = held_[worker];
    const uint64_t kind = rng_.below(100);
    if (kind < 60) {
      for (size_t i = 0; i < 24; ++i) {
        const bool is_new = held.insert(key(prompt, i)).second;
        ASSERT_EQ(store(index, worker, prompt, i), is_new ? Stored::kNew : Stored::kKnown);
      }
    } else if (kind < 99) {
      const size_t from = rng_.below(24);
      std::set<Tokens> gone;
      const Tokens stem = key(prompt, from);
      for (const Tokens& block : held) {
        if (block.size() >= stem.size() && std::equal(stem.begin(), stem.end(), block.begin())) gone.insert(block);
      }
      for (const Tokens& block : gone) {
        held.erase(block);
        ASSERT_TRUE(index.remove(worker, hash_of(block, block.size() / kBlock - 1)));
      }
    } else {
      held.clear();
      index.clear(worker);
    }
  }
  void compare(const BlockIndex& index, size_t stride) {
    const Tokens& prompt = prompts_[rng_.below(prompts_.size())];
    std::map<uint32_t, uint32_t> expected;
    for (auto& [worker, held] : held_) {
      uint32_t depth = 0;
      while (depth < 24 && held.contains(key(prompt, depth))) ++depth;
      if (depth > 0) expected[worker] = depth;
    }
    ASSERT_EQ(depths(index, prompt, stride), expected);
  }
  const std::vector<Tokens>& prompts() const { return prompts_; }

 private:
  static Tokens key(const Tokens& prompt, size_t i) {
    return {prompt.begin(), prompt.begin() + static_cast<ptrdiff_t>((i + 1) * kBlock)};
  }
  Rng rng_;
  std::vector<Tokens> prompts_;
  std::map<uint32_t, std::set<Tokens>> held_;
};

TEST(BlockIndexTest, AgreesWithASlowOracle) {
  BlockIndex index(4 << 20);
  Oracle oracle(11);
  for (int i = 0; i < 4000; ++i) {
    oracle.step(index);
    oracle.compare(index, 1 + static_cast<size_t>(i) % 8);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(BlockIndexTest, ReadersSeeWholeChainsWhileTheWriterWorks) {
  BlockIndex index(16 << 20);  // room for all that is ever retired: a reader may stand still within a look-up
  Oracle oracle(5);
  // One worker always holds this one, and nobody else ever does.
  const Tokens kept = prompt_of(1 << 24, 24);
  for (size_t i = 0; i < 24; ++i) store(index, 77, kept, i);
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&, r] {
      Rng rng(static_cast<uint64_t>(r));
      while (!stop.load()) {
        const auto found = depths(index, oracle.prompts()[rng.below(oracle.prompts().size())], 1 + rng.below(4));
        for (const auto& [worker, blocks] : found) {
          EXPECT_LT(worker, 5U);
          EXPECT_LE(blocks, 24U);
        }
        EXPECT_THAT(depths(index, kept, 4), UnorderedElementsAre(Pair(77, 24)));
      }
    });
  }
  for (int i = 0; i < 3000 && !::testing::Test::HasFatalFailure(); ++i) oracle.step(index);
  stop = true;
  for (auto& reader : readers) reader.join();
}

}  // namespace
}  // namespace sluice::routing
