#include "gateway/metric_families.h"

namespace sluice::gateway {

std::vector<obs::Family> metric_families(const std::vector<double>& buckets, bool by_model) {
  using obs::Kind;
  using Labels = std::vector<std::string_view>;
  const Labels kRequest{"router_type", "backend_type", "connection_mode", "model", "endpoint"};
  const Labels kGeneration{"router_type", "backend_type", "model", "endpoint"};
  const auto with = [](Labels labels, std::string_view more) {
    labels.push_back(more);
    return labels;
  };
  const Labels kWorker{"worker"};
  const Labels kBranch{"branch"};
  const Labels kHitRate = by_model ? Labels{"source", "model"} : Labels{"source"};
  const Labels kRank{"worker", "model", "dp_rank"};
  const std::vector<double> kBackoff{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60};
  const std::vector<double> kDecision{1e-7, 2.5e-7, 5e-7,   1e-6, 2.5e-6, 5e-6,   1e-5, 2.5e-5,
                                      5e-5, 1e-4,   2.5e-4, 5e-4, 1e-3,   2.5e-3, 5e-3, 1e-2};
  const std::vector<double> kTenths{0, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1};

  return {
      {"smg_http_requests_total", "Requests that arrived.", Kind::kCounter, {"method", "path"}},
      {"smg_http_request_duration_seconds",
       "Time to the head of an answer.",
       Kind::kHistogram,
       {"method", "path"},
       buckets},
      {"smg_http_responses_total", "Answers sent.", Kind::kCounter, {"path", "status_code", "error_code"}},
      {"smg_http_connections_active", "Requests in handlers.", Kind::kGauge},
      {"smg_http_inflight_request_age_count",
       "Requests in handlers that are older than gt and not older than le, in seconds.",
       Kind::kGauge,
       {"gt", "le"}},
      {"smg_http_rate_limit_total", "Decisions of the limiter.", Kind::kCounter, {"result"}},
      {"smg_admission_inflight", "Requests that hold a slot.", Kind::kGauge},
      {"smg_admission_queue_depth", "Requests that wait for a slot.", Kind::kGauge},
      {"smg_admission_queue_wait_seconds",
       "Time in the queue of requests that had to wait, however that ended.",
       Kind::kHistogram,
       {},
       buckets},

      {"smg_router_requests_total", "Requests that were routed.", Kind::kCounter, with(kRequest, "streaming")},
      {"smg_router_request_duration_seconds", "Time to the head of a 2xx answer, retries included.", Kind::kHistogram,
       kRequest, buckets},
      {"smg_router_request_errors_total", "Requests whose final answer was not 2xx.", Kind::kCounter,
       with(kRequest, "error_type")},
      {"smg_router_upstream_responses_total",
       "Answers of workers, per attempt.",
       Kind::kCounter,
       {"router_type", "status_code", "error_code"}},
      {"smg_router_ttft_seconds", "Time to the first byte of a streamed answer.", Kind::kHistogram, kGeneration,
       buckets},
      {"smg_router_tpot_seconds",
       "Time from the first to the last byte of a streamed answer, for each token after the first.", Kind::kHistogram,
       kGeneration, buckets},
      {"smg_router_inter_chunk_seconds", "Time between two parts of a streamed answer, as they reached the gateway.",
       Kind::kHistogram, kGeneration, buckets},
      {"smg_router_generation_duration_seconds", "Time to the end of a 2xx answer.", Kind::kHistogram, kGeneration,
       buckets},
      {"smg_router_tokens_total", "Tokens that answers reported.", Kind::kCounter, with(kGeneration, "token_type")},

      {"smg_worker_pool_size", "Workers in the fleet.", Kind::kGauge, {"worker_type", "connection_mode", "model"}},
      {"smg_worker_connections_active",
       "Connections to workers with a request under way.",
       Kind::kGauge,
       {"worker_type", "connection_mode"}},
      {"smg_upstream_connections",
       "Connections that requests use, or used and may use again.",
       Kind::kGauge,
       {"worker", "state"}},
      {"smg_worker_requests_active", "Requests in flight.", Kind::kGauge, kWorker},
      {"smg_worker_requests_total", "Attempts sent to the worker.", Kind::kCounter, {"worker", "model"}},
      {"smg_worker_health", "1 if the worker is used.", Kind::kGauge, kWorker},
      {"smg_worker_suspect", "1 if the worker is silent for longer than expected: it gets no new work.", Kind::kGauge,
       kWorker},
      {"smg_worker_suspicions_total", "Times that the worker became suspect.", Kind::kCounter, kWorker},
      {"smg_worker_health_checks_total", "Health checks.", Kind::kCounter, {"worker_type", "result"}},
      {"smg_worker_restarts_total", "New processes behind the worker's address.", Kind::kCounter, kWorker},
      {"smg_worker_errors_total",
       "Attempts that ended in a fault.",
       Kind::kCounter,
       {"worker_type", "connection_mode", "error_type", "worker"}},
      {"smg_stream_aborts_total", "Answers cut short.", Kind::kCounter, {"worker", "side"}},

      {"smg_worker_selection_total", "Choices.", Kind::kCounter, {"worker_type", "connection_mode", "model", "policy"}},
      {"smg_worker_selections_total", "Choices, and why.", Kind::kCounter, {"worker", "policy", "reason"}},
      {"smg_route_decision_seconds", "Time to choose a worker.", Kind::kHistogram, {"policy"}, kDecision},
      {"smg_cache_aware_policy_branch_total", "Choices of cache_aware, by its rules.", Kind::kCounter, kBranch},
      {"smg_cache_aware_match_ratio",
       "Part of a prompt that the prefix index found, under cache_aware.",
       Kind::kHistogram,
       {},
       kTenths},
      {"smg_manual_policy_branch_total", "Choices by routing key, by its rules.", Kind::kCounter, kBranch},
      {"smg_consistent_hashing_policy_branch_total", "Choices of consistent_hashing, by its rules.", Kind::kCounter,
       kBranch},
      {"smg_prefix_hash_policy_branch_total", "Choices of prefix_hash, by its rules.", Kind::kCounter, kBranch},
      {"smg_worker_routing_keys_active", "Routing keys that the worker has.", Kind::kGauge, kWorker},
      {"smg_manual_policy_cache_entries", "Routing keys that are remembered.", Kind::kGauge},

      {"smg_worker_cb_state", "0 closed, 1 open, 2 half-open.", Kind::kGauge, kWorker},
      {"smg_worker_cb_transitions_total", "Changes of the breaker.", Kind::kCounter, {"worker", "from", "to"}},
      {"smg_worker_cb_outcomes_total", "Outcomes that the breaker saw.", Kind::kCounter, {"worker", "outcome"}},
      {"smg_worker_cb_consecutive_failures", "Faults in a row of a closed breaker.", Kind::kGauge, kWorker},
      {"smg_worker_cb_consecutive_successes", "Good trials and passed health checks in a row of a half-open breaker.",
       Kind::kGauge, kWorker},
      {"smg_worker_cb_health_readmissions_total", "Open breakers that a passed health check made half-open.",
       Kind::kCounter, kWorker},
      {"smg_worker_retries_total", "Attempts after the first.", Kind::kCounter, {"worker_type", "endpoint"}},
      {"smg_worker_retries_exhausted_total",
       "Requests that failed on their last attempt.",
       Kind::kCounter,
       {"worker_type", "endpoint"}},
      {"smg_worker_retries_refused_total",
       "Requests that failed with attempts left, as the budget of retries was used up.",
       Kind::kCounter,
       {"worker_type", "endpoint"}},
      {"smg_worker_retry_backoff_seconds", "Pauses before an attempt.", Kind::kHistogram, {"attempt"}, kBackoff},

      {"smg_worker_prompt_tokens_total", "Prompt tokens that the worker reported.", Kind::kCounter, kWorker},
      {"smg_worker_cached_tokens_total", "Cached prompt tokens that the worker reported.", Kind::kCounter, kWorker},
      {"smg_worker_predicted_cached_tokens_total",
       "Prompt tokens that the prefix index expected to be cached, at four bytes each.", Kind::kCounter, kWorker},
      {"smg_worker_cache_reported",
       "1 once the worker has reported a cached token: before that, what it holds is only predicted.", Kind::kGauge,
       kWorker},
      {"smg_worker_cache_belief", "Part of a predicted match that counts, by the worker's reports.", Kind::kGauge,
       kWorker},
      {"smg_worker_kv_mode",
       "1 for how the worker's cache is known: events, events_partial or belief; with --tokenizer-path.",
       Kind::kGauge,
       {"worker", "mode"}},
      {"smg_kv_batches_total", "Batches of KV events.", Kind::kCounter, {"worker", "result"}},
      {"smg_kv_left_out_total",
       "KV events, or blocks of them, that say nothing here.",
       Kind::kCounter,
       {"worker", "reason"}},
      {"smg_kv_gaps_total", "Gaps in the sequence of a worker's KV events.", Kind::kCounter, kWorker},
      {"smg_kv_resyncs_total", "Times that what was known from a worker's KV events was dropped.", Kind::kCounter,
       kWorker},
      {"smg_kv_probes_total", "Parity probes.", Kind::kCounter, {"worker", "result"}},
      {"smg_kv_blocks", "KV blocks that the worker is known to hold.", Kind::kGauge, kWorker},
      {"smg_kv_index_bytes", "Memory of the index of KV blocks.", Kind::kGauge},
      {"smg_prefix_index_bytes", "Memory of the prefix index.", Kind::kGauge},
      {"smg_prefix_index_budget_bytes", "Memory that the prefix index may take at most.", Kind::kGauge},
      {"smg_prefix_index_nodes", "Nodes of the prefix index.", Kind::kGauge},
      {"smg_prefix_index_evictions_total", "Claims that went.", Kind::kCounter, {"reason"}},
      {"sglang_cache_hit_rate", "Share of prompts found cached, last 60 s.", Kind::kGauge, kHitRate},

      {"smg_engine_running_requests", "Requests in the batch, as the engine says.", Kind::kGauge, kRank},
      {"smg_engine_waiting_requests", "Requests in the engine's queue, as it says.", Kind::kGauge, kRank},
      {"smg_engine_token_usage", "Share of the KV pool in use, as the engine says.", Kind::kGauge, kRank},
      {"smg_engine_gen_throughput", "Generated tokens per second, as the engine says.", Kind::kGauge, kRank},
      {"smg_engine_cache_hit_rate", "Hit rate of the prefix cache, as the engine says.", Kind::kGauge, kRank},
      {"smg_engine_load_polls_total", "Questions for a worker's load.", Kind::kCounter, {"worker", "mode"}},

      {"smg_log_dropped_lines", "Lines of the access log that its sink did not take.", Kind::kGauge},
      {"smg_traces_total", "Traces of requests, by what became of them.", Kind::kCounter, {"result"}},

      {"smg_discovery_registrations_total", "Workers added.", Kind::kCounter, {"source", "result"}},
      {"smg_discovery_deregistrations_total", "Workers removed.", Kind::kCounter, {"source", "reason"}},
      {"smg_discovery_workers_discovered", "Workers in the fleet.", Kind::kGauge, {"source"}},
  };
}

}  // namespace sluice::gateway
