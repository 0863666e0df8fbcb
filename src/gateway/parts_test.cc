// The parts of the gateway that need no socket.
#include <gtest/gtest.h>

#include "gateway/admission.h"
#include "gateway/body_scan.h"
#include "gateway/breaker.h"
#include "gateway/health.h"
#include "gateway/options.h"
#include "gateway/outcome.h"
#include "gateway/retry.h"
#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

BodyFacts scan(std::string body, Endpoint endpoint) { return scan_body(body, endpoint).value(); }

TEST(BodyScan, FindsTheRoutingTextOfEachEndpoint) {
  EXPECT_EQ(scan(R"({"model":"m","stream":true,"messages":[{"role":"system","content":"a"},)"
                 R"({"role":"user","content":[{"type":"text","text":"b"},{"type":"image_url","image_url":{}}]}]})",
                 Endpoint::kChat)
                .routing_text,
            "a b");
  EXPECT_EQ(scan(R"({"prompt":["a","b"]})", Endpoint::kCompletions).routing_text, "a b");
  EXPECT_EQ(scan(R"({"input_ids":[1,22,3]})", Endpoint::kGenerate).routing_text, "1 22 3");
  EXPECT_EQ(scan(R"({"input_ids":[1],"text":"t"})", Endpoint::kGenerate).routing_text, "t");
  EXPECT_EQ(scan(R"({"text":"\u4f60"})", Endpoint::kGenerate).routing_text, "你");
  EXPECT_EQ(scan(R"({"sampling_params":{"max_new_tokens":7}})", Endpoint::kGenerate).max_tokens, 7);
}

TEST(BodyScan, RefusesWhatIsNoObject) {
  for (const char* text : {"", "{", "[]", "{}x", R"({"model":1})", R"({"stream":"yes"})", R"({"a":})"}) {
    std::string body = text;
    EXPECT_FALSE(scan_body(body, Endpoint::kGenerate).ok()) << text;
    EXPECT_EQ(body, text);
  }
}

TEST(Breaker, OpensAfterConsecutiveFaultsAndTriesOneAtATime) {
  sluice::testing::FakeClock clock;
  Breaker breaker({.failure_threshold = 3, .success_threshold = 2, .open_time = 10s, .window = 60s}, clock);
  Breaker::Permit permit;
  for (int i = 0; i < 2; ++i) breaker.fault(permit);
  breaker.success(permit);
  for (int i = 0; i < 3; ++i) breaker.fault(permit);
  EXPECT_EQ(breaker.state(), BreakerState::kOpen);
  EXPECT_FALSE(breaker.admits());
  clock.advance(10s);
  EXPECT_TRUE(breaker.admits());
  ASSERT_TRUE(breaker.begin(permit));
  Breaker::Permit second;
  EXPECT_FALSE(breaker.begin(second));
  breaker.success(permit);
  ASSERT_TRUE(breaker.begin(permit));
  breaker.success(permit);
  EXPECT_EQ(breaker.state(), BreakerState::kClosed);
}

TEST(Breaker, ForgetsFaultsOutsideItsWindow) {
  sluice::testing::FakeClock clock;
  Breaker breaker({.failure_threshold = 2, .window = 5s}, clock);
  breaker.fault({});
  clock.advance(6s);
  breaker.fault({});
  EXPECT_EQ(breaker.state(), BreakerState::kClosed);
  breaker.fault({});
  EXPECT_EQ(breaker.state(), BreakerState::kOpen);
}

TEST(Retry, PausesGrowWithinTheirJitter) {
  const RetryRules rules;
  Rng rng(1);
  const double expected[] = {0.05, 0.075, 0.1125, 0.16875};
  for (int i = 0; i < 4; ++i) {
    const double pause = seconds(rules.pause(i, std::nullopt, rng));
    EXPECT_GE(pause, expected[i] * 0.8 - 1e-9);
    EXPECT_LE(pause, expected[i] * 1.2 + 1e-9);
  }
  EXPECT_EQ(rules.pause(0, 2s, rng), 2s);
}

TEST(Retry, BudgetIsATenthOfTrafficAboveItsFloor) {
  RetryBudget budget;
  const TimePoint now{100s};
  for (int i = 0; i < 50; ++i) budget.earn();
  int spent = 0;
  while (budget.spend(now)) ++spent;
  EXPECT_EQ(spent, 10 + 5);
  EXPECT_TRUE(budget.spend(now + 1s));
}

TEST(Health, ChangesAtItsThresholds) {
  HealthState health({.failures = 3, .successes = 2, .interval = 60s});
  health.passed();
  EXPECT_TRUE(health.healthy());
  EXPECT_EQ(health.next_probe(), 60s);
  health.failed();
  EXPECT_EQ(health.next_probe(), 1s);
  health.failed();
  EXPECT_TRUE(health.healthy());
  health.failed();
  EXPECT_FALSE(health.healthy());
  health.passed();
  EXPECT_FALSE(health.healthy());
  health.passed();
  EXPECT_TRUE(health.healthy());
}

TEST(Outcome, TellsBusyFromFault) {
  EXPECT_EQ(classify({.status = 200, .headers = {}}), Outcome::kOk);
  EXPECT_EQ(classify({.status = 400, .headers = {}}), Outcome::kClientError);
  EXPECT_EQ(classify({.status = 429, .headers = {}}), Outcome::kBusy);
  EXPECT_EQ(classify({.status = 503, .headers = {}}), Outcome::kFault);
  EXPECT_EQ(classify({.status = 503, .headers = {{"Retry-After", "1"}}}), Outcome::kBusy);
  for (const int status : {408, 500, 502, 504}) EXPECT_EQ(classify({.status = status, .headers = {}}), Outcome::kFault);
}

TEST(Admission, IsFirstComeFirstServed) {
  Admission admission(1, 2);
  const auto first = std::make_shared<Admission::Waiter>(), second = std::make_shared<Admission::Waiter>();
  int woken = 0;
  first->wake = [&] { woken = 1; };
  second->wake = [&] { woken = 2; };
  ASSERT_EQ(admission.enter(first), Admission::Entry::kAdmitted);
  {
    Admission::Slot slot(&admission);
    ASSERT_EQ(admission.enter(first), Admission::Entry::kQueued);
    ASSERT_EQ(admission.enter(second), Admission::Entry::kQueued);
    EXPECT_EQ(admission.enter(std::make_shared<Admission::Waiter>()), Admission::Entry::kFull);
  }
  EXPECT_EQ(woken, 1);
  EXPECT_FALSE(admission.leave(second));
  ASSERT_TRUE(admission.leave(first));
  { Admission::Slot slot(&admission); }
  EXPECT_EQ(admission.in_flight(), 0);
}

TEST(Options, AreValidatedTogether) {
  const auto& table = gateway_option_table();
  EXPECT_TRUE(validate(table.defaults()).ok());
  EXPECT_FALSE(validate(table.parse({"--worker-urls", "grpc://x:1"}).value()).ok());
  EXPECT_FALSE(validate(table.parse({"--retry-initial-backoff-ms", "99", "--retry-max-backoff-ms", "1"}).value()).ok());
  EXPECT_FALSE(table.parse({"--pd-disaggregation"}).ok());
}

}  // namespace
}  // namespace sluice::gateway
