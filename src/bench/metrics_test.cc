#include "bench/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice::bench {
namespace {

using namespace std::chrono_literals;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Pair;

// Sent when due at `due`, first text after `ttft`, tokens `gaps` apart, end after `latency`.
Outcome answered(Duration due, Duration ttft, std::vector<float> gaps, Duration latency, int64_t prompt_len) {
  Outcome outcome;
  outcome.due = outcome.sent = due;
  outcome.ttft = ttft;
  outcome.output_len = static_cast<int64_t>(gaps.size()) + 1;
  outcome.itl = std::move(gaps);
  outcome.latency = latency;
  outcome.streamed = true;
  outcome.prompt_len = prompt_len;
  outcome.prompt_len_reported = true;
  return outcome;
}

Outcome failed(std::string error) {
  Outcome outcome;
  outcome.error = std::move(error);
  return outcome;
}

TEST(SpreadTest, MatchesHandComputedValues) {
  // numpy: percentile([1,2,3,4], [50,90,95,99]) = 2.5, 3.7, 3.85, 3.97; std = sqrt(1.25)
  const auto spread = spread_of({0.004, 0.001, 0.003, 0.002});
  ASSERT_TRUE(spread);
  EXPECT_EQ(spread->count, 4u);
  EXPECT_DOUBLE_EQ(spread->mean, 2.5);
  EXPECT_DOUBLE_EQ(spread->median, 2.5);
  EXPECT_THAT(spread->std, DoubleNear(1.118033988749895, 1e-9));
  EXPECT_THAT(spread->p90, DoubleNear(3.7, 1e-9));
  EXPECT_THAT(spread->p95, DoubleNear(3.85, 1e-9));
  EXPECT_THAT(spread->p99, DoubleNear(3.97, 1e-9));
  EXPECT_DOUBLE_EQ(spread->max, 4);
}

TEST(SpreadTest, OfOneSampleIsThatSample) {
  const auto spread = spread_of({0.25});
  ASSERT_TRUE(spread);
  EXPECT_DOUBLE_EQ(spread->median, 250);
  EXPECT_DOUBLE_EQ(spread->p99, 250);
  EXPECT_DOUBLE_EQ(spread->std, 0);
}

TEST(SpreadTest, OfNothingIsNothing) { EXPECT_FALSE(spread_of({})); }

TEST(SummaryTest, MatchesHandComputedValues) {
  // Two answers in two seconds: 3 tokens in 0.5 s, 2 tokens in 1 s.
  const std::vector<Outcome> outcomes = {
      answered(0s, 100ms, {0.2f, 0.2f}, 500ms, 10),
      answered(1s, 400ms, {0.6f}, 1000ms, 30),
  };
  const Summary s = summarize(outcomes, 2s, {.cpu_seconds = 0.25});
  EXPECT_EQ(s.completed, 2u);
  EXPECT_EQ(s.failed, 0u);
  EXPECT_EQ(s.total_input, 40);
  EXPECT_EQ(s.total_output, 5);
  EXPECT_FALSE(s.total_output_retokenized);
  EXPECT_FALSE(s.total_cached);
  EXPECT_DOUBLE_EQ(*s.request_throughput, 1);
  EXPECT_DOUBLE_EQ(*s.input_throughput, 20);
  EXPECT_DOUBLE_EQ(*s.output_throughput, 2.5);
  EXPECT_DOUBLE_EQ(*s.total_throughput, 22.5);
  EXPECT_DOUBLE_EQ(*s.concurrency, 0.75);
  EXPECT_DOUBLE_EQ(s.ttft->mean, 250);
  // (0.5 - 0.1) / 2 and (1 - 0.4) / 1
  EXPECT_DOUBLE_EQ(s.tpot->mean, 400);
  EXPECT_EQ(s.itl->count, 3u);
  EXPECT_THAT(s.itl->max, DoubleNear(600, 1e-3));
  EXPECT_DOUBLE_EQ(s.client_cpu_seconds, 0.25);
  // The first second has 3 tokens (0.1, 0.3, 0.5) and one request. The second second has the other one's 2 tokens at
  // 1.4 and, from its end at 2.0 on, a third bucket.
  EXPECT_DOUBLE_EQ(*s.max_output_tokens_per_s, 3);
  EXPECT_EQ(*s.max_concurrent_requests, 1);
}

TEST(SummaryTest, CountsFailedRequestsAndLeavesThemOutOfTheRest) {
  const std::vector<Outcome> outcomes = {answered(0s, 100ms, {0.1f}, 200ms, 7), failed("refused"), failed("HTTP 429"),
                                         failed("HTTP 429")};
  const Summary s = summarize(outcomes, 1s, {});
  EXPECT_EQ(s.completed, 1u);
  EXPECT_EQ(s.failed, 3u);
  EXPECT_THAT(s.errors, ElementsAre(Pair("HTTP 429", 2), Pair("refused", 1)));
  EXPECT_EQ(s.total_input, 7);
  EXPECT_EQ(s.e2e->count, 1u);
}

TEST(SummaryTest, SaysNothingWhereNothingWasMeasured) {
  const Summary s = summarize({failed("refused")}, 1s, {});
  EXPECT_FALSE(s.ttft);
  EXPECT_FALSE(s.e2e);
  EXPECT_FALSE(s.request_throughput);
  EXPECT_FALSE(s.output_throughput);
  EXPECT_FALSE(s.total_output);
  EXPECT_FALSE(s.max_concurrent_requests);
}

TEST(SummaryTest, TellsAnswersWithoutUsageApartFromEmptyOnes) {
  auto unknown = answered(0s, 100ms, {0.1f}, 200ms, 7);
  unknown.output_len.reset();
  const Summary one = summarize({unknown, answered(0s, 100ms, {0.1f}, 200ms, 7)}, 1s, {});
  EXPECT_EQ(one.total_output, 2);
  EXPECT_EQ(one.output_not_reported, 1u);
  EXPECT_EQ(one.tpot->count, 1u);
  const Summary none = summarize({unknown}, 1s, {});
  EXPECT_FALSE(none.total_output);
  EXPECT_FALSE(none.output_throughput);
  EXPECT_TRUE(none.request_throughput);
}

TEST(SummaryTest, WholeAnswersSayNothingAboutSingleTokens) {
  auto whole = answered(0s, 300ms, {}, 300ms, 7);
  whole.output_len = 20;
  whole.streamed = false;
  const Summary s = summarize({whole}, 1s, {});
  EXPECT_EQ(s.ttft->count, 1u);
  EXPECT_FALSE(s.tpot);
  EXPECT_FALSE(s.itl);
  EXPECT_FALSE(s.max_output_tokens_per_s);
}

TEST(SummaryTest, ShowsHowLateRequestsWentOut) {
  auto late = answered(0s, 100ms, {0.1f}, 200ms, 7);
  late.sent = 30ms;
  EXPECT_DOUBLE_EQ(summarize({late}, 1s, {}).send_delay->mean, 30);
}

}  // namespace
}  // namespace sluice::bench
