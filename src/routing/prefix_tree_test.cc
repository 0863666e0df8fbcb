#include "routing/prefix_tree.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <set>
#include <string>
#include <thread>

#include "base/rng.h"

namespace sluice::routing {
namespace {

constexpr size_t kAmple = 64 << 20;

std::set<uint32_t> workers_of(const PrefixMatch& match) { return {match.workers().begin(), match.workers().end()}; }

// The slow obvious twin: every inserted text with its worker.
class Oracle {
 public:
  void insert(const std::string& text, Holder holder) { texts_[holder.worker].insert({text, holder.generation}); }
  void bump(uint32_t worker) { ++generations_[worker]; }

  PrefixMatch match(const std::string& text) const {
    size_t best = 0;
    std::set<uint32_t> holders;
    for (const auto& [worker, texts] : texts_) {
      const auto generation = generations_.find(worker);
      const uint32_t current = generation == generations_.end() ? 0 : generation->second;
      size_t longest = 0;
      for (const auto& [held, life] : texts) {
        if (life != current) continue;
        size_t i = 0;
        while (i < held.size() && i < text.size() && held[i] == text[i]) ++i;
        longest = std::max(longest, i);
      }
      if (longest > best) holders.clear();
      if (longest >= best && longest > 0) holders.insert(worker);
      best = std::max(best, longest);
    }
    PrefixMatch match;
    match.matched_bytes = best;
    match.total_bytes = text.size();
    for (uint32_t worker : holders) match.holders[match.num_holders++] = worker;
    return match;
  }

