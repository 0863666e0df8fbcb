#include "engine/radix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "base/rng.h"

namespace sluice::engine {
namespace {

using Tokens = std::vector<int32_t>;

class RadixCacheTest : public testing::Test {
 protected:
  Tokens slots(int64_t n) {
    Tokens out;
    EXPECT_TRUE(pool_.alloc(n, out));
    return out;
  }
  // Inserts with fresh slots, and frees those that turned out to be duplicates. Returns the fresh slots.
  Tokens put(const Tokens& tokens, std::string_view key = "") {
    Tokens fresh = slots(static_cast<int64_t>(tokens.size()));
    const int64_t held = cache_.insert(key, tokens, fresh).held;
    pool_.free(std::span(fresh).first(static_cast<size_t>(held)));
    return fresh;
  }

  KvPool pool_{1000};
  RadixCache cache_{pool_};
};

TEST_F(RadixCacheTest, FindsTheLongestPrefixAndItsSlots) {
  const Tokens s = put({1, 2, 3, 4});
  const auto match = cache_.match("", Tokens{1, 2, 3, 9});
  EXPECT_EQ(match.slots, (Tokens{s[0], s[1], s[2]}));
  EXPECT_EQ(cache_.match("", Tokens{1, 2, 3, 4, 5}).slots, s);
  EXPECT_TRUE(cache_.match("", Tokens{2}).slots.empty());
  cache_.check_invariants();
}

TEST_F(RadixCacheTest, NamespacesDoNotMeet) {
  put({1, 2, 3}, "a");
  EXPECT_TRUE(cache_.match("b", Tokens{1, 2, 3}).slots.empty());
  EXPECT_TRUE(cache_.match("", Tokens{1, 2, 3}).slots.empty());
  EXPECT_EQ(cache_.match("a", Tokens{1, 2, 3}).slots.size(), 3u);
}

TEST_F(RadixCacheTest, PeekingAgreesAndChangesNothing) {
  put({1, 2, 3, 4});
  put({5});
  EXPECT_EQ(cache_.peek("", Tokens{1, 2, 7}), 2);
  // Had the peek counted as a use, {5} would be the older one.
  EXPECT_EQ(cache_.evict(1), 4);
}

TEST_F(RadixCacheTest, ALockProtectsThePathAndASplitKeepsIt) {
  put({1, 2, 3, 4});
  const auto match = cache_.match("", Tokens{1, 2, 3, 4});
  cache_.lock(match.node);
  cache_.match("", Tokens{1, 2});  // splits below the lock
  put({1, 2, 8});
  cache_.check_invariants();
  EXPECT_EQ(cache_.locked(), 4);
  EXPECT_EQ(cache_.evict(100), 1);
  cache_.unlock(match.node);
  EXPECT_EQ(cache_.evictable(), 4);
  EXPECT_EQ(cache_.evict(100), 4);
  EXPECT_EQ(pool_.available(), 999);
}

TEST_F(RadixCacheTest, EvictsTheLeastRecentlyUsedLeafFirst) {
  put({1, 2});
  put({3, 4});
  put({1, 5});
  cache_.match("", Tokens{3});
  cache_.evict(1);  // {2}: used least recently; its parent {1} was used since
  EXPECT_EQ(cache_.peek("", Tokens{1, 2}), 1);
  EXPECT_EQ(cache_.peek("", Tokens{1, 5}), 2);
  EXPECT_EQ(cache_.peek("", Tokens{3, 4}), 2);
}

// The oracle keeps every cached position as a map from prefix to slot, and knows nothing of nodes.
struct Oracle {
  std::map<std::pair<std::string, Tokens>, int32_t> slot_of;

