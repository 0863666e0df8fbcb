#include "engine/api/info_api.h"

#include <gmock/gmock.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class InfoApiTest : public ApiTest {
 protected:
  InfoApiTest() { options_.dp_size = 2; }
  const std::string rank_1_ =
      R"({model_name="tiny",engine_type="unified",tp_rank="0",pp_rank="0",moe_ep_rank="0",dp_rank="1")";

  void load_rank_1() {
    backend_->set_ranks([](auto& ranks) {
      ranks[1].load = {.unix_nanos = 1'500'000'000,
                       .num_running_reqs = 3,
                       .num_waiting_reqs = 2,
                       .num_used_tokens = 400,
                       .num_cached_tokens = 100,
                       .num_waiting_tokens = 50,
                       .max_total_num_tokens = 1000,
                       .max_running_requests = 4,
                       .gen_throughput = 12.5,
                       .cache_hit_rate = 0.25,
                       .prompt_tokens_total = 90,
                       .cached_tokens_total = 30,
                       .generation_tokens_total = 70,
                       .retracted_total = 6,
                       .evicted_tokens_total = 8};
      auto& load = ranks[1].load;
      load.num_grammar_reqs = 1;
      load.num_paused_reqs = 5;
      load.num_retracted_reqs = 2;
      load.decode_sum_seq_lens = 123;
      load.new_token_ratio = 0.5;
      load.routing_keys = {.unique_running = 3, .running = {2, 1}, .all = {0, 0, 4}};
      load.routing_keys.all[10] = 1;
      load.retracted_input_tokens_total = 600;
      load.retracted_output_tokens_total = 60;
      load.forward_seconds[0] = 1.5;
      load.forward_seconds[1] = 2.5;
      load.forward_seconds[2] = 0.25;
      for (const double took : {0.0015, 0.0015, 0.04}) load.eviction_seconds.observe(kEvictionSeconds, took);
      load.grammars = {.requests = 9, .cache_hits = 4, .aborted = 3, .timeouts = 2};
      load.grammars.compile_seconds.observe(kGrammarSeconds, 0.3);
      load.grammars.schemas.observe(kGrammarSchemas, 3);
      load.grammars.ebnf_bytes.observe(kEbnfBytes, 120);
      load.grammar_walks.mean.observe(kGrammarWalkSeconds, 0.015);
      load.grammar_walks.longest.observe(kGrammarWalkSeconds, 0.7);
      load.num_used_states = 3;
      load.max_total_states = 12;
      load.prefill_delays.outcomes[static_cast<size_t>(DelayOutcome::kHeldBack)] = 7;
      load.prefill_delays.outcomes[static_cast<size_t>(DelayOutcome::kAllCouldAtLast)] = 2;
      load.prefill_delays.passes.observe(kDelayPasses, 7);
      load.prefill_delays.seconds.observe(kDelaySeconds, 1.5);
      load.cooperation.tokens[2][0] = 40;
      load.cooperation.tokens[0][2] = 6;
      load.cooperation.seconds[2][0] = 0.75;
      load.rebalance = {
          .layers_moved = 4, .layers_kept = 5, .layers_rolled_back = 1, .moved_bytes = 4096, .seconds = 0.5};
      load.rebalance.steps[moe::RebalanceCounts::kExtend][5] = 2;  // up to 0.6
      load.rebalance.balancedness[moe::RebalanceCounts::kExtend][5] = 1.1;
      load.rebalance.steps[moe::RebalanceCounts::kDecode][9] = 3;
      load.rebalance.balancedness[moe::RebalanceCounts::kDecode][9] = 2.8;
      ranks[1].expert_tokens = {.layers = {3}, .ranks = 4, .tokens = {10, 0, 5, 1}};
      ranks[1].info.load_seconds = 7;
      ranks[1].info.startup_seconds = 8;
      ranks[1].restarts = 1;
    });
  }
};

