#include "bench/driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bench/run.h"
#include "testing/sim_worker.h"

namespace sluice::bench {
namespace {

using namespace std::chrono_literals;
using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;
using ::testing::StartsWith;
using Json = nlohmann::json;
using testing::SimFault;
using testing::SimWorker;
using testing::SimWorkerOptions;

class DriverTest : public ::testing::Test {
 protected:
  std::unique_ptr<SimWorker> start_worker(SimWorkerOptions options = {}) {
    options.time_scale = 50;
    options.record_limit = 100000;
    return SimWorker::start(loops_, std::move(options)).value();
  }

  static DriverOptions to(const SimWorker& worker, Api api = Api::kGenerate, bool stream = true) {
    DriverOptions options{.url = *net::parse_url(worker.url())};
    options.form.api = api;
    options.form.model = "sim-model";
    options.form.stream = stream;
    options.keep_text = true;
    return options;
  }

  static std::vector<Item> items(size_t count, int64_t output_len = 4) {
    std::vector<Item> out;
    for (size_t i = 0; i < count; ++i) {
      out.push_back({.turns = {fmt::format("question number {}", i)}, .prompt_len = 3, .output_len = output_len});
    }
    return out;
  }
  static std::vector<Duration> at_once(size_t count) { return std::vector<Duration>(count, Duration::zero()); }

  net::LoopGroup loops_{1};
};

struct Shape {
  const char* backend;
  bool stream;
};

class BackendTest : public DriverTest, public ::testing::WithParamInterface<Shape> {};

TEST_P(BackendTest, CountsWhatTheServerGenerated) {
  const auto worker = start_worker();
  const auto backend = *backend_named(GetParam().backend);
  const auto result = drive(to(*worker, backend.api, GetParam().stream), items(6, 5), at_once(6));
  ASSERT_EQ(result.outcomes.size(), 6u);
  for (const auto& outcome : result.outcomes) {
    EXPECT_EQ(outcome.error, "");
    EXPECT_EQ(outcome.output_len, 5);
    EXPECT_TRUE(outcome.prompt_len_reported);
    EXPECT_EQ(outcome.prompt_len, backend.api == Api::kChat ? 5 : 3);  // a chat has two marks of roles
    EXPECT_TRUE(outcome.cached_tokens);
    ASSERT_TRUE(outcome.ttft);
    EXPECT_LE(*outcome.ttft, outcome.latency);
    EXPECT_THAT(outcome.itl, SizeIs(GetParam().stream ? 4 : 0));
    EXPECT_THAT(outcome.text, HasSubstr(" w"));
  }
  EXPECT_EQ(worker->counters().completed, 6);
  EXPECT_EQ(worker->received().at(0).target, path_of(backend.api));
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendTest,
                         ::testing::Values(Shape{"sglang", true}, Shape{"sglang", false}, Shape{"sglang-oai", true},
                                           Shape{"sglang-oai", false}, Shape{"sglang-oai-chat", true},
                                           Shape{"sglang-oai-chat", false}, Shape{"vllm", true}, Shape{"vllm", false},
                                           Shape{"vllm-chat", true}, Shape{"vllm-chat", false}),
                         [](const auto& info) {
                           std::string name =
                               fmt::format("{}_{}", info.param.backend, info.param.stream ? "stream" : "whole");
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_F(DriverTest, ARefusedConnectionIsAFailedRequest) {
  const auto worker = start_worker();
  const auto options = to(*worker);
  worker->stop();
  const auto result = drive(options, items(3), at_once(3));
  ASSERT_EQ(result.outcomes.size(), 3u);
  for (const auto& outcome : result.outcomes) EXPECT_THAT(outcome.error, HasSubstr("cannot connect"));
}

TEST_F(DriverTest, AResetInTheMiddleOfAStreamIsAFailedRequest) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kDie, .chunks = 2, .times = 1});
  const auto result = drive(to(*worker), items(3, 8), at_once(3));
  int failed = 0;
  for (const auto& outcome : result.outcomes) {
    failed += !outcome.ok();
    if (!outcome.ok()) {
      EXPECT_TRUE(outcome.ttft);
      EXPECT_EQ(outcome.output_len, 2);
    }
  }
  EXPECT_EQ(failed, 1);
}

TEST_F(DriverTest, AnErrorStatusIsAFailedRequestWithItsBody) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStatus, .status = 429, .times = 2});
  const auto result = drive(to(*worker), items(5), at_once(5));
  const Summary summary = summarize(result.outcomes, result.duration, {});
  EXPECT_EQ(summary.completed, 3u);
  EXPECT_EQ(summary.failed, 2u);
  ASSERT_EQ(summary.errors.size(), 1u);
  EXPECT_THAT(summary.errors[0].first, StartsWith("HTTP 429 Too Many Requests: {"));
}

