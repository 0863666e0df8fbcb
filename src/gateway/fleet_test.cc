#include "gateway/fleet.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

class FleetTest : public ::testing::Test {
 protected:
  WorkerPtr add(const std::string& url, const std::string& key = "") {
    return fleet_.add(net::parse_url(url).value(), key).first;
  }
  sluice::testing::FakeClock clock_;
  Fleet fleet_{{}, clock_};
};

TEST_F(FleetTest, TheSameAddressIsTheSameWorker) {
  const auto first = fleet_.add(net::parse_url("h:1").value(), "k");
  const auto again = fleet_.add(net::parse_url("http://h:1/").value(), "other");
  EXPECT_TRUE(first.second);
  EXPECT_FALSE(again.second);
  EXPECT_EQ(first.first, again.first);
  EXPECT_EQ(first.first->url, "http://h:1");
  EXPECT_EQ(first.first->api_key(), "k");
}

TEST_F(FleetTest, FindsByIdAndByAddress) {
  const auto worker = add("http://h:1");
  add("http://h:2");
  EXPECT_EQ(fleet_.find(worker->id), worker);
  EXPECT_EQ(fleet_.find("h:1"), worker);
  EXPECT_EQ(fleet_.find("http://h:3"), nullptr);
  EXPECT_EQ(fleet_.find("no url at all"), nullptr);
}

TEST_F(FleetTest, ANewWorkerHasTheIdThatItIsGivenIfItIsAnIdAndFree) {
  const std::string id = "01234567-89ab-4cde-8f01-23456789ABCD";
  int port = 0;
  const auto id_of_next = [&](const std::string& wanted) {
    return fleet_.add(net::parse_url(fmt::format("http://h:{}", ++port)).value(), "", {}, wanted).first->id;
  };
  EXPECT_EQ(id_of_next(id), id);
  EXPECT_NE(id_of_next(id), id) << "it is taken";
  for (const std::string& wrong : {std::string(), id.substr(1), id + "0", "g" + id.substr(1), std::string(36, '0')}) {
    const std::string given = id_of_next(wrong);
    EXPECT_NE(given, wrong);
    EXPECT_EQ(given.size(), id.size());
  }
}

TEST_F(FleetTest, AnAddressCanBeAddedAgainWhileTheOldWorkerDrains) {
  const auto old = add("http://h:1");
  old->draining = true;
  const auto fresh = add("http://h:1");
  EXPECT_NE(fresh, old);
  EXPECT_GT(fresh->number, old->number) << "numbers are never used again";
  EXPECT_EQ(fleet_.find("http://h:1"), fresh);
  EXPECT_EQ(fleet_.find(old->id), old);
  EXPECT_EQ(fleet_.engine_of(*old), WorkerList{old}) << "what is done to the one that leaves is not done to the other";
  EXPECT_EQ(fleet_.engine_of(*fresh), WorkerList{fresh});
  fleet_.erase(*old);
  EXPECT_EQ(fleet_.snapshot()->size(), 1u);
}

TEST_F(FleetTest, TheUrlOfARankFindsTheOneThatStays) {
  const auto two_ranks = [&] { return fleet_.expand(*add("http://h:1"), std::vector<WorkerSeries>(2)); };
  const auto old = two_ranks();
  for (const WorkerPtr& rank : old) rank->draining = true;
  EXPECT_EQ(fleet_.find(old[1]->url), old[1]);
  const auto fresh = two_ranks();
  EXPECT_EQ(fleet_.find(old[1]->url), fresh[1]);
  EXPECT_EQ(fleet_.engine_of(*fresh[0]), WorkerList(fresh.begin(), fresh.end()));
}

TEST_F(FleetTest, RanksThatNobodyHasAreNotKept) {
  const auto nobody = fleet_.roster("", 1'000'000);
  ASSERT_NE(nobody, nullptr);
  EXPECT_TRUE(nobody->workers().empty());
  for (int64_t rank : {-7, 0, 1, 2}) EXPECT_EQ(fleet_.roster("", rank), nobody) << rank;
  const auto ranks = fleet_.expand(*add("http://h:1"), std::vector<WorkerSeries>(2));
  EXPECT_EQ(fleet_.roster("", 1)->workers(), WorkerList{ranks[1]});
  EXPECT_EQ(fleet_.roster("", 1), fleet_.roster("", 1)) << "one that somebody has is";
}

TEST_F(FleetTest, ASnapshotDoesNotChange) {
  add("http://h:1");
  const auto before = fleet_.snapshot();
  const uint64_t version = fleet_.version();
  add("http://h:2");
  EXPECT_EQ(before->size(), 1u);
  EXPECT_EQ(fleet_.snapshot()->size(), 2u);
  EXPECT_NE(fleet_.version(), version);
}

TEST_F(FleetTest, AWorkerIsUsedWhenItIsHealthyNotDrainingAndItsBreakerLetsIt) {
  const auto worker = add("http://h:1");
  EXPECT_FALSE(worker->usable());
  EXPECT_EQ(worker->status(), "pending");
  worker->healthy = worker->proven = true;
  EXPECT_TRUE(worker->usable());
  EXPECT_EQ(worker->status(), "ready");
  worker->healthy = false;
  EXPECT_EQ(worker->status(), "not_ready");
  worker->healthy = true;
  worker->draining = true;
  EXPECT_FALSE(worker->usable());
  EXPECT_EQ(worker->status(), "draining");
  worker->draining = false;
  for (int i = 0; i < 10; ++i) worker->breaker.fault({});
  EXPECT_FALSE(worker->usable());
}

TEST_F(FleetTest, ItsInformationHasAVersion) {
  const auto worker = add("http://h:1");
  const uint32_t before = worker->info_version();
  worker->change_info([](Worker::Info& info) { info.model_id = "m"; });
  EXPECT_NE(worker->info_version(), before);
  EXPECT_EQ(worker->info().model_id, "m");
}

TEST_F(FleetTest, IsReadWhileItChanges) {
  std::thread writer([&] {
    for (int i = 0; i < 200; ++i) {
      const auto worker = add(fmt::format("http://h:{}", 1 + i % 7));
      if (i % 3 == 0) fleet_.erase(*worker);
    }
  });
  for (int i = 0; i < 2000; ++i) {
    uint32_t last = 0;
    const auto list = fleet_.snapshot();
    for (const auto& worker : *list) {
      EXPECT_TRUE(worker == list->front() || worker->number > last) << "ascending numbers";
      last = worker->number;
    }
  }
  writer.join();
}

TEST(UuidTest, IsAVersionFourAndNew) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string uuid = make_uuid();
    ASSERT_EQ(uuid.size(), 36u) << uuid;
    EXPECT_EQ(uuid[14], '4') << uuid;
    EXPECT_NE(std::string("89ab").find(uuid[19]), std::string::npos) << uuid;
    EXPECT_TRUE(seen.insert(uuid).second);
  }
}

}  // namespace
}  // namespace sluice::gateway
