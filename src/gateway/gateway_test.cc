// The gateway over real sockets, with simulated workers behind it.
#include "gateway/gateway.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "net/client.h"
#include "net/sse.h"
#include "testing/sim_worker.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using Json = nlohmann::json;
using sluice::testing::SimFault;
using sluice::testing::SimWorker;
using sluice::testing::SimWorkerOptions;
using ::testing::HasSubstr;
using ::testing::Not;

class GatewayTest : public ::testing::Test {
 protected:
  SimWorker& worker(SimWorkerOptions options = {}) {
    options.time_scale = 50;
    workers_.push_back(SimWorker::start(loops_, std::move(options)).value());
    return *workers_.back();
  }
  // In front of all workers so far, which are ready.
  void start(std::vector<std::string> flags = {}) {
    flags.insert(flags.end(), {"--host", "127.0.0.1", "--port", "0", "--prometheus-host", "127.0.0.1",
                               "--prometheus-port", "0", "--expose-worker-header"});
    gateway_ = Gateway::start(gateway_option_table().parse(flags).value()).value();
    for (const auto& worker : workers_) gateway_->worker_started(worker->url());
    url_ = net::parse_url(fmt::format("http://127.0.0.1:{}", gateway_->port())).value();
  }
  Result<net::Response> call(const std::string& method, const std::string& target, std::string body = "",
                             net::Headers headers = {}, net::ClientTimeouts timeouts = {}) {
    return net::blocking_fetch(url_, method, target, std::move(headers), std::move(body), timeouts);
  }
  Result<net::Response> generate(const std::string& text, bool stream = false, int tokens = 4,
                                 net::ClientTimeouts timeouts = {}) {
    const Json body = {{"text", text}, {"stream", stream}, {"sampling_params", {{"max_new_tokens", tokens}}}};
    return call("POST", "/generate", body.dump(), {}, timeouts);
  }
  static bool eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 1000; ++i) {
      if (condition()) return true;
      timespec moment{0, 5'000'000};
      nanosleep(&moment, nullptr);
    }
    return false;
  }
  int64_t in_flight() {
    int64_t sum = 0;
    const Json document = Json::parse(call("GET", "/workers")->body);
    for (const auto& worker : document["workers"]) {
      sum += worker["load"].get<int64_t>();
      sum += worker["load_tokens"].get<int64_t>();
    }
    return sum;
  }

  // An exchange ends, and gives back what it holds, after its last byte has reached the client.
  bool all_given_back() {
    return eventually([&] { return in_flight() == 0; });
  }

  net::LoopGroup loops_{1};
  std::vector<std::unique_ptr<SimWorker>> workers_;
  std::unique_ptr<Gateway> gateway_;
  net::Url url_;
};

TEST_F(GatewayTest, RelaysAnswersAndStreamsUnchanged) {
  SimWorker& one = worker();
  start();
  const auto whole = generate("a b c");
  ASSERT_TRUE(whole.ok()) << whole.error().message;
  EXPECT_EQ(whole->status, 200);
  EXPECT_TRUE(Json::parse(whole->body).contains("text")) << whole->body;
  EXPECT_TRUE(whole->headers.has("x-request-id"));
  EXPECT_EQ(whole->headers.get("x-smg-routed-worker-id"), one.url());
  const auto stream = generate("a b c", true);
  ASSERT_TRUE(stream.ok()) << stream.error().message;
  EXPECT_THAT(stream->body, HasSubstr("data: [DONE]"));
  const std::string odd = R"({ "unknown":1, "text":"x","sampling_params":{"max_new_tokens":1} } )";
  ASSERT_EQ(call("POST", "/generate", odd)->status, 200);
  EXPECT_EQ(one.received().back().body, odd);
  EXPECT_TRUE(all_given_back());
}