  size_t longest(const std::string& key, const Tokens& tokens) const {
    Tokens prefix;
    for (size_t n = 0; n < tokens.size(); ++n) {
      prefix.push_back(tokens[n]);
      if (!slot_of.contains({key, prefix})) return n;
    }
    return tokens.size();
  }
};

TEST_F(RadixCacheTest, AgreesWithANaiveOracleUnderRandomOperations) {
  Rng rng(/*seed=*/21);
  Oracle oracle;
  struct Lock {
    RadixCache::Node* node;
    std::string key;
    Tokens tokens;
  };
  std::vector<Lock> locks;
  const auto draw = [&] {
    Tokens tokens(1 + rng.below(8));
    for (auto& t : tokens) t = static_cast<int32_t>(rng.below(3));
    return tokens;
  };
  // After an eviction the oracle drops what is gone, having checked that it was allowed to go.
  const auto after_eviction = [&](int64_t freed) {
    std::set<std::pair<std::string, Tokens>> protected_prefixes;
    for (const auto& lock : locks) {
      Tokens prefix;
      for (const auto t : lock.tokens) {
        prefix.push_back(t);
        protected_prefixes.insert({lock.key, prefix});
      }
    }
    int64_t gone = 0;
    for (auto it = oracle.slot_of.begin(); it != oracle.slot_of.end();) {
      const auto& [key, prefix] = it->first;
      if (cache_.peek(key, prefix) < static_cast<int64_t>(prefix.size())) {
        ASSERT_FALSE(protected_prefixes.contains(it->first)) << "a locked prefix was evicted";
        ++gone;
        it = oracle.slot_of.erase(it);
      } else {
        ++it;
      }
    }
    ASSERT_EQ(gone, freed);
  };

  for (int i = 0; i < 120'000; ++i) {
    const std::string key = rng.below(4) == 0 ? "other" : "";
    switch (rng.below(8)) {
      case 0:
      case 1:
      case 2: {
        const Tokens tokens = draw();
        if (pool_.available() < static_cast<int64_t>(tokens.size())) break;
        const size_t expected = oracle.longest(key, tokens);
        Tokens fresh = slots(static_cast<int64_t>(tokens.size()));
        ASSERT_EQ(cache_.insert(key, tokens, fresh).held, static_cast<int64_t>(expected));
        pool_.free(std::span(fresh).first(expected));
        for (size_t n = expected; n < tokens.size(); ++n) {
          oracle.slot_of[{key, Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n) + 1)}] = fresh[n];
        }
        break;
      }
      case 3:
      case 4: {
        const Tokens tokens = draw();
        const size_t expected = oracle.longest(key, tokens);
        ASSERT_EQ(cache_.peek(key, tokens), static_cast<int64_t>(expected));
        const auto match = cache_.match(key, tokens);
        ASSERT_EQ(match.slots.size(), expected);
        Tokens prefix;
        for (size_t n = 0; n < expected; ++n) {
          prefix.push_back(tokens[n]);
          ASSERT_EQ(match.slots[n], (oracle.slot_of.at({key, prefix})));
        }
        if (match.node && locks.size() < 20 && rng.below(2)) {
          cache_.lock(match.node);
          locks.push_back({match.node, key, prefix});
        }
        break;
      }
      case 5: {
        if (locks.empty()) break;
        const size_t which = rng.below(locks.size());
        cache_.unlock(locks[which].node);
        locks.erase(locks.begin() + static_cast<std::ptrdiff_t>(which));
        break;
      }
      default: {
        if (rng.below(4)) break;
        const int64_t want = 1 + static_cast<int64_t>(rng.below(30));
        const int64_t could = cache_.evictable();
        const int64_t freed = cache_.evict(want);
        ASSERT_GE(freed, std::min(want, could));
        ASSERT_LE(freed, could);
        after_eviction(freed);
      }
    }
    ASSERT_EQ(cache_.evictable() + cache_.locked(), static_cast<int64_t>(oracle.slot_of.size()));
    ASSERT_EQ(pool_.available() + static_cast<int64_t>(oracle.slot_of.size()), pool_.capacity());
    if (i % 64 == 0) cache_.check_invariants();
  }
  for (const auto& lock : locks) cache_.unlock(lock.node);
  cache_.reset();
  EXPECT_EQ(pool_.available(), pool_.capacity());
}

// LRU order against an oracle that remembers when each leaf was last used. Distinct first tokens: each run is a leaf.
TEST_F(RadixCacheTest, EvictionFollowsTheOrderOfUse) {
  Rng rng(/*seed=*/22);
  std::map<int32_t, int> last_use;
  for (int i = 0; i < 20'000; ++i) {
    const auto head = static_cast<int32_t>(rng.below(200));
    const Tokens tokens{head, head + 1000};
    if (last_use.contains(head)) {
      cache_.match("", tokens);
      last_use[head] = i;
    } else {
      if (pool_.available() < 2 || last_use.size() >= 100) {
        const auto oldest = std::min_element(last_use.begin(), last_use.end(),
                                             [](const auto& a, const auto& b) { return a.second < b.second; });
        ASSERT_EQ(cache_.evict(1), 2);
        ASSERT_EQ(cache_.peek("", Tokens{oldest->first}), 0);
        last_use.erase(oldest);
      }
      put(tokens);
      last_use[head] = i;
    }
  }
}

// ---- pages

