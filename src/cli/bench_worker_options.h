// The command line of `sluice bench worker`: every knob of the simulated worker.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/options.h"
#include "testing/sim_worker.h"

namespace sluice::cli {

struct BenchWorkerOptions {
  std::string host;
  int64_t port;
  std::string model;
  std::optional<std::string> api_key;
  int64_t threads;
  int64_t max_body_bytes;
  int64_t idle_timeout_ms;
  std::string log_level;

  bool canned;
  double canned_delay_ms;
  double canned_interval_ms;
  int64_t canned_chunks;
  bool canned_stamp;
  int64_t canned_prompt_tokens;
  int64_t canned_cached_tokens;

  int64_t dp_size;
  double time_scale;
  int64_t default_tokens;
  double prefill_tokens_per_s;
  int64_t prefill_chunk;
  double decode_base_ms;
  double decode_per_request_ms;
  int64_t max_running;
  int64_t max_queued;
  int64_t kv_tokens;
  int64_t block_size;
  int64_t context_length;
  bool disable_prefix_cache;

  bool cache_simulation;
  int64_t cache_kv_blocks;
  int64_t cache_decode_slots;
  double cache_prefill_base_ms;
  double cache_prefill_us_per_token;
  double cache_decode_ms;
  double cache_decode_ms_per_token;

  std::string fault;
  std::string fault_scope;
  int64_t fault_status;
  std::string fault_body;
  std::optional<int64_t> fault_retry_after;
  int64_t fault_chunks;
  double fault_delay_ms;
  int64_t fault_times;
  int64_t health_status;
  double health_delay_ms;
};

const OptionTable<BenchWorkerOptions>& bench_worker_option_table();

// The options in the simulated worker's own terms. kBadOption where options contradict each other.
struct Simulation {
  testing::SimWorkerOptions worker;
  testing::SimFault fault;
  testing::SimHealth health;
};
Result<Simulation> simulation(const BenchWorkerOptions& options);

}  // namespace sluice::cli
