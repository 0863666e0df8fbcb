// What happens to requests when workers fail, are busy, come and go, and when clients leave: over real sockets, with a
// clock that stands still unless a test moves it. After each: one outcome for every request, nothing left in flight.
#include <algorithm>
#include <future>

#include "gateway/gateway_fixture.h"
#include "net/sse.h"
#include "testing/raw_listener.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;

class ScenarioTest : public GatewayFixture {
 protected:
  // The data of the events of a stream.
  static std::vector<std::string> events(const std::string& body) {
    std::vector<std::string> found;
    net::SseReader reader;
    reader.feed(body, [&](std::string_view data) { found.emplace_back(data); });
    return found;
  }
  // Steps a manual worker until it has nothing to do.
  static void finish(SimWorker& worker) {
    EXPECT_TRUE(eventually([&] {
      worker.step();
      return worker.active() == 0;
    }));
  }
  // The first one stays with the worker until it leaves, and the second waits for its place.
  void fill(SimWorker& one, RawClient& first, RawClient& second) {
    one.set_fault({.kind = Kind::kStall, .times = 1});
    sent_ += 2;
    first.post("/generate", body_of("x"));
    ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
    second.post("/generate", body_of("x"));
    ASSERT_TRUE(eventually([&] { return metric("smg_admission_queue_depth") == 1; }));
  }
  double retries() { return metric("smg_worker_retries_total"); }
  double faults() { return metric("smg_worker_cb_outcomes_total", {"failure"}); }
};

// --- workers that fail before a byte of the answer ------------------------------------------------------------------

TEST_F(ScenarioTest, ADeadWorkerCostsEachRequestOneAttemptAtMost) {
  worker();
  SimWorker& dead = worker();
  start({"--policy", "round_robin"});
  dead.stop();
  for (int i = 0; i < 40; ++i) {
    const auto answer = generate("x", i % 2 == 0);
    ASSERT_EQ(answer->status, 200) << i;
  }
  EXPECT_LE(metric("smg_worker_requests_total", {dead.url()}), 10) << "the breaker has opened";
  EXPECT_EQ(retries(), metric("smg_worker_requests_total", {dead.url()}));
  EXPECT_EQ(metric("smg_worker_cb_state", {dead.url()}), 1);
  expect_settled();
}

TEST_F(ScenarioTest, ManyRequestsAtOnceSurviveTheDeathOfAWorker) {
  worker();
  SimWorker& dies = worker();
  start({"--policy", "round_robin"});
  for (auto& one : workers_) one->set_fault({.kind = Kind::kSlowHead, .delay = 50ms});
  std::vector<std::future<int>> answers;
  for (int i = 0; i < 60; ++i) {
    ++sent_;
    answers.push_back(std::async(std::launch::async, [&] {
      const auto answer = call("POST", "/generate", body_of("x"));
      return answer.ok() ? answer->status : 0;
    }));
  }
  ASSERT_TRUE(eventually([&] { return dies.active() > 0; }));
  dies.stop();
  for (auto& answer : answers) EXPECT_EQ(answer.get(), 200) << "moving on needs no budget";
  expect_settled();
}

TEST_F(ScenarioTest, AResetBeforeTheFirstByteGoesToAnotherWorker) {
  worker().set_fault({.kind = Kind::kReset});
  worker();
  start({"--policy", "round_robin"});
  for (int i = 0; i < 8; ++i) EXPECT_EQ(generate("x", i % 2 == 0)->status, 200);
  EXPECT_GT(retries(), 0);
  EXPECT_EQ(faults(), retries());
  expect_settled();
}

TEST_F(ScenarioTest, ARefusedConnectionIs502AndNamesNoAddress) {
  SimWorker& dead = worker();
  start({"--disable-retries"});
  dead.stop();
  const auto answer = generate();
  EXPECT_EQ(answer->status, 502);
  EXPECT_EQ(code_of(answer), "call_upstream_connection_failed");
  EXPECT_THAT(answer->body, Not(HasSubstr(std::to_string(dead.port()))));
  // Counted when the exchange settles, which is after its last byte.
  EXPECT_TRUE(eventually([&] { return metric("smg_router_request_errors_total", {"backend_error"}) == 1; }));
  expect_settled();
}

TEST_F(ScenarioTest, AConnectionThatDiedWhileIdleIsReplacedWithoutBlame) {
  SimWorker& one = worker();
  start({"--disable-retries", "--runtime-worker-threads", "1"});
  ASSERT_EQ(generate()->status, 200);
  one.set_fault({.kind = Kind::kReset, .times = 1});  // of a kept-alive connection
  EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(one.counters().faults, 1);
  EXPECT_EQ(faults(), 0);
  expect_settled();
}

TEST_F(ScenarioTest, AHeadThatDoesNotComeIs504) {
  SimWorker& one = worker();
  start({"--disable-retries", "--response-head-timeout-secs", "1"});
  one.set_fault({.kind = Kind::kStall});
  const auto answer = generate();
  EXPECT_EQ(answer->status, 504);
  EXPECT_EQ(code_of(answer), "call_upstream_timeout");
  EXPECT_EQ(metric("smg_worker_errors_total", {"timeout"}), 1);
  expect_settled();
}

