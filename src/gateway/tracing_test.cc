#include "gateway/tracing.h"

#include <mutex>
#include <set>

#include "gateway/gateway_fixture.h"
#include "net/server.h"

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kTrace = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr const char* kSpan = "00f067aa0ba902b7";

class TracingTest : public GatewayFixture {
 protected:
  void start_traced() {
    start({"--enable-trace", "--otlp-traces-endpoint", fmt::format("http://127.0.0.1:{}", port_)});
  }
  Result<net::Response> traced(net::Headers headers, bool stream = false) {
    ++sent_;
    return call("POST", "/generate", body_of("x", stream), std::move(headers));
  }
  std::string received() const {
    std::lock_guard lock(mutex_);
    return received_;
  }
  static std::string bytes_of(std::string_view hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) {
      bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
    }
    return bytes;
  }

  mutable std::mutex mutex_;  // guards received_
  std::string received_;
  net::LoopGroup receiver_loops_{1};
  net::Server receiver_{receiver_loops_, net::ServerOptions{},
                        [this](net::ServerExchange& exchange) -> net::Task<> { return take(exchange); }};
  const uint16_t port_ = receiver_.listen("127.0.0.1", 0).value();

 private:
  net::Task<> take(net::ServerExchange& exchange) {
    auto body = co_await exchange.read_body(size_t{64} << 20);
    {
      std::lock_guard lock(mutex_);
      if (body.ok()) received_ += *body;
    }
    net::Response response{200, {}, ""};
    co_await exchange.respond(std::move(response));
  }
};

TEST_F(TracingTest, TheServiceIsNamedAsTheEnvironmentSays) {
  worker();
  ::setenv("OTEL_SERVICE_NAME", "edge-of-town", 1);
  start_traced();
  ::unsetenv("OTEL_SERVICE_NAME");
  ASSERT_EQ(traced({})->status, 200);
  ASSERT_TRUE(eventually([&] { return metric("smg_traces_total", {"exported"}) == 1; }));
  EXPECT_THAT(received(), HasSubstr("edge-of-town"));
  EXPECT_THAT(received(), Not(HasSubstr("sgl-router")));
}

TEST_F(TracingTest, ContinuesTheClientsTraceAndTheWorkersIsBelowOurs) {
  const SimWorker& one = worker();
  start({"--enable-trace", "--otlp-traces-endpoint", fmt::format("http://127.0.0.1:{}", port_)});
  ASSERT_EQ(traced({{"traceparent", fmt::format("00-{}-{}-01", kTrace, kSpan)}, {"tracestate", "vendor=1"}})->status,
            200);
  const auto passed = obs::parse_traceparent(last_post(one).headers.get("traceparent").value_or(""));
  ASSERT_TRUE(passed);
  EXPECT_EQ(obs::to_hex(passed->trace_id), kTrace);
  EXPECT_NE(obs::to_hex(passed->span_id), kSpan);
  EXPECT_TRUE(passed->sampled);
  EXPECT_EQ(last_post(one).headers.get("tracestate"), "vendor=1");
  ASSERT_TRUE(eventually([&] { return metric("smg_traces_total", {"exported"}) == 1; }));
  for (const std::string& part : {bytes_of(kTrace), bytes_of(kSpan), bytes_of(obs::to_hex(passed->span_id)),
                                  std::string("POST /generate"), one.url()}) {
    EXPECT_THAT(received(), HasSubstr(part));
  }
  expect_settled();
}

TEST_F(TracingTest, BeginsATraceWhereThereIsNoneOrNoneThatIsValid) {
  const SimWorker& one = worker();
  start_traced();
  std::set<std::string> traces;
  for (const net::Headers& headers :
       {net::Headers{}, net::Headers{{"traceparent", "nonsense"}, {"tracestate", "vendor=1"}},
        net::Headers{{"traceparent", fmt::format("00-{}-{}-01", kTrace, kSpan)},
                     {"traceparent", fmt::format("00-{}-{}-01", kTrace, kSpan)}}}) {
    ASSERT_EQ(traced(headers)->status, 200);
    const auto passed = obs::parse_traceparent(last_post(one).headers.get("traceparent").value_or(""));
    ASSERT_TRUE(passed);
    traces.insert(obs::to_hex(passed->trace_id));
    EXPECT_FALSE(last_post(one).headers.has("tracestate")) << "of another trace";
  }
  EXPECT_EQ(traces.size(), 3u);
  EXPECT_FALSE(traces.contains(kTrace));
  EXPECT_TRUE(eventually([&] { return metric("smg_traces_total", {"exported"}) == 3; }));
}

TEST_F(TracingTest, WhatTheClientDoesNotRecordIsNotRecordedHere) {
  const SimWorker& one = worker();
  start_traced();
  const std::string parent = fmt::format("00-{}-{}-00", kTrace, kSpan);
  ASSERT_EQ(traced({{"traceparent", parent}})->status, 200);
  EXPECT_EQ(last_post(one).headers.get("traceparent"), parent);
  ASSERT_EQ(traced({})->status, 200);
  ASSERT_TRUE(eventually([&] { return metric("smg_traces_total", {"exported"}) == 1; }));
  EXPECT_EQ(received().find(bytes_of(kTrace)), std::string::npos);
}

TEST_F(TracingTest, WithoutTracingHeadersGoOnAsTheyCame) {
  const SimWorker& one = worker();
  start();
  ASSERT_EQ(traced({{"traceparent", "00-any-thing-01"}, {"tracestate", "a=b"}})->status, 200);
  EXPECT_EQ(last_post(one).headers.get("traceparent"), "00-any-thing-01");
  EXPECT_EQ(last_post(one).headers.get("tracestate"), "a=b");
  EXPECT_EQ(call("GET", "/health")->status, 200);
  ASSERT_EQ(traced({})->status, 200);
  EXPECT_FALSE(last_post(one).headers.has("traceparent"));
}

TEST_F(TracingTest, TheIdOfATraceIsInTheRecord) {
  worker();
  start_traced();
  ASSERT_EQ(traced({{"traceparent", fmt::format("00-{}-{}-01", kTrace, kSpan)}, {"x-request-id", "mine"}})->status,
            200);
  EXPECT_TRUE(eventually([&] {
    const auto answer = call("GET", "/debug/why/mine");
    return answer->status == 200 && Json::parse(answer->body)["trace_id"] == kTrace;
  }));
}

TEST(TracingOptionsTest, AnEndpointThatIsNoneIsAMistake) {
  const auto options = gateway_option_table().parse({"--otlp-traces-endpoint", "collector"}).value();
  EXPECT_THAT(validate(options).error().message, HasSubstr("--otlp-traces-endpoint: collector is neither host:port"));
}

}  // namespace
}  // namespace sluice::gateway
