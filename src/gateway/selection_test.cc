#include "gateway/selection.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "gateway/fleet.h"
#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

// Forty workers: more than are looked at one by one.
class SelectionTest : public ::testing::TestWithParam<const char*> {
 protected:
  static constexpr size_t kWorkers = 40;

  SelectionTest() {
    GatewayOptions options = gateway_option_table().defaults();
    options.policy = GetParam();
    policy_ = make_policy(options);
    for (size_t i = 0; i < kWorkers; ++i) add("m");
    clock_.advance(1s);
  }

  WorkerPtr add(const std::string& model) {
    const auto url = net::parse_url(fmt::format("http://w:{}", 1000 + workers_.size())).value();
    const WorkerPtr worker = fleet_.add(url, "").first;
    worker->change_info([&](Worker::Info& info) { info.model_ids = {model}; });
    worker->healthy = true;
    workers_.push_back(worker);
    return worker;
  }
  std::optional<uint32_t> choose(std::span<const uint32_t> tried = {}, std::string_view model = {}) {
    const auto roster = fleet_.roster(model, std::nullopt);
    if (roster == nullptr) return std::nullopt;
    const RequestFacts facts{.prompt_tokens = 100, .now = clock_.now(), .prefix = {}};
    const auto choice = select_worker(*roster, *policy_, facts, tried, nullptr, scratch_, rng_);
    return choice ? choice->worker : std::nullopt;
  }
  // All that come up in many choices.
  std::set<uint32_t> chosen(std::string_view model = {}) {
    std::set<uint32_t> all;
    for (int i = 0; i < 2000; ++i) {
      if (const auto worker = choose({}, model)) all.insert(*worker);
    }
    return all;
  }

  sluice::testing::FakeClock clock_;
  BreakerRules rules_{.failure_threshold = 1, .success_threshold = 1, .open_time = 10s};
  Fleet fleet_{rules_, clock_};
  std::vector<WorkerPtr> workers_;
  std::unique_ptr<Policy> policy_;
  ChoiceScratch scratch_;
  Rng rng_{1};
};

TEST_P(SelectionTest, AWorkerThatIsDownIsNotChosenAndIsAgainWhenItIsUp) {
  EXPECT_EQ(chosen().size(), kWorkers);
  workers_[7]->healthy = false;
  workers_[9]->draining = true;
  auto some = chosen();
  EXPECT_FALSE(some.contains(7) || some.contains(9));
  EXPECT_EQ(some.size(), kWorkers - 2);
  workers_[7]->healthy = true;
  clock_.advance(2ms);
  EXPECT_TRUE(chosen().contains(7));
}

TEST_P(SelectionTest, AWorkerThatAskedToBeLeftAloneIsUntilThen) {
  workers_[3]->busy_until = (clock_.now() + 5s).time_since_epoch().count();
  EXPECT_FALSE(chosen().contains(3));
  clock_.advance(5s);
  EXPECT_TRUE(chosen().contains(3));
}

TEST_P(SelectionTest, WhereAllAreBusyOneOfThemIsAsked) {
  for (const WorkerPtr& worker : workers_) worker->busy_until = (clock_.now() + 5s).time_since_epoch().count();
  EXPECT_TRUE(choose());
  for (const WorkerPtr& worker : workers_) worker->healthy = false;
  EXPECT_FALSE(choose());
}

TEST_P(SelectionTest, ATriedWorkerIsChosenOnlyWhereThereIsNoOther) {
  std::vector<uint32_t> tried;
  for (size_t i = 0; i < kWorkers; ++i) {
    const auto worker = choose(tried);
    ASSERT_TRUE(worker);
    ASSERT_EQ(std::ranges::find(tried, *worker), tried.end());
    tried.push_back(*worker);
  }
  EXPECT_FALSE(any_untried(*fleet_.roster({}, std::nullopt), tried, clock_.now()));
  EXPECT_TRUE(choose(tried));
}

TEST_P(SelectionTest, AnOpenBreakerKeepsItsWorkerOutAndHalfOpenAllowsOneTrial) {
  Breaker::Permit permit;
  ASSERT_TRUE(workers_[5]->breaker.begin(permit));
  workers_[5]->breaker.fault(permit);
  EXPECT_FALSE(chosen().contains(5));
  clock_.advance(10s);
  EXPECT_TRUE(chosen().contains(5));
  ASSERT_TRUE(workers_[5]->breaker.begin(permit));
  EXPECT_FALSE(chosen().contains(5)) << "its trial is under way";
  workers_[5]->breaker.success(permit);
  clock_.advance(2ms);
  EXPECT_TRUE(chosen().contains(5));
}

TEST_P(SelectionTest, EachModelHasItsOwnRosterWhichFollowsTheWorkers) {
  for (size_t i = 0; i < kWorkers; ++i) add("other");
  EXPECT_EQ(chosen().size(), 2 * kWorkers);
  EXPECT_EQ(*chosen("other").begin(), kWorkers);
  EXPECT_EQ(chosen("m").size(), kWorkers);
  EXPECT_FALSE(choose({}, "unknown"));
  workers_[0]->change_info([](Worker::Info& info) { info.model_ids = {"m", "other"}; });
  EXPECT_EQ(*chosen("other").begin(), 0u);
  EXPECT_EQ(chosen("other").size(), kWorkers + 1);
  fleet_.erase(*workers_[0]);
  EXPECT_EQ(chosen("m").size(), kWorkers - 1);
}

