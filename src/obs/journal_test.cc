#include "obs/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

namespace sluice::obs {
namespace {

RequestRecord record(int number) {
  RequestRecord out;
  out.id = fmt::format("req-{}", number);
  out.started_unix_nanos = number;
  return out;
}

TEST(JournalTest, FindsARecordById) {
  Journal journal(100);
  for (int i = 0; i < 5; ++i) journal.add(record(i));
  EXPECT_EQ(journal.find("req-3")->started_unix_nanos, 3);
  EXPECT_FALSE(journal.find("req-9"));
}

TEST(JournalTest, TheNewestOfTwoWithOneIdIsFound) {
  Journal journal(100);
  auto first = record(1);
  auto second = record(1);
  second.status = 200;
  journal.add(first);
  journal.add(second);
  EXPECT_EQ(journal.find("req-1")->status, 200);
}

TEST(JournalTest, HoldsABoundedNumberOfTheNewest) {
  Journal journal(160);
  for (int i = 0; i < 10'000; ++i) journal.add(record(i));
  const auto all = journal.latest(100'000);
  EXPECT_EQ(all.size(), 160u);
  EXPECT_FALSE(journal.find("req-1"));
  EXPECT_TRUE(journal.find("req-9999"));
}

TEST(JournalTest, LatestIsOrderedNewestFirst) {
  Journal journal(1000);
  for (int i = 0; i < 50; ++i) journal.add(record((i * 37) % 50));
  const auto latest = journal.latest(3);
  ASSERT_EQ(latest.size(), 3u);
  EXPECT_EQ(latest[0].id, "req-49");
  EXPECT_EQ(latest[2].id, "req-47");
}

TEST(JournalTest, JsonCarriesPhaseTimesInSeconds) {
  auto r = record(1'500'000'000);
  r.route = "/generate";
  r.worker = "broken \xff utf-8";
  r.phases = {{"chosen", std::chrono::milliseconds(2)}, {"first_byte", std::chrono::milliseconds(250)}};
  const auto fields = nlohmann::json::parse(r.to_json());
  EXPECT_EQ(fields["phases"]["first_byte"], 0.25);
  EXPECT_EQ(fields["started"], 1.5);
  EXPECT_EQ(fields["route"], "/generate");
}

TEST(JournalTest, ThreadsMayAddAndReadAtOnce) {
  Journal journal(64);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&journal, t] {
      for (int i = 0; i < 2000; ++i) {
        journal.add(record(t * 10'000 + i));
        if (i % 100 == 0) journal.latest(10);
        journal.find("req-5");
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(journal.latest(1000).size(), 64u);
}

}  // namespace
}  // namespace sluice::obs