TEST_F(DriverTest, SilenceIsAFailedRequest) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kMute, .chunks = 1});
  auto options = to(*worker);
  options.silence_timeout = 50ms;
  const auto result = drive(options, items(1), at_once(1));
  EXPECT_THAT(result.outcomes.at(0).error, HasSubstr("took longer than 0.05 s"));
}

TEST_F(DriverTest, NoMoreRequestsAreUnderWayThanAllowed) {
  SimWorkerOptions worker_options;
  worker_options.canned = true;
  const auto worker = start_worker(worker_options);
  auto options = to(*worker);
  options.max_concurrency = 3;
  options.closed_loop = true;
  options.threads = 2;
  const auto result = drive(options, items(60), at_once(60));
  ASSERT_EQ(result.outcomes.size(), 60u);
  // From the times of the requests themselves: at no request's start were three others still running.
  for (const auto& one : result.outcomes) {
    EXPECT_EQ(one.error, "");
    int running = 0;
    for (const auto& other : result.outcomes) {
      running += other.sent <= one.sent && one.sent < other.due + other.latency;
    }
    EXPECT_LE(running, 3);
  }
}

TEST_F(DriverTest, InAnOpenLoopTheWaitForASlotCounts) {
  // The first request holds the only slot until the server has been silent for 100 ms; the others were due before.
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStall, .times = 1});
  auto options = to(*worker);
  options.max_concurrency = 1;
  options.silence_timeout = 100ms;
  const auto result = drive(options, items(3), {0ms, 1ms, 2ms});
  ASSERT_EQ(result.outcomes.size(), 3u);
  EXPECT_FALSE(result.outcomes[0].ok());
  for (size_t i : {1u, 2u}) {
    const auto& outcome = result.outcomes[i];
    EXPECT_EQ(outcome.error, "");
    EXPECT_EQ(outcome.due, Duration(std::chrono::milliseconds(i)));
    EXPECT_GE(outcome.sent, 100ms);
    EXPECT_GE(*outcome.ttft, 98ms);  // since it was due
  }
}

TEST_F(DriverTest, InAClosedLoopTheWaitForASlotDoesNotCount) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStall, .times = 1});
  auto options = to(*worker);
  options.max_concurrency = 1;
  options.closed_loop = true;
  options.silence_timeout = 100ms;
  const auto result = drive(options, items(2), at_once(2));
  ASSERT_EQ(result.outcomes.size(), 2u);
  EXPECT_GE(result.outcomes[1].due, 100ms);
  EXPECT_EQ(result.outcomes[1].error, "");
}

TEST_F(DriverTest, NoRequestGoesOutBeforeItIsDue) {
  const auto worker = start_worker();
  const std::vector<Duration> arrivals = {0ms, 5ms, 20ms, 21ms};
  const auto result = drive(to(*worker), items(4), arrivals);
  ASSERT_EQ(result.outcomes.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(result.outcomes[i].due, arrivals[i]);
    EXPECT_GE(result.outcomes[i].sent, arrivals[i]);
  }
}