TEST_F(ScenarioTest, AFaultIsRepeatedAsOftenAsTheFlagSaysAndThenPassedOn) {
  SimWorker& one = worker();
  start({"--retry-max-retries", "3", "--retry-initial-backoff-ms", "1"});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .body = "broken"});
  const auto answer = generate("x", true);
  EXPECT_EQ(answer->status, 500);
  EXPECT_EQ(answer->body, "broken");
  EXPECT_NE(answer->headers.get("content-type"), "text/event-stream") << "the worker's own type";
  EXPECT_EQ(one.counters().generations, 3);
  EXPECT_EQ(retries(), 2);
  EXPECT_EQ(metric("smg_worker_retries_exhausted_total"), 1);
  expect_settled();
}

TEST_F(ScenarioTest, AnErrorThatTheRequestDeservesIsNeitherRepeatedNorCounted) {
  SimWorker& one = worker();
  start();
  one.set_fault({.kind = Kind::kStatus, .status = 400, .body = "bad"});
  for (int i = 0; i < 20; ++i) EXPECT_EQ(generate()->status, 400);
  EXPECT_EQ(one.counters().generations, 20);
  EXPECT_EQ(faults(), 0);
  EXPECT_TRUE(eventually([&] { return metric("smg_router_request_errors_total", {"validation_error"}) == 20; }));
  expect_settled();
}

// --- streams that break ----------------------------------------------------------------------------------------------

TEST_F(ScenarioTest, AStreamThatBreaksEndsWithAnErrorEventAndWithoutDone) {
  SimWorker& one = worker();
  SimWorker& other = worker();
  start({"--policy", "round_robin"});
  for (auto& each : workers_) each->set_fault({.kind = Kind::kDie, .chunks = 2, .times = 1});
  const auto answer = generate("x", true, 50);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->status, 200);
  const auto seen = events(answer->body);
  ASSERT_EQ(seen.size(), 3u) << answer->body;
  EXPECT_EQ(Json::parse(seen.back())["error"]["type"], "stream_error");
  EXPECT_THAT(answer->body, Not(HasSubstr("[DONE]")));
  EXPECT_EQ(one.counters().generations + other.counters().generations, 1) << "never after the first byte";
  EXPECT_EQ(metric("smg_stream_aborts_total", {"worker\""}), 1);
  EXPECT_EQ(faults(), 1);
  expect_settled();
}

TEST_F(ScenarioTest, R10AStreamThatFallsSilentIsCutAndItsHalfEventStaysApart) {
  SimWorker& one = worker();
  start({"--stream-idle-timeout-secs", "1"});
  one.set_fault({.kind = Kind::kHalfEvent, .chunks = 1});
  const auto answer = generate("x", true, 50);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  const auto seen = events(answer->body);
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(Json::parse(seen.back())["error"]["type"], "stream_error") << answer->body;
  EXPECT_TRUE(eventually([&] { return one.counters().client_gone == 1; })) << "the upstream is closed";
  expect_settled();
}

// --- workers that are busy -------------------------------------------------------------------------------------------

TEST_F(ScenarioTest, ABusyWorkerIsPassedOverUntilItSaid) {
  SimWorker& busy = worker();
  worker();
  start({"--policy", "round_robin"});
  busy.set_fault({.kind = Kind::kStatus, .status = 429, .retry_after = 20});
  for (int i = 0; i < 10; ++i) EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(busy.counters().generations, 1) << "asked once, then left alone";
  EXPECT_EQ(faults(), 0);
  EXPECT_EQ(metric("smg_worker_cb_state", {busy.url()}), 0);
  busy.clear_fault();
  clock_.advance(20s);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(generate()->status, 200);
  EXPECT_GT(busy.counters().generations, 1);
  expect_settled();
}

TEST_F(ScenarioTest, AFullQueueOfAnEngineIsBusyAndNoFault) {
  SimWorker& full = worker();
  start({"--retry-max-retries", "2", "--retry-initial-backoff-ms", "1", "--retry-max-backoff-ms", "1"});
  full.set_fault({.kind = Kind::kStatus, .status = 503});  // "The request queue is full."
  for (int i = 0; i < 12; ++i) {
    clock_.advance(2s);  // there is one retry in a second
    const auto answer = generate();
    EXPECT_EQ(answer->status, 503);
    EXPECT_THAT(answer->body, HasSubstr("queue is full"));
  }
  EXPECT_EQ(full.counters().generations, 24);
  EXPECT_EQ(faults(), 0);
  EXPECT_EQ(metric("smg_worker_cb_state"), 0);
  expect_settled();
}

TEST_F(ScenarioTest, WhenAllAreBusyTheClientGetsTheirAnswer) {
  for (int i = 0; i < 3; ++i) worker().set_fault({.kind = Kind::kStatus, .status = 429, .retry_after = 7});
  start({"--retry-max-retries", "3", "--retry-max-backoff-ms", "50"});
  const auto answer = generate();
  EXPECT_EQ(answer->status, 429);
  EXPECT_EQ(answer->headers.get("retry-after"), "7");
  for (const auto& one : workers_) EXPECT_EQ(one->counters().generations, 1) << "each was asked once";
  expect_settled();
}

TEST_F(ScenarioTest, WhenAttemptsAreUsedUpTheClientGetsWhatAWorkerSaid) {
  worker().set_fault({.kind = Kind::kStatus, .status = 500, .body = "theirs"});
  worker().set_fault({.kind = Kind::kReset});
  start({"--policy", "round_robin", "--retry-max-retries", "2", "--retry-initial-backoff-ms", "1"});
  for (int i = 0; i < 2; ++i) {
    const auto answer = generate();
    EXPECT_EQ(answer->status, 500) << "whichever was asked first";
    EXPECT_EQ(answer->body, "theirs");
  }
  expect_settled();
}

