#include "engine/api/sample_meter.h"

#include <mutex>
#include <optional>
#include <set>

namespace sluice::engine {
namespace {

using obs::Kind;

// The runtime's buckets.
const std::vector<double> kFirstToken = {0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400};
const std::vector<double> kInterToken = {0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025,
                                         0.030, 0.035, 0.040, 0.060, 0.080, 0.100, 0.200, 0.400,
                                         0.600, 0.800, 1,     2,     4,     6,     8};
const std::vector<double> kWhole = {0.1, 0.2, 0.4, 0.6, 0.8, 1,   2,   4,   6,    8,    10,
                                    20,  40,  60,  80,  100, 200, 400, 600, 1200, 1800, 2400};

const std::vector<double> kLengths = {100,   300,   500,   700,   1000,  1500,  2000,  3000,  4000,
                                      5000,  6000,  7000,  8000,  9000,  10000, 12500, 15000, 17500,
                                      20000, 22500, 25000, 27500, 30000, 35000, 40000, 60000, 80000,
                                      1e5,   2e5,   3e5,   4e5,   6e5,   8e5,   1e6,   1.1e6};
const std::vector<double> kRetractions = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30, 40, 50, 75, 100};
const std::vector<double> kQueue = {0,   .001, .005, .01, .05, .1,   .2,   .5,   1,    2,    3,    4,   5,   10,
                                    15,  20,   30,   40,  50,  60,   70,   80,   90,   100,  200,  300, 400, 500,
                                    600, 700,  800,  900, 1e3, 1200, 1400, 1600, 1800, 2000, 2500, 3000};

// 30 bounds from a millisecond on.
std::vector<double> stage_bounds() {
  std::vector<double> out;
  for (double bound = 0.001; out.size() < 30; bound *= 1.62) out.push_back(bound);
  return out;
}

constexpr std::string_view kStages = "sglang:per_stage_req_latency_seconds";

// For as long as the process lives: families refer to the names of their labels. Those are few, and the server's.
std::string_view kept(const std::string& name) {
  static std::mutex mu;
  static std::set<std::string, std::less<>> names;
  const std::lock_guard lock(mu);
  return *names.insert(name).first;
}

obs::LabelValues with(const std::string& model_name, const std::vector<std::string>& custom,
                      std::optional<std::string> last = std::nullopt) {
  obs::LabelValues out = {model_name};
  out.insert(out.end(), custom.begin(), custom.end());
  if (last) out.push_back(std::move(*last));
  return out;
}

}  // namespace

std::vector<obs::Family> request_families(const RankLabels& labels, const std::vector<std::string>& custom) {
  std::vector<std::string_view> of_requests = {"model_name"};
  for (const std::string& name : custom) of_requests.push_back(kept(name));
  auto of_caches = of_requests;
  of_caches.emplace_back("cache_source");
  auto with_stage = labels.names();
  with_stage.emplace_back("stage");
  return {
      {.name = "sglang:queue_time_seconds",
       .help = "From the arrival of a request at its rank to its first step.",
       .kind = Kind::kHistogram,
       .labels = labels.names(),
       .buckets = kQueue},
      {.name = kStages,
       .help = "Of the stages of a request: prefill_waiting until its first step, prefill_forward until its prompt is "
               "computed.",
       .kind = Kind::kHistogram,
       .labels = std::move(with_stage),
       .buckets = stage_bounds()},
      {.name = "sglang:get_loads_duration_seconds",
       .help = "Of answering /v1/loads.",
       .kind = Kind::kHistogram,
       .labels = {"model_name"},
       .buckets = {.0001, .0005, .001, .005, .01, .05, .1, .5, 1}},
      {.name = "sglang:prompt_tokens_histogram",
       .help = "Prompt tokens of a request.",
       .kind = Kind::kHistogram,
       .labels = of_requests,
       .buckets = kLengths},
      {.name = "sglang:uncached_prompt_tokens_histogram",
       .help = "Prompt tokens of a request that no prefix cache had.",
       .kind = Kind::kHistogram,
       .labels = of_requests,
       .buckets = kLengths},
      {.name = "sglang:generation_tokens_histogram",
       .help = "Tokens that a request generated.",
       .kind = Kind::kHistogram,
       .labels = of_requests,
       .buckets = kLengths},
      {.name = "sglang:num_retractions",
       .help = "How often a request gave up its KV slots.",
       .kind = Kind::kHistogram,
       .labels = of_requests,
       .buckets = kRetractions},
      {.name = "sglang:num_so_requests_total",
       .help = "Requests that have ended whose output was held to a grammar.",
       .labels = of_requests},
      {.name = "sglang:time_to_first_token_seconds",
       .help = "From the arrival of a request to its first token.",
       .kind = Kind::kHistogram,
       .labels = of_requests,
       .buckets = kFirstToken},
      {.name = "sglang:inter_token_latency_seconds",
       .help = "Between two tokens of a request.",
       .kind = Kind::kHistogram,
       .labels = of_requests,
       .buckets = kInterToken},
      {.name = "sglang:e2e_request_latency_seconds",
       .help = "From the arrival of a request to its end, unless it was aborted.",
       .kind = Kind::kHistogram,
       .labels = of_requests,
       .buckets = kWhole},
      {.name = "sglang:prompt_tokens_total", .help = "Prompt tokens of requests.", .labels = of_requests},
      {.name = "sglang:generation_tokens_total", .help = "Tokens generated.", .labels = of_requests},
      {.name = "sglang:cached_tokens_total",
       .help = "Prompt tokens served from a prefix cache.",
       .labels = std::move(of_caches)},
      {.name = "sglang:num_requests_total", .help = "Requests that have ended.", .labels = of_requests},
      {.name = "sglang:num_aborted_requests_total",
       .help = "Requests that were aborted: by a client, because it left, or by an error.",
       .labels = of_requests},
  };
}

