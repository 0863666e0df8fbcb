#include "engine/prefix_belief.h"

#include <gtest/gtest.h>

#include <numeric>

#include "engine/load_balance/cache_aware.h"

namespace sluice::engine {
namespace {

GenerateRequest prompt(int32_t first, int32_t tokens, std::string key = "") {
  GenerateRequest request{.extra_key = std::move(key)};
  request.input_ids.resize(static_cast<size_t>(tokens));
  std::iota(request.input_ids.begin(), request.input_ids.end(), first);
  return request;
}

class PrefixBeliefTest : public testing::Test {
 protected:
  std::vector<RankLoad> expected(const GenerateRequest& request) {
    std::vector<RankLoad> loads(2, {.active = true});
    belief_.expect(request, loads);
    return loads;
  }

  PrefixBelief belief_{2};
};

TEST_F(PrefixBeliefTest, WhatWasSentToARankIsExpectedThere) {
  EXPECT_EQ(expected(prompt(0, 100))[1].cached, 0);
  belief_.dispatched(1, prompt(0, 100));
  auto longer = prompt(0, 100);
  longer.input_ids.resize(140, 7);
  const auto loads = expected(longer);
  EXPECT_EQ(loads[0].cached, 0);
  EXPECT_NEAR(static_cast<double>(loads[1].cached), 100, 1);
  EXPECT_EQ(loads[1].prompt, 140);
  EXPECT_EQ(expected(prompt(5000, 100))[1].cached, 0);
}

TEST_F(PrefixBeliefTest, KeysShareNothing) {
  belief_.dispatched(1, prompt(0, 100, "a"));
  EXPECT_NEAR(static_cast<double>(expected(prompt(0, 100, "a"))[1].cached), 100, 1);
  EXPECT_EQ(expected(prompt(0, 100, "b"))[1].cached, 0);
  EXPECT_EQ(expected(prompt(0, 100))[1].cached, 0);
}

TEST_F(PrefixBeliefTest, WhatIsNotFoundIsBelievedLess) {
  for (int i = 0; i < 50; ++i) {
    const auto request = prompt(0, 100);
    const int64_t hoped = belief_.dispatched(1, request).cached;
    belief_.answered(1, hoped, {.prompt_tokens = 100, .cached_tokens = 0});
  }
  EXPECT_LT(expected(prompt(0, 100))[1].cached, 30);
}

TEST_F(PrefixBeliefTest, WhatWasNotComputedSaysNothingOfTheCache) {
  const auto request = prompt(0, 100);
  belief_.answered(1, belief_.dispatched(1, request).cached, {.prompt_tokens = 100});
  for (int i = 0; i < 50; ++i) belief_.refused(1, request, belief_.dispatched(1, request));
  EXPECT_NEAR(static_cast<double>(expected(request)[1].cached), 100, 1);
}

TEST_F(PrefixBeliefTest, AnEmptiedCacheIsForgotten) {
  belief_.dispatched(0, prompt(0, 100));
  belief_.forget(0);
  EXPECT_EQ(expected(prompt(0, 100))[0].cached, 0);
}

TEST(CacheAwareTest, AffinityIsWorthWhatItSaves) {
  const auto choose = [](RankLoad holder, RankLoad other) {
    const RankLoad ranks[] = {holder, other};
    return choose_cache_aware(ranks, -1).value();
  };
  const RankLoad empty{.active = true, .prompt = 512};
  EXPECT_EQ(choose({.active = true, .requests = 8, .prompt = 512, .cached = 500}, empty), 0);
  EXPECT_EQ(choose({.active = true, .requests = 20, .prompt = 512, .cached = 500}, empty), 1) << "too busy";
  EXPECT_EQ(choose({.active = true, .waiting = 600, .prompt = 512, .cached = 500}, empty), 1) << "too long a queue";
  EXPECT_EQ(choose({.active = true, .tokens = 1000, .capacity = 700, .prompt = 512, .cached = 500}, empty), 1)
      << "no room";
  EXPECT_EQ(choose({.active = false, .prompt = 512, .cached = 500}, empty), 1);
}

}  // namespace
}  // namespace sluice::engine