// --- what is believed of caches --------------------------------------------------------------------------------------

TEST_F(ScenarioTest, RefusedPromptsAreNeitherPredictedNorHeld) {
  worker();
  worker();
  for (const char* policy : {"cache_aware", "min_cost"}) {
    SCOPED_TRACE(policy);
    start({"--policy", policy});
    sent_ = 0;
    const auto predicted = [&] { return metric("smg_worker_predicted_cached_tokens_total"); };
    const auto drawn = [&] { return metric("smg_worker_selections_total", {"reason=\"prefix_held\""}); };
    // Claims that wait to be applied count, and are not among the nodes; before it reports the index applies them.
    const auto forgotten = [&] {
      return call("GET", "/debug/index")->status == 200 && metric("smg_prefix_index_nodes") == 1;
    };
    const std::string text(150'000, 'a');
    for (auto& one : workers_) one->set_fault({.kind = Kind::kStatus, .status = 400});
    for (int i = 0; i < 10; ++i) EXPECT_EQ(generate(text, /*stream=*/i % 2 == 0)->status, 400);
    EXPECT_EQ(predicted(), 0);
    EXPECT_EQ(metric("sglang_cache_hit_rate", {"predicted"}), 0);
    ASSERT_TRUE(eventually(forgotten));
    const double before = drawn();
    for (auto& one : workers_) one->clear_fault();
    ASSERT_EQ(generate(text)->status, 200);
    EXPECT_EQ(drawn(), before) << "nobody holds it";
    ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > 1; }));
    ASSERT_EQ(generate(text)->status, 200);
    // The clock stands still, so that to compute a prompt costs nothing: only one of the two goes where it is held.
    if (std::string_view(policy) == "cache_aware") {
      EXPECT_EQ(drawn(), before + 1) << "and now somebody does";
      EXPECT_EQ(predicted(), 150'000 / 4);
    }
    expect_settled();
  }
}

TEST_F(ScenarioTest, AFailedAttemptLeavesNoPrefixBehind) {
  SimWorker& one = worker();
  start({"--disable-retries"});
  const std::vector<std::pair<SimFault, int>> faults{
      {{.kind = Kind::kStatus, .status = 500, .times = 1}, 500},
      {{.kind = Kind::kStatus, .status = 429, .retry_after = 0, .times = 1}, 429},
      {{.kind = Kind::kStatus, .status = 302, .times = 1}, 302},
      {{.kind = Kind::kReset}, 502}};
  for (const auto& [fault, status] : faults) {
    SCOPED_TRACE(status);
    one.set_fault(fault);
    EXPECT_EQ(generate("a prompt")->status, status);
    EXPECT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") == 1; }));
  }
  one.clear_fault();
  ASSERT_EQ(generate("a prompt")->status, 200);
  EXPECT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > 1; }));
  one.set_fault({.kind = Kind::kStatus, .status = 400, .times = 1});
  EXPECT_EQ(generate("a prompt that goes on")->status, 400);
  const auto withdrawn = [&] { return Json::parse(call("GET", "/debug/index")->body)["withdrawn_inserts"]; };
  EXPECT_TRUE(eventually([&] { return withdrawn() == faults.size() + 1; }));
  EXPECT_GT(metric("smg_prefix_index_nodes"), 1) << "what was answered before is still held";
  expect_settled();
}

TEST_F(ScenarioTest, WithoutAWorkerTheAnswerSaysWhenOneMayBeBack) {
  start({"--disable-retries"});
  const auto nobody = generate();
  EXPECT_EQ(nobody->status, 503);
  EXPECT_EQ(nobody->headers.get("retry-after"), "1") << "nothing is known of a worker to come";
  SimWorker& one = worker();
  gateway_->worker_started(one.url());
  ASSERT_EQ(generate()->status, 200);
  one.stop();
  gateway_->worker_ended(one.url());
  ASSERT_TRUE(eventually([&] { return generate()->headers.get("retry-after") == "2"; }))
      << "two checks must pass, the first of them in a second";
  EXPECT_EQ(code_of(generate()), "no_available_workers");
  expect_settled();
}

TEST_F(ScenarioTest, ANewWorkerIsLeftAloneForItsStartupDelayWhateverItsRules) {
  start({"--worker-startup-delay", "60", "--disable-retries"});
  SimWorker& one = worker();
  const Json body{{"url", one.url()}, {"health", {{"timeout_secs", 7}}}};
  ASSERT_EQ(call("POST", "/workers", body.dump())->status, 202);
  EXPECT_TRUE(eventually([&] { return generate()->headers.get("retry-after") == "60"; }));
  EXPECT_EQ(one.counters().health_checks, 0);
  expect_settled();
}

