// Workers and clients that say or do what none should, and a gateway that lacks something itself: nobody may end this
// process, bind it, or be blamed for what another has done.
#include <sys/resource.h>

#include "base/process.h"
#include "gateway/gateway_fixture.h"
#include "gateway/kv_events/attendant.h"
#include "gateway/loads.h"
#include "gateway/policy/least.h"
#include "gateway/scripted_worker_fixture.h"
#include "testing/raw_listener.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;

std::string nested(size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

// Until this goes, no further descriptor can be had; those that are open stay.
class NoDescriptors {
 public:
  NoDescriptors() {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    const rlimit none{3, before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  }
  ~NoDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  NoDescriptors(const NoDescriptors&) = delete;
  NoDescriptors& operator=(const NoDescriptors&) = delete;

 private:
  rlimit before_{};
};

class OddWorkersTest : public GatewayFixture {
 protected:
  // A worker that accepts connections and says nothing.
  const sluice::testing::RawListener silent_;
};

// --- what they say -------------------------------------------------------------------------------------------------

TEST_F(OddWorkersTest, ADeepLoadReportIsNone) {
  EXPECT_FALSE(load_report(R"({"loads":)" + nested(200'000) + "}", LoadSource::kLoads, -1));
  EXPECT_FALSE(load_report(nested(200'000), LoadSource::kGetLoad, -1));
  EXPECT_TRUE(load_report(R"({"loads":[]})", LoadSource::kLoads, -1));
}

// As through a proxy that compresses it: without a length.
TEST_F(OddWorkersTest, AnAnswerInChunksThatIsNoStreamTellsNothingOfItsFirstToken) {
  for (const int status : {200, 400}) {
    SCOPED_TRACE(status);
    const ScriptedWorker::Serve in_chunks = [&](net::ServerExchange& exchange,
                                                const ScriptedWorker::Received&) -> net::Task<> {
      clock_.advance(10s);
      net::ResponseHead head{status, {}, ""};
      auto sent = co_await exchange.start(std::move(head));
      for (const char* piece : {"{", "}"}) {
        if (sent.ok()) sent = co_await exchange.write(piece);
      }
      if (sent.ok()) co_await exchange.finish();
    };
    ScriptedWorker scripted(loops_, in_chunks);
    start({"--policy", "min_cost", "--disable-health-check"});
    gateway_->worker_started(scripted.url());
    for (const char* id : {"first", "second"}) {
      EXPECT_EQ(call("POST", "/generate", body_of("x"), {{"X-Request-Id", id}})->status, status);
    }
    ASSERT_TRUE(eventually([&] { return metric("smg_router_requests_total") == 2; }));
    EXPECT_EQ(metric("smg_router_ttft_seconds_count"), 0);
    EXPECT_EQ(metric("smg_router_inter_chunk_seconds_count"), 0);
    EXPECT_EQ(metric("smg_router_generation_duration_seconds_count"), status == 200 ? 2 : 0);
    const Json why = Json::parse(call("GET", "/debug/why/second")->body);
    EXPECT_LT(why["tries"][0]["scores"][0]["cost"], 1) << "ten seconds were taken for its prefill: " << why;
    gateway_.reset();  // before the worker
  }
}

TEST_F(OddWorkersTest, FiguresBeyondAllMeasureAreBounded) {
  const auto report = load_report(R"({"loads":[{"num_used_tokens":1e300,"dp_rank":1e300},{"num_used_tokens":1e300}]})",
                                  LoadSource::kLoads, -1);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->used_tokens, 1'000'000'000'000'000);
  EXPECT_EQ(report->ranks[0].rank, 1'000'000);
}

TEST_F(OddWorkersTest, DeepServerInformationNamesNoPublisher) {
  Fleet fleet({}, clock_);
  const WorkerPtr worker = fleet.add(net::parse_url("http://w:1").value(), "").first;
  const auto source = kv_source_in(*worker, 200, R"({"kv_events_config":)" + nested(200'000) + "}", std::nullopt);
  EXPECT_FALSE(source.endpoint);
  EXPECT_THAT(source.why, HasSubstr("nested deeper"));
  const std::string inner = Json(nested(200'000)).dump();
  EXPECT_FALSE(kv_source_in(*worker, 200, R"({"kv_events_config":)" + inner + "}", std::nullopt).endpoint);
}

TEST(LeastTest, AnInfiniteCostIsTheLeastWhereThereIsNoOther) {
  Rng rng(1);
  Least<double> least(rng);
  EXPECT_TRUE(least.offer(7, std::numeric_limits<double>::infinity()));
  EXPECT_TRUE(least.found());
  EXPECT_EQ(least.worker(), 7u);
  EXPECT_TRUE(least.offer(8, 1));
  EXPECT_FALSE(least.offer(7, std::numeric_limits<double>::infinity()));
  EXPECT_EQ(least.worker(), 8u);
}

TEST_F(OddWorkersTest, AWorkersErrorCodeIsNoLabel) {
  ScriptedWorker odd(loops_, [](const ScriptedWorker::Received&) {
    auto response = net::Response::text(500, "x");
    response.headers.add("X-SMG-Error-Code", "made-up-by-a-worker");
    return response;
  });
  start();
  gateway_->worker_started(odd.url());
  for (const char* path : {"/server_info", "/v1/responses/r"}) {
    const auto answer = call("GET", path);
    EXPECT_EQ(answer->status, 500) << path;
    EXPECT_EQ(code_of(answer), "made-up-by-a-worker") << path << ": the client may see it";
  }
  EXPECT_THAT(gateway_->metrics().render(), Not(HasSubstr("made-up")));
}

// --- what they do --------------------------------------------------------------------------------------------------

TEST_F(OddWorkersTest, AQuestionEndsWithTheClientWhoAsked) {
  start();
  gateway_->worker_started(silent_.url());
  for (const char* line : {"GET /server_info", "GET /health_generate", "GET /v1/models", "GET /get_loads",
                           "GET /engine_metrics", "GET /v1/responses/r", "POST /flush_cache", "POST /start_profile"}) {
    RawClient client(gateway_->port());
    client.send(fmt::format("{} HTTP/1.1\r\nHost: x\r\n\r\n", line));
    ASSERT_TRUE(eventually([&] { return metric("smg_http_connections_active") == 1; })) << line;
    client.leave();
    // Within the bound of no question.
    bool ended = false;
    for (int i = 0; i < 400 && !ended; ++i) {
      ended = metric("smg_http_connections_active") == 0;
      timespec moment{0, 5'000'000};
      nanosleep(&moment, nullptr);
    }
    ASSERT_TRUE(ended) << line;
  }
}

TEST_F(OddWorkersTest, AHealthCheckThatDripsFails) {
  net::Server dripping(loops_, net::ServerOptions{}, [](net::ServerExchange& client) -> net::Task<> {
    net::ResponseHead head{200, {}};
    const auto started = co_await client.start(std::move(head));
    if (!started.ok()) co_return;
    for (;;) {
      const auto written = co_await client.write("x");
      if (!written.ok() || client.client_gone()) co_return;
      co_await client.loop().sleep(50ms);
    }
  });
  const uint16_t port = dripping.listen("127.0.0.1", 0).value();
  time_ = &real_clock();
  start({"--health-check-timeout-secs", "1"});
  ASSERT_EQ(call("POST", "/workers", fmt::format(R"({{"url":"http://127.0.0.1:{}"}})", port))->status, 202);
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health_checks_total", {"error"}) >= 1; }));
  gateway_.reset();
}

// --- what this process lacks ---------------------------------------------------------------------------------------

TEST_F(OddWorkersTest, WithoutDescriptorsNoWorkerIsBlamed) {
  worker();
  start({"--disable-retries"});
  RawClient client(gateway_->port());
  client.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_THAT(client.read_until("OK"), HasSubstr("200"));
  ++sent_;
  std::string answer;
  {
    const NoDescriptors none;
    client.post("/generate", body_of("x"));
    answer = client.read_until("gateway_exhausted\",\"message");
  }
  EXPECT_THAT(answer, HasSubstr("503"));
  EXPECT_THAT(answer, HasSubstr("gateway_exhausted"));
  EXPECT_THAT(answer, HasSubstr("\r\nRetry-After: 1\r\n"));
  EXPECT_EQ(metric("smg_worker_cb_outcomes_total", {"failure"}), 0);
  EXPECT_EQ(metric("smg_worker_errors_total"), 0);
  EXPECT_EQ(generate()->status, 200) << "it is over";
  expect_settled();
}

TEST_F(OddWorkersTest, AProbeThatCouldNotBeMadeIsNoVerdict) {
  SimWorker& one = worker();
  time_ = &real_clock();
  auto ready = std::move(workers_);  // not told to the gateway as started
  start({"--worker-startup-check-interval", "1"});
  RawClient client(gateway_->port());
  client.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_THAT(client.read_until("OK"), HasSubstr("200"));
  {
    const NoDescriptors none;
    client.post("/workers", fmt::format(R"({{"url":"{}"}})", one.url()));
    EXPECT_TRUE(eventually([&] { return metric("smg_worker_health_checks_total", {"exhausted"}) >= 1; }));
    EXPECT_EQ(metric("smg_worker_health_checks_total", {"error"}), 0);
  }
  EXPECT_TRUE(eventually([&] { return workers_json()[0]["status"] == "ready"; })) << workers_json();
}

TEST_F(OddWorkersTest, TheGatewayTakesAllDescriptorsThatItMay) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit fewer{limit.rlim_max / 2, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &fewer), 0);
  start();
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(limit.rlim_cur, limit.rlim_max);
}

// --- what operators say --------------------------------------------------------------------------------------------

TEST_F(OddWorkersTest, KeysAndUrlsThatCannotBePassedOnAreRefused) {
  worker();
  start();
  const net::ClientTimeouts brief{.connect = 5s, .head = 5s, .silence = 5s};
  const std::string id = workers_json()[0]["id"];
  for (const char* target : {"/add_worker?url=http://w:8000&api_key=%FF", "/add_worker?url=http://w%FF:8000",
                             "/add_worker?url=http://w:8000&api_key=a%0Ab"}) {
    const auto answer = call("POST", target, "", {}, brief);
    ASSERT_TRUE(answer.ok()) << target;
    EXPECT_EQ(answer->status, 400) << target;
    EXPECT_THAT(answer->body, HasSubstr("ASCII")) << target;
  }
  EXPECT_EQ(call("PATCH", "/workers/" + id, "{\"api_key\":\"\\u00e9\"}")->status, 400);
  EXPECT_EQ(workers_json().size(), 1u);
  EXPECT_THAT(*gateway_->bequeath().value().fleet, HasSubstr(workers_[0]->url()));
}

TEST_F(OddWorkersTest, AMethodIsAWholeWord) {
  worker();
  start();
  for (const char* line : {"OST /generate", "T /workers", ", /workers"}) {
    RawClient client(gateway_->port());
    client.send(fmt::format("{} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}", line));
    EXPECT_THAT(client.read_until("\r\n"), ::testing::AnyOf(HasSubstr(" 405 "), HasSubstr(" 400 "))) << line;
  }
  EXPECT_EQ(metric("smg_router_requests_total"), 0);
}

TEST_F(OddWorkersTest, ABodyThatStallsIs408OnEveryRoute) {
  start({"--stream-body-stall-timeout-secs", "1"});
  RawClient client(gateway_->port());
  client.send("POST /workers HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{");
  const std::string answer = client.read_until("request_body_timeout");
  EXPECT_THAT(answer, HasSubstr(" 408 "));
}

}  // namespace
}  // namespace sluice::gateway
