// What of requests and answers passes the gateway unchanged, over real sockets.
#include <limits>

#include "gateway/gateway_fixture.h"
#include "gateway/scripted_worker_fixture.h"

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class PassingTest : public GatewayFixture {
 protected:
  using Received = ScriptedWorker::Received;

  // In front of one worker that answers so.
  ScriptedWorker& scripted(ScriptedWorker::Answer answer) {
    scripted_.push_back(std::make_unique<ScriptedWorker>(loops_, std::move(answer)));
    return *scripted_.back();
  }
  ScriptedWorker& scripted(ScriptedWorker::Serve serve) {
    scripted_.push_back(std::make_unique<ScriptedWorker>(loops_, std::move(serve)));
    return *scripted_.back();
  }
  void start_all(const std::vector<std::string>& flags = {}) {
    start(flags);
    for (const auto& one : scripted_) gateway_->worker_started(one->url());
  }
  // Everything that comes back up to `end`.
  std::string raw(const std::string& request, const std::string& end) {
    RawClient client(gateway_->port());
    client.send(request);
    return client.read_until(end);
  }
  static std::string post_of(const std::string& body, const std::string& fields = "") {
    return fmt::format("POST /generate HTTP/1.1\r\nHost: x\r\n{}Content-Length: {}\r\n\r\n{}", fields, body.size(),
                       body);
  }
  static int count(const net::Headers& headers, std::string_view name) {
    int found = 0;
    for (const auto& [field, value] : headers) found += net::iequals(field, name);
    return found;
  }

  std::vector<std::unique_ptr<ScriptedWorker>> scripted_;
};

// --- requests ------------------------------------------------------------------------------------------------------

TEST_F(PassingTest, HeadersOfTheClientReachTheWorkerButThoseOfItsConnection) {
  SimWorker& one = worker();
  start();
  const std::string answer = raw(
      post_of(R"({"text":"x"})",
              "Accept-Encoding: gzip, br\r\nUser-Agent: mine/1\r\nbaggage: a=b\r\nX-Vendor-Thing: 1\r\nCookie: c=d\r\n"
              "X-Vendor-Thing: 2\r\nExpect: 100-continue\r\nConnection: keep-alive, X-Hop\r\nX-Hop: h\r\n"
              "Keep-Alive: timeout=5\r\nProxy-Authorization: Basic eA==\r\nUpgrade: h2c\r\nTE: trailers\r\n"
              "Authorization: Bearer mine\r\n"),
      "completion_tokens");
  EXPECT_THAT(answer, HasSubstr(" 200 OK\r\n"));
  const auto got = last_post(one).headers;
  for (const auto& [name, value] : net::Headers{{"accept-encoding", "gzip, br"},
                                                {"user-agent", "mine/1"},
                                                {"baggage", "a=b"},
                                                {"cookie", "c=d"},
                                                {"te", "trailers"},
                                                {"connection", "TE"},
                                                {"authorization", "Bearer mine"},
                                                {"content-type", "application/json"},
                                                {"host", fmt::format("127.0.0.1:{}", one.port())}}) {
    EXPECT_EQ(got.get(name), value) << name;
    EXPECT_EQ(count(got, name), 1) << name;
  }
  EXPECT_EQ(count(got, "x-vendor-thing"), 2);
  for (const char* name : {"expect", "x-hop", "keep-alive", "proxy-authorization", "upgrade"}) {
    EXPECT_FALSE(got.has(name)) << name;
  }
  EXPECT_EQ(count(got, "content-length"), 1);
}

