#include "gateway/load_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "gateway/load.h"
#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

class LoadOrderTest : public ::testing::Test {
 protected:
  void make(std::initializer_list<int64_t> requests) {
    for (const int64_t count : requests) add(count);
  }
  void add(int64_t requests) {
    loads_.push_back(std::make_shared<WorkerLoad>());
    loads_.back()->requests = requests;
    members_.push_back({static_cast<uint32_t>(members_.size()), loads_.back().get()});
  }
  void change(size_t place, int64_t by) {
    loads_[place]->requests += by;
    loads_[place]->seats.moved();
  }
  // All in the row, in its order.
  std::vector<uint32_t> row(LoadOrder& order) {
    std::vector<uint32_t> places(members_.size());
    places.resize(order.lightest(places, rng_));
    return places;
  }
  std::vector<int64_t> requests_along(LoadOrder& order) {
    std::vector<int64_t> requests;
    for (const uint32_t place : row(order)) requests.push_back(loads_[place]->requests);
    return requests;
  }

  std::deque<std::shared_ptr<WorkerLoad>> loads_;
  std::vector<Candidate> members_;
  Rng rng_{1};
};

TEST_F(LoadOrderTest, TheLightestComeFirstAndTheHeaviestLast) {
  make({3, 0, 7, 0, 3});
  LoadOrder order(members_);
  EXPECT_EQ(requests_along(order), (std::vector<int64_t>{0, 0, 3, 3, 7}));
  EXPECT_EQ(order.heaviest(), 2u);
}

TEST_F(LoadOrderTest, NobodyIsToldOfLeasesUntilSomebodyAsksForTheOrder) {
  make({3, 0, 7});
  LoadOrder order(members_);
  (void)order.any(rng_);
  order.take_out(0);
  change(1, 9);
  EXPECT_FALSE(order.follows());
  EXPECT_EQ(order.heaviest(), 1u) << "what had changed by then counts";
  EXPECT_TRUE(order.follows());
  order.put_back(0);
  EXPECT_EQ(requests_along(order), (std::vector<int64_t>{3, 7, 9}));
}

TEST_F(LoadOrderTest, ALeaseMovesItsWorkerForAsLongAsItLives) {
  make({1, 1, 1});
  LoadOrder order(members_);
  const sluice::testing::FakeClock clock;
  EXPECT_EQ(requests_along(order), (std::vector<int64_t>{1, 1, 1}));
  std::optional<WorkerLease> lease(std::in_place, loads_[1], Work{.prompt_tokens = 1}, clock);
  EXPECT_EQ(order.heaviest(), 1u);
  lease.reset();
  EXPECT_EQ(requests_along(order), (std::vector<int64_t>{1, 1, 1}));
  lease.emplace(loads_[2], Work{.prompt_tokens = 1}, clock);
  order.detach();
  lease.reset();  // the order knows nothing of it
  EXPECT_EQ(order.heaviest(), 2u);
}

TEST_F(LoadOrderTest, EqualOnesAreDrawnEquallyOften) {
  make({0, 5, 0, 0, 0});
  LoadOrder order(members_);
  std::map<uint32_t, int> drawn;
  for (int i = 0; i < 40'000; ++i) {
    std::array<uint32_t, 2> two;
    ASSERT_EQ(order.lightest(two, rng_), 2u);
    ASSERT_NE(two[0], two[1]);
    for (const uint32_t place : two) ++drawn[place];
  }
  EXPECT_EQ(drawn.size(), 4u);
  for (const auto& [place, count] : drawn) EXPECT_NEAR(count, 20'000, 600) << place;
}

TEST_F(LoadOrderTest, WhoIsOutsideIsNotInTheRowAndKeepsItsCount) {
  make({0, 1, 2, 3});
  LoadOrder order(members_);
  order.take_out(0);
  order.take_out(3);
  order.take_out(3);
  EXPECT_EQ(requests_along(order), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(order.heaviest(), 2u);
  change(0, 9);
  std::array<uint32_t, 4> outside;
  EXPECT_EQ(order.some_outside(outside), 2u);
  order.put_back(0);
  order.put_back(0);
  EXPECT_EQ(order.heaviest(), 0u);
  EXPECT_EQ(requests_along(order), (std::vector<int64_t>{1, 2, 9}));
  order.take_out(0);
  order.take_out(1);
  order.take_out(2);
  EXPECT_EQ(order.size(), 0u);
  EXPECT_EQ(order.any(rng_), LoadOrder::kNobody);
  EXPECT_EQ(order.heaviest(), LoadOrder::kNobody);
}

// Against the slow, obvious twin: a list that is sorted each time.
TEST_F(LoadOrderTest, IsTheSortedListAfterAnyChanges) {
  for (int i = 0; i < 20; ++i) add(static_cast<int64_t>(rng_.below(4)));
  LoadOrder order(members_);
  std::set<uint32_t> outside;
  for (int step = 0; step < 20'000; ++step) {
    const auto place = static_cast<uint32_t>(rng_.below(members_.size()));
    switch (rng_.below(8)) {
      case 0:
        order.take_out(place);
        outside.insert(place);
        break;
      case 1:
        order.put_back(place);
        outside.erase(place);
        break;
      default:
        change(place,
               loads_[place]->requests == 0 || rng_.below(2) == 0 ? 1 + static_cast<int64_t>(rng_.below(2)) : -1);
    }
    if (step < 500) continue;  // nobody has asked for the order yet
    std::vector<int64_t> sorted;
    std::set<uint32_t> inside;
    for (uint32_t i = 0; i < members_.size(); ++i) {
      if (outside.contains(i)) continue;
      inside.insert(i);
      sorted.push_back(loads_[i]->requests);
    }
    std::ranges::sort(sorted);
    ASSERT_EQ(requests_along(order), sorted);
    const auto places = row(order);
    ASSERT_EQ(std::set<uint32_t>(places.begin(), places.end()), inside);
    if (sorted.empty()) continue;
    ASSERT_EQ(loads_[order.heaviest()]->requests, sorted.back());
  }
}

TEST_F(LoadOrderTest, LeasesOfSeveralThreadsLeaveItRight) {
  for (int i = 0; i < 40; ++i) add(0);
  const sluice::testing::FakeClock clock;
  LoadOrder order(members_);
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    threads.emplace_back([&, seed] {
      Rng rng(seed);
      std::deque<WorkerLease> leases;
      for (int i = 0; i < 3000; ++i) {
        std::array<uint32_t, 3> places;
        (void)order.lightest(places, rng);
        leases.emplace_back(loads_[places[rng.below(3)]], Work{.prompt_tokens = 1}, clock);
        if (leases.size() > 20) leases.pop_front();
        const uint32_t place = order.any(rng);
        if (rng.below(50) == 0) order.take_out(place);
        std::array<uint32_t, 2> back;
        const size_t count = order.some_outside(back);
        for (size_t j = 0; j < count; ++j) order.put_back(back[j]);
        // An order of another fleet version lives beside it for a while.
        if (i % 500 == 0) (void)LoadOrder(members_).heaviest();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  std::array<uint32_t, 40> outside;
  const size_t count = order.some_outside(outside);
  for (size_t i = 0; i < count; ++i) order.put_back(outside[i]);
  EXPECT_EQ(requests_along(order), std::vector<int64_t>(40));
}

}  // namespace
}  // namespace sluice::gateway
