// Who is taken for alive, over real sockets with engines that fall silent, judged by a clock that only tests and
// engines move.
#include "gateway/liveness.h"

#include <algorithm>
#include <atomic>

#include "gateway/gateway_fixture.h"
#include "net/server.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;

// Generates one event per request, or all of the answer if it is not streamed, `prefill` of the test's clock later.
class Engine {
 public:
  enum class Mode {
    kServes,
    kMute,    // generates nothing, and health checks pass
    kLies,    // the same, and even that for generation passes
    kSick,    // the same, and that for generation fails at once
    kFrozen,  // accepts and answers nothing
  };

  Engine(net::LoopGroup& loops, sluice::testing::FakeClock& clock)
      : clock_(clock),
        server_(loops, net::ServerOptions{}, [this](net::ServerExchange& exchange) { return handle(exchange); }),
        port_(server_.listen("127.0.0.1", 0).value()) {}

  std::string url() const { return fmt::format("http://127.0.0.1:{}", port_); }

  std::atomic<Mode> mode{Mode::kServes};
  std::atomic<int64_t> prefill_ms{0};
  std::atomic<int64_t> answer_bytes{0};      // beyond the event
  std::atomic<bool> has_probe{true};         // /health_generate
  std::atomic<int> no_probe{404};            // what is answered where it has none
  std::atomic<bool> fails_checks{false};     // /health
  std::atomic<int> open{0}, generations{0};  // requests for generation: under way, and all that came
  std::atomic<int> probes{0};                // of /health_generate

 private:
  bool is_stuck(std::string_view path) const {
    const Mode now = mode;
    if (path == "/health") return now == Mode::kFrozen;
    if (path == "/health_generate") return now == Mode::kFrozen || (now == Mode::kMute && has_probe);
    return now != Mode::kServes;
  }
  net::Task<> handle(net::ServerExchange& exchange) {
    const std::string path(exchange.request().path());
    const bool generates = path == "/generate" || path == "/v1/chat/completions";
    auto body = co_await exchange.read_body(size_t{64} << 20);
    if (!body.ok()) co_return;
    if (generates) {
      ++open;
      ++generations;
    }
    if (path == "/health_generate") ++probes;
    while (is_stuck(path) && !exchange.client_gone()) co_await exchange.loop().sleep(std::chrono::milliseconds(1));
    const bool streams = body->find("\"stream\":true") != std::string::npos;
    if (!exchange.client_gone()) co_await answer(exchange, path, generates, streams);
    if (generates) --open;
  }
  net::Task<> answer(net::ServerExchange& exchange, const std::string& path, bool generates, bool streams) {
    if (!generates) {
      const bool known = path == "/health" || (path == "/health_generate" && has_probe);
      const bool fails = (path == "/health_generate" && mode == Mode::kSick) || (path == "/health" && fails_checks);
      const int status = !known ? no_probe.load() : fails ? 503 : 200;
      auto response = net::Response::text(status, "");
      co_await exchange.respond(std::move(response));
      co_return;
    }
    clock_.advance(std::chrono::milliseconds(prefill_ms));
    if (!streams) {
      auto response = net::Response::json(200, R"({"usage":{"prompt_tokens":1,"completion_tokens":9}})");
      co_await exchange.respond(std::move(response));
      co_return;
    }
    net::ResponseHead head{200, {}, "OK"};
    head.headers.set("Content-Type", "text/event-stream");
    auto sent = co_await exchange.start(std::move(head));
    if (sent.ok()) sent = co_await exchange.write("data: {\"text\":\"x\"}\n\n");
    const std::string piece(65536, 'x');
    for (int64_t left = answer_bytes; sent.ok() && left > 0; left -= 65536) sent = co_await exchange.write(piece);
    if (sent.ok()) co_await exchange.finish();
  }

  sluice::testing::FakeClock& clock_;
  net::Server server_;
  const uint16_t port_;
};

class LivenessTest : public GatewayFixture {
 protected:
  using Mode = Engine::Mode;

