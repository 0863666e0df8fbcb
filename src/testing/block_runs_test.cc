#include "testing/block_runs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <ranges>

#include "base/rng.h"

namespace sluice::testing {
namespace {

using Names = std::vector<uint64_t>;

// Chains that part in many places: each goes on from a piece of one that was there before.
class Chains {
 public:
  explicit Chains(Rng& rng) : rng_(rng) {}

  const Names& next() {
    Names chain;
    if (!all_.empty() && rng_.below(8) != 0) {
      const Names& other = all_[rng_.below(all_.size())];
      chain.assign(other.begin(), other.begin() + static_cast<std::ptrdiff_t>(rng_.below(other.size() + 1)));
    }
    for (uint64_t more = rng_.below(6); more > 0 || chain.empty(); more -= more > 0 ? 1 : 0) chain.push_back(++last_);
    all_.push_back(std::move(chain));
    return all_.back();
  }
  const Names& any() { return all_[rng_.below(all_.size())]; }

 private:
  Rng& rng_;
  std::vector<Names> all_;
  uint64_t last_ = 0;
};

// The slow, obvious twin: block by block.
class ListOfBlocks {
 public:
  size_t match(const Names& chain) const {
    size_t count = 0;
    while (count < chain.size() && std::ranges::find(order_, chain[count]) != order_.end()) ++count;
    return count;
  }
  void use(const Names& chain) {
    for (const uint64_t name : chain | std::views::reverse) {
      order_.remove(name);
      order_.push_back(name);
    }
  }
  void shrink_to(size_t size) {
    while (order_.size() > size) order_.pop_front();
  }
  size_t size() const { return order_.size(); }

 private:
  std::list<uint64_t> order_;  // the least recently used first
};

TEST(BlockRunsTest, KeepsTheMostRecentlyUsedAsBlockByBlock) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Rng rng(seed);
    Chains chains(rng);
    BlockRuns runs;
    ListOfBlocks twin;
    for (int i = 0; i < 400; ++i) {
      const Names& chain = rng.below(3) == 0 && i > 0 ? chains.any() : chains.next();
      ASSERT_EQ(runs.match(chain), twin.match(chain)) << seed << ' ' << i;
      runs.use(chain);
      twin.use(chain);
      const size_t room = 1 + rng.below(60);
      runs.shrink_to(room);
      twin.shrink_to(room);
      ASSERT_EQ(runs.size(), twin.size()) << seed << ' ' << i;
      ASSERT_EQ(runs.match(chain), twin.match(chain)) << seed << ' ' << i;
    }
  }
}

TEST(BlockRunsTest, CountsAsBlockByBlock) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Rng rng(seed);
    Chains chains(rng);
    BlockRuns runs;
    std::map<uint64_t, int64_t> twin;
    std::vector<Names> added;
    for (int i = 0; i < 600; ++i) {
      if (added.empty() || rng.below(2) == 0) {
        added.push_back(rng.below(3) == 0 && i > 0 ? chains.any() : chains.next());
        runs.add(added.back());
        for (const uint64_t name : added.back()) ++twin[name];
      } else {
        std::swap(added[rng.below(added.size())], added.back());
        runs.remove(added.back());
        for (const uint64_t name : added.back()) {
          if (--twin[name] == 0) twin.erase(name);
        }
        added.pop_back();
      }
      ASSERT_EQ(runs.size(), twin.size()) << seed << ' ' << i;
      const Names& asked = added.empty() || rng.below(2) == 0 ? chains.next() : added[rng.below(added.size())];
      size_t expected = 0;
      while (expected < asked.size() && twin.contains(asked[expected])) ++expected;
      ASSERT_EQ(runs.match(asked), expected) << seed << ' ' << i;
    }
    for (const Names& chain : added) runs.remove(chain);
    EXPECT_EQ(runs.size(), 0u);
  }
}

TEST(BlockRunsTest, AnEmptyChainIsNothing) {
  BlockRuns runs;
  runs.use({});
  runs.add({});
  runs.remove({});
  EXPECT_EQ(runs.match({}), 0u);
  EXPECT_EQ(runs.size(), 0u);
  runs.add(Names{1, 2});
  runs.clear();
  EXPECT_EQ(runs.match(Names{1, 2}), 0u);
}

}  // namespace
}  // namespace sluice::testing