TEST_F(InfoApiTest, NamesTheModel) {
  serve();
  const auto list = call("GET", "/v1/models").json();
  EXPECT_EQ(list["object"], "list");
  auto entry = list["data"][0];
  EXPECT_TRUE(entry["created"].is_number());
  entry.erase("created");
  EXPECT_EQ(entry.dump(), R"({"id":"tiny","object":"model","owned_by":"sglang","root":"tiny","parent":null,)"
                          R"("max_model_len":2048})");
  EXPECT_EQ(call("GET", "/v1/models/tiny").json()["id"], "tiny");
  const auto unknown = call("GET", "/v1/models/a%2Fb");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(unknown.body, R"({"error":{"message":"The model 'a/b' does not exist","type":"invalid_request_error",)"
                          R"("param":"model","code":"model_not_found"}})");
  for (const auto* path : {"/model_info", "/get_model_info"}) {
    EXPECT_EQ(call("GET", path).body,
              R"({"model_path":"tiny","tokenizer_path":"tiny","is_generation":true,"preferred_sampling_params":null,)"
              R"("weight_version":"default","has_image_understanding":false,"has_audio_understanding":false,)"
              R"("model_type":"llama","architectures":["LlamaForCausalLM"]})");
  }
}

TEST_F(InfoApiTest, ServerInfoHasWhatGatewaysRead) {
  serve();
  for (const auto* path : {"/server_info", "/get_server_info"}) {
    const auto info = call("GET", path).json();
    EXPECT_EQ(info["dp_size"], 2);
    EXPECT_EQ(info["tp_size"], 1);
    EXPECT_EQ(info["model_path"], "tiny");
    EXPECT_EQ(info["served_model_name"], "tiny");
    EXPECT_EQ(info["disaggregation_mode"], "null");
    EXPECT_EQ(info["max_running_requests"], 8);
    EXPECT_EQ(info["context_length"], 2048);
    EXPECT_EQ(info["max_total_num_tokens"], 5000);
    EXPECT_EQ(info["max_req_input_len"], 2042);
    EXPECT_EQ(info["status"], "Up");
    EXPECT_TRUE(info["version"].is_string());
    ASSERT_EQ(info["internal_states"].size(), 2u);
    const auto& state = info["internal_states"][1];
    EXPECT_EQ(state["memory_usage"].dump(), R"({"weight":1.0,"kvcache":0.5,"token_capacity":5000,"graph":0.0})");
    EXPECT_EQ(state["kv_bytes_per_token"], 64);
    EXPECT_EQ(state["effective_max_running_requests_per_dp"], 8);
    EXPECT_FALSE(info.contains("api_key"));
  }
  EXPECT_FALSE(call("GET", "/server_info").json()["internal_states"][1].contains("wire_bytes"));
  backend_->set_ranks([](auto& ranks) {
    ranks[1].load.group_steps_total = 4;
    ranks[1].load.wire_bytes_total = 1000;
    ranks[1].load.split_steps_total = 3;
    ranks[1].load.fixed_steps_total = 2;
    ranks[1].load.wire_seconds = 2;
    ranks[1].load.covered_seconds = 1.5;
    ranks[1].info.planned_bytes = 1 << 20;
  });
  const auto state = call("GET", "/server_info").json()["internal_states"][1];
  EXPECT_EQ(state["group_steps"], 4);
  EXPECT_EQ(state["wire_bytes"], 1000);
  EXPECT_EQ(state["wire_bytes_per_step"], 250.0);
  EXPECT_EQ(state["split_steps"], 3);
  EXPECT_EQ(state["fixed_shape_steps"], 2);
  EXPECT_EQ(state["wire_seconds"], 2.0);
  EXPECT_EQ(state["covered_seconds"], 1.5);
  EXPECT_EQ(state["planned_bytes"], 1 << 20);
  api_->set_status(ServerStatus::kStarting);
  EXPECT_EQ(call("GET", "/server_info").json()["status"], "Starting");
}