TEST_F(DriverTest, AConversationSendsTheAnswersBeforeIt) {
  const auto worker = start_worker();
  const Item item{.turns = {"first question", "second question"}, .output_len = 3};
  const auto result = drive(to(*worker, Api::kChat), {item}, at_once(1));
  ASSERT_EQ(result.outcomes.size(), 2u);
  EXPECT_EQ(result.outcomes[0].error, "");
  EXPECT_EQ(result.outcomes[1].error, "");
  const auto received = worker->received();
  ASSERT_EQ(received.size(), 2u);
  const auto messages = Json::parse(received[1].body)["messages"];
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[1]["role"], "assistant");
  EXPECT_EQ(messages[1]["content"], result.outcomes[0].text);
  EXPECT_EQ(messages[2]["content"], "second question");
}

TEST_F(DriverTest, AConversationEndsWithItsFirstFailure) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStatus, .status = 500, .times = 1});
  const Item item{.turns = {"a", "b", "c"}, .output_len = 3};
  const auto result = drive(to(*worker, Api::kChat), {item}, at_once(1));
  ASSERT_EQ(result.outcomes.size(), 3u);
  EXPECT_THAT(result.outcomes[0].error, StartsWith("HTTP 500"));
  EXPECT_THAT(result.outcomes[2].error, HasSubstr("earlier turn"));
  EXPECT_EQ(worker->counters().generations, 1);
}

TEST_F(DriverTest, AnInterruptedRunKeepsWhatHasEnded) {
  const auto worker = start_worker();
  // The second one is due in an hour.
  const auto result =
      drive(to(*worker), items(2), {0ms, 1h}, [](const Progress& progress) { return progress.done == 0; });
  EXPECT_TRUE(result.interrupted);
  EXPECT_EQ(result.cut_off, 0u);
  ASSERT_EQ(result.outcomes.size(), 1u);
  EXPECT_EQ(result.outcomes[0].error, "");
}

TEST_F(DriverTest, WhatAnInterruptionCutsOffIsNoFailure) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStall});
  const auto result =
      drive(to(*worker), items(1), {0ms}, [&](const Progress&) { return worker->counters().faults == 0; });
  EXPECT_TRUE(result.interrupted);
  EXPECT_EQ(result.cut_off, 1u);
  EXPECT_TRUE(result.outcomes.empty());
}

TEST_F(DriverTest, TurnsAfterOneThatWasCutOffAreNoFailures) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStall});
  auto one = items(1);
  one[0].turns = {"hello", "and?", "bye"};
  int failed = 0;
  const auto result = drive(to(*worker, Api::kChat), one, {0ms}, [&](const Progress& progress) {
    failed = progress.failed;
    return worker->counters().faults == 0;
  });
  EXPECT_TRUE(result.interrupted);
  EXPECT_EQ(result.cut_off, 1u);
  EXPECT_TRUE(result.outcomes.empty());
  EXPECT_EQ(failed, 0);
}

TEST_F(DriverTest, TheRoutingKeyAndTheHeadersAreSent) {
  const auto worker = start_worker();
  auto options = to(*worker);
  options.headers.set("X-Team", "blue");
  options.keep_alive = false;
  auto one = items(1);
  one[0].routing_key = "group-7";
  drive(options, one, at_once(1));
  const auto received = worker->received();
  const auto& headers = received.at(0).headers;
  EXPECT_EQ(headers.get("x-smg-routing-key"), "group-7");
  EXPECT_EQ(headers.get("X-Team"), "blue");
  EXPECT_EQ(headers.get("Connection"), "close");
}

TEST_F(DriverTest, StampedChunksTellHowLongTheyWereUnderWay) {
  SimWorkerOptions options;
  options.canned = options.canned_stamp = true;
  options.canned_chunks = 5;
  const auto worker = start_worker(options);
  for (const Api api : {Api::kGenerate, Api::kCompletions, Api::kChat}) {
    const auto result = drive(to(*worker, api), items(1), at_once(1));
    const auto& outcome = result.outcomes.at(0);
    EXPECT_EQ(outcome.error, "");
    EXPECT_EQ(outcome.output_len, 5);
    // A chat has its role and its end besides, OpenAI endpoints the usage.
    EXPECT_THAT(outcome.chunk_delays, SizeIs(api == Api::kGenerate ? 5 : api == Api::kCompletions ? 6 : 8));
    EXPECT_THAT(outcome.chunk_delays, Each(Ge(0.0f)));
    EXPECT_THAT(outcome.chunk_delays, Each(Le(static_cast<float>(seconds(outcome.latency)))));
  }
}

