#include "engine/radix_cache.h"

#include <gtest/gtest.h>

#include <map>
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
    const int64_t held = cache_.insert(key, tokens, fresh);
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
        ASSERT_EQ(cache_.insert(key, tokens, fresh), static_cast<int64_t>(expected));
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

}  // namespace
}  // namespace sluice::engine
