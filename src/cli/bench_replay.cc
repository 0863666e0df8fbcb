#include "cli/bench_replay.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <thread>

#include "bench/driver.h"
#include "net/client.h"

namespace sluice::cli {
namespace {

using gateway::SimulationResult;
using gateway::SimulationRules;

constexpr Duration kMostApart = std::chrono::milliseconds(10);
constexpr double kUnseen = std::numeric_limits<double>::quiet_NaN();
constexpr net::ClientTimeouts kFlushTimeouts{
    .connect = std::chrono::seconds(5), .head = std::chrono::seconds(10), .silence = std::chrono::seconds(10)};

// Requests that a closed loop can get through in that time, at most.
Result<size_t> most_requests(const SimulationRules& rules, Duration time) {
  double rate = std::numeric_limits<double>::infinity();
  if (rules.decode > Duration::zero()) rate = static_cast<double>(rules.concurrency) / seconds(rules.decode);
  if (rules.worker.prefill_base > Duration::zero()) {
    rate = std::min(rate, static_cast<double>(rules.workers) / seconds(rules.worker.prefill_base));
  }
  if (std::isinf(rate)) return Error{ErrorCode::kInvalidArgument, "decoding or prefill must take time"};
  return static_cast<size_t>(rules.concurrency) + static_cast<size_t>(rate * seconds(time));
}

// Which simulated worker made the answer: "sim-31000-7" is the seventh of the one on port 31000.
std::string_view worker_of(std::string_view answer_id) {
  return answer_id.starts_with("sim-") ? answer_id.substr(0, answer_id.rfind('-')) : std::string_view();
}

ReplayResult measure(const bench::DriverResult& run, const SimulationRules& rules) {
  ReplayResult result;
  const Duration end = std::min(rules.warm_up + rules.duration, run.duration);
  std::vector<double> latencies, ttfts;
  std::map<std::string_view, int64_t> chosen;
  double cached = 0, prompts = 0;
  for (const bench::Outcome& outcome : run.outcomes) {
    if (!outcome.ok()) {
      if (result.failed++ == 0) result.error = outcome.error;
      continue;
    }
    if (outcome.due > rules.warm_up) ++chosen[worker_of(outcome.answer_id)];
    const Duration ended = outcome.due + outcome.latency;
    if (ended <= rules.warm_up || ended > end) continue;
    latencies.push_back(seconds(outcome.latency));
    if (outcome.streamed && outcome.ttft) ttfts.push_back(seconds(*outcome.ttft));
    cached += static_cast<double>(outcome.cached_tokens.value_or(0));
    prompts += static_cast<double>(outcome.prompt_len);
  }
  SimulationResult& figures = result.figures;
  figures.policy = "sockets";
  figures.requests = static_cast<int64_t>(latencies.size());
  const double measured = seconds(end - rules.warm_up);
  if (measured > 0) figures.requests_per_s = static_cast<double>(latencies.size()) / measured;
  figures.hit_rate = prompts > 0 ? cached / prompts : 0;
  figures.predicted_hit_rate = kUnseen;
  figures.latency_p50 = gateway::quantile(latencies, 0.5);
  figures.latency_p99 = gateway::quantile(latencies, 0.99);
  figures.ttft_p50 = ttfts.empty() ? kUnseen : gateway::quantile(ttfts, 0.5);
  figures.ttft_p99 = ttfts.empty() ? kUnseen : gateway::quantile(ttfts, 0.99);
  int64_t all = 0, most = 0;
  for (const auto& [worker, count] : chosen) {
    all += count;
    most = std::max(most, count);
  }
  figures.imbalance =
      all == 0 || chosen.contains("") ? kUnseen : static_cast<double>(most * rules.workers) / static_cast<double>(all);
  return result;
}

}  // namespace

Duration first_requests_apart(const SimulationRules& rules) {
  if (rules.concurrency == 0) return Duration::zero();
  const Duration beginning = rules.warm_up > Duration::zero() ? rules.warm_up : rules.duration;
  return std::min(kMostApart, beginning / (10 * rules.concurrency));
}

Result<ReplayResult> replay(const ReplayOptions& options, const SimulationRules& rules, gateway::Workload& workload) {
  const Duration end = rules.warm_up + rules.duration;
  size_t left = std::numeric_limits<size_t>::max();
  if (rules.concurrency > 0) {
    SLUICE_TRY(left, most_requests(rules, end));
  }
  const Duration apart = first_requests_apart(rules);
  std::vector<bench::Item> items;
  std::vector<Duration> arrivals;
  for (auto request = workload.next(); request && request->at <= end && left > 0; request = workload.next(), --left) {
    bench::Item& item = items.emplace_back();
    item.turns.emplace_back(request->text);
    item.output_len = request->output_tokens.value_or(gateway::kSimulatedTokens);
    const auto place = static_cast<int64_t>(arrivals.size());
    arrivals.push_back(rules.concurrency > 0 ? std::min(place, rules.concurrency) * apart : request->at);
  }
  bench::DriverOptions driver{.url = options.url,
                              .form = {.api = options.api, .model = options.model, .stream = rules.streamed},
                              .max_concurrency = rules.concurrency,
                              .closed_loop = rules.concurrency > 0};
  const auto run =
      bench::drive(driver, items, arrivals, [end](const bench::Progress& progress) { return progress.elapsed < end; });
  return measure(run, rules);
}

Result<void> flush_caches(const net::Url& url) {
  std::string why;
  for (int attempt = 0; attempt < 50; ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const auto answer = net::blocking_fetch(url, "POST", "/flush_cache", {}, "", kFlushTimeouts);
    if (answer.ok() && answer->status == 200) return {};
    why = answer.ok() ? fmt::format("status {}: {}", answer->status, answer->body.substr(0, 200))
                      : answer.error().message;
  }
  return Error{ErrorCode::kUnavailable, fmt::format("POST {}/flush_cache: {}", url.to_string(), why)};
}

}  // namespace sluice::cli
