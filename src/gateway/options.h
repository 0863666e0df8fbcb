// The gateway's options. One row each in options.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/options.h"

namespace sluice::gateway {

struct GatewayOptions {
  std::string host;
  int64_t port;
  int64_t runtime_worker_threads;
  std::optional<std::string> api_key;
  StringList control_plane_api_keys;
  StringList cors_allowed_origins;
  StringList request_id_headers;
  bool expose_worker_header;
  int64_t max_payload_size;
  int64_t header_read_timeout_secs;
  int64_t idle_connection_timeout_secs;
  int64_t stream_body_stall_timeout_secs;
  int64_t shutdown_grace_period_secs;
  std::optional<std::string> tls_cert_path;
  std::optional<std::string> tls_key_path;

  StringList worker_urls;
  std::optional<std::string> client_cert_path;
  std::optional<std::string> client_key_path;
  StringList ca_cert_paths;
  bool dp_aware;
  bool enable_igw;
  bool strict_model_match;
  StringList model_alias;
  int64_t worker_startup_timeout_secs;
  int64_t worker_startup_delay;
  int64_t worker_startup_check_interval;
  int64_t job_queue_capacity;
  int64_t job_queue_concurrency;
  bool remove_unhealthy_workers;
  int64_t drain_settle_secs;
  int64_t min_ready_workers;
  int64_t load_monitor_interval;
  bool disable_load_monitoring;

  std::string policy;
  double cache_threshold;
  int64_t balance_abs_threshold;
  double balance_rel_threshold;
  double balance_token_usage_threshold;
  double overload_token_usage_threshold;
  int64_t eviction_interval_secs;
  int64_t max_tree_size;
  int64_t prefix_index_bytes;
  std::optional<std::string> tokenizer_path;
  std::optional<std::string> chat_template;
  std::optional<int64_t> block_size;
  int64_t kv_index_bytes;
  int64_t prefix_token_count;
  double prefix_hash_load_factor;
  int64_t prefix_hash_balance_abs_threshold;
  StringList routing_key_headers;
  bool routing_key_override;
  std::string assignment_mode;
  int64_t max_idle_secs;
  double least_load_kv_pressure_weight;
  double least_load_default_throughput;
  int64_t least_load_mean_prefill_tokens;

  std::string health_check_endpoint;
  int64_t health_check_interval_secs;
  int64_t health_check_timeout_secs;
  int64_t health_failure_threshold;
  int64_t health_success_threshold;
  std::optional<int64_t> health_check_port;
  bool disable_health_check;
  int64_t slow_start_secs;

  int64_t request_timeout_secs;
  int64_t connect_timeout_secs;
  std::optional<int64_t> response_head_timeout_secs;
  std::optional<int64_t> stream_idle_timeout_secs;
  int64_t total_timeout_secs;
  int64_t sse_keepalive_secs;
  bool abort_on_disconnect;
  int64_t upstream_pool_idle_timeout_secs;

  int64_t max_concurrent_requests;
  int64_t queue_size;
  int64_t queue_timeout_secs;
  int64_t rate_limit_tokens_per_second;

  int64_t rl_control_timeout_secs;
  int64_t rl_fanout_concurrency;

  int64_t retry_max_retries;
  int64_t retry_initial_backoff_ms;
  int64_t retry_max_backoff_ms;
  double retry_backoff_multiplier;
  double retry_jitter_factor;
  bool disable_retries;

  int64_t cb_failure_threshold;
  int64_t cb_success_threshold;
  int64_t cb_timeout_duration_secs;
  int64_t cb_window_duration_secs;
  bool disable_circuit_breaker;

  std::string prometheus_host;
  int64_t prometheus_port;
  StringList prometheus_duration_buckets;
  bool engine_metrics;

  std::string log_level;
  std::string log_dir;
  bool log_json;
  std::string access_log;
  std::string access_log_file;
  bool enable_trace;
  std::string otlp_traces_endpoint;
};

const OptionTable<GatewayOptions>& gateway_option_table();

// What a worker was not sent for so many rounds of --eviction-interval-secs it is no longer believed to hold.
constexpr int64_t kUnusedRounds = 60;

// What no single row can say: rules between options, URLs and numbers in lists. kBadOption.
Result<void> validate(const GatewayOptions& options);

// The upper bounds of --prometheus-duration-buckets, or of the reference where that is empty; ascending.
Result<std::vector<double>> duration_buckets(const GatewayOptions& options);

}  // namespace sluice::gateway