class RunTest : public DriverTest {
 protected:
  static RunInput input_for(const SimWorker& worker, const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {"--base-url",         worker.url(), "--dataset-name",      "random",
                                    "--random-input-len", "8",          "--random-output-len", "4",
                                    "--num-prompts",      "12"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return {.options = bench_option_table().parse(all).value()};
  }
};

TEST_F(RunTest, GoesFromOptionsToAReport) {
  const auto worker = start_worker();
  const auto result =
      run_bench(input_for(*worker, {"--backend", "sglang-oai", "--random-range-ratio", "1", "--max-concurrency", "4",
                                    "--warmup-requests", "2", "--flush-cache"}));
  ASSERT_TRUE(result.ok()) << result.error().message;
  const Summary& s = result->report.summary;
  EXPECT_EQ(s.completed, 12u);
  EXPECT_EQ(s.failed, 0u);
  EXPECT_EQ(s.total_input, 12 * 8);
  EXPECT_EQ(s.total_output, 12 * 4);
  EXPECT_EQ(s.input_not_reported, 0u);
  EXPECT_EQ(worker->counters().generations, 14);
  EXPECT_EQ(worker->counters().flushes, 1);
  // The model was asked for, and the server described itself.
  EXPECT_EQ(Json::parse(result->report.server_info).is_object(), true);
}

TEST_F(RunTest, SameSeedSameBodiesInTheSameOrder) {
  const auto bodies = [&](const char* seed) {
    const auto worker = start_worker();
    const auto result =
        run_bench(input_for(*worker, {"--seed", seed, "--warmup-requests", "0", "--max-concurrency", "1"}));
    EXPECT_TRUE(result.ok());
    std::vector<std::string> out;
    for (const auto& received : worker->received()) {
      if (received.method == "POST") out.push_back(received.body);
    }
    return out;
  };
  const auto first = bodies("7");
  EXPECT_THAT(first, SizeIs(12));
  EXPECT_EQ(first, bodies("7"));
  EXPECT_NE(first, bodies("8"));
}

TEST_F(RunTest, SendsTheKeyOfTheServer) {
  SimWorkerOptions options;
  options.api_key = "secret";
  const auto worker = start_worker(options);
  auto input = input_for(*worker, {"--backend", "vllm-chat"});
  EXPECT_THAT(run_bench(input).error().message, HasSubstr("401"));
  input.authorization = "Bearer secret";
  const auto result = run_bench(input);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->report.summary.completed, 12u);
}

TEST_F(RunTest, AFailedWarmUpEndsTheRun) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStatus, .status = 500});
  const auto result = run_bench(input_for(*worker, {}));
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("the warm-up failed: HTTP 500"));
}

TEST_F(RunTest, AnInterruptionEndsTheWarmUp) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStall});
  auto input = input_for(*worker, {});
  input.interrupted = [&] { return worker->counters().faults > 0; };
  EXPECT_EQ(run_bench(input).error().code, ErrorCode::kCancelled);
}

TEST_F(RunTest, AnInterruptionEndsTheQuestionForTheModel) {
  const auto worker = start_worker();
  worker->set_fault({.kind = SimFault::Kind::kStall, .scope = SimFault::Scope::kEverything});
  auto input = input_for(*worker, {"--backend", "vllm-chat"});
  input.interrupted = [&] { return worker->counters().faults > 0; };
  EXPECT_EQ(run_bench(input).error().code, ErrorCode::kCancelled);
  EXPECT_EQ(worker->counters().generations, 0);
}

}  // namespace
}  // namespace sluice::bench