TEST_F(InfoApiTest, LoadsAreThoseOfTheSnapshots) {
  serve();
  load_rank_1();
  EXPECT_EQ(call("GET", "/get_load").json()[1].dump(),
            R"({"rid":null,"http_worker_ipc":null,"dp_rank":1,"num_reqs":5,"num_waiting_reqs":2,"num_tokens":450,)"
            R"("ts_tic":1.5})");
  const auto all = call("GET", "/v1/loads").json();
  EXPECT_EQ(all["dp_rank_count"], 2);
  const auto& load = all["loads"][1];
  EXPECT_EQ(load["num_running_reqs"], 3);
  EXPECT_EQ(load["num_used_tokens"], 400);
  EXPECT_EQ(load["token_usage"], 0.4);
  EXPECT_EQ(load["utilization"], 0.75);
  EXPECT_FALSE(load.contains("memory"));
  EXPECT_EQ(all["aggregate"]["total_reqs"], 5);
  EXPECT_EQ(all["aggregate"]["avg_token_usage"], 0.2);
  const auto one = call("GET", "/v1/loads?include=memory,queues&dp_rank=1").json();
  EXPECT_EQ(one["loads"].size(), 1u);
  EXPECT_EQ(one["loads"][0]["memory"]["token_capacity"], 5000);
  EXPECT_EQ(one["loads"][0]["queues"].dump(), R"({"waiting":2,"grammar":1,"paused":5,"retracted":2})");
  const auto text = call("GET", "/v1/loads?format=prometheus");
  EXPECT_THAT(text.body, HasSubstr("sglang_num_running_reqs{dp_rank=\"1\"} 3\n"));
  EXPECT_EQ(call("GET", "/v1/loads?include=core,nonsense").status, 400);
  EXPECT_EQ(call("GET", "/v1/loads?dp_rank=2").status, 400);
  EXPECT_EQ(call("GET", "/v1/loads?format=xml").status, 400);
}

TEST_F(InfoApiTest, MetricsShowEveryRankAndEveryRequest) {
  serve();
  load_rank_1();
  answer_with("hello world");
  EXPECT_EQ(post("/generate", {{"text", "hi"}}).status, 200);
  EXPECT_EQ(post("/generate", {{"text", "hi"}, {"log_metrics", false}}).status, 200);
  const auto page = call("GET", "/metrics");
  EXPECT_THAT(page.head, HasSubstr("text/plain; version=0.0.4"));
  EXPECT_THAT(page.body, HasSubstr("sglang:num_running_reqs" + rank_1_ + "} 3\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:kv_available_tokens" + rank_1_ + "} 500\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:num_retracted_requests_total" + rank_1_ + "} 6\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:realtime_tokens_total" + rank_1_ + R"(,mode="prefill_compute"} 60)"));
  EXPECT_THAT(page.body, HasSubstr("sluice:rank_ready" + rank_1_ + "} 1\n"));
  const auto count = ids("hello world").size();
  EXPECT_THAT(page.body,
              HasSubstr(fmt::format("sglang:generation_tokens_total{{model_name=\"tiny\"}} {}\n", count + 1)));
  EXPECT_THAT(page.body, HasSubstr("sglang:num_requests_total{model_name=\"tiny\"} 1\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:time_to_first_token_seconds_count{model_name=\"tiny\"} 1\n"));
  EXPECT_THAT(page.body,
              HasSubstr(fmt::format("sglang:inter_token_latency_seconds_count{{model_name=\"tiny\"}} {}\n", count)));
  EXPECT_THAT(page.body, HasSubstr("sglang:e2e_request_latency_seconds_count{model_name=\"tiny\"} 1\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:cached_tokens_total{model_name=\"tiny\",cache_source=\"device\"} 1\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:prompt_tokens_histogram_sum{model_name=\"tiny\"} "));
  EXPECT_THAT(page.body, HasSubstr("sglang:uncached_prompt_tokens_histogram_count{model_name=\"tiny\"} 1\n"));
  EXPECT_THAT(page.body,
              HasSubstr(fmt::format("sglang:generation_tokens_histogram_sum{{model_name=\"tiny\"}} {}\n", count + 1)));
  EXPECT_THAT(page.body, HasSubstr("sglang:num_retractions_bucket{model_name=\"tiny\",le=\"0\"} 1\n"));
  const std::string rank_0 =
      R"({model_name="tiny",engine_type="unified",tp_rank="0",pp_rank="0",moe_ep_rank="0",dp_rank="0")";
  EXPECT_THAT(page.body, HasSubstr("sglang:queue_time_seconds_sum" + rank_0 + "} 0.25\n"));
  EXPECT_THAT(page.body,
              HasSubstr("sglang:per_stage_req_latency_seconds_sum" + rank_0 + ",stage=\"prefill_waiting\"} 0.25\n"));
  EXPECT_THAT(page.body,
              HasSubstr("sglang:per_stage_req_latency_seconds_sum" + rank_0 + ",stage=\"prefill_forward\"} 0.5\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:num_so_requests_total{model_name=\"tiny\"} 0\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:num_aborted_requests_total{model_name=\"tiny\"} 0\n"));
  EXPECT_THAT(page.body, HasSubstr("sglang:get_loads_duration_seconds_count{model_name=\"tiny\"} 0\n"));
}

