// The figures of a run, computed from the outcomes of its requests.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/outcome.h"

namespace sluice::bench {

// Of samples in seconds, in milliseconds. Percentiles interpolate between the two nearest samples (as NumPy does);
// `std` is that of the population.
struct Spread {
  size_t count = 0;
  double mean = 0, median = 0, std = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};

// Nothing if there is no sample: a figure that nobody measured is not 0.
std::optional<Spread> spread_of(std::vector<double> seconds);
// `sorted` is ascending and not empty; `percent` in [0, 100].
double percentile(const std::vector<double>& sorted, double percent);

// What the client itself cost during the run.
struct ClientCost {
  double cpu_seconds = 0;
};

struct Summary {
  double duration = 0;  // seconds from the start to the end of the last request
  size_t completed = 0;
  size_t failed = 0;
  // What the failed ones died of, most frequent first.
  std::vector<std::pair<std::string, size_t>> errors;

  int64_t total_input = 0;
  size_t input_not_reported = 0;        // requests whose prompt length is that of their making
  std::optional<int64_t> total_output;  // none if no answer said how many tokens it had
  size_t output_not_reported = 0;
  std::optional<int64_t> total_output_retokenized;
  std::optional<int64_t> total_cached;  // none if no answer said so
  size_t cached_not_reported = 0;

  // Per second; none where the total is not known or nothing completed.
  std::optional<double> request_throughput, input_throughput, output_throughput, total_throughput;
  std::optional<double> concurrency;               // sum of the latencies / duration
  std::optional<double> max_output_tokens_per_s;   // in buckets of a second
  std::optional<int64_t> max_concurrent_requests;  // likewise

  std::optional<Spread> e2e, ttft, tpot, itl;
  std::optional<Spread> send_delay;   // from due to sent, failed requests included
  std::optional<Spread> chunk_delay;  // from a worker's stamps
  double client_cpu_seconds = 0;
};

Summary summarize(const std::vector<Outcome>& outcomes, Duration duration, ClientCost cost);

}  // namespace sluice::bench
