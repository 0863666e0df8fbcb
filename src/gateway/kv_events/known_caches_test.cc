// Workers whose caches are known from their KV events, in front of a whole gateway and over real sockets.
#include <memory>

#include "gateway/gateway_fixture.h"
#include "gateway/kv_events/attendant.h"
#include "gateway/kv_events/kv_engine_fixture.h"

namespace sluice::gateway {
namespace {

class KnownCachesTest : public GatewayFixture {
 protected:
  KnownCachesTest() { time_ = &real_clock(); }  // the events are waited for
  ~KnownCachesTest() override {
    gateway_.reset();
    std::filesystem::remove(template_file_);
  }

  KvEngine& engine(KvEngineOptions options = {}) {
    engines_.push_back(std::make_unique<KvEngine>(loops_, std::move(options)));
    return *engines_.back();
  }
  void start_with(std::vector<std::string> flags = {}) {
    flags.insert(flags.end(), {"--tokenizer-path", KvEngine::kTokenizer, "--chat-template", template_file_});
    start(std::move(flags));
    for (const auto& each : engines_) gateway_->worker_started(each->url());
  }
  Json events_of(size_t worker) { return workers_json()[worker]["kv_events"]; }
  bool becomes(size_t worker, const std::string& mode) {
    return eventually([&] { return events_of(worker)["mode"] == mode; });
  }
  bool is_flagged(const std::string& why, size_t worker = 0) {
    return eventually([&] { return events_of(worker)["why"].get<std::string>().find(why) != std::string::npos; }) &&
           events_of(worker)["mode"] == "belief";
  }
  static std::string chat(const std::string& text) {
    return Json{{"model", "m"}, {"messages", {{{"role", "user"}, {"content", text}}}}, {"max_tokens", 1}}.dump();
  }
  // The worker that answered.
  std::string ask(const std::string& text) {
    const auto answer = call("POST", "/v1/chat/completions", chat(text));
    if (!answer.ok()) return answer.error().message;
    EXPECT_EQ(answer->status, 200) << answer->body;
    return std::string(answer->headers.get("x-smg-routed-worker-id").value_or(""));
  }
  std::string reason_count(const char* reason) {
    return fmt::format("{}", metric("smg_worker_selections_total", {fmt::format("reason=\"{}\"", reason)}));
  }

