#include "gateway/engine_gauges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>

#include "gateway/exposition.h"
#include "gateway/gateway_fixture.h"
#include "gateway/loads.h"
#include "gateway/scripted_worker_fixture.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;

TEST(EngineGaugesTest, AnEngineOfSglangSaysAllOfARank) {
  const auto loads = loads_of_gauges(
      "# TYPE sglang:token_usage gauge\n"
      "sglang:num_running_reqs{model_name=\"m\",dp_rank=\"1\"} 3.0\n"
      "sglang:num_queue_reqs{model_name=\"m\",dp_rank=\"1\"} 2.0\n"
      "sglang:num_used_tokens{dp_rank=\"1\"} 70\r\n"
      "sglang:token_usage{dp_rank=\"1\",tp_rank=\"0\"} 0.25\n"
      "sglang:token_usage{dp_rank=\"1\",tp_rank=\"1\"} 0.5\n"
      "sglang:gen_throughput{dp_rank=\"1\"} 12.5 1700000000000\n"
      "sglang_cache_hit_rate{dp_rank=\"1\"} 0.75\n"
      "sglang:token_usage_of_others{dp_rank=\"1\"} 9\n"
      "sglang:token_usage{dp_rank=\"0\"} 0.125\n");
  EXPECT_EQ(loads, Json::parse(R"({"loads":[{"dp_rank":0,"token_usage":0.125},
      {"dp_rank":1,"cache_hit_rate":0.75,"gen_throughput":12.5,"num_running_reqs":3,"num_used_tokens":70,
       "num_waiting_reqs":2,"token_usage":0.5,"num_total_reqs":5}]})"))
      << loads;
}

TEST(EngineGaugesTest, TheTokensOfVllmFollowFromItsPool) {
  for (const char* usage : {"kv_cache_usage_perc", "gpu_cache_usage_perc"}) {
    const auto report = load_report(fmt::format("vllm:num_requests_running{{engine=\"0\",model_name=\"a,b=\\\"c\"}} 4\n"
                                                "vllm:num_requests_waiting{{engine=\"0\"}} 1\n"
                                                "vllm:{}{{engine=\"0\"}} 0.25\n"
                                                "vllm:cache_config_info{{block_size=\"16\",engine=\"0\","
                                                "num_gpu_blocks=\"1000\",sliding_window=\"None\"}} 1.0\n",
                                                usage),
                                    LoadSource::kMetrics, -1);
    ASSERT_TRUE(report) << usage;
    EXPECT_EQ(report->used_tokens, 4000);
    EXPECT_EQ(report->max_tokens, 16000);
    EXPECT_EQ(report->kv_usage, 0.25);
    EXPECT_EQ(report->waiting_requests, 1);
    EXPECT_EQ(report->waiting_tokens, -1) << "it does not say";
    ASSERT_EQ(report->ranks.size(), 1u);
    EXPECT_EQ(report->ranks[0].running, 4);
    EXPECT_FALSE(report->ranks[0].throughput.has_value());
  }
}

TEST(EngineGaugesTest, WhatIsNotSaidIsNotMadeUp) {
  const auto report = load_report(
      "vllm:kv_cache_usage_perc 0.5\n"
      "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1\n",
      LoadSource::kMetrics, -1);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->used_tokens, -1);
  EXPECT_EQ(report->kv_usage, 0.5);
}

TEST(EngineGaugesTest, OfARanksWorkerOnlyItsOwnSeriesCount) {
  const std::string page =
      "sglang:token_usage{dp_rank=\"0\"} 0.1\nsglang:num_used_tokens{dp_rank=\"0\"} 10\n"
      "sglang:token_usage{dp_rank=\"1\"} 0.2\nsglang:num_used_tokens{dp_rank=\"1\"} 20\n";
  EXPECT_EQ(load_report(page, LoadSource::kMetrics, 1)->used_tokens, 20);
  EXPECT_EQ(load_report(page, LoadSource::kMetrics, -1)->used_tokens, 30);
}

TEST(EngineGaugesTest, ADocumentWithoutUsageIsNone) {
  for (const char* odd :
       {"", "up 1\n", "sglang:num_running_reqs 3\n", "sglang:token_usage NaN\n", "sglang:token_usage -1\n",
        "sglang:token_usage +Inf\n", "sglang:token_usage{dp_rank=\"0\" 0.5\n", "sglang:token_usage 0.5x\n",
        "<html>sglang:token_usage 0.5</html>", "vllm:\n", "sglang:"}) {
    EXPECT_TRUE(loads_of_gauges(odd).is_null()) << odd;
    EXPECT_FALSE(load_report(odd, LoadSource::kMetrics, -1)) << odd;
  }
}

TEST(EngineGaugesTest, FiguresBeyondAllMeasureAreBounded) {
  const auto report =
      load_report("sglang:token_usage{dp_rank=\"99999999999999999999\"} 1\nsglang:num_used_tokens 1e300\n",
                  LoadSource::kMetrics, -1);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->used_tokens, 1'000'000'000'000'000);
}

