#include "gateway/worker_rules.h"

#include "gateway/gateway_fixture.h"
#include "gateway/worker_request.h"

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;

TEST(WorkerRulesTest, WithoutARegistrationTheyAreTheOptions) {
  const auto options = gateway_option_table().parse({});
  const WorkerRules defaults, taken = WorkerRules::from(options.value());
  for (const WorkerRule& rule : worker_rules()) EXPECT_EQ(rule.of(taken), rule.of(defaults)) << rule.name;
}

TEST(WorkerRulesTest, EachChangesByItsNameAndNoOther) {
  for (const WorkerRule& changed : worker_rules()) {
    WorkerRules rules;
    const double other = changed.of(rules) == 1 ? 0 : 1;
    apply({{fmt::format("{}.{}", changed.group, changed.name), other}, {"health.nonsense", 7}, {"nonsense", 7}}, rules);
    for (const WorkerRule& rule : worker_rules()) {
      EXPECT_EQ(rule.of(rules) == rule.of(WorkerRules()), &rule != &changed) << rule.name;
    }
  }
}

TEST(WorkerRulesTest, ARegistrationSaysThemInGroupsOrBesideThem) {
  const auto read = [](const std::string& rest) { return read_worker_request(R"({"url":"http://x:1",)" + rest + "}"); };
  const auto both = read(R"("health":{"check_interval_secs":7,"timeout_secs":null,"path":"/up"},
                            "resilience":{"jitter_factor":0.5,"disable_retry":true,"retryable_status_codes":[500]},
                            "health_check_timeout_secs":3,"http_pool":{})");
  ASSERT_TRUE(both.ok()) << both.error().message;
  EXPECT_EQ(both->details.rules, (WorkerRuleChanges{{"health.check_interval_secs", 7},
                                                    {"health.timeout_secs", 3},
                                                    {"resilience.jitter_factor", 0.5},
                                                    {"resilience.disable_retry", 1}}));
  EXPECT_EQ(both->ignored, (std::vector<std::string>{"http_pool", "health.path", "resilience.retryable_status_codes"}));
  for (const auto& [rest, why] :
       {std::pair{R"("health":7)", "health must be an object"},
        {R"("health":{"timeout_secs":0})", "health.timeout_secs must be an integer from 1 to"},
        {R"("health":{"timeout_secs":1.5})", "health.timeout_secs must be an integer"},
        {R"("disable_health_check":1)", "disable_health_check must be true or false"},
        {R"("resilience":{"jitter_factor":2})", "jitter_factor must be a number from 0 to 1"},
        {R"("resilience":{"max_retries":"3"})", "max_retries must be an integer"}}) {
    const auto bad = read(rest);
    ASSERT_FALSE(bad.ok()) << rest;
    EXPECT_THAT(bad.error().message, HasSubstr(why));
  }
}

TEST(WorkerRequestTest, WhatAModelHasBesideItsIdIsIgnoredAndNamedOnce) {
  const auto request = read_worker_request(R"({"url":"http://x:1","models":["a",
      {"id":"b","aliases":["c"],"display_name":null},{"aliases":["d"],"id":"e","aliases_of":[]}],"http_pool":{}})");
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(request->details.models, (std::vector<std::string>{"a", "b", "e"}));
  EXPECT_EQ(request->ignored, (std::vector<std::string>{"http_pool", "models.aliases"}));
}

class OwnRulesTest : public GatewayFixture {
 protected:
  std::string add(const SimWorker& worker, Json body) {
    body["url"] = worker.url();
    const auto answer = call("POST", "/workers", body.dump());
    EXPECT_EQ(answer->status, 202) << answer->body;
    const std::string location(answer->headers.get("location").value_or(""));
    EXPECT_TRUE(eventually([&] { return shown(location)["is_healthy"] == true; }));
    return location;
  }
  Json shown(const std::string& location) { return Json::parse(call("GET", location)->body); }
};

TEST_F(OwnRulesTest, AreShownOfOneWorkerAndChangedByAPatch) {
  start({"--health-check-timeout-secs", "9"});
  const std::string location = add(worker(), {{"health", {{"failure_threshold", 4}}}});
  const Json health = shown(location)["health"];
  EXPECT_EQ(health, (Json{{"timeout_secs", 9},
                          {"check_interval_secs", 60},
                          {"success_threshold", 2},
                          {"failure_threshold", 4},
                          {"disable_health_check", false},
                          {"drain_settle_secs", 5}}));
  EXPECT_EQ(shown(location)["resilience"]["cb_timeout_secs"], 60);
  EXPECT_EQ(workers_json()[0]["disable_health_check"], false);
  EXPECT_EQ(call("PATCH", location, R"({"health":{"success_threshold":1}})")->status, 202);
  EXPECT_EQ(call("PUT", location, R"({"health":{"disable_health_check":true}})")->status, 202);
  EXPECT_EQ(shown(location)["health"]["success_threshold"], 1);
  EXPECT_EQ(shown(location)["health"]["failure_threshold"], 4) << "what is not said stays";
  EXPECT_EQ(workers_json()[0]["disable_health_check"], true);
  for (const char* bad :
       {R"({"health":{"success_threshold":0}})", R"({"health":{"path":"/"}})", R"({"resilience":{"max_retries":2}})"}) {
    EXPECT_EQ(call("PATCH", location, bad)->status, 400) << bad;
  }
}

TEST_F(OwnRulesTest, AWorkerIsCheckedAsOftenAsItsRegistrationSays) {
  time_ = &real_clock();
  start();
  SimWorker& often = worker();
  SimWorker& seldom = worker();
  const std::string of_often = add(often, {{"health", {{"check_interval_secs", 1}}}});
  const std::string of_seldom = add(seldom, {{"disable_health_check", true}});
  const int64_t asked = seldom.counters().health_checks;
  EXPECT_TRUE(eventually([&] { return often.counters().health_checks >= 4; }));
  EXPECT_EQ(seldom.counters().health_checks, asked);
  EXPECT_EQ(call("PATCH", of_seldom, R"({"health":{"disable_health_check":false,"check_interval_secs":1}})")->status,
            202);
  EXPECT_TRUE(eventually([&] { return seldom.counters().health_checks >= asked + 2; }));
}

TEST_F(OwnRulesTest, ABreakerHasTheThresholdOfItsRegistration) {
  start({"--disable-retries", "--disable-health-check", "--policy", "round_robin"});
  const std::string touchy = add(worker(), {{"resilience", {{"cb_failure_threshold", 2}}}});
  const std::string usual = add(worker(), {});
  for (auto& each : workers_) each->set_fault({.kind = Kind::kStatus, .status = 500});
  for (int i = 0; i < 6; ++i) EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(shown(touchy)["breaker"], "open");
  EXPECT_EQ(shown(usual)["breaker"], "closed");
  expect_settled();
}

TEST_F(OwnRulesTest, RequestsAreRepeatedAsTheFirstWorkerOfTheirModelSays) {
  start({"--retry-initial-backoff-ms", "0", "--disable-circuit-breaker"});
  SimWorker& one = worker();
  one.set_fault({.kind = Kind::kStatus, .status = 500});
  add(one, {{"resilience", {{"max_retries", 3}}}});
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(one.counters().generations, 3);
  add(one, {{"resilience", {{"disable_retry", true}}}});
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(one.counters().generations, 4);
  expect_settled();
}

}  // namespace
}  // namespace sluice::gateway
