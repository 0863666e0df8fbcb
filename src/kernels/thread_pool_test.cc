#include "kernels/thread_pool.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

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

TEST(ThreadPoolTest, RunsAreDividedAtMultiplesOfTheGrainAndWhereRunsMeet) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 9, 18, 1000}) {
      for (const int64_t grain : {1, 2, 7}) {
        SCOPED_TRACE(fmt::format("{} threads, {} by {}", threads, count, grain));
        std::set<int64_t> ends{0};  // where runs meet
        for (int64_t i = 1; i <= threads; ++i) ends.insert(count * i / threads);
        std::vector<std::atomic<int>> done(static_cast<size_t>(count));
        std::atomic<int> odd{0};
        pool.parallel_runs(count, grain, [&](int64_t begin, int64_t end, int thread) {
          ASSERT_TRUE(thread >= 0 && thread < threads && begin < end && end - begin <= grain);
          if (begin % grain != 0 && !ends.contains(begin)) ++odd;
          if (end % grain != 0 && !ends.contains(end)) ++odd;
          for (int64_t i = begin; i < end; ++i) ++done[static_cast<size_t>(i)];
        });
        for (const auto& times : done) EXPECT_EQ(times, 1);
        EXPECT_EQ(odd, 0);
      }
    }
  }
}

TEST(ThreadPoolTest, ARunIsGoneThroughInOrderAndTakenFromAtItsEnd) {
  ThreadPool pool(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<int64_t> own[2], others[2];  // begins of ranges by the thread that did them
    pool.parallel_runs(100, 3, [&](int64_t begin, int64_t, int thread) {
      (begin / 50 == thread ? own : others)[thread].push_back(begin);
      EXPECT_TRUE(begin / 50 != thread || others[thread].empty()) << "its own run first";
    });
    for (int thread = 0; thread < 2; ++thread) {
      EXPECT_TRUE(std::is_sorted(own[thread].begin(), own[thread].end()));
      EXPECT_TRUE(std::is_sorted(others[thread].rbegin(), others[thread].rend()));
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

// Once with workers in the job, once with some that may come while its caller leaves it.
TEST(ThreadPoolTest, WhatACallerThrowsReachesItWhenNoPieceRunsAndNoneIsBegunLater) {
  ThreadPool pool(3);
  for (int round = 0; round < 200; ++round) {
    const bool in_runs = round % 2 == 0, beside_another = round % 4 < 2;
    std::atomic<int> others{0}, late{0};
    std::atomic<bool> thrown{false}, left{false};
    const auto body = [&](int thread) {
      if (thread == 0) {
        while (beside_another && others == 0) std::this_thread::yield();
        thrown = true;
        throw std::runtime_error("no memory");
      }
      ++others;
      while (!thrown) std::this_thread::yield();
      for (int i = 0; i < 100; ++i) std::this_thread::yield();  // a caller that does not wait is gone by then
      if (left) ++late;
    };
    try {
      if (in_runs) {
        pool.parallel_runs(1'000, 7, [&](int64_t, int64_t, int thread) { body(thread); });
      } else {
        pool.parallel_for(1'000, [&](int64_t, int thread) { body(thread); });
      }
      ADD_FAILURE() << "nothing thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "no memory");
    }
    left = true;
    const int begun = others;
    for (int i = 0; i < 100; ++i) std::this_thread::yield();
    ASSERT_EQ(others, begun) << "begun after its caller had left, round " << round;
    ASSERT_EQ(late, 0) << "round " << round;

    std::vector<std::atomic<int>> done(100);
    pool.parallel_for(100, [&](int64_t i, int) { ++done[static_cast<size_t>(i)]; });
    for (const auto& times : done) ASSERT_EQ(times, 1);
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

std::atomic<bool> held{false}, hold{false};
void stay_in_handler(int) {
  held = true;
  while (hold) ::sched_yield();
}

// As one whose core has something else to do.
TEST(ThreadPoolTest, AWorkerThatDoesNotComeIsNotWaitedFor) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer keeps signals from a thread that sleeps on a futex";
#endif
  const auto before = thread_ids();
  ThreadPool pool(2);
  std::string worker;
  for (const auto& id : thread_ids()) {
    if (!before.contains(id)) worker = id;
  }
  hold = true;
  std::signal(SIGUSR1, stay_in_handler);
  ASSERT_EQ(::syscall(SYS_tgkill, ::getpid(), std::stoi(worker), SIGUSR1), 0);
  while (!held) std::this_thread::yield();
  int done = 0;
  for (int job = 0; job < 10; ++job) {
    pool.parallel_for(100, [&](int64_t, int thread) { done += thread == 0 ? 1 : 0; });
    pool.parallel_runs(100, 1, [&](int64_t, int64_t, int thread) { done += thread == 0 ? 1 : 0; });
  }
  EXPECT_EQ(done, 2000) << "all by the caller";
  hold = false;
  // And it comes again, if it is needed: nobody else is number 1.
  std::atomic<bool> came{false};
  while (!came) {
    pool.parallel_for(2, [&](int64_t, int thread) {
      if (thread == 1) came = true;
      if (thread == 0) std::this_thread::yield();
    });
  }
  std::signal(SIGUSR1, SIG_DFL);
}

}  // namespace
}  // namespace sluice::kernels