TEST_F(ScenarioTest, AnInheritedWorkerIsAskedAtOnceAndKeepsItsId) {
  SimWorker& one = worker();
  SimWorker& was_out = worker();
  const std::string id = "01234567-89ab-4cde-8f01-23456789abcd";
  const Json first{{"url", one.url()},
                   {"api_key", ""},
                   {"healthy", true},
                   {"source", "manual"},
                   {"priority", 3},
                   {"cost", 1.0},
                   {"id", id},
                   {"labels", Json::object()},
                   {"rules", Json::object()},
                   {"models", Json::array()}};
  Json second = first;
  second.update(Json{{"url", was_out.url()}, {"healthy", false}, {"proven", true}});
  const Json fleet = Json::array({first, second});
  const auto options =
      gateway_option_table().parse({"--host", "127.0.0.1", "--port", "0", "--prometheus-host", "127.0.0.1",
                                    "--prometheus-port", "0", "--worker-startup-delay", "3600"});
  auto started = Gateway::start(options.value(), clock_, {.fleet = fleet.dump()});
  ASSERT_TRUE(started.ok()) << started.error().message;
  gateway_ = std::move(started).value();
  url_ = net::parse_url(fmt::format("http://127.0.0.1:{}", gateway_->port())).value();
  const auto known = call("GET", "/workers/" + id);
  ASSERT_EQ(known->status, 200);
  EXPECT_EQ(Json::parse(known->body)["status"], "ready");
  EXPECT_EQ(Json::parse(known->body)["priority"], 3);
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health", {was_out.url()}) == 1; })) << "it has served before";
}

TEST_F(ScenarioTest, AWorkerThatIsOutIsUsedAgainOnceItHasNoChecks) {
  SimWorker& one = worker();
  start({"--disable-retries"});
  one.set_health({.status = 503});
  gateway_->worker_ended(one.url());
  ASSERT_EQ(generate()->status, 503);
  const std::string path = "/workers/" + workers_json()[0]["id"].get<std::string>();
  ASSERT_EQ(call("PATCH", path, R"({"health":{"disable_health_check":true}})")->status, 202);
  EXPECT_TRUE(eventually([&] { return generate()->status == 200; }));
  expect_settled();
}

TEST_F(ScenarioTest, ACheckUnderWayWhenChecksAreDisabledCountsForNothing) {
  SimWorker& one = worker();
  start({"--disable-retries", "--health-failure-threshold", "1"});
  ASSERT_TRUE(eventually([&] { return workers_json()[0]["model_id"] == "sim-model"; }));
  const std::string path = "/workers/" + workers_json()[0]["id"].get<std::string>();
  one.set_fault({.kind = Kind::kStall, .scope = SimFault::Scope::kEverything});
  one.clear_received();
  clock_.advance(60s);  // a check is due: it is seen with the next change
  ASSERT_EQ(call("PATCH", path, R"({"health":{"timeout_secs":60}})")->status, 202);
  const auto is_check = [](const auto& request) { return request.target == "/health"; };
  ASSERT_TRUE(eventually([&] { return std::ranges::any_of(one.received(), is_check); }));
  ASSERT_EQ(call("PATCH", path, R"({"health":{"disable_health_check":true}})")->status, 202);
  one.stop();
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_health_checks_total", {"error"}) == 1; }));
  one.clear_fault();
  ASSERT_TRUE(one.restart().ok());
  EXPECT_EQ(generate()->status, 200);
  expect_settled();
}

TEST_F(ScenarioTest, WhatAWorkerAnsweredIsTheAnswerWhenTheNextOneSaysNothing) {
  SimWorker& fails = worker();
  SimWorker& silent = worker();
  start({"--policy", "round_robin", "--response-head-timeout-secs", "1", "--retry-max-retries", "2",
         "--disable-circuit-breaker"});
  fails.set_fault({.kind = Kind::kStatus, .status = 500, .body = R"({"error":"mine"})"});
  silent.set_fault({.kind = Kind::kStall});
  for (int i = 0; i < 2; ++i) {  // each of them is the first one once
    const auto answer = generate();
    EXPECT_EQ(answer->status, 500);
    EXPECT_EQ(answer->body, R"({"error":"mine"})");
  }
  expect_settled();
}

// Of half a gigabyte that a client announces only the beginning has come when it has its answer.
constexpr std::string_view kHeadOfALongBody =
    "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 500000000\r\n\r\n{\"text\":\"and so on";

TEST_F(ScenarioTest, WithoutAWorkerNoBodyIsRead) {
  for (const std::vector<std::string>& flags : {std::vector<std::string>{}, {"--enable-igw"}}) {
    start(flags);
    const auto refused = [&] {
      RawClient client(gateway_->port());
      client.send(std::string(kHeadOfALongBody));
      const std::string answer = client.read_until("no_available_workers\"");
      EXPECT_THAT(answer, HasSubstr("HTTP/1.1 503 "));
      EXPECT_THAT(answer, HasSubstr("Retry-After: "));
    };
    refused();
    SimWorker& one = worker();
    gateway_->worker_started(one.url());
    gateway_->worker_ended(one.url());
    refused();
    EXPECT_EQ(one.counters().generations, 0);
    EXPECT_TRUE(eventually([&] { return metric("smg_router_request_errors_total") == 2; }));
    workers_.clear();
    gateway_.reset();
  }
}

TEST_F(ScenarioTest, AWorkerThatComesMeanwhileGetsTheRequestThatFoundNone) {
  SimWorker& one = worker();
  start({"--retry-max-retries", "1000"});
  gateway_->worker_ended(one.url());
  RawClient client(gateway_->port());
  ++sent_;
  client.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_retries_total", {"generate"}) > 0; }));
  gateway_->worker_started(one.url());
  EXPECT_THAT(client.read_until("meta_info"), HasSubstr(" 200 OK"));
  EXPECT_EQ(metric("smg_router_requests_total", {"model=\"unknown\""}), 0) << "it counts for the model that it got";
  expect_settled();
}

