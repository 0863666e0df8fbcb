#include "gateway/load.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace sluice::gateway {
namespace {

TEST(WorkerLeaseTest, TakesAndGivesBackWhatItClaims) {
  const auto load = std::make_shared<WorkerLoad>();
  {
    const WorkerLease lease(load, 100);
    EXPECT_EQ(load->requests, 1);
    EXPECT_EQ(load->tokens, 100);
    EXPECT_EQ(load->dispatched_since_poll, 100);
  }
  EXPECT_EQ(load->requests, 0);
  EXPECT_EQ(load->tokens, 0);
  EXPECT_EQ(load->dispatched_since_poll, 100) << "the engine has got them";
}

TEST(WorkerLeaseTest, ProgressLowersTheWorkLeftAndStopsAtZero) {
  const auto load = std::make_shared<WorkerLoad>();
  {
    WorkerLease lease(load, 100);
    lease.progress(60);
    EXPECT_EQ(load->tokens, 40);
    lease.progress(60);
    EXPECT_EQ(load->tokens, 0);
  }
  EXPECT_EQ(load->tokens, 0);
}

TEST(WorkerLeaseTest, MovingGivesNothingBack) {
  const auto load = std::make_shared<WorkerLoad>(), other = std::make_shared<WorkerLoad>();
  WorkerLease first(load, 5);
  WorkerLease second = std::move(first);
  EXPECT_EQ(load->requests, 1);
  {
    WorkerLease third(other, 7);
    third = std::move(second);
    EXPECT_EQ(load->requests, 1);
  }
  EXPECT_EQ(load->requests, 0);
  EXPECT_EQ(load->tokens, 0);
}

TEST(WorkerLeaseTest, AssignmentReleasesWhatWasHeldOnceTheOtherGoes) {
  const auto load = std::make_shared<WorkerLoad>(), other = std::make_shared<WorkerLoad>();
  {
    WorkerLease lease(load, 5);
    lease = WorkerLease(other, 7);
    EXPECT_EQ(load->requests, 0);
    EXPECT_EQ(other->tokens, 7);
  }
  EXPECT_EQ(other->requests, 0);
}

TEST(WorkerLeaseTest, OutlivesTheWorker) {
  auto load = std::make_shared<WorkerLoad>();
  const WorkerLease lease(load, 5);
  const std::weak_ptr<WorkerLoad> watched = load;
  load.reset();
  EXPECT_FALSE(watched.expired());
}

TEST(WorkerLeaseTest, CountsFromManyThreads) {
  const auto load = std::make_shared<WorkerLoad>();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) {
        WorkerLease lease(load, i % 50);
        lease.progress(i % 70);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(load->requests, 0);
  EXPECT_EQ(load->tokens, 0);
}

}  // namespace
}  // namespace sluice::gateway
