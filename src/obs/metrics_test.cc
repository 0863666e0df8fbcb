#include "obs/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace sluice::obs {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<Family>& families() {
  static const std::vector<Family> list = {
      {.name = "requests_total", .help = "Requests.", .kind = Kind::kCounter, .labels = {"worker", "code"}},
      {.name = "in_flight", .help = "Now.", .kind = Kind::kGauge, .labels = {"worker"}},
      {.name = "seconds", .help = "Time.", .kind = Kind::kHistogram, .labels = {}, .buckets = {0.1, 1, 2.5}},
      {.name = "unused", .help = "No series.", .kind = Kind::kGauge},
  };
  return list;
}

class MetricsTest : public ::testing::Test {
 protected:
  MetricsTest() { metrics_.declare(families()); }
  Metrics metrics_;
};

TEST_F(MetricsTest, HandlesOfOneLabelSetShareTheSeries) {
  metrics_.counter("requests_total", {"a", "200"}).add();
  metrics_.counter("requests_total", {"a", "200"}).add(2);
  metrics_.counter("requests_total", {"a", "500"}).add();
  const auto text = metrics_.render();
  EXPECT_THAT(text, HasSubstr("# HELP requests_total Requests.\n# TYPE requests_total counter\n"));
  EXPECT_THAT(text, HasSubstr("requests_total{worker=\"a\",code=\"200\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("requests_total{worker=\"a\",code=\"500\"} 1\n"));
}

TEST_F(MetricsTest, HistogramBucketsAreCumulativeAndBoundsInclusive) {
  auto seconds = metrics_.histogram("seconds");
  for (double value : {0.05, 0.1, 0.5, 2.5, 9.0}) seconds.observe(value);
  seconds.observe(1.0, 3);
  EXPECT_EQ(seconds.count(), 8u);
  const auto text = metrics_.render();
  EXPECT_THAT(text, HasSubstr("# TYPE seconds histogram\n"));
  EXPECT_THAT(text, HasSubstr("seconds_bucket{le=\"0.1\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("seconds_bucket{le=\"1\"} 6\n"));
  EXPECT_THAT(text, HasSubstr("seconds_bucket{le=\"2.5\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("seconds_bucket{le=\"+Inf\"} 8\n"));
  EXPECT_THAT(text, HasSubstr("seconds_count 8\n"));
}

TEST_F(MetricsTest, FamiliesWithoutSeriesAreLeftOut) { EXPECT_EQ(metrics_.render(), ""); }

TEST_F(MetricsTest, SeriesOfAWorkerThatLeavesAreRemovedFromEveryFamily) {
  auto counter = metrics_.counter("requests_total", {"a", "200"});
  metrics_.gauge("in_flight", {"a"}).set(4);
  metrics_.gauge("in_flight", {"b"}).set(5);
  metrics_.remove_series("worker", "a");
  counter.add();  // a late event of the old worker
  EXPECT_THAT(metrics_.render(), Not(HasSubstr("\"a\"")));
  EXPECT_THAT(metrics_.render(), HasSubstr("in_flight{worker=\"b\"} 5\n"));
  EXPECT_EQ(metrics_.counter("requests_total", {"a", "200"}).value(), 0) << "a worker that comes back starts at zero";
}

TEST_F(MetricsTest, EscapesLabelValues) {
  metrics_.gauge("in_flight", {"a\"b\\c\nd"}).set(1);
  EXPECT_THAT(metrics_.render(), HasSubstr("in_flight{worker=\"a\\\"b\\\\c\\nd\"} 1\n"));
}

TEST_F(MetricsTest, RefreshersRunBeforeEachRenderingUntilDropped) {
  int runs = 0;
  auto gauge = metrics_.gauge("in_flight", {"a"});
  auto refresher = metrics_.before_render([&] { gauge.set(++runs); });
  EXPECT_THAT(metrics_.render(), HasSubstr("in_flight{worker=\"a\"} 1\n"));
  EXPECT_THAT(metrics_.render(), HasSubstr("in_flight{worker=\"a\"} 2\n"));
  refresher.reset();
  metrics_.render();
  EXPECT_EQ(runs, 2);
}

TEST_F(MetricsTest, ASetThatIsShownAnewIsNeverSeenHalfDone) {
  auto refresher = metrics_.before_render([&] {
    metrics_.clear("in_flight");
    for (const char* worker : {"a", "b", "c"}) metrics_.gauge("in_flight", {worker}).set(1);
  });
  metrics_.gauge("in_flight", {"gone"}).set(1);
  const std::string whole = metrics_.render();
  EXPECT_THAT(whole, Not(HasSubstr("gone")));
  std::vector<std::thread> readers;
  for (int i = 0; i < 4; ++i) {
    readers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) EXPECT_EQ(metrics_.render(), whole);
    });
  }
  for (auto& reader : readers) reader.join();
}

TEST_F(MetricsTest, CountsFromManyThreadsAreNotLost) {
  auto counter = metrics_.counter("requests_total", {"a", "200"});
  auto seconds = metrics_.histogram("seconds");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, counter, seconds]() mutable {
      for (int i = 0; i < 5000; ++i) {
        counter.add();
        seconds.observe(0.5);
        if (i % 1000 == 0) metrics_.render();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(counter.value(), 20'000);
  EXPECT_EQ(seconds.count(), 20'000u);
  EXPECT_EQ(seconds.sum(), 10'000);
}

TEST(MetricsDeathTest, UsingAFamilyThatWasNotDeclaredIsABrokenInvariant) {
  Metrics metrics;
  EXPECT_DEATH(metrics.counter("nothing"), "not declared");
}

}  // namespace
}  // namespace sluice::obs
