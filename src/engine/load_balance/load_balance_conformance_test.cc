// What every load-balance method must do, whatever it is: each row of the registry is held to this without being named.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "base/rng.h"
#include "engine/load_balance/method.h"
#include "engine/options.h"

namespace sluice::engine {
namespace {

std::vector<RankLoad> draw_ranks(Rng& rng) {
  std::vector<RankLoad> ranks(rng.below(9));
  for (auto& rank : ranks) {
    rank = {.active = rng.below(3) != 0,
            .requests = static_cast<int64_t>(rng.below(5)),
            .tokens = static_cast<int64_t>(rng.below(5)) * 100};
  }
  return ranks;
}

int64_t draw_previous(Rng& rng, size_t ranks) { return static_cast<int64_t>(rng.below(ranks + 1)) - 1; }

class LoadBalanceConformance : public testing::TestWithParam<LoadBalanceRow> {
 protected:
  Rng rng_{/*seed=*/7};
};

TEST_P(LoadBalanceConformance, PicksAnActiveRankIfThereIsOne) {
  for (int round = 0; round < 10'000; ++round) {
    const auto ranks = draw_ranks(rng_);
    const auto chosen = GetParam().choose(ranks, draw_previous(rng_, ranks.size()));
    ASSERT_EQ(chosen.has_value(), std::ranges::any_of(ranks, &RankLoad::active));
    if (chosen) {
      ASSERT_TRUE(*chosen >= 0 && *chosen < static_cast<int64_t>(ranks.size()));
      ASSERT_TRUE(ranks[static_cast<size_t>(*chosen)].active);
    }
  }
}

TEST_P(LoadBalanceConformance, IsAFunctionOfItsInputs) {
  for (int round = 0; round < 1000; ++round) {
    const auto ranks = draw_ranks(rng_);
    const int64_t previous = draw_previous(rng_, ranks.size());
    ASSERT_EQ(GetParam().choose(ranks, previous), GetParam().choose(ranks, previous));
  }
}

// As the controller does: each choice adds a request and its tokens.
TEST_P(LoadBalanceConformance, ABurstOfEqualRequestsSpreadsEvenly) {
  for (const size_t count : {1, 2, 3, 8}) {
    std::vector<RankLoad> ranks(count, {.active = true});
    std::vector<int> picks(count);
    int64_t previous = -1;
    for (size_t i = 0; i < 10 * count; ++i) {
      previous = GetParam().choose(ranks, previous).value();
      ++picks[static_cast<size_t>(previous)];
      ranks[static_cast<size_t>(previous)].requests += 1;
      ranks[static_cast<size_t>(previous)].tokens += 100;
    }
    EXPECT_EQ(picks, std::vector<int>(count, 10));
  }
}

INSTANTIATE_TEST_SUITE_P(Registry, LoadBalanceConformance, testing::ValuesIn(load_balance_methods()),
                         [](const auto& row) { return std::string(row.param.name); });

TEST(LoadBalanceRegistryTest, EveryNameIsFoundOnceAndIsAChoiceOfTheOption) {
  const auto names = load_balance_names();
  EXPECT_EQ(std::set(names.begin(), names.end()).size(), names.size());
  for (const auto name : names) {
    EXPECT_NE(find_load_balance(name), nullptr) << name;
    EXPECT_TRUE(engine_option_table().parse({"--model-path", "m", "--load-balance-method", std::string(name)}).ok());
  }
  EXPECT_EQ(find_load_balance("follow_bootstrap_room"), nullptr);
  EXPECT_FALSE(engine_option_table().parse({"--load-balance-method", "follow_bootstrap_room"}).ok());
}

TEST(LoadBalanceRegistryTest, OldNamesAndAutoAreTheMethodsThatReplacedThem) {
  const auto name_of = [](std::string_view name) { return find_load_balance(name)->name; };
  EXPECT_EQ(name_of("auto"), "round_robin");
  EXPECT_EQ(name_of("decode_round_robin"), "round_robin");
  EXPECT_EQ(name_of("shortest_queue"), "total_requests");
  EXPECT_EQ(name_of("minimum_tokens"), "total_tokens");
  EXPECT_FALSE(is_old_name(*find_load_balance("auto"), "auto"));
  EXPECT_TRUE(is_old_name(*find_load_balance("shortest_queue"), "shortest_queue"));
}

}  // namespace
}  // namespace sluice::engine