TEST(ExpositionTest, ALabelIsFoundWhateverTheOthersHold) {
  const std::string_view labels = R"(a="x,b=\"1\"", b = "2",c="}")";
  EXPECT_EQ(label_in(labels, "a"), R"(x,b=\"1\")");
  EXPECT_EQ(label_in(labels, "b"), "2");
  EXPECT_EQ(label_in(labels, "c"), "}");
  EXPECT_FALSE(label_in(labels, "d"));
  EXPECT_FALSE(label_in("a=\"unfinished", "a"));
  EXPECT_FALSE(label_in("a", "a"));
}

// --- over sockets
// ------------------------------------------------------------------------------------------------------

class LoadSourcesTest : public GatewayFixture {
 protected:
  SimWorker& worker_with(const char* pages) {
    SimWorker& made = worker({.manual = true});
    const auto answer = net::blocking_fetch(net::parse_url(made.url()).value(), "POST", "/sim/loads", {},
                                            fmt::format(R"({{"pages":"{}"}})", pages));
    EXPECT_EQ(answer->status, 200) << pages;
    return made;
  }
  static int64_t asked(const SimWorker& worker, std::string_view target) {
    const auto received = worker.received();
    return std::ranges::count_if(received, [&](const auto& each) { return each.target == target; });
  }
};

TEST_F(LoadSourcesTest, EveryGenerationOfEngineIsReadAndRemembered) {
  struct Kind {
    const char* pages;
    const char* mode;
    std::vector<std::string_view> refused;  // paths that are asked once
  };
  const Kind kinds[] = {{"loads", "loads", {}},
                        {"get_load", "get_load", {"/v1/loads"}},
                        {"metrics", "metrics", {"/v1/loads", "/get_load"}},
                        {"vllm", "metrics", {"/v1/loads", "/get_load"}}};
  for (const Kind& kind : kinds) worker_with(kind.pages);
  start({"--policy", "round_robin", "--engine-metrics", "--load-monitor-interval", "1"});
  // One request at each, whose prompt is computed and which has more tokens to come than any step makes.
  std::vector<std::unique_ptr<RawClient>> clients;
  for (size_t i = 0; i < workers_.size(); ++i) {
    clients.push_back(std::make_unique<RawClient>(gateway_->port()));
    clients.back()->post("/generate", body_of("one two three four", /*stream=*/true, /*tokens=*/50));
    ASSERT_TRUE(eventually([&] { return metric("smg_worker_requests_active") == static_cast<double>(i + 1); }));
  }
  for (const auto& each : workers_) {
    ASSERT_TRUE(eventually([&] { return each->active() == 1; }));
    ASSERT_TRUE(eventually([&] {
      each->step();
      return each->load().running == 1;
    }));
    ASSERT_GT(each->load().used_tokens, 0);
  }
  for (size_t i = 0; i < workers_.size(); ++i) {
    const std::string url = workers_[i]->url(), mode = fmt::format("mode=\"{}\"", kinds[i].mode);
    EXPECT_TRUE(eventually([&] { return metric("smg_engine_load_polls_total", {url, mode}) >= 2; })) << kinds[i].pages;
    EXPECT_TRUE(eventually([&] { return metric("smg_engine_running_requests", {url}) == 1; })) << kinds[i].pages;
    EXPECT_EQ(metric("smg_engine_load_polls_total", {url}), metric("smg_engine_load_polls_total", {url, mode}));
    for (const std::string_view path : kinds[i].refused) EXPECT_EQ(asked(*workers_[i], path), 1) << path;
  }
  const auto loads = nlohmann::json::parse(call("GET", "/get_loads")->body)["workers"];
  ASSERT_EQ(loads.size(), workers_.size());
  for (size_t i = 0; i < workers_.size(); ++i) {
    EXPECT_EQ(loads[i]["load"], workers_[i]->load().used_tokens) << kinds[i].pages;
    for (const std::string_view path : kinds[i].refused) EXPECT_EQ(asked(*workers_[i], path), 1) << path;
  }
}

TEST_F(LoadSourcesTest, AWorkerThatBecomesAnotherIsFoundOut) {
  std::atomic<bool> is_vllm{true};
  ScriptedWorker scripted(loops_, [&](const ScriptedWorker::Received& received) {
    if (is_vllm && received.target == "/metrics")
      return net::Response::text(200, "vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_running 7\n");
    if (!is_vllm && received.target == "/v1/loads")
      return net::Response::json(200, R"({"loads":[{"dp_rank":0,"num_running_reqs":3}]})");
    return net::Response::text(404, "");
  });
  start({"--policy", "round_robin", "--engine-metrics", "--load-monitor-interval", "1"});
  gateway_->worker_started(scripted.url());
  EXPECT_TRUE(eventually([&] { return metric("smg_engine_running_requests") == 7; }));
  is_vllm = false;
  EXPECT_TRUE(eventually([&] { return metric("smg_engine_running_requests") == 3; }));
  gateway_.reset();  // before the worker
}

}  // namespace
}  // namespace sluice::gateway