// Two ranks in each attention group, four that share an expert.
TEST_F(InfoApiTest, MetricsOfAttentionGroupsAreLabelledWithTheirFirstRank) {
  options_.enable_dp_attention = true;
  options_.tp_size = 8;
  options_.dp_size = 4;
  options_.ep_size = 2;
  serve();
  const auto page = call("GET", "/metrics").body;
  const int places[][2] = {{0, 0}, {2, 0}, {4, 1}, {6, 1}};
  for (int group = 0; group < 4; ++group) {
    EXPECT_THAT(page, HasSubstr(fmt::format("sglang:num_running_reqs{{model_name=\"tiny\",engine_type=\"unified\","
                                            "tp_rank=\"{}\",pp_rank=\"0\",moe_ep_rank=\"{}\",dp_rank=\"{}\"}} 0\n",
                                            places[group][0], places[group][1], group)));
  }
}

TEST_F(InfoApiTest, MetricsTellAbortsAndLoadQueries) {
  serve();
  backend_->set_script([](const GenerateRequest&) {
    return std::vector<Word>{{.ids = {}, .finish = {.kind = FinishKind::kAbort, .message = "no", .status_code = 503}}};
  });
  EXPECT_EQ(post("/generate", {{"text", "hi"}}).status, 503);
  EXPECT_EQ(call("GET", "/v1/loads").status, 200);
  const auto page = call("GET", "/metrics").body;
  EXPECT_THAT(page, HasSubstr("sglang:num_aborted_requests_total{model_name=\"tiny\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("sglang:get_loads_duration_seconds_count{model_name=\"tiny\"} 1\n"));
}

// The runtime's series is of one batch, whatever came before.
TEST_F(InfoApiTest, TheHitRateOfAllPromptsOutlivesARestartOfTheRank) {
  serve();
  load_rank_1();
  EXPECT_THAT(call("GET", "/metrics").body, HasSubstr("sluice:cache_hit_rate" + rank_1_ + "} 0.333"));
  // It begins again, and finds all of its first prompt cached.
  backend_->set_ranks(
      [](auto& ranks) { ranks[1].load = {.cache_hit_rate = 1, .prompt_tokens_total = 10, .cached_tokens_total = 10}; });
  const auto page = call("GET", "/metrics").body;
  EXPECT_THAT(page, HasSubstr("sglang:cache_hit_rate" + rank_1_ + "} 1\n"));
  EXPECT_THAT(page, HasSubstr("sluice:cache_hit_rate" + rank_1_ + "} 0.4\n")) << "40 of 100";
}

// Each family that is made of what ranks publish, with a value that only its own source has.
TEST_F(InfoApiTest, EverySeriesOfARankHasItsOwnSource) {
  options_.page_size = 4;
  options_.enable_eplb = true;
  options_.tp_size = options_.ep_size = 4;
  serve();
  load_rank_1();
  const auto page = call("GET", "/metrics").body;
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"num_running_reqs", "} 3"},
      {"num_queue_reqs", "} 2"},
      {"num_grammar_queue_reqs", "} 1"},
      {"num_paused_reqs", "} 5"},
      {"num_retracted_reqs", "} 2"},
      {"num_used_tokens", "} 400"},
      {"kv_used_tokens", "} 400"},
      {"kv_evictable_tokens", "} 100"},
      {"kv_available_tokens", "} 500"},
      {"max_total_num_tokens", "} 1000"},
      {"token_usage", "} 0.4"},
      {"full_token_usage", "} 0.4"},
      {"utilization", "} 0.75"},
      {"gen_throughput", "} 12.5"},
      {"cache_hit_rate", "} 0.25"},
      {"decode_sum_seq_lens", "} 123"},
      {"new_token_ratio", "} 0.5"},
      {"num_unique_running_routing_keys", "} 3"},
      {"routing_key_running_req_count", R"(,gt="0",le="1"} 2)"},
      {"routing_key_running_req_count", R"(,gt="1",le="2"} 1)"},
      {"routing_key_all_req_count", R"(,gt="2",le="3"} 4)"},
      {"routing_key_all_req_count", R"(,gt="200",le="+Inf"} 1)"},
      {"engine_load_weights_time", "} 7"},
      {"engine_startup_time", "} 8"},
      {"weight_load_duration_seconds", "} 7"},
      {"startup_time_seconds", "} 8"},
      {"weight_memory_usage_gb", "} 1"},
      {"kv_cache_memory_usage_gb", "} 0.5"},
      {"context_len", "} 2048"},
      {"page_size", "} 4"},
      {"num_pages", "} 1250"},
      {"cache_config_info", R"(,page_size="4",num_pages="1250"} 1)"},
      {"num_retracted_requests_total", "} 6"},
      {"num_retracted_input_tokens_total", "} 600"},
      {"num_retracted_output_tokens_total", "} 60"},
      {"evicted_tokens_total", "} 8"},
      {"realtime_tokens_total", R"(,mode="prefill_compute"} 60)"},
      {"realtime_tokens_total", R"(,mode="prefill_cache"} 30)"},
      {"realtime_tokens_total", R"(,mode="decode"} 70)"},
      {"gpu_execution_seconds_total", R"(,category="extend"} 1.5)"},
      {"gpu_execution_seconds_total", R"(,category="decode"} 2.5)"},
      {"gpu_execution_seconds_total", R"(,category="mixed"} 0.25)"},
      {"forward_execution_seconds_total", R"(,category="extend"} 1.5)"},
      {"num_grammar_total", "} 9"},
      {"num_grammar_cache_hit_total", "} 4"},
      {"num_grammar_aborted_total", "} 3"},
      {"num_grammar_timeout_total", "} 2"},
      {"eviction_duration_seconds_bucket", R"(,le="0.001"} 0)"},
      {"eviction_duration_seconds_bucket", R"(,le="0.002"} 2)"},
      {"eviction_duration_seconds_bucket", R"(,le="0.04"} 3)"},
      {"eviction_duration_seconds_sum", "} 0.043"},
      {"grammar_compilation_time_seconds_bucket", R"(,le="0.2"} 0)"},
      {"grammar_compilation_time_seconds_bucket", R"(,le="0.5"} 1)"},
      {"grammar_compilation_time_seconds_sum", "} 0.3"},
      {"grammar_schema_count_bucket", R"(,le="2"} 0)"},
      {"grammar_schema_count_bucket", R"(,le="5"} 1)"},
      {"grammar_schema_count_sum", "} 3"},
      {"grammar_ebnf_size_sum", "} 120"},
      {"grammar_tree_traversal_time_avg_sum", "} 0.015"},
      {"grammar_tree_traversal_time_max_sum", "} 0.7"},
      {"eplb_balancedness_bucket", R"(,forward_mode="extend",le="0.5"} 0)"},
      {"eplb_balancedness_bucket", R"(,forward_mode="extend",le="0.6"} 2)"},
      {"eplb_balancedness_sum", R"(,forward_mode="extend"} 1.1)"},
      {"eplb_balancedness_count", R"(,forward_mode="decode"} 3)"},
      {"eplb_gpu_physical_count_bucket", R"(,layer="3",le="0"} 10)"},
      {"eplb_gpu_physical_count_bucket", R"(,layer="3",le="2"} 15)"},
      {"eplb_gpu_physical_count_bucket", R"(,layer="3",le="3"} 16)"},
      {"eplb_gpu_physical_count_sum", R"(,layer="3"} 13)"},
  };
  for (const auto& [name, value] : expected) {
    EXPECT_THAT(page, HasSubstr("sglang:" + name + rank_1_ + value)) << name;
  }
  EXPECT_THAT(page, HasSubstr("sluice:rank_restarts_total" + rank_1_ + "} 1\n"));
  for (const std::string line : {R"(eplb_layers_total@,outcome="moved"} 4)", R"(eplb_layers_total@,outcome="kept"} 5)",
                                 R"(eplb_layers_total@,outcome="rolled_back"} 1)", "eplb_moved_bytes_total@} 4096",
                                 "eplb_seconds_total@} 0.5"}) {
    const size_t at = line.find('@');
    EXPECT_THAT(page, HasSubstr("sluice:" + line.substr(0, at) + rank_1_ + line.substr(at + 1) + "\n"));
  }
}

