// Limits in time, what is said when they are over, and what clients and workers are told meanwhile.
#include "gateway/gateway_fixture.h"
#include "testing/raw_listener.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;

class TimeLimitsTest : public GatewayFixture {
 protected:
  std::string id_of(size_t i) { return workers_json()[i]["id"].get<std::string>(); }
  double faults() { return metric("smg_worker_cb_outcomes_total", {"failure"}); }
  // Of a streamed request, all that comes.
  std::string stream_of(const std::string& end = "0\r\n\r\n") {
    ++sent_;
    RawClient client(gateway_->port());
    client.post("/generate", body_of("x", true));
    return client.read_until(end);
  }
  static int count(const std::string& text, const std::string& part) {
    int found = 0;
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++found;
    return found;
  }
};

// --- each limit names its phase and the worker ---------------------------------------------------------------------

TEST_F(TimeLimitsTest, TheHeadOfAnAnswer) {
  SimWorker& one = worker();
  start({"--response-head-timeout-secs", "1", "--disable-retries"});
  one.set_fault({.kind = Kind::kStall});
  const auto answer = generate();
  EXPECT_EQ(answer->status, 504);
  EXPECT_EQ(code_of(answer), "call_upstream_timeout");
  EXPECT_THAT(answer->body, HasSubstr("worker " + id_of(0) + ": waiting for the response head took longer than 1 s"));
  EXPECT_THAT(answer->body, Not(HasSubstr("127.0.0.1")));
  EXPECT_EQ(faults(), 1);
  expect_settled();
}

TEST_F(TimeLimitsTest, TheSilenceWithinAStream) {
  SimWorker& one = worker();
  start({"--stream-idle-timeout-secs", "1"});
  one.set_fault({.kind = Kind::kMute, .chunks = 2});
  const std::string got = stream_of();
  EXPECT_THAT(got, HasSubstr("worker " + id_of(0) + ": reading the response body took longer than 1 s"));
  EXPECT_THAT(got, HasSubstr("stream_error"));
  EXPECT_THAT(got, Not(HasSubstr("[DONE]")));
  expect_settled();
}

TEST_F(TimeLimitsTest, TheConnection) {
  const sluice::testing::FullListener unreachable;
  start({"--connect-timeout-secs", "1", "--disable-retries"});
  gateway_->worker_started(unreachable.url());
  const auto answer = generate();
  EXPECT_EQ(answer->status, 504);
  EXPECT_THAT(answer->body, HasSubstr("worker " + id_of(0) + ": connecting took longer than 1 s"));
  EXPECT_THAT(answer->body, Not(HasSubstr("127.0.0.1")));
  expect_settled();
}

// --- the whole exchange --------------------------------------------------------------------------------------------

TEST_F(TimeLimitsTest, ARequestInAllBeforeItsAnswer) {
  SimWorker& one = worker();
  start({"--total-timeout-secs", "1"});
  EXPECT_EQ(generate()->status, 200) << "one that is in time is not touched";
  one.set_fault({.kind = Kind::kStall});
  const auto answer = generate();
  EXPECT_EQ(answer->status, 504);
  EXPECT_EQ(code_of(answer), "call_upstream_timeout");
  EXPECT_THAT(
      answer->body,
      HasSubstr("longer than 1 s in all, the last of them waiting for the response head (worker " + id_of(0) + ")"));
  EXPECT_EQ(one.counters().faults, 1) << "there is no time for another attempt";
  EXPECT_EQ(faults(), 0) << "what a request takes in all is nobody's fault";
  expect_settled();
}

TEST_F(TimeLimitsTest, ARequestInAllWithinItsStream) {
  SimWorker& one = worker();
  start({"--total-timeout-secs", "1"});
  one.set_fault({.kind = Kind::kMute, .chunks = 2});
  const std::string got = stream_of();
  EXPECT_THAT(got, HasSubstr("\"stream_error\""));
  EXPECT_THAT(got, HasSubstr("longer than 1 s in all, the last of them relaying the answer (worker " + id_of(0) + ")"));
  EXPECT_THAT(got, Not(HasSubstr("[DONE]")));
  EXPECT_EQ(metric("smg_stream_aborts_total", {"side=\"gateway\""}), 1);
  EXPECT_EQ(metric("smg_stream_aborts_total"), 1) << "neither of the others has cut it";
  expect_settled();
}