TEST_F(PassingTest, TheWorkersKeyReplacesWhatTheClientSent) {
  auto one = SimWorker::start(loops_, {.api_key = "its own"}).value();
  start();
  ASSERT_EQ(call("POST", "/workers", Json{{"url", one->url()}, {"api_key", "its own"}}.dump())->status, 202);
  ASSERT_TRUE(eventually([&] { return call("GET", "/readiness")->status == 200; }));
  const net::Headers mine = {{"Authorization", "Bearer mine"}};
  ASSERT_EQ(call("POST", "/generate", R"({"text":"x"})", mine)->status, 200);
  EXPECT_EQ(count(last_post(*one).headers, "authorization"), 1);
  EXPECT_EQ(last_post(*one).headers.get("authorization"), "Bearer its own");
  EXPECT_EQ(call("GET", "/server_info", "", mine)->status, 200);
}

TEST_F(PassingTest, R21AWorkersKeyThatChangesIsUsedByAllThatFollows) {
  time_ = &real_clock();
  auto one = SimWorker::start(loops_, {.api_key = "new"}).value();
  start({"--engine-metrics", "--load-monitor-interval", "1"});
  ASSERT_EQ(call("POST", "/workers", Json{{"url", one->url()}, {"api_key", "old"}}.dump())->status, 202);
  ASSERT_TRUE(eventually([&] { return call("GET", "/readiness")->status == 200; }));
  ASSERT_EQ(generate()->status, 401) << "the worker's own answer, as it is";
  const std::string path = "/workers/" + workers_json()[0]["id"].get<std::string>();
  EXPECT_EQ(call("PATCH", path, R"({"api_key":7})")->status, 400);
  EXPECT_EQ(call("PATCH", path, R"({"api_key":"new"})")->status, 202);
  EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(call("GET", "/server_info")->status, 200);
  const auto latest_key = [&](std::string_view path) {
    std::string key;
    for (const auto& got : one->received()) {
      if (got.target.starts_with(path)) key = got.headers.get("authorization").value_or("");
    }
    return key;
  };
  for (const char* asked : {"/generate", "/server_info", "/health", "/v1/loads"}) {
    EXPECT_TRUE(eventually([&] { return latest_key(asked) == "Bearer new"; })) << asked;
  }
  EXPECT_EQ(workers_json()[0]["is_healthy"], true);
  ASSERT_EQ(call("POST", "/workers", Json{{"url", one->url()}, {"api_key", "other"}}.dump())->status, 202);
  EXPECT_EQ(generate()->status, 401) << "adding it once more changes the key too";
}

TEST_F(PassingTest, WhatAWorkerSaysOfTokensIsBelievedWithinBounds) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  scripted([](const Received& received) {
    return net::Response::json(200, Json{{"text", "x"}, {"usage", Json::parse(received.body)["usage"]}}.dump());
  });
  start_all({"--policy", "min_cost"});
  const auto tokens_of = [&](int64_t prompt, int64_t cached, int64_t output) {
    const Json usage{{"prompt_tokens", prompt},
                     {"prompt_tokens_details", {{"cached_tokens", cached}}},
                     {"completion_tokens", output}};
    clock_.advance(std::chrono::milliseconds(10));
    const Json body{{"text", "the same prompt"}, {"usage", usage}};
    const auto answer = call("POST", "/generate", body.dump(), {{"x-request-id", "mine"}});
    EXPECT_EQ(answer->status, 200);
    Json record;
    EXPECT_TRUE(eventually([&] {
      record = Json::parse(call("GET", "/debug/why/mine")->body)["tokens"];
      return record["output"] == std::min<int64_t>(output, 1 << 20);
    }));
    return record;
  };
  EXPECT_EQ(tokens_of(10, 4, 0)["cached"], 4) << "no token at all is no division by zero";
  EXPECT_EQ(tokens_of(10, 1000, 3)["cached"], 10) << "no more is cached than was asked";
  for (int i = 0; i < 3; ++i) {
    const Json most = tokens_of(kMost, kMost, kMost);
    EXPECT_EQ(most["prompt"], 1 << 30);
    EXPECT_EQ(most["cached"], 1 << 30);
  }
  EXPECT_EQ(tokens_of(10, 10, 5)["cached"], 10) << "it goes on";
  EXPECT_LE(metric("smg_worker_cache_belief"), 1);
  EXPECT_LE(metric("sglang_cache_hit_rate", {"reported"}), 1);
  EXPECT_GT(metric("sglang_cache_hit_rate", {"reported"}), 0.9);
}