  Engine& engine() {
    engines_.push_back(std::make_unique<Engine>(loops_, clock_));
    return *engines_.back();
  }
  void begin(std::vector<std::string> flags = {}) {
    flags.insert(flags.end(), {"--policy", "round_robin"});
    start(std::move(flags));
    for (const auto& each : engines_) gateway_->worker_started(each->url());
  }
  // One request for each, that takes so long.
  void teach(int64_t prefill_ms, const std::string& text = "x") {
    for (const auto& each : engines_) each->prefill_ms = prefill_ms;
    for (size_t i = 0; i < engines_.size(); ++i) ASSERT_EQ(generate(text, /*stream=*/true)->status, 200);
    for (const auto& each : engines_) {
      each->prefill_ms = 0;
      ASSERT_EQ(each->generations, 1) << "round_robin gives each of them one";
    }
    // A client may have its answer before the engine is done with it.
    ASSERT_TRUE(eventually([&] { return open() == 0; }));
  }
  // With a history of one request each, and their full shares from the start.
  void begin_with_history(const std::string& text = "x") {
    begin({"--slow-start-secs", "0"});
    teach(100, text);
  }
  // So many times one request for each, one after the other, that take `prefill_ms` and `then_ms` by turns.
  void teach_much(int times, const std::string& text, int64_t prefill_ms, int64_t then_ms) {
    for (int i = 0; i < times; ++i) {
      for (const auto& each : engines_) each->prefill_ms = i % 2 == 0 ? prefill_ms : then_ms;
      for (size_t j = 0; j < engines_.size(); ++j) ASSERT_EQ(generate(text, /*stream=*/true)->status, 200);
      ASSERT_TRUE(eventually([&] { return open() == 0; }));
    }
    for (const auto& each : engines_) each->prefill_ms = 0;
  }
  // Of two engines that are mute, one has `prompts` of `text` and the other short ones. Returns the first.
  void expect_found(int first_ms, int then_ms, Duration honest, Duration beyond);
  Engine& fill_one_queue(int prompts, const std::string& text) {
    for (const auto& each : engines_) each->mode = Mode::kMute;
    for (int i = 0; i < prompts; ++i) {
      ask(text);
      EXPECT_TRUE(eventually([&] { return open() == 2 * i + 1; }));
      if (i == 0) long_one_ = engines_[engines_[0]->open == 1 ? 0 : 1].get();
      ask("x");
      EXPECT_TRUE(eventually([&] { return open() == 2 * i + 2; }));
    }
    return *long_one_;
  }
  // Whether somebody else is suspect: then all have been looked at, as often as it takes.
  bool all_were_looked_at(const Engine& but) {
    return eventually([&] {
      return std::ranges::any_of(engines_, [&](const auto& each) { return each.get() != &but && is_suspect(*each); });
    });
  }
  // A chat that is answered whole, and of which nobody says how long it may be.
  RawClient& chat(const std::string& text = "x") {
    ++sent_;
    clients_.push_back(std::make_unique<RawClient>(gateway_->port()));
    clients_.back()->post("/v1/chat/completions", R"({"messages":[{"role":"user","content":")" + text + "\"}]}");
    return *clients_.back();
  }
  RawClient& ask(const std::string& text = "x") {
    ++sent_;
    clients_.push_back(std::make_unique<RawClient>(gateway_->port()));
    clients_.back()->post("/generate", body_of(text, /*stream=*/true));
    return *clients_.back();
  }
  // Asks until it has one that it does not answer; the others answer.
  void ask_until_it_holds_one(const Engine& one) {
    for (size_t i = 0; one.open == 0; ++i) {
      ASSERT_LT(i, engines_.size()) << "round_robin gives it one of so many";
      const int before = generations();
      ask();
      ASSERT_TRUE(eventually([&] { return generations() == before + 1; }));
    }
  }
  void fall_silent_with_one(Engine& one, Mode how) {
    ASSERT_TRUE(eventually([&] { return one.open == 0; })) << "what it has now is not what it shall hold";
    one.mode = how;
    ask_until_it_holds_one(one);
  }
  // Looked at again and again while the test's clock goes on by as much.
  bool as_time_passes(Duration step, const std::function<bool()>& condition) {
    return eventually([&] {
      clock_.advance(step);
      return condition();
    });
  }
  int generations() const {
    int sum = 0;
    for (const auto& each : engines_) sum += each->generations;
    return sum;
  }
  int open() const {
    int sum = 0;
    for (const auto& each : engines_) sum += each->open;
    return sum;
  }
  bool is_suspect(const Engine& one) { return metric("smg_worker_suspect", {one.url()}) == 1; }
  bool becomes_suspect(const Engine& one) {
    return eventually([&] { return is_suspect(one); });
  }
  bool becomes_trusted(const Engine& one) {
    return eventually([&] { return !is_suspect(one); });
  }
  double suspicions(const Engine& one) { return metric("smg_worker_suspicions_total", {one.url()}); }
  Json json_of(const Engine& one) {
    for (const Json& each : workers_json()) {
      if (each["url"] == one.url()) return each;
    }
    return {};
  }
  // So many requests, all of which must be answered.
  void expect_answers(int count) {
    for (int i = 0; i < count; ++i) EXPECT_EQ(generate("x", /*stream=*/true)->status, 200);
  }
  void TearDown() override {
    for (const auto& each : engines_) each->mode = Mode::kServes;
    if (gateway_ == nullptr) return;
    expect_settled();
    EXPECT_TRUE(eventually([&] { return open() == 0; })) << "no lease is left, and " << open() << " requests are open";
  }

  std::vector<std::unique_ptr<Engine>> engines_;
  std::vector<std::unique_ptr<RawClient>> clients_;
  Engine* long_one_ = nullptr;
};

