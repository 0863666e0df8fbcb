#include "kernels/thread_pool.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <string>

namespace sluice::kernels {
namespace {

namespace fs = std::filesystem;

TEST(ThreadPoolTest, DoesEachPieceOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.size(), threads);
    for (const int64_t count : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> done(static_cast<size_t>(count));
      pool.parallel_for(count, [&](int64_t i, int thread) {
        ASSERT_TRUE(thread >= 0 && thread < threads);
        ++done[static_cast<size_t>(i)];
      });
      for (const auto& times : done) EXPECT_EQ(times, 1);
    }
  }
}

TEST(ThreadPoolTest, AThreadNumberIsNeverUsedByTwoThreadsAtOnce) {
  ThreadPool pool(4);
  std::vector<std::atomic<bool>> busy(4);
  std::atomic<int> clashes{0};
  for (int round = 0; round < 200; ++round) {
    pool.parallel_for(64, [&](int64_t, int thread) {
      auto& mine = busy[static_cast<size_t>(thread)];
      if (mine.exchange(true)) ++clashes;
      mine = false;
    });
  }
  EXPECT_EQ(clashes, 0);
}

TEST(ThreadPoolTest, ReturnsOnlyWhenEverythingIsWrittenAndVisible) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64);  // plain memory: a missing barrier is a race that ThreadSanitizer sees
  for (int64_t round = 1; round <= 5'000; ++round) {
    pool.parallel_for(64, [&](int64_t i, int) { values[static_cast<size_t>(i)] += i; });
    ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), round * (63 * 64 / 2));
  }
}

std::set<std::string> thread_ids() {
  std::set<std::string> ids;
  for (const auto& entry : fs::directory_iterator("/proc/self/task")) ids.insert(entry.path().filename());
  return ids;
}

// R while it runs or spins, S while it sleeps.
char state_of(const std::string& id) {
  std::ifstream file("/proc/self/task/" + id + "/stat");
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');
  return name_end == std::string::npos || name_end + 2 >= text.size() ? '?' : text[name_end + 2];
}

// CPU time that a thread has used, in the scheduler's nanoseconds.
uint64_t cpu_time_of(const std::string& id) {
  uint64_t nanos = 0;
  std::ifstream("/proc/self/task/" + id + "/schedstat") >> nanos;
  return nanos;
}

TEST(ThreadPoolTest, IdleWorkersSleepAndWakeForTheNextJob) {
  const auto before = thread_ids();
  ThreadPool pool(3);
  std::vector<std::string> workers;
  for (const auto& id : thread_ids()) {
    if (!before.contains(id)) workers.push_back(id);
  }
  ASSERT_EQ(workers.size(), 2u);
  for (int round = 0; round < 3; ++round) {
    std::atomic<int> done{0};
    pool.parallel_for(100, [&](int64_t, int) { ++done; });
    EXPECT_EQ(done, 100);
    for (const auto& id : workers) {
      // A worker that kept spinning would never be seen asleep with its CPU time standing still; then ctest's time-out
      // names this test.
      uint64_t used = 0, used_later = 1;
      while (used != used_later) {
        used = cpu_time_of(id);
        while (state_of(id) != 'S') std::this_thread::yield();
        used_later = cpu_time_of(id);
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels
