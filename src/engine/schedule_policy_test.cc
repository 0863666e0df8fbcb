#include "engine/schedule_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <numeric>
#include <set>
#include <string>

#include "base/rng.h"
#include "engine/options.h"

namespace sluice::engine {
namespace {

std::vector<size_t> order_of(std::string_view policy, std::vector<WaitingRequest> waiting,
                             std::map<std::string_view, int64_t> running = {}, uint64_t round = 0) {
  return find_schedule_policy(policy)->order(
      {.waiting = waiting, .running_per_key = std::move(running), .round = round});
}

// ---- what every policy must do; each row of the table is held to it without being named

class SchedulePolicyConformance : public testing::TestWithParam<SchedulePolicy> {
 protected:
  std::vector<WaitingRequest> draw_queue() {
    std::vector<WaitingRequest> waiting(rng_.below(40));
    for (auto& r : waiting) {
      r.max_new_tokens = static_cast<int64_t>(rng_.below(4));
      r.urgency = GetParam().by_priority ? static_cast<int64_t>(rng_.below(3)) : 0;
      r.routing_key = kKeys[rng_.below(kKeys.size())];
      // Paths in a tree: node n is below node n / 2.
      for (size_t node = rng_.below(kNodes.size()); node > 0; node /= 2) r.path.insert(r.path.begin(), &kNodes[node]);
      r.cached_tokens = static_cast<int64_t>(r.path.size());
    }
    return waiting;
  }

  static constexpr std::array<std::string_view, 4> kKeys{"", "a", "b", "c"};
  static constexpr std::array<int, 32> kNodes{};
  Rng rng_{/*seed=*/9};
};

TEST_P(SchedulePolicyConformance, NamesEachRequestOnceAndTheSameWayTwice) {
  for (int round = 0; round < 500; ++round) {
    const auto waiting = draw_queue();
    const QueueView queue{.waiting = waiting, .running_per_key = {{"a", 2}, {"b", 1}}, .round = rng_.next()};
    const auto order = GetParam().order(queue);
    ASSERT_EQ(order.size(), waiting.size());
    ASSERT_EQ(std::set<size_t>(order.begin(), order.end()).size(), waiting.size());
    ASSERT_TRUE(std::ranges::all_of(order, [&](size_t i) { return i < waiting.size(); }));
    ASSERT_EQ(GetParam().order(queue), order);
  }
}

// The more urgent before the less urgent where priorities are heeded.
TEST_P(SchedulePolicyConformance, HeedsUrgencyIfItSaysSo) {
  if (!GetParam().by_priority) return;  // not used with priority scheduling
  for (int round = 0; round < 500; ++round) {
    const auto waiting = draw_queue();
    const auto order = GetParam().order({.waiting = waiting});
    ASSERT_TRUE(std::ranges::is_sorted(order, std::greater(), [&](size_t i) { return waiting[i].urgency; }));
  }
}

TEST_P(SchedulePolicyConformance, IsAChoiceOfTheOption) {
  const auto parsed = engine_option_table().parse(
      std::vector<std::string>{"--model-path=m", fmt::format("--schedule-policy={}", GetParam().name)}, true);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->schedule_policy, GetParam().name);
}

INSTANTIATE_TEST_SUITE_P(All, SchedulePolicyConformance, testing::ValuesIn(schedule_policies()), [](const auto& info) {
  std::string name(info.param.name);
  std::erase(name, '-');
  return name;
});

// ---- each by itself

TEST(SchedulePolicyTest, FcfsGoesByArrivalAndPriorityBeforeThat) {
  EXPECT_EQ(order_of("fcfs", {{}, {}, {}}), (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(order_of("fcfs", {{.urgency = 1}, {.urgency = 5}, {.urgency = 5}}), (std::vector<size_t>{1, 2, 0}));
}

TEST(SchedulePolicyTest, LofTakesTheLongestOutputFirst) {
  EXPECT_EQ(order_of("lof", {{.max_new_tokens = 5}, {.max_new_tokens = 9}, {.max_new_tokens = 5}}),
            (std::vector<size_t>{1, 0, 2}));
  EXPECT_EQ(order_of("lof", {{.max_new_tokens = 9}, {.max_new_tokens = 5, .urgency = 1}}), (std::vector<size_t>{1, 0}));
}

TEST(SchedulePolicyTest, LpmTakesTheLongestCachedPrefixFirst) {
  EXPECT_EQ(order_of("lpm", {{.cached_tokens = 3}, {.cached_tokens = 8}, {}}), (std::vector<size_t>{1, 0, 2}));
}

//      root ── A ── A1      Waiting: 0 at A1, 1 at B, 2 and 3 at B1, 4 at A, 5 nowhere.
//           └─ B ── B1
TEST(SchedulePolicyTest, DfsWeightStaysInTheHeaviestSubtree) {
  const std::array<int, 4> nodes{};
  const void *a = &nodes[0], *a1 = &nodes[1], *b = &nodes[2], *b1 = &nodes[3];
  EXPECT_EQ(
      order_of("dfs-weight",
               {{.path = {a, a1}}, {.path = {b}}, {.path = {b, b1}}, {.path = {b, b1}}, {.path = {a}}, {.path = {}}}),
      (std::vector<size_t>{2, 3, 1, 0, 4, 5}));
}

TEST(SchedulePolicyTest, DfsWeightWalksAChainOfAHundredThousandNodes) {
  const std::vector<int> nodes(100'000);
  WaitingRequest deep;
  for (const int& node : nodes) deep.path.push_back(&node);
  EXPECT_EQ(order_of("dfs-weight", {{}, deep}), (std::vector<size_t>{1, 0}));
}

TEST(SchedulePolicyTest, RandomPutsEveryRequestFirstAlike) {
  std::array<int, 5> first{};
  for (uint64_t round = 0; round < 10'000; ++round) ++first[order_of("random", {{}, {}, {}, {}, {}}, {}, round)[0]];
  for (const int n : first) EXPECT_NEAR(n, 2000, 5 * 40);  // five standard deviations
}

TEST(SchedulePolicyTest, RoutingKeyTakesKeysThatRunFirstAndTheMostFrequentOfThem) {
  const std::vector<WaitingRequest> waiting{{.routing_key = "new"}, {}, {.routing_key = "one"}, {.routing_key = "two"}};
  EXPECT_EQ(order_of("routing-key", waiting, {{"one", 1}, {"two", 2}}), (std::vector<size_t>{3, 2, 0, 1}));
  EXPECT_EQ(order_of("routing-key", waiting), (std::vector<size_t>{0, 1, 2, 3}));
}

}  // namespace
}  // namespace sluice::engine