TEST_F(GatewayTest, AnswersItsOwnRoutes) {
  worker({.model = "m"});
  start();
  EXPECT_EQ(call("GET", "/health")->status, 200);
  EXPECT_EQ(call("GET", "/liveness")->status, 200);
  EXPECT_EQ(call("GET", "/readiness")->status, 200);
  EXPECT_EQ(Json::parse(call("GET", "/v1/models")->body)["data"][0]["id"], "m");
  for (const char* path : {"/get_server_info", "/server_info", "/get_model_info", "/model_info", "/get_loads",
                           "/v1/loads", "/health_generate", "/list_workers"}) {
    EXPECT_EQ(call("GET", path)->status, 200) << path;
  }
  EXPECT_EQ(call("POST", "/flush_cache")->status, 200);
  EXPECT_EQ(call("GET", "/nowhere")->headers.get("X-SMG-Error-Code"), "unknown_url");
  const auto wrong = call("GET", "/generate");
  EXPECT_EQ(wrong->status, 405);
  EXPECT_EQ(wrong->headers.get("allow"), "POST");
  EXPECT_EQ(call("POST", "/generate", "{")->headers.get("X-SMG-Error-Code"), "json_parse_error");
  const auto traced = call("POST", "/generate", R"({"text":"x"})", {{"X-Request-Id", "mine"}});
  EXPECT_EQ(traced->headers.get("x-request-id"), "mine");
  // Written down at the end of the exchange, after its last byte.
  EXPECT_TRUE(eventually([&] { return call("GET", "/debug/why/mine")->status == 200; }));
  EXPECT_EQ(Json::parse(call("GET", "/debug/why/mine")->body)["outcome"], "ok");
}

TEST_F(GatewayTest, AddsAndRemovesWorkers) {
  start({"--drain-settle-secs", "0"});
  EXPECT_EQ(call("GET", "/readiness")->status, 503);
  EXPECT_EQ(generate("x")->status, 503);
  SimWorker& one = worker();
  const auto added = call("POST", "/workers", Json{{"url", one.url()}}.dump());
  ASSERT_EQ(added->status, 202);
  EXPECT_EQ(Json::parse(call("POST", "/workers", Json{{"url", one.url()}}.dump())->body)["worker_id"],
            Json::parse(added->body)["worker_id"]);
  EXPECT_TRUE(eventually([&] { return call("GET", "/readiness")->status == 200; }));
  EXPECT_EQ(generate("x")->status, 200);
  const std::string location(*added->headers.get("location"));
  EXPECT_EQ(call("PATCH", location, R"({"priority":7})")->status, 202);
  EXPECT_EQ(Json::parse(call("GET", location)->body)["priority"], 7);
  EXPECT_EQ(call("GET", "/workers/nonsense")->status, 400);
  EXPECT_EQ(call("DELETE", location)->status, 202);
  EXPECT_TRUE(eventually([&] { return call("GET", location)->status == 404; }));
  EXPECT_EQ(call("POST", "/workers", "[]")->status, 400);
}

TEST_F(GatewayTest, MovesOnFromADeadWorker) {
  worker();
  SimWorker& dead = worker();
  start({"--policy", "round_robin"});
  dead.stop();
  for (int i = 0; i < 8; ++i) EXPECT_EQ(generate("x")->status, 200);
  EXPECT_TRUE(all_given_back());
}

TEST_F(GatewayTest, AnswersARefusedConnectionWith502) {
  SimWorker& dead = worker();
  start({"--disable-retries"});
  dead.stop();
  const auto answer = generate("x");
  EXPECT_EQ(answer->status, 502);
  EXPECT_EQ(answer->headers.get("X-SMG-Error-Code"), "call_upstream_connection_failed");
  EXPECT_THAT(answer->body, Not(HasSubstr(dead.url())));
}

TEST_F(GatewayTest, PassesAWorkersErrorOnWhenRetriesAreSpent) {
  SimWorker& one = worker();
  start({"--retry-max-retries", "3", "--retry-initial-backoff-ms", "1"});
  one.set_fault({.kind = SimFault::Kind::kStatus, .status = 500, .body = "broken"});
  const auto answer = generate("x", true);
  EXPECT_EQ(answer->status, 500);
  EXPECT_EQ(answer->body, "broken");
  EXPECT_EQ(one.counters().generations, 3);
  one.set_fault({.kind = SimFault::Kind::kStatus, .status = 400, .body = "bad"});
  EXPECT_EQ(generate("x")->status, 400);
  EXPECT_EQ(one.counters().generations, 4);
}