TEST_F(PassingTest, QueriesAndBodiesReachTheWorkerByteForByte) {
  ScriptedWorker& one = scripted([](const Received&) { return net::Response::json(200, "{}"); });
  start_all();
  const std::string body =
      "{ \"zeta\" : 1.50e+02, \"text\":\"a\\u0062c\", \"alpha\":[1.0,-0,1E5,12345678901234567890123],\n"
      "\t\"sampling_params\":{\"temperature\":0.70,\"max_new_tokens\":2}, \"unknown\":{\"b\":null,\"a\":\"\\/\"} }\n";
  const std::string query = "?b=2&a=%2F+x&b=&%C3%A4=1&q=%zz";
  ASSERT_EQ(call("POST", "/generate" + query, body)->status, 200);
  EXPECT_EQ(one.received().back().target, "/generate" + query);
  EXPECT_EQ(one.received().back().body, body);
  ASSERT_EQ(call("GET", "/server_info?x=1&y=%20")->status, 200);
  EXPECT_EQ(one.received().back().target, "/server_info?x=1&y=%20");
}

TEST_F(PassingTest, EveryPathThatAsksAModelGoesToTheWorkerUnderItsOwnName) {
  ScriptedWorker& one =
      scripted([](const Received& received) { return net::Response::json(200, Json(received.target).dump()); });
  start_all();
  for (const std::string path :
       {"/generate", "/encode", "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/classify",
        "/v1/score", "/v1/responses", "/v1/messages", "/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"}) {
    const std::string body = R"({"model": "m", "text": "x", "prompt": "x", "tokens": [1, 2], "input": "x"})";
    const auto answer = call("POST", path, body);
    ASSERT_TRUE(answer.ok()) << path;
    EXPECT_EQ(answer->status, 200) << path;
    EXPECT_EQ(answer->body, Json(path).dump());
    EXPECT_EQ(one.received().back().body, body) << path;
    EXPECT_EQ(call("GET", path)->status, 405) << path;
  }
}

// --- answers -------------------------------------------------------------------------------------------------------

TEST_F(PassingTest, CompressedAnswersArriveAsTheyAre) {
  const std::string zipped("\x1f\x8b\x08\x00\x00\x00\x00\x00\xff\x00 not for us", 21);
  scripted([&](const Received& received) {
    net::Response answer{200, {{"Content-Type", "application/json"}, {"Content-Encoding", "gzip"}}, zipped};
    // Chunked where the target says so: another way through the gateway.
    if (received.target.ends_with("?chunked")) answer.trailers.add("X-End", "1");
    return answer;
  });
  start_all();
  for (const char* target : {"/generate", "/generate?chunked"}) {
    const auto answer = call("POST", target, R"({"text":"x"})", {{"Accept-Encoding", "gzip"}});
    ASSERT_EQ(answer->status, 200) << target;
    EXPECT_EQ(answer->headers.get("content-encoding"), "gzip");
    EXPECT_EQ(answer->body, zipped);
  }
}

TEST_F(PassingTest, StatusReasonAndRepeatedHeadersArriveAsTheWorkerSentThem) {
  scripted([](const Received& received) {
    net::Response answer{299, {{"Set-Cookie", "a=1"}, {"Set-Cookie", "b=2"}, {"X-Engine", "e"}}, "{}"};
    answer.reason = "Sure Thing";
    if (received.target.ends_with("?failure")) answer = {500, {{"X-Engine", "e"}}, "{}", "Out of Luck"};
    return answer;
  });
  start_all({"--disable-retries"});
  const std::string good = raw(post_of(R"({"text":"x"})"), "{}");
  EXPECT_THAT(good, HasSubstr("HTTP/1.1 299 Sure Thing\r\n"));
  EXPECT_THAT(good, HasSubstr("Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Engine: e\r\n"));
  const std::string bad =
      raw("POST /generate?failure HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"text\":\"x\"}", "{}");
  EXPECT_THAT(bad, HasSubstr("HTTP/1.1 500 Out of Luck\r\n"));
  EXPECT_THAT(bad, HasSubstr("X-Engine: e\r\n"));
}