TEST_P(SelectionTest, LeasesOutliveTheRosterAndTheWorker) {
  std::vector<WorkerLease> leases;
  for (size_t i = 0; i < 2 * kWorkers; ++i) {
    leases.emplace_back(workers_[*choose()]->load, Work{.prompt_tokens = 100}, clock_);
    if (i % 20 == 0) fleet_.erase(*workers_[i / 20]);
  }
  for (WorkerPtr& worker : workers_) worker.reset();
  leases.clear();
  const auto left = fleet_.roster({}, std::nullopt);
  ASSERT_EQ(left->members().size(), kWorkers - 4);
  EXPECT_EQ(left->members()[left->order()->heaviest()].load->requests, 0);
}

INSTANTIATE_TEST_SUITE_P(Policies, SelectionTest,
                         ::testing::Values("round_robin", "random", "power_of_two", "cache_aware", "min_cost",
                                           "least_load"),
                         [](const auto& info) { return std::string(info.param); });

TEST(WhyNotTest, NamesWhatKeepsARequestAway) {
  sluice::testing::FakeClock clock;
  Fleet fleet({.failure_threshold = 1, .open_time = 10s}, clock);
  const auto worker_at = [&](const char* url) { return fleet.add(net::parse_url(url).value(), "").first; };
  const WorkerPtr worker = worker_at("http://a:1");
  const auto why = [&](std::vector<uint32_t> tried = {}) { return why_not(*worker, tried, clock.now()); };
  EXPECT_EQ(why(), "not_ready");
  worker->healthy = true;
  EXPECT_EQ(why(), "");
  EXPECT_EQ(why({worker->number}), "tried");
  worker->busy_until = (clock.now() + 1s).time_since_epoch().count();
  EXPECT_EQ(why(), "busy");
  worker->busy_until = 0;
  worker->limit.allow(0);
  EXPECT_EQ(why(), "slow_start");
  worker->suspect = true;
  EXPECT_EQ(why(), "suspect");
  worker->suspect = false;
  worker->limit.allow(RequestLimit::kNone);
  worker->load->requests = 2;
  EXPECT_EQ(why(), "");
  worker->limit.busy(clock.now(), clock.now(), /*others=*/4);
  EXPECT_EQ(why(), "busy") << "it may have half of what it had";
  worker->limit.forget_busy();
  Breaker::Permit permit;
  ASSERT_TRUE(worker->breaker.begin(permit));
  worker->breaker.fault(permit);
  EXPECT_EQ(why(), "breaker_open");
  clock.advance(10s);
  EXPECT_EQ(why(), "") << "it can have a trial";
  ASSERT_TRUE(worker->breaker.begin(permit));
  EXPECT_EQ(why(), "breaker_half_open");
  worker->draining = true;
  EXPECT_EQ(why(), "draining");
}

TEST(SelectOfTest, TakesTheLeastLoadedOneThatWasNotTriedAndElseOneThatWas) {
  sluice::testing::FakeClock clock;
  clock.advance(1s);
  Fleet fleet({.failure_threshold = 1, .open_time = 10s}, clock);
  WorkerList workers;
  for (const char* url : {"http://a:1", "http://a:2", "http://a:3"}) {
    workers.push_back(fleet.add(net::parse_url(url).value(), "").first);
    workers.back()->healthy = true;
    workers.back()->load->requests = static_cast<int64_t>(workers.size());
  }
  const std::vector<uint32_t> numbers{workers[0]->number, workers[1]->number, workers[2]->number};
  ChoiceScratch scratch;
  const auto select = [&](const std::vector<uint32_t>& tried) {
    return select_of(workers, tried, clock.now(), scratch);
  };
  EXPECT_EQ(select({}), numbers[0]);
  EXPECT_EQ(select({numbers[0]}), numbers[1]);
  EXPECT_EQ(select(numbers), numbers[0]) << "each was tried, and one may be so again";
  workers[0]->load->busy_until = (clock.now() + 1s).time_since_epoch().count();
  EXPECT_EQ(select({}), numbers[1]);
  EXPECT_EQ(select({numbers[1], numbers[2]}), numbers[0]) << "one that is busy comes before one that was tried";
  workers[0]->healthy = false;
  EXPECT_EQ(select(numbers), numbers[1]);
  for (const WorkerPtr& worker : workers) worker->draining = true;
  EXPECT_EQ(select({}), std::nullopt);
}

TEST(RosterTest, ARankIsADestinationOfItsOwn) {
  const sluice::testing::FakeClock clock;
  Fleet fleet({}, clock);
  for (const char* url : {"http://a:1", "http://b:1"}) {
    const WorkerPtr engine = fleet.add(net::parse_url(url).value(), "").first;
    (void)fleet.expand(*engine, std::vector<WorkerSeries>(2));
  }
  const auto roster = fleet.roster({}, 1);
  ASSERT_EQ(roster->workers().size(), 2u);
  EXPECT_EQ(roster->workers()[0]->url, "http://a:1@1");
  EXPECT_EQ(roster->workers()[1]->url, "http://b:1@1");
  EXPECT_TRUE(fleet.roster({}, 2)->workers().empty());
}

}  // namespace
}  // namespace sluice::gateway