TEST_F(LivenessTest, R4AFrozenWorkerIsOutOfRotationWithin3sAndLosesNothing) {
  Engine& frozen = engine();
  Engine& steady = engine();
  begin_with_history();
  fall_silent_with_one(frozen, Mode::kFrozen);
  clock_.advance(2s);
  ASSERT_TRUE(becomes_suspect(frozen)) << "it was idle, and 2 s have passed since its next request";
  EXPECT_THAT(json_of(frozen)["suspect"]["why"].get<std::string>(), HasSubstr("silent for 2.0 s on 1 requests"));
  EXPECT_EQ(json_of(steady)["suspect"], nullptr);
  const int before = steady.generations;
  expect_answers(6);
  EXPECT_EQ(steady.generations, before + 6);
  EXPECT_EQ(frozen.open, 1) << "suspicion cancels nothing";
  frozen.mode = Mode::kServes;
  EXPECT_THAT(clients_.back()->read_until("data:"), HasSubstr("200 OK"));
  EXPECT_TRUE(becomes_trusted(frozen));
  expect_answers(2);
  EXPECT_EQ(steady.generations, before + 7) << "each has its turn again";
  EXPECT_EQ(suspicions(frozen), 1);
}

TEST_F(LivenessTest, R5AWorkerThatPassesItsHealthChecksAndGeneratesNothingStaysOut) {
  Engine& mute = engine();
  Engine& steady = engine();
  begin_with_history();
  fall_silent_with_one(mute, Mode::kMute);
  clock_.advance(2s);
  ASSERT_TRUE(becomes_suspect(mute));
  EXPECT_TRUE(as_time_passes(1s, [&] { return mute.probes > 0; }));
  clients_.clear();  // its request ends without a byte: that proves nothing
  ASSERT_TRUE(eventually([&] { return json_of(mute)["load"] == 0; }));
  const int before = steady.generations;
  expect_answers(4);
  EXPECT_EQ(steady.generations, before + 4);
  EXPECT_EQ(json_of(mute)["is_healthy"], true);
  mute.mode = Mode::kServes;  // and its answer to the question whether it generates comes
  EXPECT_TRUE(as_time_passes(1s, [&] { return !is_suspect(mute); }));
}

TEST_F(LivenessTest, AWorkerWhoseProbesLieIsTriedWithOneRequestAtATime) {
  Engine& liar = engine();
  Engine& steady = engine();
  begin_with_history();
  fall_silent_with_one(liar, Mode::kLies);
  // Suspect, trusted for its probe, and suspect again: then its probes do not count.
  ASSERT_TRUE(as_time_passes(500ms, [&] { return suspicions(liar) == 2; }));
  EXPECT_EQ(json_of(liar)["most_requests"], 1);
  const int before = steady.generations;
  expect_answers(2);
  EXPECT_EQ(steady.generations, before + 2) << "it has one request that it does not answer";
  liar.mode = Mode::kServes;
  EXPECT_TRUE(becomes_trusted(liar)) << "by the byte that comes";
}