TEST_F(PassingTest, TrailersFollowTheBody) {
  scripted([](const Received& received) {
    net::Response answer{200, {{"Content-Type", "text/event-stream"}, {"Trailer", "X-Checksum"}}, "data: 1\n\n"};
    if (received.target.ends_with("?failure")) answer.status = 500;
    answer.trailers = {{"X-Checksum", "abc"}, {"X-Other", "d"}};
    return answer;
  });
  start_all({"--disable-retries"});
  const std::string end = "0\r\nX-Checksum: abc\r\nX-Other: d\r\n\r\n";
  const std::string streamed = raw(post_of(R"({"text":"x","stream":true})"), end);
  EXPECT_THAT(streamed, HasSubstr("Trailer: X-Checksum\r\n"));
  EXPECT_THAT(streamed, HasSubstr("9\r\ndata: 1\n\n\r\n" + end));
  // An answer that might have been tried again is kept whole before it goes on.
  const std::string kept =
      raw("POST /generate?failure HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"text\":\"x\"}", end);
  EXPECT_THAT(kept, HasSubstr(" 500 "));
  EXPECT_THAT(kept, HasSubstr("9\r\ndata: 1\n\n\r\n" + end));
  // HTTP/1.0 has no place for them.
  const std::string old = raw("POST /generate HTTP/1.0\r\nContent-Length: 12\r\n\r\n{\"text\":\"x\"}", "never");
  EXPECT_THAT(old, HasSubstr("data: 1\n\n"));
  EXPECT_THAT(old, Not(HasSubstr("abc")));
}

TEST_F(PassingTest, RedirectsArePassedOnAndNotFollowed) {
  SimWorker& elsewhere = worker();
  start();
  ScriptedWorker& one = scripted([&](const Received&) {
    return net::Response{307, {{"Location", elsewhere.url() + "/generate"}}, ""};
  });
  gateway_->worker_ended(elsewhere.url());
  gateway_->worker_started(one.url());
  const auto answer = call("POST", "/generate", R"({"text":"x"})");
  ASSERT_EQ(answer->status, 307);
  EXPECT_EQ(answer->headers.get("location"), elsewhere.url() + "/generate");
  EXPECT_EQ(elsewhere.counters().generations, 0);
  EXPECT_EQ(one.received().size(), 1u);
  EXPECT_EQ(metric("smg_worker_cb_outcomes_total", {"failure"}), 0);
}

TEST_F(PassingTest, ACompressedStreamThatBreaksIsCutAndNotWrittenInto) {
  scripted([](net::ServerExchange& exchange, const Received&) -> net::Task<> {
    net::ResponseHead head{200, {{"Content-Type", "text/event-stream"}, {"Content-Encoding", "gzip"}}};
    co_await exchange.start(std::move(head));
    co_await exchange.write("\x1f\x8b half");
    exchange.abort();
  });
  start_all();
  const std::string got = raw(post_of(R"({"text":"x","stream":true})"), "never");
  EXPECT_THAT(got, HasSubstr(" half"));
  EXPECT_THAT(got, Not(HasSubstr("stream_error")));
  EXPECT_THAT(got, Not(HasSubstr("0\r\n\r\n"))) << "a cut answer is not ended";
}

TEST_F(PassingTest, AnHttp2PrefaceIsToldWhatIsSpokenHere) {
  start();
  const std::string got = raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "never");
  EXPECT_THAT(got, HasSubstr("HTTP/1.1 505 "));
  EXPECT_THAT(got, HasSubstr("HTTP/2 is not spoken here"));
}

}  // namespace
}  // namespace sluice::gateway
