#include "engine/api/request_trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::string_view kParent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-";

// The spans as a receiver gets them; tests/integration/otlp_test.py has one that reads them.
class RequestTraceTest : public ApiTest {
 protected:
  RequestTraceTest() {
    options_.enable_trace = true;
    options_.otlp_traces_endpoint = fmt::format("http://127.0.0.1:{}", receiver_.listen("127.0.0.1", 0).value());
  }
  ~RequestTraceTest() override {
    if (api_ != nullptr) api_->stop();
    server_.reset();
    api_.reset();
  }
  void serve_answers() {
    serve();
    answer_with("1");
  }
  HttpAnswer generate(const std::string& headers = "") {
    return call("POST", "/generate", R"({"text": "a", "sampling_params": {"n": 2}})",
                "Content-Type: application/json\r\n" + headers);
  }
  // What has come once so many traces have been delivered.
  std::string received(double traces) {
    const auto delivered = [&](const FakeBackend&) {
      return metrics_.counter("sluice:traces_total", {"exported"}).value() >= traces;
    };
    EXPECT_TRUE(backend_->wait_for(delivered));
    const std::lock_guard lock(mu_);
    return std::exchange(received_, "");
  }
  static size_t count(std::string_view text, std::string_view part) {
    size_t out = 0;
    for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++out;
    return out;
  }

 private:
  net::Task<> take(net::ServerExchange& exchange) {
    auto body = co_await exchange.read_body(size_t{64} << 20);
    {
      const std::lock_guard lock(mu_);
      if (body.ok()) received_ += *body;
    }
    net::Response response{200, {}, ""};
    (void)co_await exchange.respond(std::move(response));
  }

  std::mutex mu_;
  std::string received_;  // guarded by mu_
  net::LoopGroup receiver_loops_{1, "receiver"};
  net::Server receiver_{receiver_loops_, net::ServerOptions{},
                        [this](net::ServerExchange& exchange) -> net::Task<> { return take(exchange); }};
};

TEST_F(RequestTraceTest, HasASpanForEachStageBelowTheOneThatItsClientNames) {
  serve_answers();
  ASSERT_EQ(generate(std::string(kParent) + "01\r\n").status, 200);
  const std::string spans = received(1);
  const std::string trace = "\x4b\xf9\x2f\x35\x77\xb3\x4d\xa6\xa3\xce\x92\x9d\x0e\x0e\x47\x36";
  EXPECT_EQ(count(spans, trace), 9u);
  EXPECT_THAT(spans, AllOf(HasSubstr("POST /generate"), HasSubstr("read"), HasSubstr("tokenize"), HasSubstr("queue")));
  EXPECT_EQ(count(spans, "prefill"), 2u);
  EXPECT_EQ(count(spans, "decode"), 2u);
}

TEST_F(RequestTraceTest, TheLevelIsSetWhileItServes) {
  serve_answers();
  EXPECT_EQ(call("POST", "/set_trace_level?level=1").body, "success");
  generate();
  EXPECT_THAT(received(1), AllOf(HasSubstr("POST /generate"), Not(HasSubstr("prefill"))));
  EXPECT_EQ(call("GET", "/set_trace_level?level=0").status, 200);
  generate();
  EXPECT_EQ(call("GET", "/set_trace_level?level=2").status, 200);
  generate(std::string(kParent) + "00\r\n");
  generate();
  EXPECT_EQ(count(received(2), "prefill"), 1u) << "of one request its first sample";
  for (const char* wrong : {"", "?level=", "?level=-1", "?level=4", "?level=1x"}) {
    const auto refused = call("POST", fmt::format("/set_trace_level{}", wrong));
    EXPECT_EQ(refused.status, 400) << wrong;
    EXPECT_THAT(refused.body, HasSubstr("level must be a whole number from 0 to 3")) << wrong;
  }
  EXPECT_EQ(call("POST", "/set_trace_level?level=3").status, 200) << "the most";
}

TEST_F(RequestTraceTest, WhatGoesWrongIsSaid) {
  serve_answers();
  backend_->set_script([](const GenerateRequest&) {
    return std::vector<Word>{
        {.ids = {}, .finish = {.kind = FinishKind::kAbort, .message = "rank 0 ended", .status_code = 503}}};
  });
  EXPECT_EQ(generate().status, 503);
  EXPECT_THAT(received(1), HasSubstr("rank 0 ended"));
}

TEST_F(RequestTraceTest, OfWhatIsInTheBackgroundItEndsWithTheAnswer) {
  use_template("{% for m in messages %}{{ m.content }}{% endfor %}");
  serve_answers();
  ASSERT_EQ(post("/v1/responses", {{"input", "hi"}, {"background", true}}).status, 200);
  EXPECT_THAT(received(1), AllOf(HasSubstr("POST /v1/responses"), HasSubstr("decode")));
}

TEST(TracerTest, WithoutAReceiverNothingIsTraced) {
  Tracer tracer(nullptr, real_clock(), Tracer::kSamples);
  EXPECT_EQ(tracer.begin({}, "/generate"), nullptr);
}

class NoTraceTest : public ApiTest {};

TEST_F(NoTraceTest, TheLevelOfAServerThatSendsNoneIsAnError) {
  serve();
  const auto answer = call("POST", "/set_trace_level?level=1");
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("--enable-trace"));
}

}  // namespace
}  // namespace sluice::engine
