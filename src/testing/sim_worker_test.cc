#include "testing/sim_worker.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "net/client.h"
#include "net/sse.h"
#include "testing/sim_request.h"

namespace sluice::testing {
namespace {

using namespace std::chrono_literals;
using Json = nlohmann::json;

class SimWorkerTest : public ::testing::Test {
 protected:
  std::unique_ptr<SimWorker> start(SimWorkerOptions options = {}) {
    return SimWorker::start(loops_, std::move(options)).value();
  }
  static Result<net::Response> get(const SimWorker& worker, const std::string& target) {
    return net::blocking_fetch(net::parse_url(worker.url()).value(), "GET", target);
  }
  static Result<net::Response> post(const SimWorker& worker, const std::string& target, const Json& body,
                                    net::ClientTimeouts timeouts = {}) {
    return net::blocking_fetch(net::parse_url(worker.url()).value(), "POST", target,
                               {{"Content-Type", "application/json"}}, body.dump(), timeouts);
  }
  static std::vector<std::string> events(const std::string& body) {
    std::vector<std::string> out;
    net::SseReader reader;
    reader.feed(body, [&](std::string_view data) { out.emplace_back(data); });
    return out;
  }
  // Bounded: true once `condition` holds.
  static bool eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition()) return true;
      std::this_thread::yield();
      timespec moment{0, 1'000'000};
      nanosleep(&moment, nullptr);
    }
    return false;
  }

  // Fast enough that tests do not wait, slow enough that tokens come one by one.
  static SimWorkerOptions quick() {
    SimWorkerOptions options;
    options.time_scale = 50;
    return options;
  }

  net::LoopGroup loops_{2};
};

TEST_F(SimWorkerTest, AnswersTheInformationEndpoints) {
  const auto worker = start({.model = "m"});
  for (const char* path : {"/health", "/health_generate", "/ping"}) EXPECT_EQ(get(*worker, path)->status, 200) << path;
  EXPECT_EQ(Json::parse(get(*worker, "/v1/models")->body)["data"][0]["id"], "m");
  for (const char* path : {"/server_info", "/get_server_info"}) {
    EXPECT_EQ(Json::parse(get(*worker, path)->body)["dp_size"], 1) << path;
  }
  for (const char* path : {"/model_info", "/get_model_info"}) {
    EXPECT_EQ(Json::parse(get(*worker, path)->body)["is_generation"], true) << path;
  }
  const auto load = Json::parse(get(*worker, "/get_load")->body);
  EXPECT_EQ(load[0]["num_reqs"], 0);
  EXPECT_TRUE(load[0]["dp_rank"].is_null());
  EXPECT_EQ(Json::parse(get(*worker, "/v1/loads")->body)["loads"].size(), 1u);
  EXPECT_NE(get(*worker, "/metrics")->body.find("sglang:num_running_reqs{model_name=\"m\"} 0"), std::string::npos);
  EXPECT_EQ(get(*worker, "/nowhere")->status, 404);
  EXPECT_EQ(worker->counters().health_checks, 2);
}

TEST_F(SimWorkerTest, GeneratesTheSameTextOnEveryEndpointAndCountsWhatWasCached) {
  const auto worker = start(quick());
  std::string prompt;
  for (int i = 0; i < 40; ++i) prompt += fmt::format("word{} ", i);
  const Json body = {{"text", prompt}, {"sampling_params", {{"max_new_tokens", 5}}}};
  const auto first = Json::parse(post(*worker, "/generate", body)->body);
  EXPECT_EQ(first["meta_info"]["prompt_tokens"], 40);
  EXPECT_EQ(first["meta_info"]["completion_tokens"], 5);
  EXPECT_EQ(first["meta_info"]["cached_tokens"], 0);
  EXPECT_EQ(first["meta_info"]["finish_reason"]["type"], "length");
  EXPECT_EQ(first["output_ids"].size(), 5u);

  const auto second =
      Json::parse(post(*worker, "/v1/completions", {{"model", "x"}, {"prompt", prompt}, {"max_tokens", 5}})->body);
  EXPECT_EQ(second["choices"][0]["text"], first["text"]);
  EXPECT_EQ(second["usage"]["prompt_tokens_details"]["cached_tokens"], 32);
  EXPECT_EQ(second["usage"]["total_tokens"], 45);
  EXPECT_EQ(second["model"], "x");
  EXPECT_EQ(worker->match(prompt), 32);
  EXPECT_EQ(worker->load().total_cached_tokens, 32);
}