class PagedCache : public testing::Test {
 protected:
  static constexpr int64_t kPage = 4;
  void put(RadixCache& cache, const Tokens& tokens, std::string_view key = "") {
    Tokens fresh;
    ASSERT_TRUE(pool_.alloc(static_cast<int64_t>(tokens.size()), fresh));
    const auto held = static_cast<size_t>(cache.insert(key, tokens, fresh).held);
    pool_.free(std::span(fresh).first(held));
  }
  static Tokens numbered(int32_t from, int32_t n) {
    Tokens out;
    for (int32_t i = 0; i < n; ++i) out.push_back(from + i);
    return out;
  }

  KvPool pool_{400, kPage};
};

TEST_F(PagedCache, MatchesWholePagesOnly) {
  RadixCache cache(pool_);
  put(cache, numbered(0, 12));
  EXPECT_EQ(cache.peek("", numbered(0, 11)), 8);
  EXPECT_EQ(cache.peek("", numbered(0, 3)), 0);
  Tokens other = numbered(0, 12);
  other[6] = 99;  // in the second page
  EXPECT_EQ(cache.peek("", other), 4);
  EXPECT_EQ(cache.match("", other).slots.size(), 4u);
  put(cache, other);
  // Two children of one node whose pages begin alike.
  EXPECT_EQ(cache.peek("", other), 12);
  EXPECT_EQ(cache.peek("", numbered(0, 12)), 12);
  cache.check_invariants();
}

TEST_F(PagedCache, NamespacesDoNotMeetInPagesEither) {
  RadixCache cache(pool_);
  put(cache, numbered(0, 8), "a");
  EXPECT_EQ(cache.peek("b", numbered(0, 8)), 0);
  EXPECT_EQ(cache.peek("a", numbered(0, 8)), 8);
}

// Against an oracle of pages that knows nothing of nodes.
TEST_F(PagedCache, AgreesWithANaiveOracleUnderRandomOperations) {
  RadixCache cache(pool_);
  Rng rng(/*seed=*/31);
  std::map<std::pair<std::string, Tokens>, Tokens> pages;  // prefix up to the page's end -> its slots
  const auto longest = [&](const std::string& key, const Tokens& tokens) {
    size_t n = 0;
    while (n + kPage <= tokens.size() &&
           pages.contains({key, Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n + kPage))})) {
      n += kPage;
    }
    return n;
  };
  for (int i = 0; i < 50'000; ++i) {
    const std::string key = rng.below(4) == 0 ? "other" : "";
    Tokens tokens(rng.below(21));
    for (auto& t : tokens) t = static_cast<int32_t>(rng.below(2));
    switch (rng.below(4)) {
      case 0: {
        tokens.resize(static_cast<size_t>(pool_.floor(static_cast<int64_t>(tokens.size()))));
        Tokens fresh;
        if (!pool_.alloc(static_cast<int64_t>(tokens.size()), fresh)) break;
        const size_t expected = longest(key, tokens);
        ASSERT_EQ(cache.insert(key, tokens, fresh).held, static_cast<int64_t>(expected));
        pool_.free(std::span(fresh).first(expected));
        for (size_t n = expected; n < tokens.size(); n += kPage) {
          const auto end = static_cast<std::ptrdiff_t>(n + kPage);
          pages[{key, Tokens(tokens.begin(), tokens.begin() + end)}] =
              Tokens(fresh.begin() + static_cast<std::ptrdiff_t>(n), fresh.begin() + end);
        }
        break;
      }
      case 1:
      case 2: {
        const size_t expected = longest(key, tokens);
        ASSERT_EQ(cache.peek(key, tokens), static_cast<int64_t>(expected));
        const auto match = cache.match(key, tokens);
        ASSERT_EQ(match.slots.size(), expected);
        for (size_t n = 0; n < expected; n += kPage) {
          const auto& held =
              pages.at({key, Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n + kPage))});
          ASSERT_TRUE(std::equal(held.begin(), held.end(), match.slots.begin() + static_cast<std::ptrdiff_t>(n)));
        }
        break;
      }
      default: {
        if (rng.below(8)) break;
        cache.evict(static_cast<int64_t>(rng.below(60)));
        std::erase_if(pages, [&](const auto& page) {
          return cache.peek(page.first.first, page.first.second) < static_cast<int64_t>(page.first.second.size());
        });
      }
    }
    ASSERT_EQ(cache.evictable(), static_cast<int64_t>(pages.size()) * kPage);
    ASSERT_EQ(pool_.available() + cache.evictable(), pool_.capacity());
    if (i % 64 == 0) cache.check_invariants();
  }
}