TEST_F(InfoApiTest, SeriesOfWhatIsOffAreNotThere) {
  serve();
  load_rank_1();
  const auto page = call("GET", "/metrics").body;
  for (const char* name : {"mamba_usage", "prefill_delayer_", "dp_cooperation_", "eplb_gpu_physical_count"}) {
    EXPECT_THAT(page, ::testing::Not(HasSubstr(name)));
  }
}

TEST_F(InfoApiTest, AHybridModelShowsItsStates) {
  model_ = "tiny-minimax-text-01";
  serve();
  load_rank_1();
  EXPECT_THAT(call("GET", "/metrics").body, HasSubstr("sglang:mamba_usage" + rank_1_ + "} 0.25\n"));
}

TEST_F(InfoApiTest, TheDelayerOfPromptsShowsWhatItDecides) {
  options_.enable_prefill_delayer = true;
  serve();
  load_rank_1();
  const auto page = call("GET", "/metrics").body;
  const std::string outcomes = "sglang:prefill_delayer_outcomes_total" + rank_1_ + ",input_estimation=";
  EXPECT_THAT(
      page, HasSubstr(outcomes + R"("mixed",output_allow="false",output_reason="delay",actual_execution="false"} 7)"));
  EXPECT_THAT(page, HasSubstr(outcomes +
                              R"("all",output_allow="true",output_reason="wait_success",actual_execution="true"} 2)"));
  EXPECT_THAT(page, HasSubstr("sglang:prefill_delayer_wait_forward_passes_sum" + rank_1_ + "} 7\n"));
  EXPECT_THAT(page, HasSubstr("sglang:prefill_delayer_wait_seconds_sum" + rank_1_ + "} 1.5\n"));
}