  const std::string template_file_ = KvEngine::file_with(KvEngine::kTemplate);
  std::vector<std::unique_ptr<KvEngine>> engines_;
};

std::string long_text(const std::string& of) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += fmt::format("{} {} ", of, i);
  return text;
}

TEST_F(KnownCachesTest, APromptGoesWhereItsBlocksAreThoughNothingLikeItWasSentThereFromHere) {
  engine();
  KvEngine& holder = engine();
  engine();
  for (const char* policy : {"cache_aware", "min_cost"}) {
    SCOPED_TRACE(policy);
    start_with({"--policy", policy});
    for (size_t i = 0; i < 3; ++i) ASSERT_TRUE(becomes(i, "events")) << events_of(i);
    EXPECT_EQ(call("GET", "/readiness")->body.find("approximate"), std::string::npos);
    const std::string text = long_text(policy);
    holder.compute("/v1/chat/completions", chat(text));
    ASSERT_TRUE(eventually([&] {
      return events_of(1)["next_sequence"] == holder.with_cache([](const auto& cache) { return cache.next(); });
    }));
    for (int i = 0; i < 5; ++i) EXPECT_EQ(ask(text + std::to_string(i)), holder.url());
    EXPECT_EQ(reason_count("prefix_held"), "5");
    gateway_.reset();
  }
}

TEST_F(KnownCachesTest, WhatTheEventsSayIsGoneIsNotBelievedAnyMore) {
  KvEngine& one = engine();
  KvEngine& two = engine();
  start_with({"--policy", "cache_aware"});
  ASSERT_TRUE(becomes(0, "events")) << events_of(0);
  ASSERT_TRUE(becomes(1, "events")) << events_of(1);
  const std::string text = long_text("again");
  KvEngine& home = ask(text) == one.url() ? one : two;
  KvEngine& other = &home == &one ? two : one;
  for (int i = 0; i < 5; ++i) EXPECT_EQ(ask(text + std::to_string(i)), home.url());
  // The engine gives all of it up, and another one computes it for somebody else.
  home.publisher().publish(home.with_cache([](auto& cache) { return cache.clear(); }));
  other.compute("/v1/chat/completions", chat(text));
  const size_t home_number = &home == &one ? 0 : 1;
  ASSERT_TRUE(eventually([&] { return events_of(home_number)["blocks"] == 0; }));
  // What was sent a moment ago counts until the events can tell, ten seconds at most; then they alone count.
  EXPECT_TRUE(eventually([&] { return ask(text) == other.url(); }));
}

TEST_F(KnownCachesTest, R14AWorkerWithAnotherChatTemplateIsFlagged) {
  engine({.chat_template = "{% for m in messages %}<<{{ m['role'] }}>> {{ m['content'] }}{% endfor %}"});
  start_with();
  EXPECT_TRUE(is_flagged("another tokenizer or chat template")) << events_of(0);
  EXPECT_GE(metric("smg_kv_probes_total", {"result=\"failed\""}), 1);
  EXPECT_EQ(metric("smg_worker_kv_mode", {"mode=\"belief\""}), 1);
  EXPECT_EQ(ask(long_text("still")), engines_[0]->url()) << "it serves even so";
}

TEST_F(KnownCachesTest, R14AsManyTokensInAnotherOrderAreFlagged) {
  std::string other = KvEngine::kTemplate;
  other.replace(other.find("in messages"), 11, "in messages[::-1]");
  engine({.chat_template = "{{ '' }}" + std::string(KvEngine::kTemplate)});
  engine({.chat_template = other});
  start_with();
  EXPECT_TRUE(becomes(0, "events")) << "the same in other words" << events_of(0);
  EXPECT_TRUE(is_flagged("its tokens are others than here", 1)) << events_of(1);
}

TEST_F(KnownCachesTest, R14AWorkerWithBlocksOfAnotherSizeIsFlagged) {
  engine({.page_size = 16});
  start_with();
  EXPECT_TRUE(is_flagged("its KV blocks have 4 tokens, 16 were expected")) << events_of(0);
}

TEST_F(KnownCachesTest, TheSizeOfTheBlocksIsThatOfTheFlagOrElseThatOfTheEvents) {
  engine({.page_size = 0});
  start_with();
  EXPECT_TRUE(becomes(0, "events")) << events_of(0);
  EXPECT_EQ(events_of(0)["block_size"], 4);
  gateway_.reset();
  start_with({"--block-size", "8"});
  EXPECT_TRUE(is_flagged("its KV blocks have 4 tokens, 8 were expected")) << events_of(0);
}

TEST_F(KnownCachesTest, AnIndexWithoutRoomIsSaid) {
  KvEngine& full = engine();
  for (int i = 0; i < 6; ++i) full.compute("/v1/chat/completions", chat(long_text(std::to_string(i))));
  start_with({"--kv-index-bytes", "65536"});
  EXPECT_TRUE(is_flagged("no room for its blocks (--kv-index-bytes)")) << events_of(0);
  EXPECT_GT(metric("smg_kv_left_out_total", {"reason=\"refused\""}), 0);
}

TEST_F(KnownCachesTest, R14AWorkerThatRendersToolsInAnotherOrderCountsForPromptsWithoutThem) {
  engine({.reverses_tools = true});
  engine();
  start_with();
  EXPECT_TRUE(becomes(0, "events")) << events_of(0);
  EXPECT_TRUE(becomes(1, "events")) << events_of(1);
  EXPECT_NE(events_of(0)["why"].get<std::string>().find("renders tools otherwise"), std::string::npos);
  EXPECT_EQ(events_of(1)["why"], "");
}

TEST_F(KnownCachesTest, R14AWorkerThatFindsNothingInItsCacheIsFlagged) {
  engine({.forgets = true});
  start_with();
  EXPECT_TRUE(is_flagged("of a prompt that it had computed it had 0 tokens cached")) << events_of(0);
}

TEST_F(KnownCachesTest, R15AWorkerThatPublishesNothingOfWhatItComputesIsFlagged) {
  engine({.is_silent = true});
  start_with();
  EXPECT_TRUE(is_flagged("published no KV events")) << events_of(0);
}

// Both questions that come before its events: where it publishes them, and whether they fit.
TEST_F(KnownCachesTest, R21AKeyThatIsPutRightIsUsedForTheQuestionsThatGoWithKvEvents) {
  KvEngine& only = engine({.api_key = "new"});
  start_with({"--api-key", "old"});
  const auto with_key = [&](const char* method, const std::string& path, const std::string& body = "") {
    return call(method, path, body, {{"Authorization", "Bearer old"}});
  };
  const auto worker = [&] { return Json::parse(with_key("GET", "/workers")->body)["workers"][0]; };
  ASSERT_TRUE(eventually([&] {
    return worker()["kv_events"]["why"].get<std::string>().find("it wants another API key") != std::string::npos;
  })) << worker();
  const std::string path = "/workers/" + worker()["id"].get<std::string>();
  ASSERT_EQ(with_key("PATCH", path, R"({"api_key":"new"})")->status, 202);
  EXPECT_TRUE(eventually([&] { return worker()["kv_events"]["mode"] == "events"; })) << worker();
  only.compute("/v1/chat/completions", chat(long_text("heard")));
  EXPECT_TRUE(eventually([&] {
    return worker()["kv_events"]["blocks"] == only.with_cache([](const auto& cache) { return cache.blocks(); });
  })) << worker();
}

TEST_F(KnownCachesTest, R15WhatCannotBeHeardIsSaidAndTheWorkerServesOnBelief) {
  engine({.info_status = 401});
  engine({.is_configured = false});
  engine().publisher().close();
  start_with({"--policy", "cache_aware"});
  EXPECT_TRUE(is_flagged("answers 401: it wants another API key", 0)) << events_of(0);
  EXPECT_TRUE(is_flagged("publishes no KV events (--kv-events-config)", 1)) << events_of(1);
  EXPECT_TRUE(is_flagged("not connected", 2)) << events_of(2);
  EXPECT_EQ(metric("smg_worker_kv_mode", {"mode=\"belief\""}), 3);
  const auto readiness = call("GET", "/readiness");
  EXPECT_EQ(readiness->status, 200);
  EXPECT_EQ(Json::parse(readiness->body)["cache_mode"], "approximate");
  const std::string home = ask(long_text("belief"));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(ask(long_text("belief") + std::to_string(i)), home);
  EXPECT_EQ(reason_count("prefix_held"), "3");
  // It is listened to as soon as it publishes.
  engines_[2]->publisher().open();
  EXPECT_TRUE(becomes(2, "events")) << events_of(2);
}

TEST_F(KnownCachesTest, R13APublisherThatRestartsIsProbedAndHeardAnew) {
  KvEngine& only = engine();
  start_with();
  ASSERT_TRUE(becomes(0, "events")) << events_of(0);
  const double probes = metric("smg_kv_probes_total", {"result=\"passed\""});
  only.publisher().close();
  ASSERT_TRUE(is_flagged("not connected")) << events_of(0);
  only.with_cache([](auto& cache) {
    cache.restart();
    return 0;
  });
  only.publisher().open();
  ASSERT_TRUE(becomes(0, "events")) << events_of(0);
  EXPECT_TRUE(eventually([&] { return metric("smg_kv_probes_total", {"result=\"passed\""}) > probes; }));
  EXPECT_TRUE(eventually([&] {
    return events_of(0)["blocks"] == only.with_cache([](const auto& cache) { return cache.blocks(); });
  })) << events_of(0);
}

TEST_F(KnownCachesTest, WithoutATokenizerNothingIsListenedTo) {
  engine();
  start();
  gateway_->worker_started(engines_[0]->url());
  EXPECT_EQ(events_of(0)["mode"], "belief");
  EXPECT_NE(events_of(0)["why"].get<std::string>().find("--tokenizer-path"), std::string::npos);
  EXPECT_EQ(Json::parse(call("GET", "/readiness")->body).contains("cache_mode"), false);
}

TEST_F(KnownCachesTest, ATokenizerThatIsNotThereEndsTheStart) {
  const auto flags = [](std::vector<std::string> more) {
    more.insert(more.end(),
                {"--host", "127.0.0.1", "--port", "0", "--prometheus-host", "127.0.0.1", "--prometheus-port", "0"});
    return gateway_option_table().parse(more).value();
  };
  const auto missing = Gateway::start(flags({"--tokenizer-path", "/nowhere"}));
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kBadOption);
  EXPECT_NE(missing.error().message.find("/nowhere has no tokenizer.json"), std::string::npos)
      << missing.error().message;
  const auto bad =
      Gateway::start(flags({"--tokenizer-path", KvEngine::kTokenizer, "--chat-template", "/nowhere/chat.jinja"}));
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.error().message.find("--chat-template"), std::string::npos) << bad.error().message;
}

TEST(KvEndpointTest, IsCalledAsOneWhoListensFromElsewhereMust) {
  EXPECT_EQ(kv_endpoint_of("tcp://*:5557", "10.0.0.7", -1).value(), "tcp://10.0.0.7:5557");
  EXPECT_EQ(kv_endpoint_of("tcp://0.0.0.0:5557", "10.0.0.7", 0).value(), "tcp://10.0.0.7:5557");
  EXPECT_EQ(kv_endpoint_of("tcp://*:5557", "worker", 3).value(), "tcp://worker:5560") << "a port for each rank";
  EXPECT_EQ(kv_endpoint_of("tcp://[::]:5557", "::1", 0).value(), "tcp://[::1]:5557");
  EXPECT_EQ(kv_endpoint_of("ipc:///tmp/kv", "10.0.0.7", 0).value(), "ipc:///tmp/kv");
  for (const char* bad :
       {"tcp://10.0.0.9:5557", "inproc://kv", "tcp://*", "tcp://*:port", "tcp://*:70000", "", "tcp:"}) {
    EXPECT_FALSE(kv_endpoint_of(bad, "10.0.0.7", 0).ok()) << bad;
  }
}

}  // namespace
}  // namespace sluice::gateway