TEST_F(ScenarioTest, ARequestWithoutATurnIsRefusedBeforeItsBodyIsRead) {
  SimWorker& one = worker();
  start({"--max-concurrent-requests", "1", "--queue-size", "0"});
  one.set_fault({.kind = Kind::kStall});
  RawClient first(gateway_->port()), second(gateway_->port());
  ++sent_;
  first.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return metric("smg_admission_inflight") == 1; }));
  ++sent_;
  second.send(std::string(kHeadOfALongBody));
  EXPECT_THAT(second.read_until("admission_queue_full\""), HasSubstr("HTTP/1.1 429 "));
  first.leave();
  expect_settled();
}

// --- the circuit breaker ---------------------------------------------------------------------------------------------

TEST_F(ScenarioTest, TenFaultsOpenTheBreakerAndThreeTrialsCloseIt) {
  SimWorker& one = worker();
  start({"--disable-retries", "--disable-health-check"});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .body = "broken"});
  for (int i = 0; i < 10; ++i) EXPECT_EQ(generate()->status, 500);
  const auto refused = generate();
  EXPECT_EQ(refused->status, 503);
  EXPECT_EQ(code_of(refused), "no_available_workers");
  EXPECT_EQ(refused->headers.get("retry-after"), "60") << "when the breaker lets a trial in";
  EXPECT_EQ(one.counters().generations, 10);
  one.clear_fault();
  clock_.advance(59s);
  const auto later = generate();
  EXPECT_EQ(later->status, 503);
  EXPECT_EQ(later->headers.get("retry-after"), "1");
  clock_.advance(1s);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(metric("smg_worker_cb_state"), 2);
  EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(metric("smg_worker_cb_state"), 0);
  EXPECT_EQ(metric("smg_worker_cb_transitions_total", {"closed\",to=\"open"}), 1);
  EXPECT_EQ(metric("smg_worker_cb_transitions_total", {"open\",to=\"half_open"}), 1);
  EXPECT_EQ(metric("smg_worker_cb_transitions_total", {"half_open\",to=\"closed"}), 1);
  expect_settled();
}

TEST_F(ScenarioTest, AHalfOpenWorkerGetsOneTrialAtATime) {
  SimWorker& one = worker();
  start({"--disable-retries", "--disable-health-check", "--cb-failure-threshold", "1"});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  EXPECT_EQ(generate()->status, 500);
  clock_.advance(60s);
  one.set_fault({.kind = Kind::kStall, .times = 1});
  ++sent_;
  RawClient trial(gateway_->port());
  trial.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  EXPECT_EQ(generate()->status, 503) << "beside the trial";
  trial.leave();  // which is no verdict
  ASSERT_TRUE(eventually([&] { return one.active() == 0; }));
  EXPECT_TRUE(eventually([&] { return generate()->status == 200; })) << "the next trial";
  expect_settled();
}

TEST_F(ScenarioTest, TrialsThatDeserveAnErrorCloseTheBreakerWhereNobodyProbes) {
  SimWorker& one = worker();
  start({"--disable-retries", "--disable-health-check", "--cb-failure-threshold", "1", "--cb-success-threshold", "2"});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(metric("smg_worker_cb_state"), 1);
  clock_.advance(60s);
  one.set_fault({.kind = Kind::kStatus, .status = 400, .times = 2});
  EXPECT_EQ(generate()->status, 400);
  EXPECT_EQ(metric("smg_worker_cb_state"), 2);
  EXPECT_EQ(generate()->status, 400);
  EXPECT_EQ(metric("smg_worker_cb_state"), 0);
  expect_settled();
}

TEST_F(ScenarioTest, AWorkerThatIsBackClosesItsBreakerByHealthChecksAlone) {
  SimWorker& one = worker();
  worker();
  start({"--policy", "round_robin", "--cb-failure-threshold", "1", "--cb-success-threshold", "2",
         "--cb-timeout-duration-secs", "100000", "--health-check-interval-secs", "1"});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  for (int i = 0; i < 2; ++i) EXPECT_EQ(generate()->status, 200);
  const auto breaker = [&] { return workers_json()[0]["breaker"].get<std::string>(); };
  const auto passes = [&](int64_t more, Duration by) {
    const int64_t before = one.counters().health_checks;
    return eventually([&] {
      clock_.advance(by);
      return one.counters().health_checks >= before + more;
    });
  };
  EXPECT_EQ(breaker(), "open");
  ASSERT_TRUE(passes(2, 1s));
  EXPECT_EQ(breaker(), "open") << "it passes its checks while its requests fail";
  const int64_t asked = one.counters().generations;
  clock_.advance(100000s);
  EXPECT_TRUE(eventually([&] {
    clock_.advance(1s);
    return breaker() == "closed";
  }));
  EXPECT_EQ(one.counters().generations, asked) << "no request was needed";
  EXPECT_EQ(metric("smg_worker_cb_transitions_total", {"half_open\",to=\"closed"}), 1);
  EXPECT_EQ(metric("smg_worker_cb_health_readmissions_total"), 0) << "it was its time";
  EXPECT_EQ(metric("smg_worker_cb_outcomes_total", {one.url(), "success"}), 0) << "checks are no requests";
  expect_settled();
}

// --- the limiter -----------------------------------------------------------------------------------------------------