TEST_F(InfoApiTest, AServerWithOneRankHasNoLabelOfIt) {
  options_.dp_size = 1;
  serve();
  EXPECT_THAT(call("GET", "/metrics").body, Not(HasSubstr("dp_rank=")));
}

TEST_F(InfoApiTest, AServerWithOneRankIsLabelledWithTheRankThatTheVariableSays) {
  options_.dp_size = 1;
  ::setenv("SGLANG_DP_RANK", "3", 1);
  serve();
  ::unsetenv("SGLANG_DP_RANK");
  EXPECT_THAT(call("GET", "/metrics").body, HasSubstr("moe_ep_rank=\"0\",dp_rank=\"3\"} 0\n"));
}

TEST_F(InfoApiTest, WhatGroupsComputeTogetherIsShownOnRequest) {
  ::setenv("SGLANG_ENABLE_METRICS_DP_ATTENTION", "1", 1);
  serve();
  ::unsetenv("SGLANG_ENABLE_METRICS_DP_ATTENTION");
  load_rank_1();
  const auto page = call("GET", "/metrics").body;
  EXPECT_THAT(page, HasSubstr("sglang:dp_cooperation_realtime_tokens_total" + rank_1_ +
                              R"(,mode="prefill_compute",num_prefill_ranks="2"} 40)"));
  EXPECT_THAT(page, HasSubstr("sglang:dp_cooperation_realtime_tokens_total" + rank_1_ +
                              R"(,mode="decode",num_prefill_ranks="0"} 6)"));
  for (const char* name : {"gpu", "forward"}) {
    EXPECT_THAT(page, HasSubstr(fmt::format("sglang:dp_cooperation_{}_execution_seconds_total{}", name, rank_1_) +
                                R"(,category="extend",num_prefill_ranks="2"} 0.75)"));
  }
  backend_->set_ranks([](auto& ranks) { ranks[1].load.cooperation.tokens[0][2] = 2; });  // it was restarted
  EXPECT_THAT(call("GET", "/metrics").body, HasSubstr(R"(,mode="decode",num_prefill_ranks="0"} 8)"));
  backend_->set_ranks([](auto& ranks) {
    ranks[1].restarts = 2;
    ranks[1].load.cooperation.tokens[0][2] = 3;
  });
  EXPECT_THAT(call("GET", "/metrics").body, HasSubstr(R"(,mode="decode",num_prefill_ranks="0"} 11)"));
}