 private:
  std::map<uint32_t, std::set<std::pair<std::string, uint32_t>>> texts_;
  std::map<uint32_t, uint32_t> generations_;
};

TEST(PrefixTreeTest, AnEmptyTreeMatchesNothing) {
  PrefixTree tree(kAmple, kAmple);
  const PrefixMatch match = tree.match("anything");
  EXPECT_EQ(match.matched_bytes, 0u);
  EXPECT_EQ(match.total_bytes, 8u);
  EXPECT_TRUE(match.workers().empty());
}

TEST(PrefixTreeTest, AnEmptyTextLeavesOnlyTheRoot) {
  PrefixTree tree(kAmple, kAmple);
  ASSERT_TRUE(tree.insert("", {1, 0}, 1));
  EXPECT_EQ(tree.nodes(), 1u);
  EXPECT_EQ(tree.match("").rate(), 0.0);
}

TEST(PrefixTreeTest, InsertSplitsAtTheFirstDifference) {
  PrefixTree tree(kAmple, kAmple);
  ASSERT_TRUE(tree.insert("abcdef", {1, 0}, 1));
  EXPECT_DOUBLE_EQ(tree.match("abcxyz").rate(), 0.5);
  ASSERT_TRUE(tree.insert("abcxyz", {2, 0}, 2));
  EXPECT_EQ(tree.nodes(), 4u);  // root, "abc", "def", "xyz"
  EXPECT_EQ(workers_of(tree.match("abc")), (std::set<uint32_t>{1, 2}));
  EXPECT_EQ(workers_of(tree.match("abcd")), (std::set<uint32_t>{1}));
  EXPECT_EQ(workers_of(tree.match("abcx")), (std::set<uint32_t>{2}));
}

TEST(PrefixTreeTest, TheMostRecentHolderComesFirst) {
  PrefixTree tree(kAmple, kAmple);
  for (uint32_t worker = 0; worker < 5; ++worker) ASSERT_TRUE(tree.insert("shared", {worker, 0}, 10 + worker));
  ASSERT_TRUE(tree.insert("shared", {1, 0}, 99));
  const PrefixMatch match = tree.match("shared");
  ASSERT_EQ(match.num_holders, 5);
  EXPECT_EQ(match.holders[0], 1u);
  EXPECT_EQ(match.holders[1], 4u);
  EXPECT_EQ(match.holders[4], 0u);
}

TEST(PrefixTreeTest, ManyHoldersAreCutToTheMostRecent) {
  PrefixTree tree(kAmple, kAmple);
  for (uint32_t worker = 0; worker < 100; ++worker) ASSERT_TRUE(tree.insert("shared", {worker, 0}, worker));
  const PrefixMatch match = tree.match("shared");
  ASSERT_EQ(match.num_holders, PrefixMatch::kMaxHolders);
  EXPECT_EQ(match.holders[0], 99u);
  EXPECT_EQ(match.holders[63], 36u);
}

TEST(PrefixTreeTest, AMatchIsCutToWholeCharacters) {
  PrefixTree tree(kAmple, kAmple);
  ASSERT_TRUE(tree.insert("\xE4\xBD\xA0", {1, 0}, 1));      // 你
  EXPECT_EQ(tree.match("\xE4\xBD\x80").matched_bytes, 0u);  // 佀 shares two bytes and no character
  ASSERT_TRUE(tree.insert("ab\xE4\xBD\xA0", {1, 0}, 2));
  const PrefixMatch match = tree.match("ab\xE5\xA5\xBD");  // ab好
  EXPECT_EQ(match.matched_bytes, 2u);
  EXPECT_DOUBLE_EQ(match.rate(), 0.4);
}

TEST(PrefixTreeTest, ClaimsOfAnEarlierLifeCountForNothing) {
  PrefixTree tree(kAmple, kAmple);
  ASSERT_TRUE(tree.insert("hello world", {1, 0}, 1));
  ASSERT_TRUE(tree.insert("hello", {2, 0}, 2));
  tree.generations().bump(1);
  const PrefixMatch match = tree.match("hello world");
  EXPECT_EQ(match.matched_bytes, 5u);
  EXPECT_EQ(workers_of(match), (std::set<uint32_t>{2}));
  tree.sweep();
  EXPECT_EQ(tree.nodes(), 2u);
  EXPECT_EQ(tree.worker_bytes(1), 0u);
}

TEST(PrefixTreeTest, AgreesWithANaiveOracle) {
  const uint64_t seed = 11;
  Rng rng(seed);
  PrefixTree tree(kAmple, kAmple);
  Oracle oracle;
  std::map<uint32_t, uint32_t> life;
  const auto draw = [&] {
    std::string text;
    const size_t length = rng.below(12);
    for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng.below(3));
    return text;
  };
  for (uint32_t step = 0; step < 20'000; ++step) {
    const uint32_t worker = static_cast<uint32_t>(rng.below(6));
    const uint64_t action = rng.below(1000);
    if (action < 300) {
      const std::string text = draw();
      ASSERT_TRUE(tree.insert(text, {worker, life[worker]}, step));
      if (!text.empty()) oracle.insert(text, {worker, life[worker]});
    } else if (action < 303) {
      ++life[worker];
      tree.generations().bump(worker);
      oracle.bump(worker);
    } else if (action == 303) {
      tree.sweep();
    } else {
      const std::string text = draw();
      const PrefixMatch got = tree.match(text);
      const PrefixMatch want = oracle.match(text);
      ASSERT_EQ(got.matched_bytes, want.matched_bytes) << "seed " << seed << " step " << step << " text " << text;
      ASSERT_EQ(workers_of(got), workers_of(want)) << "seed " << seed << " step " << step << " text " << text;
    }
  }
}

TEST(PrefixTreeTest, NeverPassesItsBudgetAndEvictsTheOldest) {
  const size_t budget = 1 << 20;
  PrefixTree tree(budget, kAmple);
  Rng rng(5);
  uint32_t tick = 0;
  const std::string favourite = "the prompt that is used all the time " + std::string(200, 'f');
  for (int i = 0; i < 20'000; ++i) {
    std::string text = "tenant " + std::to_string(rng.below(40)) + " ";
    for (int k = 0; k < 300; ++k) text += static_cast<char>(' ' + rng.below(90));
    ASSERT_TRUE(tree.insert(text, {static_cast<uint32_t>(rng.below(8)), 0}, ++tick));
    ASSERT_LE(tree.bytes(), budget);
    if (i % 100 == 0) {
      ASSERT_TRUE(tree.insert(favourite, {3, 0}, ++tick));
    }
  }
  EXPECT_GT(tree.evictions_budget(), 10'000u);
  EXPECT_EQ(tree.match(favourite).matched_bytes, favourite.size());
  EXPECT_GT(tree.bytes(), budget / 2) << "evicts far more than it needs to";
}

TEST(PrefixTreeTest, AWorkerStaysWithinItsShare) {
  PrefixTree tree(kAmple, 10'000);
  uint32_t tick = 0;
  ASSERT_TRUE(tree.insert("other worker's text", {2, 0}, ++tick));
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(tree.insert(std::to_string(i * 7919) + std::string(100, 'x'), {1, 0}, ++tick));
    ASSERT_LE(tree.worker_bytes(1), 10'000u);
  }
  EXPECT_EQ(tree.match(std::to_string(999 * 7919)).num_holders, 1) << "the newest went first";
  EXPECT_EQ(tree.match("other worker's text").rate(), 1.0);
}

TEST(PrefixTreeTest, ReadersSeeAConsistentTreeWhileItChanges) {
  PrefixTree tree(200'000, kAmple);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> reads{0};
  const auto text_of = [](uint64_t n) {
    return "group " + std::to_string(n % 7) + " " + std::string(n % 50, 'a' + static_cast<char>(n % 3)) +
           std::to_string(n);
  };
  std::vector<std::thread> readers;
  for (uint64_t r = 0; r < 2; ++r) {
    readers.emplace_back([&, r] {
      Rng rng(r);
      while (!stop.load()) {
        const std::string text = text_of(rng.below(5000));
        const PrefixMatch match = tree.match(text);
        ASSERT_LE(match.matched_bytes, text.size());
        for (uint32_t worker : match.workers()) ASSERT_LT(worker, 4u);
        reads.fetch_add(1);
      }
    });
  }
  Rng rng(99);
  for (uint32_t i = 0; i < 30'000 || reads.load() < 1000; ++i) {
    (void)tree.insert(text_of(rng.below(5000)), {static_cast<uint32_t>(rng.below(4)), 0}, i);
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_LE(tree.bytes(), 200'000u);
}

}  // namespace
}  // namespace sluice::routing
