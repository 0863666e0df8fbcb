// Cases of docs/results/conformance.md over real sockets, each under its number, where no other test shows all of it.
#include "gateway/gateway_fixture.h"

namespace sluice::gateway {
namespace {

class VectorTest : public GatewayFixture {
 protected:
  // Our own errors: the code in the body is that of the header.
  static Json error_of(const Result<net::Response>& answer) {
    Json error = Json::parse(answer->body)["error"];
    EXPECT_EQ(error["code"], code_of(answer)) << answer->body;
    return error;
  }
};

TEST_F(VectorTest, V15AnOnlyWorkerThatAlwaysAnswers503IsAskedFiveTimes) {
  SimWorker& one = worker();
  start({"--retry-initial-backoff-ms", "1"});
  one.set_fault({.kind = Kind::kStatus, .status = 503, .body = "out of order"});
  const auto answer = generate();
  EXPECT_EQ(answer->status, 503);
  EXPECT_EQ(answer->body, "out of order") << "the worker's own";
  EXPECT_EQ(one.counters().generations, 5) << "as many as --retry-max-retries says where nobody sets it";
  expect_settled();
}

TEST_F(VectorTest, V18WhoFindsNoSlotAndNoQueueIsToldInJsonWhenToComeBack) {
  SimWorker& one = worker();
  start({"--max-concurrent-requests", "1", "--queue-size", "0"});
  one.set_fault({.kind = Kind::kStall, .times = 1});
  ++sent_;
  RawClient first(gateway_->port());
  first.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  const auto second = generate();
  EXPECT_EQ(second->status, 429);
  EXPECT_EQ(error_of(second)["type"], "Too Many Requests");
  EXPECT_TRUE(second->headers.has("retry-after"));
  first.leave();
  expect_settled();
}

TEST_F(VectorTest, V28AnAddedWorkerIsAcceptedWithItsPlace) {
  start();
  const auto answer = call("POST", "/workers", R"({"url":"http://127.0.0.1:1"})");
  EXPECT_EQ(answer->status, 202);
  const Json body = Json::parse(answer->body);
  EXPECT_EQ(body["status"], "accepted");
  EXPECT_EQ(body["url"], "http://127.0.0.1:1");
  const std::string place = "/workers/" + body["worker_id"].get<std::string>();
  EXPECT_EQ(body["location"], place);
  EXPECT_EQ(answer->headers.get("location"), place);
}

TEST_F(VectorTest, V30AnIdThatIsNoneIsABadRequest) {
  start();
  const auto answer = call("GET", "/workers/not-a-uuid");
  EXPECT_EQ(answer->status, 400);
  const Json body = Json::parse(answer->body);
  EXPECT_EQ(body["code"], "BAD_REQUEST");
  EXPECT_TRUE(body["error"].is_string());
}

TEST_F(VectorTest, V31WithoutAWorkerItIsNotReadyAndSaysWhy) {
  start();
  const auto answer = call("GET", "/readiness");
  EXPECT_EQ(answer->status, 503);
  EXPECT_EQ(Json::parse(answer->body)["status"], "not ready");
  EXPECT_EQ(Json::parse(answer->body)["reason"], "insufficient healthy workers");
}

TEST_F(VectorTest, V32AnUnknownPathIsAnErrorInJson) {
  start();
  const auto answer = call("GET", "/nowhere");
  EXPECT_EQ(answer->status, 404);
  EXPECT_EQ(error_of(answer)["code"], "unknown_url");
}

TEST_F(VectorTest, V34RanksHaveLoadsOfTheirOwn) {
  SimWorker& engine = worker({.dp_size = 2, .manual = true});
  start({"--dp-aware"});
  ASSERT_TRUE(eventually([&] { return workers_json().size() == 2; })) << workers_json();
  RawClient client(gateway_->port());
  ++sent_;
  client.post("/generate", R"({"text":"a b c d e f","routed_dp_rank":1,"sampling_params":{"max_new_tokens":8}})");
  ASSERT_TRUE(eventually([&] { return engine.active() == 1; }));
  engine.step();  // the prompt is in the pool
  const Json loads = Json::parse(call("GET", "/get_loads")->body)["workers"];
  ASSERT_EQ(loads.size(), 2u);
  EXPECT_EQ(loads[0]["worker"], engine.url() + "@0");
  EXPECT_EQ(loads[0]["load"], 0);
  EXPECT_EQ(loads[1]["worker"], engine.url() + "@1");
  EXPECT_GT(loads[1]["load"], 0);
  EXPECT_TRUE(eventually([&] {
    engine.step();
    return engine.active() == 0;
  }));
  expect_settled();
}

TEST_F(VectorTest, V36TheClientsRequestIdIsTheAnswersAndTheWorkers) {
  SimWorker& one = worker();
  start();
  ++sent_;
  const auto answer = call("POST", "/generate", body_of("x"), {{"x-request-id", "abc"}});
  EXPECT_EQ(answer->headers.get("x-request-id"), "abc");
  EXPECT_EQ(last_post(one).headers.get("x-request-id"), "abc");
  expect_settled();
}

TEST_F(VectorTest, V41ARequestThatRunsCountsUnderEveryPolicy) {
  SimWorker& one = worker();
  start({"--policy", "round_robin"});
  one.set_fault({.kind = Kind::kStall, .times = 1});
  ++sent_;
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  EXPECT_EQ(workers_json()[0]["load"], 1);
  EXPECT_EQ(metric("smg_worker_requests_active", {one.url()}), 1);
  client.leave();
  expect_settled();
}

TEST_F(VectorTest, V43AHostMayBeAName) {
  gateway_ =
      Gateway::start(
          gateway_option_table()
              .parse({"--host", "localhost", "--port", "0", "--prometheus-host", "localhost", "--prometheus-port", "0"})
              .value(),
          *time_)
          .value();
  url_ = net::parse_url(fmt::format("http://localhost:{}", gateway_->port())).value();
  EXPECT_EQ(call("GET", "/health")->status, 200);
}

}  // namespace
}  // namespace sluice::gateway