TEST_F(TimeLimitsTest, ARequestInAllBetweenAttempts) {
  SimWorker& one = worker();
  start({"--total-timeout-secs", "1", "--retry-initial-backoff-ms", "20000"});
  one.set_fault({.kind = Kind::kStatus, .status = 500});
  const auto answer = generate();
  EXPECT_EQ(answer->status, 504);
  EXPECT_EQ(one.counters().faults, 1);
  expect_settled();
}

TEST_F(TimeLimitsTest, ARequestInAllWhoseClientDoesNotRead) {
  SimWorkerOptions options;
  options.canned = true;
  options.canned_chunks = 4000;  // each holds the text so far: more than the buffers on the way take
  worker(options);
  start({"--total-timeout-secs", "1"});
  ++sent_;
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x", true));
  // Without a byte being read, everything is given back.
  EXPECT_TRUE(eventually([&] { return metric("smg_router_requests_total") == 1 && in_flight() == 0; }));
  EXPECT_EQ(metric("smg_stream_aborts_total", {"side=\"gateway\""}), 1);
  EXPECT_EQ(metric("smg_stream_aborts_total"), 1) << "the client is still there";
  expect_settled();
}

TEST_F(TimeLimitsTest, ARequestInAllWhoseBodyDrips) {
  worker();
  start({"--total-timeout-secs", "1"});
  ++sent_;
  RawClient client(gateway_->port());
  client.send("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
  EXPECT_TRUE(eventually([&] { return metric("smg_router_requests_total") == 1 && in_flight() == 0; }));
  expect_settled();
}

TEST_F(TimeLimitsTest, ARequestInAllInTheQueue) {
  SimWorker& one = worker({.manual = true});
  start({"--total-timeout-secs", "1", "--max-concurrent-requests", "1", "--queue-size", "1", "--queue-timeout-secs",
         "60"});
  ++sent_;
  RawClient first(gateway_->port());
  first.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  const auto answer = generate();
  EXPECT_EQ(answer->status, 504);
  EXPECT_EQ(code_of(answer), "call_upstream_timeout");
  first.leave();
  expect_settled();
}

// --- signs of life -------------------------------------------------------------------------------------------------

TEST_F(TimeLimitsTest, ASilentStreamIsKeptAliveUntilItIsGivenUp) {
  SimWorker& one = worker();
  start({"--sse-keepalive-secs", "1", "--stream-idle-timeout-secs", "3"});
  one.set_fault({.kind = Kind::kMute, .chunks = 2});
  const std::string got = stream_of();
  EXPECT_EQ(count(got, ": keep-alive\n\n"), 2);
  EXPECT_LT(got.rfind("keep-alive"), got.find("stream_error")) << "comments do not make the worker less silent";
  expect_settled();
}

TEST_F(TimeLimitsTest, ACommentNeverStandsWithinAnEvent) {
  SimWorker& one = worker();
  start({"--sse-keepalive-secs", "1", "--stream-idle-timeout-secs", "2"});
  one.set_fault({.kind = Kind::kHalfEvent, .chunks = 2});
  const std::string got = stream_of();
  EXPECT_THAT(got, Not(HasSubstr("keep-alive")));
  EXPECT_THAT(got, HasSubstr("stream_error"));
  expect_settled();
}

TEST_F(TimeLimitsTest, AStreamThatGoesOnHasNoComments) {
  worker();
  start({"--sse-keepalive-secs", "1"});
  const std::string got = stream_of("[DONE]\n\n");
  EXPECT_THAT(got, HasSubstr("[DONE]"));
  EXPECT_THAT(got, Not(HasSubstr("keep-alive")));
  expect_settled();
}

// --- clients that leave --------------------------------------------------------------------------------------------

TEST_F(TimeLimitsTest, AWorkerIsToldThatAClientHasLeft) {
  SimWorker& one = worker({.manual = true});
  start({"--abort-on-disconnect"});
  const auto leave_from = [&](const std::string& body) {
    ++sent_;
    RawClient client(gateway_->port());
    client.post("/generate", body);
    EXPECT_TRUE(eventually([&] { return one.active() == 1; }));
    client.leave();
    EXPECT_TRUE(eventually([&] { return one.active() == 0 && in_flight() == 0; }));
  };
  leave_from(R"({"text":"x"})");  // the engine has named it, nobody here knows how
  leave_from(R"({"text":"x","rid":"mi\"ne"})");
  EXPECT_TRUE(eventually([&] { return last_post(one).target == "/abort_request"; }));
  EXPECT_EQ(last_post(one).body, R"({"rid":"mi\"ne"})");
  int aborts = 0;
  for (const auto& received : one.received()) aborts += received.target == "/abort_request";
  EXPECT_EQ(aborts, 1);
  expect_settled();
}