TEST_F(GatewayTest, EndsABrokenStreamWithAnErrorEvent) {
  SimWorker& one = worker();
  start();
  one.set_fault({.kind = SimFault::Kind::kDie, .chunks = 2, .times = 1});
  const auto answer = generate("x", true, 50);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->status, 200);
  EXPECT_THAT(answer->body, HasSubstr("stream_error"));
  EXPECT_THAT(answer->body, Not(HasSubstr("[DONE]")));
  EXPECT_TRUE(all_given_back());
}

TEST_F(GatewayTest, ClosesTheUpstreamWhenTheClientLeaves) {
  SimWorker& one = worker();
  start();
  one.set_fault({.kind = SimFault::Kind::kStall});
  EXPECT_FALSE(generate("x", true, 4, {.connect = 1s, .head = 100ms, .silence = 100ms}).ok());
  EXPECT_TRUE(eventually([&] { return one.counters().client_gone == 1; }));
  one.set_fault({.kind = SimFault::Kind::kMute, .chunks = 1});
  EXPECT_FALSE(generate("x", true, 50, {.connect = 1s, .head = 2s, .silence = 100ms}).ok());
  EXPECT_TRUE(eventually([&] { return one.counters().client_gone == 2; }));
  EXPECT_TRUE(all_given_back());
}

TEST_F(GatewayTest, BoundsWhatIsInFlightAndWhatWaits) {
  SimWorker& one = worker();
  start({"--max-concurrent-requests", "1", "--queue-size", "1", "--queue-timeout-secs", "1"});
  one.set_fault({.kind = SimFault::Kind::kStall});
  auto first = std::async(std::launch::async, [&] { return generate("x", false, 4, {.connect = 1s, .head = 3s}); });
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  auto second = std::async(std::launch::async, [&] { return generate("x"); });
  ASSERT_TRUE(eventually([&] {
    return net::blocking_fetch(net::parse_url(fmt::format("http://127.0.0.1:{}", gateway_->metrics_port())).value(),
                               "GET", "/metrics")
               ->body.find("smg_admission_queue_depth 1") != std::string::npos;
  }));
  const auto third = generate("x");
  EXPECT_EQ(third->status, 429);
  EXPECT_EQ(third->headers.get("X-SMG-Error-Code"), "admission_queue_full");
  EXPECT_TRUE(third->headers.has("retry-after"));
  EXPECT_EQ(second.get()->status, 408);
  EXPECT_FALSE(first.get().ok());
  one.clear_fault();
  EXPECT_EQ(generate("x")->status, 200);
}

TEST_F(GatewayTest, AsksForItsKey) {
  worker({.api_key = "secret"});
  start({"--api-key", "secret"});
  EXPECT_EQ(call("POST", "/generate", R"({"text":"x"})")->status, 401);
  EXPECT_EQ(call("GET", "/workers")->status, 401);
  EXPECT_EQ(call("GET", "/health")->status, 200);
  EXPECT_EQ(call("POST", "/generate", R"({"text":"x"})", {{"Authorization", "Bearer secret"}})->status, 200);
}

TEST_F(GatewayTest, SendsAPrefixWhereItIsCached) {
  worker();
  worker();
  start({"--policy", "cache_aware"});
  std::string prefix;
  for (int i = 0; i < 50; ++i) prefix += fmt::format("word{} ", i);
  const auto first = generate(prefix);
  ASSERT_EQ(first->status, 200);
  for (int i = 0; i < 6; ++i) {
    // The claim is applied by the index thread, soon after the choice.
    EXPECT_TRUE(eventually([&] {
      return generate(prefix + std::to_string(i))->headers.get("x-smg-routed-worker-id") ==
             first->headers.get("x-smg-routed-worker-id");
    }));
  }
}

TEST_F(GatewayTest, DrainsWithinItsGrace) {
  SimWorker& one = worker();
  start();
  one.set_fault({.kind = SimFault::Kind::kSlowHead, .delay = 200ms});
  auto request = std::async(std::launch::async, [&] { return generate("x"); });
  ASSERT_TRUE(eventually([&] { return one.active() == 1 || one.counters().requests > 1; }));
  EXPECT_EQ(gateway_->drain(2s), 0u);
  EXPECT_EQ(request.get()->status, 200);
}

}  // namespace
}  // namespace sluice::gateway