TEST_F(ScenarioTest, BeyondTheQueueIs429AndTheWaitIsBounded) {
  SimWorker& one = worker();
  start({"--max-concurrent-requests", "1", "--queue-size", "1", "--queue-timeout-secs", "1"});
  RawClient first(gateway_->port()), second(gateway_->port());
  fill(one, first, second);
  const auto third = generate();
  EXPECT_EQ(third->status, 429);
  EXPECT_EQ(code_of(third), "admission_queue_full");
  EXPECT_EQ(third->headers.get("retry-after"), "1");
  const std::string late = second.read_until("admission_queue_timeout");
  EXPECT_THAT(late, HasSubstr(" 408 "));
  EXPECT_THAT(late, HasSubstr("Retry-After: "));
  first.leave();
  EXPECT_TRUE(eventually([&] { return metric("smg_admission_inflight") == 0; }));
  EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(metric("smg_http_rate_limit_total", {"rejected"}), 2);
  EXPECT_EQ(metric("smg_http_rate_limit_total", {"allowed"}), 2);
  expect_settled();
}

TEST_F(ScenarioTest, AWaitingRequestIsServedWhenItsTurnComes) {
  SimWorker& one = worker();
  start({"--max-concurrent-requests", "1"});
  RawClient first(gateway_->port()), second(gateway_->port());
  fill(one, first, second);
  first.leave();
  EXPECT_THAT(second.read_until("\r\n"), HasSubstr(" 200 "));
  second.leave();
  expect_settled();
}

// --- clients that leave ----------------------------------------------------------------------------------------------

TEST_F(ScenarioTest, AClientThatLeavesWhileItSendsItsBodyIsForgotten) {
  worker();
  start();
  ++sent_;
  RawClient client(gateway_->port());
  client.send("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"text\":");
  ASSERT_TRUE(eventually([&] { return metric("smg_admission_inflight") == 1; }));
  client.leave();
  expect_settled();
  EXPECT_EQ(metric("smg_http_responses_total", {"/generate"}), 0);
}

TEST_F(ScenarioTest, AClientThatLeavesTheQueueMakesRoom) {
  SimWorker& one = worker();
  start({"--max-concurrent-requests", "1", "--queue-size", "1"});
  RawClient first(gateway_->port()), waits(gateway_->port());
  fill(one, first, waits);
  waits.leave();
  EXPECT_TRUE(eventually([&] { return metric("smg_admission_queue_depth") == 0; }));
  EXPECT_EQ(one.counters().generations, 1) << "it never reached a worker";
  first.leave();
  expect_settled();
}

TEST_F(ScenarioTest, X10AClientThatLeavesBeforeTheFirstByteClosesTheUpstreamAtOnce) {
  SimWorker& one = worker();
  start();
  one.set_fault({.kind = Kind::kStall});
  for (const bool stream : {false, true}) {
    ++sent_;
    const int64_t gone = one.counters().client_gone;
    RawClient client(gateway_->port());
    client.post("/generate", body_of("x", stream));
    ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
    client.leave();
    EXPECT_TRUE(eventually([&] { return one.counters().client_gone == gone + 1; }));
  }
  EXPECT_EQ(faults(), 0) << "it says nothing about the worker";
  expect_settled();
}

TEST_F(ScenarioTest, AClientThatLeavesAStreamClosesTheUpstreamAlsoWhileNothingComes) {
  SimWorker& one = worker();
  start();
  one.set_fault({.kind = Kind::kMute, .chunks = 1});
  ++sent_;
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x", true, 50));
  client.read_until("data: ");
  client.leave();
  EXPECT_TRUE(eventually([&] { return one.counters().client_gone == 1; }));
  EXPECT_TRUE(eventually([&] { return metric("smg_stream_aborts_total", {"client"}) == 1; }));
  expect_settled();
}

TEST_F(ScenarioTest, AClientThatLeavesDuringAPauseBetweenAttemptsEndsThem) {
  SimWorker& one = worker();
  start();
  one.set_fault({.kind = Kind::kStatus, .status = 429, .retry_after = 30});
  ++sent_;
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return retries() == 1; }));
  client.leave();
  expect_settled();
  EXPECT_EQ(one.counters().generations, 1);
}

TEST_F(ScenarioTest, AClientThatLeavesWhileItsWorkerCannotBeReachedEndsTheAttempt) {
  const sluice::testing::FullListener unreachable;
  start();
  const std::string url = unreachable.url();
  gateway_->worker_started(url);
  ++sent_;
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_requests_active", {url}) == 1; }));
  client.leave();
  expect_settled();
}

// --- workers that come and go ----------------------------------------------------------------------------------------

TEST_F(ScenarioTest, ARemovedWorkerFinishesItsStreamsAndGetsNoNewOnes) {
  SimWorker& one = worker({.manual = true});
  start({"--drain-settle-secs", "0"});
  ++sent_;
  RawClient stream(gateway_->port());
  stream.post("/generate", body_of("x", true));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  const std::string location = "/workers/" + workers_json()[0]["id"].get<std::string>();
  ASSERT_EQ(call("DELETE", location)->status, 202);
  EXPECT_EQ(Json::parse(call("GET", location)->body)["status"], "draining");
  EXPECT_EQ(call("GET", "/readiness")->status, 503);
  EXPECT_EQ(generate()->status, 503);
  EXPECT_EQ(call("GET", location)->status, 200) << "it stays until its last request has ended";
  finish(one);
  EXPECT_THAT(stream.read_until("[DONE]"), HasSubstr("[DONE]"));
  EXPECT_TRUE(eventually([&] { return call("GET", location)->status == 404; }));
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_requests_total", {one.url()}) == 0; }))
      << "its series go with it";
  expect_settled();
}