TEST_F(InfoApiTest, TheTimeInEachEndpointIsShown) {
  serve();
  answer_with("a");
  EXPECT_EQ(post("/generate", {{"text", "hi"}}).status, 200);
  EXPECT_EQ(call("GET", "/v1/models/none").status, 404);
  EXPECT_EQ(call("GET", "/nothing").status, 404);
  // It is counted when the function has come back, which may be after the client has its answer.
  std::string page;
  for (const char* name : {"/generate", "/v1/models/*"}) {
    const std::string wanted = fmt::format("sglang:func_latency_seconds_count{{name=\"{}\"}} 1\n", name);
    for (int i = 0; i < 1000 && page.find(wanted) == std::string::npos; ++i) page = call("GET", "/metrics").body;
    EXPECT_THAT(page, HasSubstr(wanted));
  }
  EXPECT_THAT(page, ::testing::Not(HasSubstr("/nothing")));
}

TEST_F(InfoApiTest, CountersOfARankGoOnWhenItRestarts) {
  serve();
  load_rank_1();
  EXPECT_EQ(call("GET", "/metrics").status, 200);
  backend_->set_ranks([](auto& ranks) { ranks[1].load.retracted_total = 2; });
  EXPECT_THAT(call("GET", "/metrics").body, HasSubstr("sglang:num_retracted_requests_total" + rank_1_ + "} 8\n"));
  // Another life that has come further than the one before it when it is looked at next.
  backend_->set_ranks([](auto& ranks) {
    ranks[1].restarts = 2;
    ranks[1].load.retracted_total = 3;
    ranks[1].load.eviction_seconds.observe(kEvictionSeconds, 0.0015);
  });
  const auto page = call("GET", "/metrics").body;
  EXPECT_THAT(page, HasSubstr("sglang:num_retracted_requests_total" + rank_1_ + "} 11\n"));
  EXPECT_THAT(page, HasSubstr("sglang:eviction_duration_seconds_count" + rank_1_ + "} 7\n"));
  EXPECT_THAT(page, HasSubstr("sglang:eviction_duration_seconds_sum" + rank_1_ + "} 0.087"));
}

TEST_F(InfoApiTest, TextGoesToTokensAndBack) {
  serve();
  for (const std::string prefix : {"", "/v1"}) {
    const auto one = post(prefix + "/tokenize", {{"prompt", "hello world"}}).json();
    EXPECT_EQ(one["tokens"], Json(tokenizer_->encode("hello world", true)));
    EXPECT_EQ(one["count"], one["tokens"].size());
    EXPECT_EQ(one["max_model_len"], 2048);
    const auto two = post(prefix + "/tokenize", {{"prompt", {"a", "b"}}, {"add_special_tokens", false}}).json();
    EXPECT_EQ(two["tokens"], Json({ids("a"), ids("b")}));
    EXPECT_EQ(two["count"], Json({1, 1}));
    EXPECT_EQ(post(prefix + "/detokenize", {{"tokens", one["tokens"]}}).json()["text"], "hello world");
  }
  EXPECT_EQ(post("/detokenize", {{"tokens", {2}}, {"skip_special_tokens", false}}).json()["text"], "<|im_end|>");
  EXPECT_EQ(post("/detokenize", {{"tokens", {{2}, ids("a")}}}).json()["text"], Json({"", "a"}));
  EXPECT_EQ(post("/detokenize", {{"tokens", {99999}}}).status, 400);
  EXPECT_EQ(post("/tokenize", Json::object()).status, 400);
  const auto chat = post("/tokenize", {{"messages", {{{"role", "user"}, {"content", "x"}}}}}).json();
  EXPECT_EQ(chat["tokens"], Json(tokenizer_->encode("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", false)));
}

}  // namespace
}  // namespace sluice::engine