// ---- the least frequently used

TEST(RadixEvictionTest, LfuKeepsWhatManyRequestsUsed) {
  for (const auto eviction :
       {RadixOptions::Eviction::kLeastRecentlyUsed, RadixOptions::Eviction::kLeastFrequentlyUsed}) {
    KvPool pool(100);
    RadixCache cache(pool, {.eviction = eviction});
    const auto put = [&](const Tokens& tokens) {
      Tokens fresh;
      ASSERT_TRUE(pool.alloc(static_cast<int64_t>(tokens.size()), fresh));
      cache.insert("", tokens, fresh);
    };
    put({1, 2});
    put({3, 4});
    for (int i = 0; i < 3; ++i) cache.match("", Tokens{1, 2});
    cache.match("", Tokens{3, 4});  // more recent, and used less
    cache.check_invariants();
    cache.evict(1);
    const bool lfu = eviction == RadixOptions::Eviction::kLeastFrequentlyUsed;
    EXPECT_EQ(cache.peek("", Tokens{1, 2}), lfu ? 2 : 0);
    EXPECT_EQ(cache.peek("", Tokens{3, 4}), lfu ? 0 : 2);
  }
}

// ---- kept states

class StatefulCache : public testing::Test {
 protected:
  RadixCache::Node* put(const Tokens& tokens) {
    Tokens fresh;
    EXPECT_TRUE(pool_.alloc(static_cast<int64_t>(tokens.size()), fresh));
    const auto inserted = cache_.insert("", tokens, fresh);
    pool_.free(std::span(fresh).first(static_cast<size_t>(inserted.held)));
    return inserted.end;
  }

  KvPool pool_{100};
  RadixCache cache_{pool_, {.first_state_row = 10, .state_rows = 2}};
};

TEST_F(StatefulCache, AMatchEndsWhereAStateWasKept) {
  auto* end = put({1, 2, 3, 4});
  EXPECT_EQ(cache_.peek("", Tokens{1, 2, 3, 4, 5}), 0);
  ASSERT_EQ(cache_.keep_state(end), 10);
  EXPECT_EQ(cache_.keep_state(end), std::nullopt) << "it has one";
  EXPECT_EQ(cache_.peek("", Tokens{1, 2, 3, 4, 5}), 4);
  EXPECT_EQ(cache_.peek("", Tokens{1, 2, 3}), 0) << "the state is that of position 4";
  put({1, 2, 7});  // splits the node: its state stays at its end
  const auto match = cache_.match("", Tokens{1, 2, 3, 4});
  EXPECT_EQ(match.slots.size(), 4u);
  EXPECT_EQ(match.state_row, 10);
  EXPECT_EQ(cache_.match("", Tokens{1, 2, 7}).slots.size(), 0u);
  cache_.check_invariants();
}

TEST_F(StatefulCache, WhenRowsRunOutTheOldestStateGoesAndThenItsNode) {
  cache_.keep_state(put({1, 2}));
  cache_.keep_state(put({3, 4}));
  cache_.match("", Tokens{1, 2});
  ASSERT_EQ(cache_.keep_state(put({5, 6})), 11) << "the row of {3, 4}";
  EXPECT_EQ(cache_.peek("", Tokens{3, 4}), 0);
  EXPECT_EQ(cache_.peek("", Tokens{1, 2}), 2);
  cache_.check_invariants();
  // Without a state it is of no use: it goes before what was used before it.
  EXPECT_EQ(cache_.evict(1), 2);
  EXPECT_EQ(cache_.peek("", Tokens{1, 2}), 2);
  EXPECT_EQ(cache_.peek("", Tokens{5, 6}), 2);
  cache_.reset();
  cache_.check_invariants();
}

// ---- events

// What a listener that knows nothing but the events believes to be held: name of a block -> its place in its prompt.
struct Listener {
  std::map<protocol::KvBlockHash, std::pair<std::optional<protocol::KvBlockHash>, Tokens>> blocks;

