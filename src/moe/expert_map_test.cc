#include "moe/expert_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

namespace sluice::moe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// Two layers of four experts, on two ranks.
constexpr ExpertSizes kSizes{.layers = 2, .experts = 4, .groups = 2, .ranks = 2};

TEST(ExpertMapTest, TrivialCopiesGoRoundAndRound) {
  const auto map = make_expert_map({.redundant = 2}, kSizes);
  ASSERT_TRUE(map.ok()) << map.error().message;
  EXPECT_EQ(map->physical, 6);
  EXPECT_EQ(map->location, (PhysicalToLogical{{0, 1, 2, 3, 0, 1}, {0, 1, 2, 3, 0, 1}}));
  EXPECT_EQ(map->copies(0), (std::vector<std::vector<int32_t>>{{0, 4}, {1, 5}, {2}, {3}}));
}

TEST(ExpertMapTest, TakesAMapAsItIs) {
  const PhysicalToLogical wanted{{3, 2, 1, 0, 3, 3}, {0, 0, 0, 1, 2, 3}};
  const auto map =
      make_expert_map({.redundant = 2, .location = json{{"physical_to_logical_map", wanted}}.dump()}, kSizes);
  ASSERT_TRUE(map.ok()) << map.error().message;
  EXPECT_EQ(map->location, wanted);
}

TEST(ExpertMapTest, MakesAMapOfCountsAsTheAlgorithmsDo) {
  const ExpertLoads loads{{10, 0, 0, 2}, {1, 1, 9, 1}};
  const Rebalance to{.physical = 6, .ranks = 2, .nodes = 1, .groups = 2};
  const auto location = [&](const json& counts, const std::string& algorithm) {
    const auto map = make_expert_map(
        {.redundant = 2, .location = json{{"logical_count", counts}}.dump(), .algorithm = algorithm}, kSizes);
    return map.ok() ? map->location : PhysicalToLogical();
  };
  EXPECT_EQ(location(loads, "auto"), *rebalance_hierarchical(loads, to));
  EXPECT_EQ(location(loads, "deepseek_hierarchical"), *rebalance_hierarchical(loads, to));
  EXPECT_EQ(location(loads, "deepseek"), *rebalance_global(loads, to));
  // Of several steps, as SGLang's recorder keeps them.
  const ExpertLoads first{{4, 0, 0, 2}, {0, 1, 0, 1}}, second{{6, 0, 0, 0}, {1, 0, 9, 0}};
  EXPECT_EQ(location(json::array({first, second}), "deepseek"), *rebalance_global(loads, to));
}

TEST(ExpertMapTest, SaysWhatDoesNotFit) {
  const auto message = [](ExpertPlacement placement) {
    const auto map = make_expert_map(placement, kSizes);
    return map.ok() ? std::string() : map.error().message;
  };
  EXPECT_THAT(message({.redundant = 1}), HasSubstr("--ep-num-redundant-experts 1"));
  EXPECT_THAT(message({.redundant = 1}), HasSubstr("the nearest that are: 0, 2"));
  EXPECT_THAT(message({.location = "nonsense"}), HasSubstr("'trivial', a .json file or JSON"));
  EXPECT_THAT(message({.location = "{}"}), HasSubstr("neither physical_to_logical_map nor logical_count"));
  EXPECT_THAT(message({.location = R"({"physical_to_logical_map": [[0,1,2,3]]})"}), HasSubstr("of 1 layers"));
  EXPECT_THAT(message({.location = R"({"physical_to_logical_map": [[0,1,2,3],[0,1,2]]})"}),
              HasSubstr("layer 1 has 3 physical experts, and 4 are wanted"));
  EXPECT_THAT(message({.location = R"({"physical_to_logical_map": [[0,1,2,3],[0,1,2,4]]})"}),
              HasSubstr("layer 1 has expert 4, and the last is 3"));
  EXPECT_THAT(message({.location = R"({"physical_to_logical_map": [[0,1,2,3],[0,1,2,2]]})"}),
              HasSubstr("layer 1 has no copy of expert 3"));
  EXPECT_THAT(message({.location = R"({"physical_to_logical_map": "x"})"}), HasSubstr("--init-expert-location"));
  EXPECT_THAT(message({.location = R"({"logical_count": [[1,2,3]]})"}), HasSubstr("logical_count is of 1 layers"));
  EXPECT_THAT(message({.location = R"({"logical_count": [[1,2,3],[1,2,3]]})"}), HasSubstr("of 3 experts"));
  EXPECT_THAT(message({.location = R"({"logical_count": [[0.4,0.3,0.2,0.1],[1,2,3,4]]})"}),
              HasSubstr("logical_count has 0.4 where a whole number"));
  EXPECT_THAT(message({.location = R"({"physical_to_logical_map": [[4294967296,1,2,3],[0,1,2,3]]})"}),
              HasSubstr("physical_to_logical_map has 4294967296 where a whole number of at most 2147483647"));
  EXPECT_THAT(message({.location = R"({"logical_count": [[1,2,3,-4],[1,2,3,4]]})"}), HasSubstr("less than 0"));
}

TEST(ExpertMapTest, TokensStayAtHomeWhereTheyCanAndSpreadEvenlyElse) {
  // Expert 0 has copies on ranks 0 and 1 of four, expert 1 on rank 2 alone, expert 2 on rank 3 twice.
  const ExpertMap map{.logical = 3, .physical = 8, .location = {{0, 1, 0, 2, 1, 1, 2, 2}}};
  std::map<int32_t, int> of_zero;
  for (int64_t rank = 0; rank < 4; ++rank) {
    const auto chosen = static_copies(map, 0, {rank, 4});
    ASSERT_EQ(chosen.size(), 3u);
    ++of_zero[chosen[0]];
    for (size_t e = 0; e < 3; ++e) {
      EXPECT_EQ(map.location[0][static_cast<size_t>(chosen[e])], static_cast<int32_t>(e));
      const auto copies = map.copies(0)[e];
      const bool has_own = std::ranges::any_of(copies, [&](int32_t copy) { return copy / 2 == rank; });
      if (has_own) {
        EXPECT_EQ(chosen[e] / 2, rank) << "expert " << e;
      }
    }
  }
  EXPECT_EQ(of_zero, (std::map<int32_t, int>{{0, 2}, {2, 2}}));
}

}  // namespace
}  // namespace sluice::moe
