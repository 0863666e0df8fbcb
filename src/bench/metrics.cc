#include "bench/metrics.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "base/check.h"

namespace sluice::bench {
namespace {

// The most output tokens, and the most requests, that any second of the run has seen.
void find_peaks(const std::vector<Outcome>& outcomes, Summary& summary) {
  double first = 0;
  double last = 0;
  bool any = false;
  bool streamed = false;
  for (const auto& outcome : outcomes) {
    if (!outcome.ok()) continue;
    const double start = seconds(outcome.sent);
    const double end = seconds(outcome.due + outcome.latency);
    first = any ? std::min(first, start) : start;
    last = any ? std::max(last, end) : end;
    any = true;
    streamed = streamed || outcome.streamed;
  }
  if (!any) return;
  const auto buckets = static_cast<size_t>(std::ceil(last - first)) + 1;
  std::vector<double> tokens(buckets);
  std::vector<int64_t> requests(buckets);
  const auto bucket_of = [&](double at) {
    return std::min(static_cast<size_t>(std::max(at - first, 0.0)), buckets - 1);
  };
  for (const auto& outcome : outcomes) {
    if (!outcome.ok()) continue;
    const size_t end = bucket_of(seconds(outcome.due + outcome.latency));
    for (size_t b = bucket_of(seconds(outcome.sent)); b <= end; ++b) ++requests[b];
    if (!outcome.ttft) continue;
    double at = seconds(outcome.due + *outcome.ttft);
    ++tokens[bucket_of(at)];
    for (const float gap : outcome.itl) ++tokens[bucket_of(at += gap)];
  }
  summary.max_concurrent_requests = *std::max_element(requests.begin(), requests.end());
  if (streamed) summary.max_output_tokens_per_s = *std::max_element(tokens.begin(), tokens.end());
}

void count_errors(const std::vector<Outcome>& outcomes, Summary& summary) {
  std::map<std::string, size_t> counts;
  for (const auto& outcome : outcomes) {
    if (!outcome.ok()) ++counts[outcome.error];
  }
  summary.errors.assign(counts.begin(), counts.end());
  std::stable_sort(summary.errors.begin(), summary.errors.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
}

void add(std::optional<int64_t>& total, size_t& missing, std::optional<int64_t> value) {
  if (value) {
    total = total.value_or(0) + *value;
  } else {
    ++missing;
  }
}

void count_tokens(const std::vector<Outcome>& outcomes, Summary& summary) {
  size_t not_retokenized = 0;
  for (const auto& outcome : outcomes) {
    if (!outcome.ok()) continue;
    summary.total_input += outcome.prompt_len;
    if (!outcome.prompt_len_reported) ++summary.input_not_reported;
    add(summary.total_output, summary.output_not_reported, outcome.output_len);
    add(summary.total_output_retokenized, not_retokenized, outcome.retokenized);
    add(summary.total_cached, summary.cached_not_reported, outcome.cached_tokens);
  }
}

void find_spreads(const std::vector<Outcome>& outcomes, Summary& summary) {
  std::vector<double> e2e, ttft, tpot, itl, send_delay, chunk_delay;
  for (const auto& outcome : outcomes) {
    send_delay.push_back(seconds(outcome.sent - outcome.due));
    if (!outcome.ok()) continue;
    e2e.push_back(seconds(outcome.latency));
    if (outcome.ttft) ttft.push_back(seconds(*outcome.ttft));
    if (outcome.streamed && outcome.ttft && outcome.output_len.value_or(0) > 1) {
      tpot.push_back(seconds(outcome.latency - *outcome.ttft) / static_cast<double>(*outcome.output_len - 1));
    }
    itl.insert(itl.end(), outcome.itl.begin(), outcome.itl.end());
    chunk_delay.insert(chunk_delay.end(), outcome.chunk_delays.begin(), outcome.chunk_delays.end());
  }
  if (summary.duration > 0 && !e2e.empty()) {
    summary.concurrency = std::accumulate(e2e.begin(), e2e.end(), 0.0) / summary.duration;
  }
  summary.e2e = spread_of(std::move(e2e));
  summary.ttft = spread_of(std::move(ttft));
  summary.tpot = spread_of(std::move(tpot));
  summary.itl = spread_of(std::move(itl));
  summary.send_delay = spread_of(std::move(send_delay));
  summary.chunk_delay = spread_of(std::move(chunk_delay));
}

}  // namespace

double percentile(const std::vector<double>& sorted, double percent) {
  SLUICE_CHECK(!sorted.empty(), "percentile of nothing");
  const double rank = percent / 100.0 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  if (below + 1 >= sorted.size()) return sorted.back();
  return sorted[below] + (sorted[below + 1] - sorted[below]) * (rank - static_cast<double>(below));
}

std::optional<Spread> spread_of(std::vector<double> seconds) {
  if (seconds.empty()) return std::nullopt;
  std::sort(seconds.begin(), seconds.end());
  const auto count = static_cast<double>(seconds.size());
  const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / count;
  double squares = 0;
  for (const double s : seconds) squares += (s - mean) * (s - mean);
  constexpr double kMs = 1000.0;
  return Spread{.count = seconds.size(),
                .mean = mean * kMs,
                .median = percentile(seconds, 50) * kMs,
                .std = std::sqrt(squares / count) * kMs,
                .p90 = percentile(seconds, 90) * kMs,
                .p95 = percentile(seconds, 95) * kMs,
                .p99 = percentile(seconds, 99) * kMs,
                .max = seconds.back() * kMs};
}

Summary summarize(const std::vector<Outcome>& outcomes, Duration duration, ClientCost cost) {
  Summary summary;
  summary.duration = seconds(duration);
  summary.client_cpu_seconds = cost.cpu_seconds;
  for (const auto& outcome : outcomes) ++(outcome.ok() ? summary.completed : summary.failed);
  count_errors(outcomes, summary);
  count_tokens(outcomes, summary);
  find_spreads(outcomes, summary);
  find_peaks(outcomes, summary);
  if (summary.completed > 0 && summary.duration > 0) {
    summary.request_throughput = static_cast<double>(summary.completed) / summary.duration;
    summary.input_throughput = static_cast<double>(summary.total_input) / summary.duration;
    if (summary.total_output) {
      summary.output_throughput = static_cast<double>(*summary.total_output) / summary.duration;
      summary.total_throughput = *summary.input_throughput + *summary.output_throughput;
    }
  }
  return summary;
}

}  // namespace sluice::bench