TEST_F(SimWorkerTest, TheCacheSimulationCountsCharactersAndGivesTheFirstTokenFirst) {
  SimWorkerOptions options;
  options.cache = CacheSimulation{.rules = {.kv_blocks = 10}, .decode = 1ms};
  const auto worker = start(std::move(options));
  const std::string prompt(150, 'x');  // 37 tokens, 2 whole blocks
  const auto chat = post(*worker, "/v1/chat/completions",
                         {{"messages",
                           {{{"role", "system"}, {"content", prompt.substr(0, 100)}},
                            {{"role", "user"}, {"content", {{{"type", "text"}, {"text", prompt.substr(100)}}}}}}},
                          {"max_tokens", 5}});
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(Json::parse(chat->body)["usage"]["prompt_tokens"], 37) << chat->body;
  EXPECT_EQ(worker->match(prompt), 32);
  const auto streamed =
      post(*worker, "/generate", {{"text", prompt}, {"stream", true}, {"sampling_params", {{"max_new_tokens", 5}}}});
  const auto all = events(streamed->body);
  ASSERT_EQ(all.size(), 3u) << "the first token, all of them, the end";
  EXPECT_EQ(Json::parse(all[0])["meta_info"]["completion_tokens"], 1);
  EXPECT_EQ(Json::parse(all[1])["meta_info"]["completion_tokens"], 5);
  EXPECT_EQ(Json::parse(all[1])["meta_info"]["cached_tokens"], 32);
  const auto info = Json::parse(get(*worker, "/server_info")->body);
  EXPECT_EQ(info["max_total_num_tokens"], 160);
  const SimLoad load = worker->load();
  EXPECT_EQ(load.total_prompt_tokens, 74);
  EXPECT_EQ(load.total_cached_tokens, 32);
  EXPECT_EQ(load.total_generated_tokens, 10);
  EXPECT_EQ(post(*worker, "/flush_cache", {})->status, 200);
  EXPECT_EQ(worker->match(prompt), 0);
}

TEST_F(SimWorkerTest, TheCacheSimulationForgetsWhoLeaves) {
  SimWorkerOptions options;
  options.cache = CacheSimulation{.decode = 1h};
  const auto worker = start(std::move(options));
  const Json body = {{"text", std::string(64, 'x')}, {"sampling_params", {{"max_new_tokens", 5}}}};
  const auto cut = post(*worker, "/generate", body, {.head = 50ms});
  EXPECT_FALSE(cut.ok());
  EXPECT_TRUE(eventually([&] { return worker->load().running == 0 && worker->active() == 0; }));
  EXPECT_EQ(worker->load().total_aborted, 1);
}

