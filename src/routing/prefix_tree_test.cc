#include "routing/prefix_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "routing/text_mark.h"
#include "testing/seed.h"

namespace sluice::routing {
namespace {

constexpr size_t kAmple = 64 << 20;

std::set<uint32_t> workers_of(const PrefixMatch& match) { return {match.workers().begin(), match.workers().end()}; }

size_t common_bytes(const std::string& a, const std::string& b) {
  size_t i = 0;
  while (i < a.size() && i < b.size() && a[i] == b[i]) ++i;
  return i;
}

// Whether a cut of `text` after `length` bytes would tear a UTF-8 character apart.
bool tears(const std::string& text, size_t length) {
  const auto continues = [&](size_t i) { return (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80; };
  for (size_t begin = length < 4 ? 0 : length - 3; begin < length && length < text.size(); ++begin) {
    const auto lead = static_cast<unsigned char>(text[begin]);
    const size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    bool whole = begin + size > length;
    for (size_t i = begin + 1; i <= length; ++i) whole = whole && continues(i);
    if (whole) return true;
  }
  return false;
}

// The slow obvious twin: every inserted text with its worker.
class Oracle {
 public:
  void insert(const std::string& text, Holder holder) { texts_[holder.worker].insert({text, holder.generation}); }
  void bump(uint32_t worker) { ++generations_[worker]; }

  // Of the text, as held by each worker.
  std::map<uint32_t, size_t> held(const std::string& text) const {
    std::map<uint32_t, size_t> held;
    for (const auto& [worker, texts] : texts_) {
      const auto generation = generations_.find(worker);
      const uint32_t current = generation == generations_.end() ? 0 : generation->second;
      for (const auto& [of_worker, life] : texts) {
        if (life == current) held[worker] = std::max(held[worker], common_bytes(of_worker, text));
      }
    }
    return held;
  }

  PrefixMatch match(const std::string& text) const {
    PrefixMatch match;
    match.total_bytes = text.size();
    const auto held = this->held(text);
    for (const auto& [worker, bytes] : held) match.matched_bytes = std::max(match.matched_bytes, bytes);
    while (tears(text, match.matched_bytes)) --match.matched_bytes;
    for (const auto& [worker, bytes] : held) {
      if (match.matched_bytes > 0 && bytes >= match.matched_bytes) match.holders[match.num_holders++] = worker;
    }
    return match;
  }

 private:
  std::map<uint32_t, std::set<std::pair<std::string, uint32_t>>> texts_;
  std::map<uint32_t, uint32_t> generations_;
};

// Random inserts, some of them withdrawn, restarts, sweeps and look-ups of texts that `draw` makes: tree and oracle
// agree on all of them.
template <class Draw>
void agree_with_oracle(uint64_t seed, uint32_t steps, Draw draw) {
  SCOPED_TRACE("SLUICE_TEST_SEED=" + std::to_string(seed));
  Rng rng(seed);
  PrefixTree tree(kAmple, kAmple);
  Oracle oracle;
  std::map<uint32_t, uint32_t> life;
  std::map<std::string, PrefixPlace> places;  // where texts were found, now or long ago
  for (uint32_t step = 0; step < steps; ++step) {
    const uint32_t worker = static_cast<uint32_t>(rng.below(6));
    const uint64_t action = rng.below(1000);
    const std::string text = draw(rng);
    if (action < 300) {
      ASSERT_TRUE(tree.insert(text, {worker, life[worker]}, step));
      oracle.insert(text, {worker, life[worker]});
    } else if (action < 350) {
      size_t held = 0;
      ASSERT_TRUE(tree.insert(text, {worker, life[worker]}, step, SIZE_MAX, &held, places[text]));
      ASSERT_EQ(held, oracle.held(text)[worker]);
      tree.withdraw(text, {worker, life[worker]}, held);
    } else if (action < 353) {
      ++life[worker];
      tree.generations().bump(worker);
      oracle.bump(worker);
    } else if (action == 353) {
      tree.sweep();
    } else {
      const PrefixMatch got = tree.match(text);
      const PrefixMatch want = oracle.match(text);
      places[text] = got.place;
      ASSERT_EQ(got.matched_bytes, want.matched_bytes) << "step " << step << " text " << ::testing::PrintToString(text);
      ASSERT_EQ(workers_of(got), workers_of(want)) << "step " << step << " text " << ::testing::PrintToString(text);
    }
  }
}

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

TEST(PrefixTreeTest, WhatIsWithdrawnLeavesWhatWasHeldBefore) {
  PrefixTree tree(kAmple, kAmple);
  ASSERT_TRUE(tree.insert("system", {1, 0}, 1));
  ASSERT_TRUE(tree.insert("system question", {1, 0}, 2));
  tree.withdraw("system question", {1, 0}, 6);
  EXPECT_EQ(tree.match("system question").matched_bytes, 6u);
  EXPECT_EQ(tree.nodes(), 2u);
  EXPECT_EQ(tree.worker_bytes(1), 6u);
  tree.withdraw("system", {1, 0}, 0);
  EXPECT_EQ(tree.match("system").matched_bytes, 0u);
  EXPECT_EQ(tree.nodes(), 1u);
  EXPECT_EQ(tree.worker_bytes(1), 0u);
  tree.withdraw("never inserted", {1, 0}, 0);
}

TEST(PrefixTreeTest, WhatIsWithdrawnLeavesWhatOthersHold) {
  PrefixTree tree(kAmple, kAmple);
  ASSERT_TRUE(tree.insert("system of another", {2, 0}, 1));
  ASSERT_TRUE(tree.insert("system refused", {1, 0}, 2));
  ASSERT_TRUE(tree.insert("system answered", {1, 0}, 3));  // after it, and it has begun to hold "system "
  tree.withdraw("system refused", {1, 0}, 0);
  EXPECT_EQ(workers_of(tree.match("system refused")), (std::set<uint32_t>{1, 2}));
  EXPECT_EQ(tree.match("system refused").matched_bytes, 7u);
  EXPECT_EQ(tree.match("system answered").matched_bytes, 15u);
  EXPECT_EQ(tree.match("system of another").matched_bytes, 17u);
  tree.withdraw("system of another", {1, 0}, 0);
  EXPECT_EQ(workers_of(tree.match("system of another")), (std::set<uint32_t>{2})) << "it is not the one who withdraws";
}

TEST(PrefixTreeTest, AClaimOfAnotherLifeIsNotWithdrawn) {
  PrefixTree tree(kAmple, kAmple);
  ASSERT_TRUE(tree.insert("text", {1, 0}, 1));
  tree.withdraw("text", {1, 1}, 0);
  EXPECT_EQ(tree.match("text").matched_bytes, 4u);
}

TEST(PrefixTreeTest, AllHoldersAreFoundWheneverTheyUsedIt) {
  PrefixTree tree(kAmple, kAmple);
  for (uint32_t worker = 0; worker < 5; ++worker) ASSERT_TRUE(tree.insert("shared", {worker, 0}, 10 + worker));
  ASSERT_TRUE(tree.insert("shared", {1, 0}, 99));
  const PrefixMatch match = tree.match("shared");
  ASSERT_EQ(match.num_holders, 5);
  EXPECT_EQ(workers_of(match), (std::set<uint32_t>{0, 1, 2, 3, 4}));
}

TEST(PrefixTreeTest, ManyHoldersAreCutToTheMostRecent) {
  // Whether the most recent come first, last or in between.
  for (const uint32_t factor : {1u, 99u, 37u}) {
    PrefixTree tree(kAmple, kAmple);
    for (uint32_t i = 0; i < 100; ++i) {
      const uint32_t worker = i * factor % 100;
      ASSERT_TRUE(tree.insert("shared", {worker, 0}, 0));
    }
    for (uint32_t worker = 0; worker < 100; ++worker) ASSERT_TRUE(tree.insert("shared", {worker, 0}, 1 + worker));
    const PrefixMatch match = tree.match("shared");
    ASSERT_EQ(match.num_holders, PrefixMatch::kMaxHolders);
    std::set<uint32_t> expected;
    for (uint32_t worker = 36; worker < 100; ++worker) expected.insert(worker);
    EXPECT_EQ(workers_of(match), expected) << factor;
  }
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

TEST(PrefixTreeTest, WhatAWorkerWasNotSentForLongIsNotBelievedOfIt) {
  PrefixTree tree(kAmple, kAmple);
  EXPECT_EQ(tree.sweep(1000), PrefixTree::kNever);
  ASSERT_TRUE(tree.insert("shared one", {1, 0}, 10));
  ASSERT_TRUE(tree.insert("shared two", {1, 0}, 20));
  ASSERT_TRUE(tree.insert("shared one", {2, 0}, 30));
  EXPECT_EQ(tree.sweep(10), 10u) << "all are as young as that";
  EXPECT_EQ(workers_of(tree.match("shared one")), (std::set<uint32_t>{1, 2}));
  EXPECT_EQ(tree.sweep(20), 20u);
  EXPECT_EQ(workers_of(tree.match("shared one")), (std::set<uint32_t>{2}));
  EXPECT_EQ(workers_of(tree.match("shared two")), (std::set<uint32_t>{1})) << "and what is above it";
  EXPECT_EQ(tree.evictions_age(), 1u);
  EXPECT_EQ(tree.sweep(30), 30u);
  EXPECT_EQ(tree.worker_bytes(1), 0u);
  EXPECT_EQ(workers_of(tree.match("shared two")), (std::set<uint32_t>{2})) << "the beginning";
  EXPECT_EQ(tree.sweep(31), PrefixTree::kNever);
  EXPECT_EQ(tree.nodes(), 1u);
  EXPECT_EQ(tree.evictions_worker(), 0u);
}

TEST(PrefixTreeTest, AgreesWithANaiveOracle) {
  agree_with_oracle(testing::test_seed(11), 20'000, [](Rng& rng) {
    std::string text;
    const size_t length = rng.below(12);
    for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng.below(3));
    return text;
  });
}

TEST(PrefixTreeTest, X3AgreesWithTheOracleOnBytesThatAreNoText) {
  // Pieces of characters, lone surrogates, NUL, bytes that no UTF-8 has, and scripts of one to four bytes that differ
  // in their last byte only: edges split within characters all the time.
  const std::vector<std::string> pieces = {"a",
                                           std::string(1, '\0'),
                                           "\x80",
                                           "\xBF\xBF\xBF\xBF\xBF",
                                           "\xFF",
                                           "\xC3",
                                           "\xC3\xA9",
                                           "\xC3\xA8",
                                           "\xE4\xBD",
                                           "\xE4\xBD\xA0",
                                           "\xE4\xBD\x80",
                                           "\xED\xA0\x80",
                                           "\xED\xB0\x80",
                                           "\xF0\x9F\x98",
                                           "\xF0\x9F\x98\x80",
                                           "\xF0\x9F\x98\x81"};
  agree_with_oracle(testing::test_seed(12), 20'000, [&](Rng& rng) {
    std::string text;
    const size_t length = rng.below(6);
    for (size_t i = 0; i < length; ++i) text += pieces[rng.below(pieces.size())];
    return text;
  });
}

TEST(PrefixTreeTest, AgreesWithTheOracleOnTextsLongerThanAnEdge) {
  agree_with_oracle(testing::test_seed(13), 1'000, [](Rng& rng) {
    std::string text;
    for (uint64_t runs = rng.below(4); runs > 0; --runs) {
      text += std::string(4000 + rng.below(3) * 96, static_cast<char>('a' + rng.below(2)));
    }
    return text;
  });
}