RequestMetrics::RequestMetrics(obs::Metrics& metrics, const std::string& model_name, const RankLabels& labels,
                               const Clock& c, const std::vector<std::string>& custom)
    : clock(c),
      time_to_first_token(metrics.histogram("sglang:time_to_first_token_seconds", with(model_name, custom))),
      inter_token_latency(metrics.histogram("sglang:inter_token_latency_seconds", with(model_name, custom))),
      e2e_latency(metrics.histogram("sglang:e2e_request_latency_seconds", with(model_name, custom))),
      prompt_lengths(metrics.histogram("sglang:prompt_tokens_histogram", with(model_name, custom))),
      uncached_lengths(metrics.histogram("sglang:uncached_prompt_tokens_histogram", with(model_name, custom))),
      generation_lengths(metrics.histogram("sglang:generation_tokens_histogram", with(model_name, custom))),
      retractions(metrics.histogram("sglang:num_retractions", with(model_name, custom))),
      get_loads(metrics.histogram("sglang:get_loads_duration_seconds", {model_name})),
      prompt_tokens(metrics.counter("sglang:prompt_tokens_total", with(model_name, custom))),
      generation_tokens(metrics.counter("sglang:generation_tokens_total", with(model_name, custom))),
      cached_tokens(metrics.counter("sglang:cached_tokens_total", with(model_name, custom, "device"))),
      requests(metrics.counter("sglang:num_requests_total", with(model_name, custom))),
      structured(metrics.counter("sglang:num_so_requests_total", with(model_name, custom))),
      aborted(metrics.counter("sglang:num_aborted_requests_total", with(model_name, custom))) {
  for (size_t i = 0; i < labels.ranks(); ++i) {
    const auto stage = [&](std::string name) {
      auto values = labels.of(i);
      values.push_back(std::move(name));
      return metrics.histogram(kStages, std::move(values));
    };
    ranks.push_back({.queue_time = metrics.histogram("sglang:queue_time_seconds", labels.of(i)),
                     .waiting = stage("prefill_waiting"),
                     .prefill = stage("prefill_forward")});
  }
}

// Once, when the first token or the end is there.
void SampleMeter::saw_prompt(const RequestOutput& output) {
  RequestMetrics& metrics = *metrics_;
  metrics.prompt_tokens.add(static_cast<double>(output.prompt_tokens));
  metrics.cached_tokens.add(static_cast<double>(output.cached_tokens));
  if (output.times.begun_unix_nanos == 0 || static_cast<size_t>(output.dp_rank) >= metrics.ranks.size()) return;
  auto& rank = metrics.ranks[static_cast<size_t>(output.dp_rank)];
  rank.queue_time.observe(output.times.queue);
  rank.waiting.observe(output.times.queue);
  rank.prefill.observe(output.times.prefill);
}

void SampleMeter::saw(const RequestOutput& output) {
  if (metrics_ == nullptr) return;
  RequestMetrics& metrics = *metrics_;
  const TimePoint now = metrics.clock.now();
  const auto fresh = static_cast<int64_t>(output.new_ids.size());
  if (fresh > 0) {
    // The tokens of one message came one after the other, since the last message.
    if (tokens_ == 0) {
      metrics.time_to_first_token.observe(seconds(now - begun_));
    } else {
      metrics.inter_token_latency.observe(seconds(now - last_) / static_cast<double>(fresh),
                                          static_cast<uint64_t>(fresh));
    }
    tokens_ += fresh;
    last_ = now;
    metrics.generation_tokens.add(static_cast<double>(fresh));
  }
  const bool ended = output.finish.kind != FinishKind::kNone;
  const bool aborted = output.finish.kind == FinishKind::kAbort;
  if (!counted_prompt_ && (fresh > 0 || (ended && !aborted))) {
    counted_prompt_ = true;
    saw_prompt(output);
  }
  if (!ended) return;
  metrics.requests.add();
  if (aborted) {
    metrics.aborted.add();
  } else {
    metrics.e2e_latency.observe(seconds(now - begun_));
    metrics.prompt_lengths.observe(static_cast<double>(output.prompt_tokens));
    metrics.uncached_lengths.observe(static_cast<double>(output.prompt_tokens - output.cached_tokens));
    metrics.generation_lengths.observe(static_cast<double>(output.completion_tokens));
    metrics.retractions.observe(static_cast<double>(output.retractions));
    if (structured_) metrics.structured.add();
  }
}

}  // namespace sluice::engine