TEST_F(LivenessTest, WhereNoProbeGeneratesOneRequestMayTryIt) {
  Engine& mute = engine();
  engine();
  mute.has_probe = false;
  begin_with_history();
  fall_silent_with_one(mute, Mode::kMute);
  clock_.advance(2s);
  ASSERT_TRUE(becomes_suspect(mute));
  ASSERT_TRUE(as_time_passes(1s, [&] { return json_of(mute)["most_requests"] == 1; }));
  clients_.clear();
  ASSERT_TRUE(eventually([&] { return json_of(mute)["load"] == 0; }));
  mute.mode = Mode::kServes;
  EXPECT_TRUE(is_suspect(mute)) << "it is not trusted before it has answered";
  const int before = mute.generations;
  expect_answers(2);
  EXPECT_EQ(mute.generations, before + 1);
  EXPECT_TRUE(becomes_trusted(mute));
}

TEST_F(LivenessTest, R5AnHonestPrefillOf60sIsNoSilence) {
  Engine& honest = engine();
  Engine& frozen = engine();
  begin_with_history(std::string(4000, 'x'));
  for (const auto& each : engines_) each->mode = Mode::kMute;
  // Which of them has the long prompt is not told apart: the other one is the one to suspect.
  ask(std::string(240'000, 'x'));
  ASSERT_TRUE(eventually([&] { return open() == 1; }));
  Engine& one = honest.open == 1 ? honest : frozen;
  Engine& other = honest.open == 1 ? frozen : honest;
  ask(std::string(4000, 'x'));
  ASSERT_TRUE(eventually([&] { return other.open == 1; }));
  clock_.advance(60s);
  ASSERT_TRUE(becomes_suspect(other)) << "so both were looked at";
  EXPECT_EQ(suspicions(one), 0) << "60 times as long as any before may take a hundred times as long and more";
}

// Twenty-five prompts have taken the one time or the other (teach_much()), and three such wait at a worker. It is no
// suspect after `honest`, and it is one when `beyond` has passed too.
void LivenessTest::expect_found(int first_ms, int then_ms, Duration honest, Duration beyond) {
  engine();
  engine();
  begin({"--slow-start-secs", "0"});
  const std::string text(40'000, 'x');
  teach_much(25, text, first_ms, then_ms);
  Engine& worker = fill_one_queue(3, text);
  clock_.advance(honest);
  ASSERT_TRUE(all_were_looked_at(worker));
  EXPECT_EQ(suspicions(worker), 0) << "that is what its prompts take";
  clock_.advance(beyond);
  EXPECT_TRUE(becomes_suspect(worker)) << json_of(worker).dump();
}

// 20 s each, so often that a 24th more is what they take at most.
TEST_F(LivenessTest, R4AFrozenQueueOfLongPromptsIsFoundWithin3sOfWhatItShouldTake) {
  expect_found(20'000, 20'000, 60s, 2500ms + 3s);
}

// Three that take 24 s each; twice what they take is always too long.
TEST_F(LivenessTest, R5PromptsThatTakeLongerAtTimesMayDoSoAgain) { expect_found(16'000, 24'000, 72s, 48s + 3s); }

TEST_F(LivenessTest, AnAnswerOfAnyLengthIsJudgedByProgress) {
  Engine& only = engine();
  begin_with_history();
  only.mode = Mode::kLies;  // it decodes, which nobody sees, and generates for probes
  chat();
  ASSERT_TRUE(eventually([&] { return only.open == 1; }));
  clock_.advance(1h);
  ASSERT_TRUE(as_time_passes(1s, [&] { return only.probes >= 2; })) << "it is asked again and again";
  EXPECT_EQ(suspicions(only), 0);
  only.mode = Mode::kSick;
  ASSERT_TRUE(as_time_passes(1s, [&] { return is_suspect(only); }));
  EXPECT_THAT(json_of(only)["suspect"]["why"].get<std::string>(), HasSubstr("it generates nothing for a probe"));
  only.mode = Mode::kServes;
  EXPECT_TRUE(becomes_trusted(only)) << "by its answer";
}

// An ordinary check would take all of --health-check-timeout-secs to say so, and three of them until it is out.
TEST_F(LivenessTest, R4AFrozenWorkerIsFoundThoughItsAnswersComeWhole) {
  Engine& frozen = engine();
  begin_with_history();
  frozen.mode = Mode::kFrozen;
  chat();
  ASSERT_TRUE(eventually([&] { return frozen.open == 1; }));
  ASSERT_TRUE(as_time_passes(100ms, [&] { return is_suspect(frozen); }));
  EXPECT_THAT(json_of(frozen)["suspect"]["why"].get<std::string>(),
              HasSubstr("it generates nothing for a probe of at most 1 s"));
  EXPECT_EQ(json_of(frozen)["is_healthy"], true) << "it was found before its health checks had failed";
  frozen.mode = Mode::kServes;
  EXPECT_TRUE(becomes_trusted(frozen)) << "by its answer";
}

// Of a worker that is in question: what its probes took is known for ten to twenty minutes.
TEST_F(LivenessTest, R5AProbeHasAsLongAsOthersTookLately) {
  Engine& only = engine();
  begin_with_history();
  const auto why_after_a_freeze = [&] {
    only.mode = Mode::kFrozen;
    chat();
    EXPECT_TRUE(eventually([&] { return only.open == 1; }));
    EXPECT_TRUE(as_time_passes(100ms, [&] { return is_suspect(only); }));
    const auto why = json_of(only)["suspect"]["why"].get<std::string>();
    only.mode = Mode::kServes;
    EXPECT_TRUE(becomes_trusted(only));
    EXPECT_TRUE(eventually([&] { return only.open == 0; }));
    return why;
  };
  only.mode = Mode::kMute;
  chat();
  ASSERT_TRUE(eventually([&] { return only.open == 1; }));
  const int before = only.probes;
  ASSERT_TRUE(as_time_passes(100ms, [&] { return only.probes > before; }));
  clock_.advance(800ms);
  only.mode = Mode::kServes;
  ASSERT_TRUE(eventually([&] { return only.open == 0; }));
  EXPECT_EQ(suspicions(only), 0) << "it answered in time";
  EXPECT_THAT(why_after_a_freeze(), Not(HasSubstr("of at most 1 s")));
  clock_.advance(25min);
  only.prefill_ms = 100;
  ASSERT_EQ(generate("x", /*stream=*/true)->status, 200);
  only.prefill_ms = 0;
  EXPECT_THAT(why_after_a_freeze(), HasSubstr("of at most 1 s"));
}

TEST_F(LivenessTest, R4AFreezeThatEndsWithinAProbeTeachesLittlePatience) {
  Engine& only = engine();
  begin_with_history();
  only.mode = Mode::kMute;
  chat();
  ASSERT_TRUE(eventually([&] { return only.open == 1; }));
  ASSERT_TRUE(as_time_passes(500ms, [&] { return is_suspect(only); }));
  ASSERT_TRUE(as_time_passes(500ms, [&] { return only.probes >= 2; })) << "the one that failed, and one since";
  clock_.advance(3500ms);
  only.mode = Mode::kServes;
  ASSERT_TRUE(becomes_trusted(only));
  ASSERT_TRUE(eventually([&] { return only.open == 0; }));
  only.mode = Mode::kFrozen;
  chat();
  ASSERT_TRUE(eventually([&] { return only.open == 1; }));
  ASSERT_TRUE(as_time_passes(500ms, [&] { return is_suspect(only); }));
  const auto why = json_of(only)["suspect"]["why"].get<std::string>();
  EXPECT_TRUE(why.ends_with("of at most 1 s") || why.ends_with("of at most 2 s")) << why;
}

// A probe would wait behind it, and nothing of the answer that comes whole shows that the worker is at it.
TEST_F(LivenessTest, R5ALongPromptThatComesToAWorkerWithAWholeAnswerIsNoSilence) {
  engine();
  engine();
  begin_with_history(std::string(4000, 'x'));
  for (const auto& each : engines_) each->mode = Mode::kMute;
  chat(std::string(40'000, 'x'));  // ten times as long as any before: 20 s at most
  ASSERT_TRUE(eventually([&] { return open() == 1; }));
  Engine& honest = *engines_[engines_[0]->open == 1 ? 0 : 1];
  Engine& other = *engines_[engines_[0]->open == 1 ? 1 : 0];
  ask();
  ASSERT_TRUE(eventually([&] { return other.open == 1; }));
  clock_.advance(2s);
  ASSERT_TRUE(becomes_suspect(other)) << "so both were looked at";
  ask(std::string(240'000, 'x'));
  ASSERT_TRUE(eventually([&] { return honest.open == 2; })) << "the other one gets no new work";
  other.mode = Mode::kServes;
  ASSERT_TRUE(becomes_trusted(other));
  fall_silent_with_one(other, Mode::kMute);
  clock_.advance(60s);
  ASSERT_TRUE(eventually([&] { return suspicions(other) == 2; })) << "so both were looked at again";
  EXPECT_EQ(honest.probes, 0);
  EXPECT_EQ(suspicions(honest), 0);
}

TEST_F(LivenessTest, AProbeThatFailsInItsTurnHasNotLied) {
  Engine& only = engine();
  begin_with_history();
  only.mode = Mode::kLies;
  chat();
  ASSERT_TRUE(eventually([&] { return only.open == 1; }));
  for (int i = 1; i <= 3; ++i) {
    only.mode = Mode::kSick;
    ASSERT_TRUE(as_time_passes(1s, [&] { return suspicions(only) == i; }));
    only.mode = Mode::kLies;
    ASSERT_TRUE(as_time_passes(1s, [&] { return !is_suspect(only); })) << "for its probe, " << i;
  }
}

// It decodes for ten times as long as such an answer should take, and generates for probes all the while.
TEST_F(LivenessTest, AnAnswerOfAKnownLengthIsJudgedByProgressToo) {
  Engine& only = engine();
  begin_with_history();
  only.prefill_ms = 1000;
  ASSERT_EQ(generate("x", /*stream=*/false)->status, 200);
  only.prefill_ms = 0;
  ASSERT_TRUE(eventually([&] { return only.open == 0; }));
  only.mode = Mode::kLies;
  ++sent_;
  clients_.push_back(std::make_unique<RawClient>(gateway_->port()));
  clients_.back()->post("/generate", body_of("x", /*stream=*/false));
  ASSERT_TRUE(eventually([&] { return only.open == 1; }));
  ASSERT_TRUE(as_time_passes(1s, [&] { return only.probes >= 3; }));
  EXPECT_EQ(suspicions(only), 0);
}

TEST_F(LivenessTest, AnAnswerOfAnyLengthIsWaitedForWhereNoProbeGenerates) {
  Engine& decodes = engine();
  Engine& other = engine();
  for (const auto& each : engines_) {
    each->has_probe = false;
    each->no_probe = 401;  // of something before it that wants a key
  }
  begin_with_history();
  for (const auto& each : engines_) each->mode = Mode::kSick;
  chat();
  ASSERT_TRUE(eventually([&] { return open() == 1; }));
  Engine& one = decodes.open == 1 ? decodes : other;
  ask();
  ASSERT_TRUE(eventually([&] { return open() == 2; }));
  ASSERT_TRUE(as_time_passes(1s, [&] { return one.probes > 0; }));
  clock_.advance(1h);
  ASSERT_TRUE(all_were_looked_at(one));
  EXPECT_EQ(suspicions(one), 0);
}

TEST_F(LivenessTest, AFreezeIsNoLessonInPatience) {
  Engine& frozen = engine();
  engine();
  begin_with_history();
  const auto failed_checks = [&] { return metric("smg_worker_health_checks_total", {"error"}); };
  fall_silent_with_one(frozen, Mode::kSick);
  ASSERT_TRUE(as_time_passes(250ms, [&] { return is_suspect(frozen); }));
  // Its health checks fail too, and that is known before it goes on.
  const double before = failed_checks();
  frozen.fails_checks = true;
  ASSERT_TRUE(as_time_passes(1s, [&] { return failed_checks() > before; }));
  frozen.fails_checks = false;
  frozen.mode = Mode::kServes;
  ASSERT_TRUE(becomes_trusted(frozen));
  ASSERT_TRUE(eventually([&] { return open() == 0; }));
  fall_silent_with_one(frozen, Mode::kSick);
  clock_.advance(2s);
  EXPECT_TRUE(becomes_suspect(frozen)) << "as soon as the first time";
}

TEST_F(LivenessTest, WithoutHistoryOnlyFailedProbesDecide) {
  Engine& known = engine();
  begin_with_history();
  Engine& added = engine();
  gateway_->worker_started(added.url());
  for (const auto& each : engines_) each->mode = Mode::kMute;
  for (int i = 0; i < 2; ++i) ask();
  ASSERT_TRUE(eventually([&] { return known.open == 1 && added.open == 1; }));
  clock_.advance(60s);
  ASSERT_TRUE(becomes_suspect(known)) << "so both were looked at";
  EXPECT_EQ(suspicions(added), 0);
}

TEST_F(LivenessTest, WhereAllAreSuspectTheyAreUsedAndTheReasonIsKept) {
  Engine& only = engine();
  begin_with_history();
  fall_silent_with_one(only, Mode::kMute);
  clock_.advance(2s);
  ASSERT_TRUE(becomes_suspect(only));
  ++sent_;
  RawClient next(gateway_->port());
  const std::string body = body_of("x", true);
  next.send(fmt::format("POST /generate HTTP/1.1\r\nHost: x\r\nX-Request-Id: late\r\nContent-Length: {}\r\n\r\n{}",
                        body.size(), body));
  ASSERT_TRUE(eventually([&] { return only.open == 2; })) << "suspicion never empties the fleet";
  only.mode = Mode::kServes;
  EXPECT_THAT(next.read_until("data:"), HasSubstr("200 OK"));
  EXPECT_TRUE(eventually([&] {
    const auto why = call("GET", "/debug/why/late");
    return why->body.find("suspect, as are all that could be used") != std::string::npos;
  }));
}

TEST_F(LivenessTest, AClientThatDoesNotReadIsNotTheWorkersSilence) {
  Engine& blocked = engine();
  Engine& silent = engine();
  begin_with_history();
  blocked.answer_bytes = 64 << 20;
  silent.mode = Mode::kMute;
  for (int i = 0; i < 2; ++i) ask();
  ASSERT_TRUE(eventually([&] { return blocked.open == 1 && silent.open == 1; }));
  clock_.advance(20s);
  ASSERT_TRUE(becomes_suspect(silent)) << "so both were looked at, and all that fits has been sent meanwhile";
  silent.mode = Mode::kServes;
  ASSERT_TRUE(becomes_trusted(silent));
  fall_silent_with_one(silent, Mode::kMute);
  clock_.advance(20s);
  ASSERT_TRUE(eventually([&] { return suspicions(silent) == 2; }));
  EXPECT_EQ(suspicions(blocked), 0);
  clients_.clear();
}

TEST_F(LivenessTest, R3L18AWorkerThatComesWhileOthersServeBeginsSlowly) {
  Engine& loaded = engine();
  begin({"--slow-start-secs", "10"});
  loaded.mode = Mode::kMute;  // without history: it is not suspect for that
  for (int i = 0; i < 8; ++i) ask();
  ASSERT_TRUE(eventually([&] { return loaded.open == 8; }));
  Engine& cold = engine();
  cold.mode = Mode::kMute;
  gateway_->worker_started(cold.url());
  for (int i = 0; i < 4; ++i) ask();
  ASSERT_TRUE(eventually([&] { return open() == 12; }));
  EXPECT_EQ(cold.open, 1);
  EXPECT_EQ(json_of(cold)["most_requests"], 1);
  clock_.advance(5s);
  ASSERT_TRUE(eventually([&] { return json_of(cold)["most_requests"] == 6; }))
      << "half of what the other one has: " << json_of(cold).dump() << json_of(loaded).dump();
  for (int i = 0; i < 12; ++i) ask();
  ASSERT_TRUE(eventually([&] { return open() == 24; }));
  EXPECT_LE(cold.open, 9) << "at most half of what the other one has meanwhile";
  clock_.advance(5s);
  EXPECT_TRUE(eventually([&] { return json_of(cold)["most_requests"] == nullptr; }));
  EXPECT_EQ(json_of(loaded)["most_requests"], nullptr);
}

TEST_F(LivenessTest, L18AWorkerThatBeginsSlowlyHasNoMoreThanItMayHoweverManyLoopsAsk) {
  Engine& loaded = engine();
  begin({"--slow-start-secs", "10", "--runtime-worker-threads", "4"});
  loaded.mode = Mode::kMute;
  ask();
  ASSERT_TRUE(eventually([&] { return loaded.open == 1; }));
  Engine& cold = engine();
  cold.mode = Mode::kMute;
  gateway_->worker_started(cold.url());
  for (int i = 0; i < 100; ++i) ask();
  ASSERT_TRUE(eventually([&] { return open() == 101; }));
  EXPECT_EQ(cold.open, 1);
}

TEST_F(LivenessTest, AWorkerThatComesAloneHasItsShareAtOnce) {
  Engine& only = engine();
  begin();
  EXPECT_EQ(json_of(only)["most_requests"], nullptr);
  only.mode = Mode::kMute;
  for (int i = 0; i < 8; ++i) ask();
  EXPECT_TRUE(eventually([&] { return only.open == 8; }));
  gateway_->worker_ended(only.url());
  gateway_->worker_started(only.url());
  EXPECT_TRUE(eventually([&] { return json_of(only)["most_requests"] == nullptr; }))
      << "there is nobody to take the rest";
}

}  // namespace
}  // namespace sluice::gateway