TEST_F(ScenarioTest, AWorkerThatIsAddedWhileRequestsRunIsUsed) {
  worker();
  start({"--policy", "round_robin"});
  ASSERT_EQ(generate()->status, 200);
  SimWorker& late = worker();
  ASSERT_EQ(call("POST", "/workers", Json{{"url", late.url()}}.dump())->status, 202);
  EXPECT_TRUE(eventually([&] { return generate()->status == 200 && late.counters().generations > 0; }));
  expect_settled();
}

TEST_F(ScenarioTest, AnAddressThatIsAddedAgainWhileItDrainsIsANewWorker) {
  SimWorker& one = worker();
  start({"--drain-settle-secs", "0"});
  one.set_fault({.kind = Kind::kStall, .times = 1});
  ++sent_;
  RawClient slow(gateway_->port());
  slow.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  const std::string old = "/workers/" + workers_json()[0]["id"].get<std::string>();
  ASSERT_EQ(call("DELETE", old)->status, 202);
  ASSERT_EQ(call("POST", "/workers", Json{{"url", one.url()}}.dump())->status, 202);
  EXPECT_TRUE(eventually([&] { return generate()->status == 200; }));
  slow.leave();
  EXPECT_TRUE(eventually([&] { return call("GET", old)->status == 404; }));
  EXPECT_EQ(generate()->status, 200);
  EXPECT_GT(metric("smg_worker_requests_total", {one.url()}), 0) << "the new worker keeps its series";
  expect_settled();
}

TEST_F(ScenarioTest, ARestartedWorkerStartsAfresh) {
  SimWorker& one = worker();
  start({"--disable-retries", "--cb-failure-threshold", "1"});
  one.stop();
  EXPECT_EQ(generate()->status, 502);
  gateway_->worker_ended(one.url());
  EXPECT_EQ(generate()->status, 503);
  ASSERT_TRUE(one.restart().ok());
  gateway_->worker_started(one.url());
  EXPECT_EQ(generate()->status, 200) << "the breaker has forgotten the old process";
  EXPECT_EQ(workers_json()[0]["generation"], 1);
  expect_settled();
}

TEST_F(ScenarioTest, HealthChecksTakeAWorkerOutAndBringItBack) {
  time_ = &real_clock();
  SimWorker& one = worker();
  start({"--health-check-interval-secs", "1", "--health-failure-threshold", "2", "--health-success-threshold", "1"});
  one.set_health({.status = 503});
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health") == 0; }));
  EXPECT_EQ(call("GET", "/readiness")->status, 503);
  EXPECT_EQ(workers_json()[0]["status"], "not_ready");
  one.set_health({});
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health") == 1; }));
  EXPECT_EQ(generate()->status, 200);
  EXPECT_GE(metric("smg_worker_health_checks_total", {"error"}), 2);
  expect_settled();
}

TEST_F(ScenarioTest, AFaultBringsTheNextHealthCheckForward) {
  time_ = &real_clock();
  SimWorker& one = worker();
  start({"--disable-retries", "--health-failure-threshold", "1"});  // and 60 s between two checks
  one.stop();
  EXPECT_EQ(generate()->status, 502);
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health") == 0; }));
  expect_settled();
}

TEST_F(ScenarioTest, AFaultThatIsMetWhileTheWorkerIsAskedSomethingElseCountsToo) {
  time_ = &real_clock();
  SimWorker& one = worker();
  one.set_fault({.kind = Kind::kSlowHead, .scope = SimFault::Scope::kEverything, .delay = 500ms});
  start({"--disable-retries", "--health-failure-threshold", "1"});  // and 60 s between two checks
  ASSERT_TRUE(eventually([&] {
    const auto received = one.received();
    return std::ranges::any_of(received, [](const auto& r) { return r.target == "/v1/models"; });
  }));
  one.set_fault({.kind = Kind::kReset});
  EXPECT_EQ(generate()->status, 502);
  one.stop();
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health") == 0; }));
  expect_settled();
}

// --- shutting down ---------------------------------------------------------------------------------------------------

TEST_F(ScenarioTest, R20DrainingAnswersReadinessNoAndFinishesWhatRuns) {
  SimWorker& one = worker({.manual = true});
  start();
  RawClient stream(gateway_->port());
  stream.post("/generate", body_of("x", true));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  auto drained = std::async(std::launch::async, [&] { return gateway_->drain(10s); });
  EXPECT_TRUE(eventually([&] {
    const auto answer = call("GET", "/readiness");  // connections are still accepted for a while
    return answer.ok() && answer->status == 503 && Json::parse(answer->body)["reason"] == "draining";
  }));
  finish(one);
  EXPECT_THAT(stream.read_until("[DONE]"), HasSubstr("[DONE]"));
  EXPECT_EQ(drained.get(), 0u);
}

TEST_F(ScenarioTest, DrainingCutsOffWhatDoesNotEndWithinTheGrace) {
  SimWorker& one = worker();
  start();
  one.set_fault({.kind = Kind::kStall});
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  EXPECT_EQ(gateway_->drain(200ms), 1u);
  EXPECT_TRUE(eventually([&] { return one.active() == 0; }));
}