TEST_F(SimWorkerTest, StreamsChatInTheOrderOfTheEngines) {
  const auto worker = start(quick());
  const Json body = {{"messages", {{{"role", "user"}, {"content", "hello there"}}}},
                     {"max_tokens", 3},
                     {"stream", true},
                     {"stream_options", {{"include_usage", true}}}};
  const auto answer = post(*worker, "/v1/chat/completions", body);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->headers.get("Content-Type"), "text/event-stream");
  const auto all = events(answer->body);
  ASSERT_EQ(all.size(), 7u);
  EXPECT_EQ(Json::parse(all[0])["choices"][0]["delta"]["role"], "assistant");
  std::string text;
  for (int i = 1; i <= 3; ++i) text += Json::parse(all[i])["choices"][0]["delta"]["content"].get<std::string>();
  EXPECT_EQ(Json::parse(all[4])["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(Json::parse(all[5])["usage"]["completion_tokens"], 3);
  EXPECT_EQ(all[6], "[DONE]");

  auto whole_body = body;
  whole_body["stream"] = false;
  const auto whole = Json::parse(post(*worker, "/v1/chat/completions", whole_body)->body);
  EXPECT_EQ(whole["choices"][0]["message"]["content"], text);
}

TEST_F(SimWorkerTest, TextOfGenerateIsCumulativeAndABatchHasItsIndex) {
  const auto worker = start(quick());
  const Json body = {
      {"input_ids", {{1, 2, 3}, {4, 5}}}, {"sampling_params", {{"max_new_tokens", 2}}}, {"stream", true}};
  const auto all = events(post(*worker, "/generate", body)->body);
  ASSERT_EQ(all.size(), 5u);
  std::map<int, Json> last;
  for (int i = 0; i < 4; ++i) {
    const auto event = Json::parse(all[i]);
    last[event["index"].get<int>()] = event;
  }
  EXPECT_EQ(last[0]["output_ids"].size(), 2u);
  EXPECT_EQ(last[0]["meta_info"]["prompt_tokens"], 3);
  EXPECT_EQ(last[1]["meta_info"]["prompt_tokens"], 2);
}

TEST_F(SimWorkerTest, BadRequestsAre400) {
  const auto worker = start(quick());
  const auto url = net::parse_url(worker->url()).value();
  EXPECT_EQ(net::blocking_fetch(url, "POST", "/generate", {}, "{nonsense")->status, 400);
  EXPECT_EQ(net::blocking_fetch(url, "POST", "/generate", {}, "[]")->status, 400);
  EXPECT_EQ(post(*worker, "/generate", {{"text", ""}})->status, 400);
  EXPECT_EQ(post(*worker, "/generate", {{"text", "a"}, {"input_ids", {1}}})->status, 400);
  EXPECT_EQ(post(*worker, "/v1/completions", {{"prompt", "a"}, {"max_tokens", 0}})->status, 400);
  EXPECT_EQ(post(*worker, "/v1/completions", {{"prompt", "a"}, {"max_tokens", 1 << 20}})->status, 400);
  EXPECT_EQ(post(*worker, "/generate", {{"text", "a"}, {"routed_dp_rank", 1}})->status, 400);
  EXPECT_EQ(worker->load().running + worker->load().waiting, 0);
}

TEST_F(SimWorkerTest, SendsEachDataParallelRankItsOwnRequests) {
  auto options = quick();
  options.dp_size = 2;
  const auto worker = start(options);
  const Json body = {{"text", "a b c"}, {"routed_dp_rank", 1}};
  EXPECT_EQ(Json::parse(post(*worker, "/generate", body)->body)["meta_info"]["dp_rank"], 1);
  EXPECT_EQ(worker->load(0).total_requests, 0);
  EXPECT_EQ(worker->load(1).total_requests, 1);
  EXPECT_EQ(Json::parse(get(*worker, "/get_load")->body)[1]["dp_rank"], 1);
}

TEST_F(SimWorkerTest, ACannedAnswerIsAlwaysTheSame) {
  const auto worker = start({.canned = true, .canned_chunks = 4, .canned_prompt_tokens = 7});
  const Json body = {{"prompt", "anything"}, {"stream", true}};
  const auto all = events(post(*worker, "/v1/completions", body)->body);
  ASSERT_EQ(all.size(), 5u);
  EXPECT_EQ(all.back(), "[DONE]");
  const Json usage = {{"prompt", "anything"}, {"stream", true}, {"stream_options", {{"include_usage", true}}}};
  EXPECT_EQ(events(post(*worker, "/v1/completions", usage)->body).size(), 6u);
  const auto whole = Json::parse(post(*worker, "/v1/chat/completions", {{"messages", "not even looked at"}})->body);
  EXPECT_EQ(whole["usage"]["prompt_tokens"], 7);
  EXPECT_TRUE(eventually([&] { return worker->counters().completed == 3; }));
}

TEST_F(SimWorkerTest, ACannedStreamWithAnIntervalSendsEventByEvent) {
  const auto worker = start({.canned = true, .canned_delay = 1ms, .canned_chunks = 4, .canned_interval = 1ms});
  const auto all = events(post(*worker, "/generate", {{"text", "x"}, {"stream", true}})->body);
  ASSERT_EQ(all.size(), 5u);
  EXPECT_EQ(Json::parse(all[3])["meta_info"]["completion_tokens"], 4);
}

TEST_F(SimWorkerTest, KeepsWhatItReceivedByteForByte) {
  const auto worker = start({.canned = true});
  const std::string body = R"({ "text" : "\u00e9", "weird":1.50e1,"stream":false })";
  const auto url = net::parse_url(worker->url()).value();
  ASSERT_TRUE(net::blocking_fetch(url, "POST", "/generate?x=1", {{"X-Thing", "a"}}, body).ok());
  const auto received = worker->received();
  ASSERT_EQ(received.size(), 1u);
  EXPECT_EQ(received[0].body, body);
  EXPECT_EQ(received[0].target, "/generate?x=1");
  EXPECT_EQ(received[0].headers.get("x-thing"), "a");
}

TEST_F(SimWorkerTest, FaultsHitAsManyRequestsAsWereAskedFor) {
  const auto worker = start({.canned = true});
  worker->set_fault({.kind = SimFault::Kind::kStatus, .status = 429, .retry_after = 2, .times = 2});
  for (int i = 0; i < 2; ++i) {
    const auto answer = post(*worker, "/generate", {{"text", "x"}});
    EXPECT_EQ(answer->status, 429);
    EXPECT_EQ(answer->headers.get("Retry-After"), "2");
  }
  EXPECT_EQ(post(*worker, "/generate", {{"text", "x"}})->status, 200);
  EXPECT_EQ(worker->counters().faults, 2);
  EXPECT_TRUE(eventually([&] { return worker->counters().completed == 1; }));

  EXPECT_EQ(post(*worker, "/sim/fault", {{"kind", "status"}, {"status", 503}})->status, 200);
  EXPECT_NE(post(*worker, "/generate", {{"text", "x"}})->body.find("queue is full"), std::string::npos);
  EXPECT_EQ(get(*worker, "/health")->status, 200);
  EXPECT_EQ(post(*worker, "/sim/fault", {{"kind", "none"}})->status, 200);
  EXPECT_EQ(post(*worker, "/generate", {{"text", "x"}})->status, 200);
  EXPECT_EQ(post(*worker, "/sim/fault", {{"kind", "what"}})->status, 400);
}

TEST_F(SimWorkerTest, AResetGivesNoAnswer) {
  const auto worker = start({.canned = true});
  worker->set_fault({.kind = SimFault::Kind::kReset});
  EXPECT_EQ(post(*worker, "/generate", {{"text", "x"}}).error().code, ErrorCode::kReset);
}

TEST_F(SimWorkerTest, AStallEndsWhenTheClientLeaves) {
  const auto worker = start({.canned = true});
  worker->set_fault({.kind = SimFault::Kind::kStall, .scope = SimFault::Scope::kEverything});
  const net::ClientTimeouts patience{.head = 20ms};
  EXPECT_EQ(post(*worker, "/generate", {{"text", "x"}}, patience).error().code, ErrorCode::kTimeout);
  EXPECT_TRUE(eventually([&] { return worker->active() == 0; }));
  EXPECT_EQ(worker->counters().client_gone, 1);
  worker->clear_fault();
  EXPECT_EQ(get(*worker, "/health")->status, 200);
}

TEST_F(SimWorkerTest, AStreamDiesAfterEachPossibleNumberOfEvents) {
  const auto simulated = start(quick());
  const auto canned = start({.canned = true, .canned_chunks = 3});
  for (const auto* worker : {simulated.get(), canned.get()}) {
    for (int chunks = 0; chunks <= 4; ++chunks) {
      const_cast<SimWorker*>(worker)->set_fault({.kind = SimFault::Kind::kDie, .chunks = chunks});
      const Json body = {{"text", "x"}, {"stream", true}, {"sampling_params", {{"max_new_tokens", 3}}}};
      EXPECT_EQ(post(*worker, "/generate", body).ok(), chunks == 4) << chunks;
    }
  }
  EXPECT_TRUE(eventually([&] { return simulated->load().running == 0; }));
}

TEST_F(SimWorkerTest, HealthCanFailAndBeSlowWhileGenerationWorks) {
  const auto worker = start({.canned = true});
  worker->set_health({.status = 503});
  EXPECT_EQ(get(*worker, "/health")->status, 503);
  worker->set_health({.status = 200, .delay = 1h});
  const auto url = net::parse_url(worker->url()).value();
  EXPECT_EQ(net::blocking_fetch(url, "GET", "/health", {}, "", {.head = 20ms}).error().code, ErrorCode::kTimeout);
  EXPECT_EQ(post(*worker, "/generate", {{"text", "x"}})->status, 200);
}

TEST_F(SimWorkerTest, LeavingAbortsARequestInTheEngine) {
  SimWorkerOptions options;
  options.manual = true;
  const auto worker = start(options);
  const net::ClientTimeouts patience{.head = 20ms};
  EXPECT_FALSE(post(*worker, "/generate", {{"text", "a b c"}}, patience).ok());
  EXPECT_TRUE(eventually([&] { return worker->load().waiting == 0; }));
  EXPECT_EQ(worker->load().total_aborted, 1);
  EXPECT_EQ(worker->counters().client_gone, 1);
}

TEST_F(SimWorkerTest, ManualStepsMoveOneTokenAtATimeAndTheLoadIsTruthful) {
  SimWorkerOptions options;
  options.manual = true;
  const auto worker = start(options);
  Result<net::Response> answer = Error{};
  std::thread client([&] {
    answer = post(*worker, "/generate", {{"text", "a b c"}, {"sampling_params", {{"max_new_tokens", 2}}}});
  });
  ASSERT_TRUE(eventually([&] { return worker->load().waiting == 1; }));
  EXPECT_EQ(worker->step(), 1u);
  EXPECT_EQ(worker->load().running, 1);
  EXPECT_EQ(Json::parse(get(*worker, "/get_load")->body)[0]["num_reqs"], 1);
  EXPECT_EQ(post(*worker, "/flush_cache", {})->status, 400);
  EXPECT_EQ(worker->step(), 1u);
  client.join();
  EXPECT_EQ(answer->status, 200);
  EXPECT_EQ(post(*worker, "/flush_cache", {})->status, 200);
}

TEST_F(SimWorkerTest, AbortRequestEndsTheOneWithThatId) {
  SimWorkerOptions options;
  options.manual = true;
  const auto worker = start(options);
  Result<net::Response> answer = Error{};
  std::thread client([&] { answer = post(*worker, "/generate", {{"text", "a b c"}, {"rid", "r1"}}); });
  ASSERT_TRUE(eventually([&] { return worker->load().waiting == 1; }));
  EXPECT_EQ(post(*worker, "/abort_request", {{"rid", "r"}})->status, 200);
  EXPECT_EQ(worker->counters().aborted, 0);
  EXPECT_EQ(post(*worker, "/abort_request", {{"rid", "r1"}})->status, 200);
  client.join();
  EXPECT_EQ(Json::parse(answer->body)["meta_info"]["finish_reason"]["type"], "abort");
  EXPECT_EQ(worker->load().waiting, 0);
}

TEST_F(SimWorkerTest, StopCutsRunningRequestsAndRestartTakesTheSamePortWithAnEmptyCache) {
  const auto worker = start(quick());
  std::string prompt;
  for (int i = 0; i < 40; ++i) prompt += "word ";
  EXPECT_EQ(post(*worker, "/generate", {{"text", prompt}})->status, 200);
  EXPECT_GT(worker->match(prompt), 0);
  worker->set_fault({.kind = SimFault::Kind::kStall});
  Result<net::Response> answer = net::Response{};
  std::thread client([&] { answer = post(*worker, "/generate", {{"text", "x"}}); });
  ASSERT_TRUE(eventually([&] { return worker->active() == 1; }));
  const auto port = worker->port();
  worker->stop();
  client.join();
  EXPECT_EQ(answer.error().code, ErrorCode::kReset);
  EXPECT_FALSE(worker->running());
  EXPECT_EQ(get(*worker, "/health").error().code, ErrorCode::kRefused);

  worker->clear_fault();
  ASSERT_TRUE(worker->restart().ok());
  EXPECT_EQ(worker->port(), port);
  EXPECT_EQ(worker->match(prompt), 0);
  EXPECT_EQ(post(*worker, "/generate", {{"text", "x"}})->status, 200);
}

TEST_F(SimWorkerTest, GoesDownAndComesBackByItself) {
  const auto worker = start({.canned = true});
  EXPECT_EQ(post(*worker, "/sim/down", {{"ms", 20}})->status, 200);
  EXPECT_TRUE(eventually([&] { return !get(*worker, "/health").ok(); }));
  EXPECT_TRUE(eventually([&] { return get(*worker, "/health").ok(); }));
}

TEST_F(SimWorkerTest, AnApiKeyIsAskedForOutsideHealth) {
  const auto worker = start({.api_key = "k", .canned = true});
  EXPECT_EQ(get(*worker, "/health")->status, 200);
  EXPECT_EQ(get(*worker, "/v1/models")->status, 401);
  EXPECT_EQ(post(*worker, "/generate", {{"text", "x"}})->status, 401);
  const auto url = net::parse_url(worker->url()).value();
  EXPECT_EQ(net::blocking_fetch(url, "GET", "/v1/models", {{"Authorization", "Bearer k"}})->status, 200);
}

TEST(SimRequestTest, AGeneratedTokenIsTheSameAsItsWordAndAsItsId) {
  const auto output = sim_output(sim_tokens("a b"), 0, 3);
  std::string text;
  for (const auto id : output) text += sim_word(id) + " ";
  const auto tokens = sim_tokens(text);
  for (size_t i = 0; i < output.size(); ++i) EXPECT_EQ(tokens[i], sim_token(output[i]));
}

TEST(SimRequestTest, StreamIsReadFromTheTopLevelOnly) {
  EXPECT_TRUE(stream_wish(R"({"stream": true})").stream);
  EXPECT_FALSE(stream_wish(R"({"text":"\"stream\": true"})").stream);
  EXPECT_FALSE(stream_wish(R"({"x":{"stream":true}})").stream);
  EXPECT_FALSE(stream_wish("nonsense").stream);
  EXPECT_TRUE(stream_wish(R"({"stream_options":{"include_usage":true},"stream":true})").include_usage);
}

}  // namespace
}  // namespace sluice::testing