TEST_F(TimeLimitsTest, WithoutTheFlagTheConnectionSaysEnough) {
  SimWorker& one = worker({.manual = true});
  start();
  ++sent_;
  RawClient client(gateway_->port());
  client.post("/generate", R"({"text":"x","rid":"mine"})");
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  client.leave();
  expect_settled();
  for (const auto& received : one.received()) EXPECT_NE(received.target, "/abort_request");
}

// --- health --------------------------------------------------------------------------------------------------------

TEST_F(TimeLimitsTest, ThePortForHealthAnswersNothingElse) {
  auto options = gateway_option_table()
                     .parse({"--host", "127.0.0.1", "--port", "0", "--prometheus-host", "127.0.0.1",
                             "--prometheus-port", "0", "--api-key", "k"})
                     .value();
  options.health_check_port = 0;  // a free one, which the command line does not offer
  gateway_ = Gateway::start(options, *time_).value();
  ASSERT_NE(gateway_->health_port(), 0);
  ASSERT_NE(gateway_->health_port(), gateway_->port());
  url_ = net::parse_url(fmt::format("http://127.0.0.1:{}", gateway_->health_port())).value();
  EXPECT_EQ(call("GET", "/health")->status, 200);
  EXPECT_EQ(call("GET", "/liveness")->status, 200);
  EXPECT_EQ(call("GET", "/readiness")->status, 503);
  SimWorker& one = worker();
  gateway_->worker_started(one.url());
  const auto ready = call("GET", "/readiness");
  EXPECT_EQ(ready->status, 200);
  EXPECT_EQ(Json::parse(ready->body), (Json{{"status", "ready"}, {"healthy_workers", 1}, {"total_workers", 1}}));
  for (const char* path : {"/workers", "/generate", "/v1/models", "/metrics", "/"}) {
    EXPECT_EQ(call("GET", path)->status, 404) << path;
  }
  EXPECT_EQ(call("POST", "/health")->status, 405);
}

TEST_F(TimeLimitsTest, AFirstHealthCheckMayBeDelayed) {
  time_ = &real_clock();
  start({"--worker-startup-delay", "1"});
  SimWorker& one = worker();
  const TimePoint begun = real_clock().now();
  ASSERT_EQ(call("POST", "/workers", Json{{"url", one.url()}}.dump())->status, 202);
  ASSERT_TRUE(eventually([&] { return one.counters().health_checks > 0; }));
  EXPECT_GE(real_clock().now() - begun, 1s);
  EXPECT_TRUE(eventually([&] { return call("GET", "/readiness")->status == 200; }));
}

TEST_F(TimeLimitsTest, AWorkerThatFailsForLongIsRemovedWhereThatIsAsked) {
  time_ = &real_clock();
  SimWorker& fails = worker();
  auto starts = SimWorker::start(loops_).value();
  starts->set_health({.status = 503});
  start({"--remove-unhealthy-workers", "--health-check-interval-secs", "1", "--health-failure-threshold", "1",
         "--drain-settle-secs", "0"});
  ASSERT_EQ(call("POST", "/workers", Json{{"url", starts->url()}}.dump())->status, 202);
  ASSERT_EQ(workers_json().size(), 2u);
  fails.set_health({.status = 503});
  EXPECT_TRUE(eventually([&] { return workers_json().size() == 1; }));
  // One that starts is waited for, however often it is asked.
  EXPECT_TRUE(eventually([&] { return starts->counters().health_checks > 3; }));
  const Json left = workers_json();
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0]["url"], starts->url());
}

TEST_F(TimeLimitsTest, AWorkerThatFailsForLongIsKeptOtherwise) {
  time_ = &real_clock();
  SimWorker& fails = worker();
  start({"--health-check-interval-secs", "1", "--health-failure-threshold", "1", "--drain-settle-secs", "0"});
  fails.set_health({.status = 503});
  const int64_t before = fails.counters().health_checks;
  EXPECT_TRUE(eventually([&] { return fails.counters().health_checks > before + 4; }));
  EXPECT_EQ(workers_json().size(), 1u);
}

}  // namespace
}  // namespace sluice::gateway