TEST_F(ScenarioTest, RetiringAnswersAlsoWhatTheOtherPortsWereAsked) {
  worker();
  start();
  sluice::testing::RawClient scraper(gateway_->metrics_port());
  constexpr const char* kScrape = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
  scraper.send(kScrape);
  ASSERT_TRUE(scraper.wait_for("smg_worker_health"));
  const uint16_t port = gateway_->metrics_port();
  auto retired = std::async(std::launch::async, [&] {
    EXPECT_EQ(gateway_->retire(20s), 0u);
    gateway_.reset();
  });
  ASSERT_TRUE(eventually([&] { return !sluice::testing::RawClient(port).connected(); }));
  scraper.send(kScrape);
  EXPECT_THAT(scraper.read_until("Connection: close"), HasSubstr("HTTP/1.1 200"));
  scraper.wait_for_end();
  retired.get();
}

// --- books -----------------------------------------------------------------------------------------------------------

TEST_F(ScenarioTest, EveryFamilyOfMetricsMoves) {
  SimWorker& one = worker();
  SimWorker& two = worker();
  start({"--retry-initial-backoff-ms", "1", "--retry-max-retries", "3", "--max-concurrent-requests", "2",
         "--queue-size", "1", "--cb-failure-threshold", "3"});
  std::string prefix;
  for (int i = 0; i < 200; ++i) prefix += fmt::format("word{} ", i);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(generate(prefix, i % 2 == 0)->status, 200);
  EXPECT_TRUE(
      eventually([&] { return generate(prefix)->status == 200 && metric("smg_worker_cached_tokens_total") > 0; }));
  EXPECT_GT(metric("sglang_cache_hit_rate", {"predicted"}), 0);
  EXPECT_GT(metric("sglang_cache_hit_rate", {"reported"}), 0);
  one.set_fault({.kind = Kind::kDie, .chunks = 1, .times = 1});
  two.set_fault({.kind = Kind::kDie, .chunks = 1, .times = 1});
  ASSERT_EQ(generate("x", true, 50)->status, 200);
  for (auto& each : workers_) each->set_fault({.kind = Kind::kStatus, .status = 500});
  for (int i = 0; i < 4; ++i) EXPECT_GE(generate()->status, 500);
  EXPECT_EQ(call("POST", "/workers", R"({"url":"grpc://x:1"})")->status, 400);
  for (auto& each : workers_) each->set_fault({.kind = Kind::kStall});
  clock_.advance(60s);
  RawClient stalled(gateway_->port()), next(gateway_->port()), waiting(gateway_->port());
  sent_ += 3;
  for (RawClient* client : {&stalled, &next, &waiting}) client->post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return metric("smg_admission_queue_depth") == 1; }));
  EXPECT_EQ(generate()->status, 429);

  for (const char* gauge :
       {"smg_http_connections_active", "smg_admission_inflight", "smg_admission_queue_depth", "smg_worker_pool_size",
        "smg_worker_requests_active", "smg_worker_connections_active", "smg_worker_health", "smg_worker_cb_state",
        "smg_prefix_index_bytes", "smg_prefix_index_nodes"}) {
    EXPECT_GT(metric(gauge), 0) << gauge;
  }
  for (const char* counter :
       {"smg_http_requests_total", "smg_http_responses_total", "smg_http_rate_limit_total", "smg_router_requests_total",
        "smg_router_request_errors_total", "smg_router_upstream_responses_total", "smg_router_tokens_total",
        "smg_worker_requests_total", "smg_worker_errors_total", "smg_worker_selections_total",
        "smg_worker_cb_transitions_total", "smg_worker_cb_outcomes_total", "smg_worker_retries_total",
        "smg_worker_retries_exhausted_total", "smg_worker_cached_tokens_total", "smg_worker_prompt_tokens_total",
        "smg_worker_predicted_cached_tokens_total", "smg_stream_aborts_total", "smg_discovery_registrations_total"}) {
    EXPECT_GT(metric(counter), 0) << counter;
  }
  for (const char* histogram : {"smg_http_request_duration_seconds", "smg_router_request_duration_seconds",
                                "smg_router_ttft_seconds", "smg_router_generation_duration_seconds"}) {
    EXPECT_GT(metric(std::string(histogram) + "_count"), 0) << histogram;
  }
  for (RawClient* client : {&stalled, &next, &waiting}) client->leave();
  expect_settled();
}

TEST_F(ScenarioTest, TheJournalTellsWhatHappened) {
  SimWorker& one = worker();
  worker();
  start({"--policy", "round_robin"});
  for (auto& each : workers_) each->set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  one.set_fault({.kind = Kind::kReset, .times = 1});
  ++sent_;
  ASSERT_EQ(call("POST", "/generate", body_of("x"), {{"x-request-id", "mine"}})->status, 200);
  Json record;
  ASSERT_TRUE(eventually([&] {
    const auto answer = call("GET", "/debug/why/mine");
    if (answer->status == 200) record = Json::parse(answer->body);
    return answer->status == 200;
  }));
  EXPECT_EQ(record["outcome"], "ok");
  EXPECT_EQ(record["status"], 200);
  EXPECT_GE(record["attempts"].get<int>(), 2) << record;
  for (const char* phase : {"admitted", "read", "chosen", "sent", "answered"}) {
    EXPECT_TRUE(record["phases"].contains(phase)) << phase << " " << record;
  }
  EXPECT_EQ(call("GET", "/debug/why/nobody")->status, 404);
  expect_settled();
}

}  // namespace
}  // namespace sluice::gateway
