#include "obs/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(JournalTest, LatestLooksForThoseThatMatch) {
  Journal journal(1000);
  for (int i = 0; i < 50; ++i) {
    journal.add(record(i));
    auto other = record(1000 + i);
    other.status = 503;
    journal.add(other);
  }
  const auto failed = journal.latest(2, [](const RequestRecord& r) { return r.status == 503; });
  ASSERT_EQ(failed.size(), 2u);
  EXPECT_EQ(failed[0].id, "req-1049");
  EXPECT_EQ(failed[1].id, "req-1048");
}

TEST(JournalTest, EachSeesAllOfThem) {
  Journal journal(1000);
  for (int i = 0; i < 50; ++i) journal.add(record(i));
  int64_t sum = 0;
  journal.each([&](const RequestRecord& r) { sum += r.started_unix_nanos; });
  EXPECT_EQ(sum, 49 * 50 / 2);
}

TEST(RequestRecordTest, FindsAPhaseByName) {
  auto r = record(1);
  r.phases = {{"chosen", std::chrono::milliseconds(2)}, {"first_byte", std::chrono::milliseconds(250)}};
  EXPECT_EQ(r.phase_at("first_byte"), std::chrono::milliseconds(250));
  EXPECT_FALSE(r.phase_at("finished"));
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
