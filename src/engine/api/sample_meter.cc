#include "engine/api/sample_meter.h"

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

}  // namespace

std::vector<obs::Family> request_families() {
  return {
      {.name = "sglang:time_to_first_token_seconds",
       .help = "From the arrival of a request to its first token.",
       .kind = Kind::kHistogram,
       .labels = {"model_name"},
       .buckets = kFirstToken},
      {.name = "sglang:inter_token_latency_seconds",
       .help = "Between two tokens of a request.",
       .kind = Kind::kHistogram,
       .labels = {"model_name"},
       .buckets = kInterToken},
      {.name = "sglang:e2e_request_latency_seconds",
       .help = "From the arrival of a request to its end, unless it was aborted.",
       .kind = Kind::kHistogram,
       .labels = {"model_name"},
       .buckets = kWhole},
      {.name = "sglang:prompt_tokens_total", .help = "Prompt tokens of requests.", .labels = {"model_name"}},
      {.name = "sglang:generation_tokens_total", .help = "Tokens generated.", .labels = {"model_name"}},
      {.name = "sglang:cached_tokens_total",
       .help = "Prompt tokens served from a prefix cache.",
       .labels = {"model_name", "cache_source"}},
      {.name = "sglang:num_requests_total", .help = "Requests that have ended.", .labels = {"model_name"}},
      {.name = "sglang:num_aborted_requests_total",
       .help = "Requests that were aborted: by a client, because it left, or by an error.",
       .labels = {"model_name"}},
  };
}

RequestMetrics::RequestMetrics(obs::Metrics& metrics, const std::string& model_name, const Clock& c)
    : clock(c),
      time_to_first_token(metrics.histogram("sglang:time_to_first_token_seconds", {model_name})),
      inter_token_latency(metrics.histogram("sglang:inter_token_latency_seconds", {model_name})),
      e2e_latency(metrics.histogram("sglang:e2e_request_latency_seconds", {model_name})),
      prompt_tokens(metrics.counter("sglang:prompt_tokens_total", {model_name})),
      generation_tokens(metrics.counter("sglang:generation_tokens_total", {model_name})),
      cached_tokens(metrics.counter("sglang:cached_tokens_total", {model_name, "device"})),
      requests(metrics.counter("sglang:num_requests_total", {model_name})),
      aborted(metrics.counter("sglang:num_aborted_requests_total", {model_name})) {}

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
    metrics.prompt_tokens.add(static_cast<double>(output.prompt_tokens));
    metrics.cached_tokens.add(static_cast<double>(output.cached_tokens));
  }
  if (!ended) return;
  metrics.requests.add();
  if (aborted) {
    metrics.aborted.add();
  } else {
    metrics.e2e_latency.observe(seconds(now - begun_));
  }
}

}  // namespace sluice::engine