TEST(PrefixTreeTest, AHundredBytesANodeAndSixteenAFurtherHolder) {
  PrefixTree tree(kAmple, kAmple);
  Rng rng(3);
  size_t text_bytes = 0;
  for (int i = 0; i < 10'000; ++i) {
    std::string text = "group " + std::to_string(rng.below(64)) + ": ";
    for (int k = 0; k < 100; ++k) text += static_cast<char>(' ' + rng.below(90));
    const size_t known = tree.match(text).matched_bytes;
    ASSERT_TRUE(tree.insert(text, {0, 0}, 1));
    text_bytes += text.size() - known;
  }
  EXPECT_LE(static_cast<double>(tree.bytes() - text_bytes), 100.0 * static_cast<double>(tree.nodes()));

  const std::string shared = "a prompt that all have";
  ASSERT_TRUE(tree.insert(shared, {0, 0}, 1));
  tree.sweep();  // tables that were too small wait for no reader
  const size_t with_one = tree.bytes();
  for (uint32_t worker = 1; worker < 600; ++worker) {
    ASSERT_TRUE(tree.insert(shared, {worker, 0}, 1));
    tree.sweep();
    ASSERT_LE(tree.bytes() - with_one, 16 * worker) << "after " << worker << " further holders";
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

// A day of the clock, ten prompts a second, of which one in twenty is the one that always comes back: 864,000 prompts,
// some four hundred times what there is room for, and a restart of the worker in each hour.
TEST(PrefixTreeTest, L4ADayOfPrefixesThatNeverRepeatLeavesTheOneThatAlwaysComesBack) {
  const size_t budget = 256 << 10;
  PrefixTree tree(budget, kAmple);
  constexpr uint32_t kTicksPerSecond = 100;
  const std::string favourite = "the prompt that always comes back " + std::string(600, 'f');
  std::string text(160, 'n');
  uint32_t generation = 0;
  size_t least_held = favourite.size();
  for (uint32_t i = 0; i < 864'000; ++i) {
    const uint32_t tick = i * kTicksPerSecond / 10;
    if (i % 36'000 == 35'999 && i < 863'999) generation = tree.generations().bump(1);
    if (i % 20 == 0) {
      if (i % 36'000 != 0) least_held = std::min(least_held, tree.match(favourite).matched_bytes);
      ASSERT_TRUE(tree.insert(favourite, {1, generation}, tick));
      continue;
    }
    for (uint32_t k = 0, rest = i; k < 6; ++k, rest /= 10) text[k] = static_cast<char>('0' + rest % 10);
    ASSERT_TRUE(tree.insert(text, {1, generation}, tick));
    ASSERT_LE(tree.bytes(), budget);
  }
  EXPECT_EQ(least_held, favourite.size());
  EXPECT_EQ(tree.match(favourite).num_holders, 1);
  EXPECT_GT(tree.evictions_budget(), 800'000u);
  EXPECT_EQ(tree.match(text).matched_bytes, text.size()) << "and the latest is there";
}

// More lives than a claim can tell apart: a claim of any of the last 1,023 before counts for nothing.
TEST(PrefixTreeTest, ClaimsOfManyLivesAgoStayVoid) {
  PrefixTree tree(kAmple, kAmple);
  uint32_t generation = 0;
  for (int i = 0; i < 3000; ++i) {
    ASSERT_TRUE(tree.insert("of this life", {7, generation}, 1));
    ASSERT_EQ(tree.match("of this life").num_holders, 1);
    generation = tree.generations().bump(7);
    ASSERT_EQ(tree.match("of this life").num_holders, 0) << i;
  }
  ASSERT_TRUE(tree.insert("of an old life", {7, generation}, 1));
  for (uint32_t i = 1; i < Generations::kApart; ++i) {
    tree.generations().bump(7);
    ASSERT_EQ(tree.match("of an old life").num_holders, 0) << i;
  }
}

TEST(PrefixTreeTest, WhatIsLeftAfterEvictionsIsTrue) {
  const uint64_t seed = testing::test_seed(6);
  SCOPED_TRACE("SLUICE_TEST_SEED=" + std::to_string(seed));
  Rng rng(seed);
  PrefixTree tree(128 << 10, 8'000);
  Oracle oracle;
  // Long and short edges, many children, deep paths and many holders: every table grows, shrinks and is replaced.
  const auto draw = [&] {
    std::string text;
    while (rng.below(6) != 0) text += std::string(1 + rng.below(3) * rng.below(3) * 500, 'a' + rng.below(26));
    return text;
  };
  std::vector<std::string> inserted;
  for (uint32_t step = 0; step < 20'000; ++step) {
    const std::string text = draw();
    const uint32_t worker = static_cast<uint32_t>(rng.below(40));
    (void)tree.insert(text, {worker, 0}, step / 10);
    ASSERT_LE(tree.bytes(), size_t{128} << 10);
    ASSERT_LE(tree.worker_bytes(worker), 8'000u);
    if (inserted.size() < 500) {
      inserted.push_back(text);
      oracle.insert(text, {worker, 0});
    }
    if (step % 500 == 0) tree.sweep();
    if (step < 500 && step % 10 == 0) {
      const PrefixMatch got = tree.match(text);
      const PrefixMatch want = oracle.match(text);
      ASSERT_LE(got.matched_bytes, want.matched_bytes);
      if (got.matched_bytes == want.matched_bytes) {
        const std::set<uint32_t> got_workers = workers_of(got), want_workers = workers_of(want);
        ASSERT_TRUE(std::includes(want_workers.begin(), want_workers.end(), got_workers.begin(), got_workers.end()));
      }
    }
  }
  EXPECT_GT(tree.evictions_budget(), 1'000u);
  EXPECT_GT(tree.evictions_size(), 1'000u);

  for (uint32_t worker = 0; worker < 40; ++worker) tree.generations().bump(worker);
  tree.sweep();
  EXPECT_EQ(tree.nodes(), 1u);
  for (uint32_t worker = 0; worker < 40; ++worker) EXPECT_EQ(tree.worker_bytes(worker), 0u);
  EXPECT_LE(tree.bytes(), 100u) << "something was lost";
}

// Texts are inserted with the places at which they were found at any time before, while nodes split, go, and others
// take their memory.
TEST(PrefixTreeTest, APlaceSavesWorkAndChangesNothing) {
  const uint64_t seed = testing::test_seed(9);
  SCOPED_TRACE("SLUICE_TEST_SEED=" + std::to_string(seed));
  Rng rng(seed);
  PrefixTree tree(256 << 10, kAmple);
  const auto draw = [&] {
    std::string text;
    do {
      text += std::string(100 + rng.below(3) * 400, static_cast<char>('a' + rng.below(3)));
    } while (rng.below(5) != 0);
    return text;
  };
  std::map<std::string, PrefixPlace> places;
  int still_there = 0, gone = 0;
  for (uint32_t step = 0; step < 20'000; ++step) {
    const std::string text = draw();
    const uint32_t worker = static_cast<uint32_t>(rng.below(4));
    const PrefixPlace now = tree.match(text).place;
    const auto [known, is_new] = places.try_emplace(text, now);
    if (known->second.node != 0) ++(known->second.is(now) ? still_there : gone);
    ASSERT_LE(now.bytes, text.size());
    if (tree.insert(text, {worker, 0}, step, SIZE_MAX, nullptr, known->second)) {
      const PrefixMatch match = tree.match(text);
      ASSERT_EQ(match.matched_bytes, text.size()) << "step " << step;
      ASSERT_TRUE(workers_of(match).contains(worker)) << "step " << step;
    }
    if (rng.below(2) == 0) known->second = now;
    if (step % 50 == 0) tree.withdraw(text, {worker, 0}, 0);
  }
  EXPECT_GT(still_there, 1000);
  EXPECT_GT(gone, 1000);
  EXPECT_GT(tree.evictions_budget(), 1000u);
}

// What went through the same place begins with the same bytes.
TEST(PrefixTreeTest, TextsOfOnePlaceBeginAlike) {
  PrefixTree tree(kAmple, kAmple);
  Rng rng(testing::test_seed(10));
  std::vector<std::pair<std::string, PrefixPlace>> found;
  for (uint32_t step = 0; step < 300; ++step) {
    std::string text;
    for (uint64_t runs = 1 + rng.below(4); runs > 0; --runs) {
      text += std::string(1000 + rng.below(3) * 700, static_cast<char>('a' + rng.below(2)));
    }
    text += std::to_string(rng.below(100));  // a bush of short edges
    found.emplace_back(text, tree.match(text).place);
    ASSERT_TRUE(tree.insert(text, {1, 0}, step));
  }
  int alike = 0;
  for (const auto& [a, place_a] : found) {
    for (const auto& [b, place_b] : found) {
      if (!place_a.is(place_b)) continue;
      ++alike;
      ASSERT_EQ(place_a.bytes, place_b.bytes);
      ASSERT_GE(common_bytes(a, b), place_a.bytes);
    }
  }
  EXPECT_GT(alike, 1000) << "the short edges at the end hide what is shared";
}

TEST(PrefixTreeTest, ALeafThatIsUsedOutlivesThoseThatAreNot) {
  PrefixTree tree(256 << 10, kAmple);
  const auto text_of = [](int i) { return std::to_string(i * 7919) + " " + std::string(500, 'x'); };
  uint32_t tick = 0;
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(tree.insert(text_of(i), {1, 0}, ++tick));
  for (int i = 0; i < 100; i += 2) ASSERT_TRUE(tree.insert(text_of(i), {1, 0}, ++tick));
  for (int i = 100; tree.evictions_budget() < 50; ++i) ASSERT_TRUE(tree.insert(text_of(i), {1, 0}, ++tick));
  int used = 0, unused = 0;
  for (int i = 0; i < 100; ++i) (i % 2 == 0 ? used : unused) += tree.match(text_of(i)).rate() == 1 ? 1 : 0;
  EXPECT_EQ(used, 50);
  EXPECT_EQ(unused, 0);
}

TEST(PrefixTreeTest, WithoutRoomBecauseSomebodyReadsAnInsertIsRefusedAndNothingBreaks) {
  const size_t budget = 256 << 10;
  PrefixTree tree(budget, kAmple);
  uint32_t tick = 0;
  const auto insert = [&](int i) {
    return tree.insert(std::to_string(i * 7919) + std::string(1000, 'x'), {1, 0}, ++tick);
  };
  int i = 0;
  while (tree.evictions_budget() == 0) ASSERT_TRUE(insert(i++));
  int refused = 0;
  {
    const EpochGuard reading;
    for (int more = 0; more < 1000; ++more) {
      refused += insert(i++) ? 0 : 1;
      ASSERT_LE(tree.bytes(), budget);
    }
  }
  EXPECT_GT(refused, 900);
  EXPECT_GT(tree.nodes(), 100u) << "evicted although nothing came of it";
  EXPECT_TRUE(insert(i++)) << "there is room again once nobody reads";
}

TEST(PrefixTreeTest, TenThousandHoldersFitWhereTextsComeAndGo) {
  PrefixTree tree(4 << 20, kAmple);
  Rng rng(8);
  uint32_t refused = 0;
  for (uint32_t worker = 0; worker < 10'000; ++worker) {
    refused += tree.insert("the system prompt of all", {worker, 0}, worker) ? 0 : 1;
    refused += tree.insert(std::to_string(rng.next()) + std::string(rng.below(3000), 'x'), {worker, 0}, worker) ? 0 : 1;
  }
  EXPECT_EQ(refused, 0u);
  const PrefixMatch match = tree.match("the system prompt of all");
  ASSERT_EQ(match.num_holders, PrefixMatch::kMaxHolders);
  EXPECT_TRUE(workers_of(match).contains(9'999));
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

TEST(PrefixTreeTest, AWorkerThatPassesItsShareLosesWhatItDidNotUseAndOthersLoseNothing) {
  PrefixTree tree(kAmple, 100'000);
  const auto text_of = [](int i) { return std::to_string(i * 7919) + " " + std::string(200, 'x'); };
  uint32_t tick = 0;
  for (int i = 0; i < 400; ++i) ASSERT_TRUE(tree.insert(text_of(i), {2, 0}, ++tick));
  for (int i = 0; i < 400; ++i) ASSERT_TRUE(tree.insert(text_of(i), {1, 0}, ++tick));
  for (int i = 400; i < 800; ++i) {
    ASSERT_TRUE(tree.insert(text_of(i), {1, 0}, ++tick));
    ASSERT_TRUE(tree.insert(text_of(7), {1, 0}, ++tick));
    ASSERT_LE(tree.worker_bytes(1), 100'000u);
  }
  EXPECT_EQ(workers_of(tree.match(text_of(8))), (std::set<uint32_t>{2}));
  EXPECT_EQ(workers_of(tree.match(text_of(7))), (std::set<uint32_t>{1, 2}));
  EXPECT_EQ(workers_of(tree.match(text_of(799))), (std::set<uint32_t>{1}));
  for (int i = 0; i < 400; ++i) ASSERT_EQ(tree.match(text_of(i)).rate(), 1) << i;
  EXPECT_GT(tree.worker_bytes(1), 80'000u) << "lost more than it had to";
}

TEST(PrefixTreeTest, TellsHowMuchOfWhatFullWorkersDropWillBeAskedForAgain) {
  PrefixTree tree(kAmple, kAmple);
  uint32_t tick = 0;
  const auto question = [&](int group, int number) {
    const std::string text =
        std::string(900, static_cast<char>('a' + group)) + std::string(100, '0') + std::to_string(number);
    tree.insert(text, {0}, ++tick, 5'000);
  };
  // Prompts that have nothing in common.
  for (int i = 0; i < 20; ++i) question(i, 0);
  EXPECT_GT(tree.evictions_size(), 0u);
  EXPECT_EQ(tree.match("x").shared_drops, 0);
  // Three groups have room; what goes is their old questions.
  for (int i = 0; i < 300; ++i) question(i % 3, i);
  EXPECT_LT(tree.match("x").shared_drops, 0.1);
  // Twelve have not.
  for (int i = 0; i < 1200; ++i) question(i / 2 % 12, i);
  EXPECT_GT(tree.match("x").shared_drops, 0.7);
}

TEST(PrefixTreeTest, AWorkersShareIsHeldWhereItsClaimsStandAboveThoseOfOthers) {
  PrefixTree tree(kAmple, 20'000);
  uint32_t tick = 0;
  for (int i = 0; i < 500; ++i) {
    const std::string text = std::to_string(i * 7919) + " " + std::string(200, 'x');
    ASSERT_TRUE(tree.insert(text, {1, 0}, ++tick));
    ASSERT_TRUE(tree.insert(text + "and on", {2 + static_cast<uint32_t>(i) % 50, 0}, ++tick));
    ASSERT_LE(tree.worker_bytes(1), 20'000u);
    ASSERT_EQ(workers_of(tree.match(text)).count(1), 1u) << "the newest went first";
  }
}

TEST(PrefixTreeTest, ReportsTheMostUsedPrefixesAndNoneThatOnlyLeadsToAnother) {
  PrefixTree tree(kAmple, kAmple);
  const std::string hot(5000, 'h'), warm = "warm: ";  // the first is a chain of nodes
  for (uint32_t i = 0; i < 60; ++i) ASSERT_TRUE(tree.insert(hot + std::to_string(i), {i % 2, 0}, i));
  for (uint32_t i = 0; i < 20; ++i) ASSERT_TRUE(tree.insert(warm + std::to_string(i), {2, 0}, i));
  const auto report = tree.report(2);
  ASSERT_EQ(report.prefixes.size(), 2u);
  EXPECT_EQ(report.prefixes[0].bytes, hot.size());
  EXPECT_EQ(report.prefixes[0].inserts, 60u);
  EXPECT_EQ(report.prefixes[0].hash, text_hash(hot));
  EXPECT_EQ(report.prefixes[0].num_holders, 2u);
  EXPECT_EQ(report.prefixes[0].continuations, 10u);
  EXPECT_EQ(report.prefixes[1].bytes, warm.size());
  EXPECT_EQ(report.prefixes[1].holders, std::vector<uint32_t>{2});
  for (const uint32_t worker : {0u, 1u, 2u}) {
    const std::pair<uint32_t, size_t> bytes{worker, tree.worker_bytes(worker)};
    EXPECT_NE(std::ranges::find(report.worker_bytes, bytes), report.worker_bytes.end());
  }
}

TEST(PrefixTreeTest, CountsWhatCameThroughAPrefixAlsoAfterASplit) {
  PrefixTree tree(kAmple, kAmple);
  for (uint32_t i = 0; i < 7; ++i) ASSERT_TRUE(tree.insert("common part and more", {0, 0}, i));
  ASSERT_TRUE(tree.insert("common part", {1, 0}, 8));
  const auto report = tree.report(10);
  ASSERT_EQ(report.prefixes.size(), 2u);
  EXPECT_EQ(report.prefixes[0].inserts, 8u);
  EXPECT_EQ(report.prefixes[0].bytes, std::string("common part").size());
  EXPECT_EQ(report.prefixes[1].inserts, 7u);
}

TEST(PrefixTreeTest, AReportOfAnEmptyTreeIsEmpty) {
  const auto report = PrefixTree(kAmple, kAmple).report(10);
  EXPECT_TRUE(report.prefixes.empty());
  EXPECT_TRUE(report.worker_bytes.empty());
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
