// The options of `sluice server`. One row each in options.cc. The front process parses
// them and hands them to its ranks as JSON (engine/rank.h).
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "base/options.h"
#include "base/result.h"

namespace sluice::engine {

struct EngineOptions {
  // Model
  std::string model_path;
  std::optional<std::string> tokenizer_path;
  std::optional<std::string> chat_template;
  std::optional<std::string> reasoning_parser;
  std::optional<std::string> tool_call_parser;
  std::optional<std::string> served_model_name;
  std::string weight_version;
  std::string device;
  std::string dtype;
  std::optional<int64_t> context_length;
  std::string load_format;
  std::optional<std::string> json_model_override_args;
  // HTTP
  std::string host;
  int64_t port;
  std::optional<std::string> api_key;
  std::optional<std::string> admin_api_key;
  std::optional<std::string> ssl_certfile;
  std::optional<std::string> ssl_keyfile;
  std::optional<std::string> ssl_keyfile_password;
  std::optional<std::string> ssl_ca_certs;
  bool skip_server_warmup;
  bool allow_auto_truncate;
  bool stream_output;
  bool enable_cache_report;
  bool disable_cache_report;
  bool is_embedding;
  bool enable_return_hidden_states;
  bool enable_return_routed_experts;
  int64_t max_stored_responses;
  int64_t max_stored_response_mb;
  bool enable_metrics;
  StringList tokenizer_metrics_allowed_custom_labels;
  std::string tokenizer_metrics_custom_labels_header;
  bool enable_trace;
  std::string otlp_traces_endpoint;
  std::string log_level;
  bool log_json;
  // Parallelism
  std::string layout;
  int64_t dp_size;
  std::string load_balance_method;
  std::optional<int64_t> threads;
  int64_t tp_size;
  int64_t pp_size;
  int64_t ep_size;
  bool enable_dp_attention;
  bool enable_dp_lm_head;
  int64_t dp_fixed_shape_max_bs;
  std::optional<int64_t> moe_dense_tp_size;
  std::string moe_a2a_backend;
  std::string moe_runner_backend;
  std::string deepep_mode;
  std::optional<int64_t> deepep_num_max_dispatch_tokens_per_rank;
  std::string deepep_dispatch_dtype;
  bool enable_single_batch_overlap;
  bool enable_two_batch_overlap;
  std::optional<double> tbo_token_distribution_threshold;
  int64_t ep_num_redundant_experts;
  std::string init_expert_location;
  std::optional<std::string> ep_dispatch_algorithm;
  bool enable_eplb;
  std::optional<std::string> eplb_algorithm;
  std::optional<int64_t> eplb_rebalance_num_iterations;
  std::optional<int64_t> eplb_rebalance_layers_per_chunk;
  std::optional<double> eplb_min_rebalancing_utilization_threshold;
  std::optional<std::string> expert_distribution_recorder_mode;
  std::optional<int64_t> expert_distribution_recorder_buffer_size;
  int64_t nnodes;
  int64_t node_rank;
  std::optional<std::string> dist_init_addr;
  std::optional<std::string> gloo_socket_ifname;
  // Memory
  std::optional<double> mem_fraction_static;
  std::optional<int64_t> max_total_tokens;
  std::string kv_cache_dtype;
  int64_t page_size;
  bool disable_radix_cache;
  std::string radix_eviction_policy;
  std::optional<std::string> kv_events_config;
  // Scheduling
  std::optional<int64_t> max_running_requests;
  std::optional<int64_t> max_queued_requests;
  std::optional<int64_t> chunked_prefill_size;
  int64_t max_prefill_tokens;
  std::optional<int64_t> prefill_max_requests;
  std::optional<std::string> grammar_backend;
  std::string schedule_policy;
  double schedule_conservativeness;
  bool enable_priority_scheduling;
  bool abort_on_priority_when_disabled;
  int64_t priority_scheduling_preemption_threshold;
  bool schedule_low_priority_values_first;
  bool enable_mixed_chunk;
  double mixed_chunk_gap;
  bool disable_overlap_schedule;
  bool enable_prefill_delayer;
  int64_t prefill_delayer_max_delay_passes;
  std::optional<double> prefill_delayer_token_usage_low_watermark;
  int64_t stream_interval;
  std::optional<int64_t> random_seed;
  bool deterministic;
  int64_t decode_log_interval;
  double watchdog_timeout;
};

const OptionTable<EngineOptions>& engine_option_table();

// What one row cannot say: combinations, and layouts that are recognised and not built. Called by the front before any
// process starts; kBadOption with a message that names the flags and their values.
Result<void> check_engine_options(const EngineOptions& options);

// --grammar-backend, or what it is by default in this build.
std::string grammar_backend(const EngineOptions& options);

// {"model_path": ..., "dp_size": ..., ...}: every row, dashes as underscores. Secrets are included.
nlohmann::json engine_options_to_json(const EngineOptions& options);
// The other way, for a rank. Members that are absent keep their defaults; a wrong type is kInvalidArgument.
Result<EngineOptions> engine_options_from_json(const nlohmann::json& json);

}  // namespace sluice::engine