  void take(std::vector<protocol::KvEvent> events) {
    for (auto& event : events) {
      switch (event.kind) {
        case protocol::KvEvent::Kind::kStored:
          ASSERT_EQ(event.hashes.size(), 1u);
          ASSERT_EQ(static_cast<int64_t>(event.token_ids.size()), event.block_size);
          ASSERT_TRUE(!event.parent || blocks.contains(*event.parent)) << "a block without the one before it";
          ASSERT_TRUE(blocks.emplace(event.hashes[0], std::pair(event.parent, event.token_ids)).second);
          break;
        case protocol::KvEvent::Kind::kRemoved:
          for (const auto hash : event.hashes) ASSERT_EQ(blocks.erase(hash), 1u) << "removed and not stored";
          break;
        case protocol::KvEvent::Kind::kCleared:
          blocks.clear();
      }
    }
  }
  size_t tokens() const {
    size_t n = 0;
    for (const auto& [hash, block] : blocks) n += block.second.size();
    return n;
  }
  // Tokens of the prompt that are held, as far as the listener knows.
  int64_t depth(const Tokens& prompt, size_t page) const {
    std::optional<protocol::KvBlockHash> at;
    size_t n = 0;
    for (; n + page <= prompt.size(); n += page) {
      const Tokens next(prompt.begin() + static_cast<std::ptrdiff_t>(n),
                        prompt.begin() + static_cast<std::ptrdiff_t>(n + page));
      const auto found = std::ranges::find_if(blocks, [&](const auto& b) { return b.second == std::pair(at, next); });
      if (found == blocks.end()) break;
      at = found->first;
    }
    return static_cast<int64_t>(n);
  }
};

TEST(RadixEventsTest, AListenerKnowsWhatTheCacheHolds) {
  for (const int64_t page : {1, 3}) {
    KvPool pool(120, page);
    RadixCache cache(pool, {.record_events = true});
    Listener listener;
    Rng rng(/*seed=*/41);
    for (int i = 0; i < 3000; ++i) {
      Tokens tokens(static_cast<size_t>(page) * rng.below(9));
      for (auto& t : tokens) t = static_cast<int32_t>(rng.below(2));
      const auto what = rng.below(20);
      if (what < 12) {
        Tokens fresh;
        if (!pool.alloc(static_cast<int64_t>(tokens.size()), fresh)) continue;
        pool.free(std::span(fresh).first(static_cast<size_t>(cache.insert("", tokens, fresh).held)));
      } else if (what < 18) {
        cache.match("", tokens);  // splits
      } else if (what < 19) {
        cache.evict(static_cast<int64_t>(rng.below(40)));
      } else if (rng.below(20) == 0) {
        cache.reset();
      }
      ASSERT_NO_FATAL_FAILURE(listener.take(cache.take_events()));
      ASSERT_EQ(static_cast<int64_t>(listener.tokens()), cache.evictable());
      if (i % 10 == 0) {
        ASSERT_EQ(listener.depth(tokens, static_cast<size_t>(page)), cache.peek("", tokens));
      }
      if (i % 64 == 0) cache.check_invariants();
    }
  }
}

TEST(RadixEventsTest, BlocksAreNamedByTheHashOfAllBeforeThem) {
  KvPool pool(20, 2);
  RadixCache cache(pool, {.record_events = true});
  Tokens slots;
  ASSERT_TRUE(pool.alloc(4, slots));
  cache.insert("", Tokens{1, 2, 3, 4}, slots);
  const auto events = cache.take_events();
  ASSERT_EQ(events.size(), 2u);
  // python3 -c "import hashlib as h,struct as s; a=h.sha256(s.pack('<2i',1,2)).digest();
  //   b=h.sha256(a+s.pack('<2i',3,4)).digest(); print(a[:8].hex(), b[:8].hex())"
  EXPECT_EQ(events[0].hashes[0], 0x34fb5c825de7ca4au);
  EXPECT_EQ(events[0].parent, std::nullopt);
  EXPECT_EQ(events[1].hashes[0], 0xc57b445f90651b9au);
  EXPECT_EQ(events[1].parent, events[0].hashes[0]);
  EXPECT_EQ(events[1].token_ids, (Tokens{3, 4}));
  EXPECT_EQ(events[1].block_size, 2);
  EXPECT_FALSE(events[1].keyed);
  EXPECT_TRUE(cache.take_events().empty());
}

TEST(RadixEventsTest, EqualTokensOfTwoNamespacesHaveTwoNames) {
  KvPool pool(20);
  RadixCache cache(pool, {.record_events = true});
  Tokens slots;
  ASSERT_TRUE(pool.alloc(2, slots));
  cache.insert("", Tokens{1}, std::span(slots).first(1));
  cache.insert("tenant", Tokens{1}, std::span(slots).last(1));
  const auto events = cache.take_events();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_NE(events[0].hashes, events[1].hashes);
  EXPECT_FALSE(events[0].keyed);
  EXPECT_TRUE(events[1].keyed) << "nobody else can use it";
}

}  // namespace
}  // namespace sluice::engine
