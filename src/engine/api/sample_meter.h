// Latencies and token counts of requests, measured where their output arrives (engine-wide names: docs/engine-api.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/api/rank_metrics.h"
#include "engine/messages.h"
#include "obs/metrics.h"

namespace sluice::engine {

// `custom`: names of labels on what is measured of whole requests, after model_name.
std::vector<obs::Family> request_families(const RankLabels& labels, const std::vector<std::string>& custom = {});

// Handles, resolved once. Any thread.
struct RequestMetrics {
  // `custom`: values of those labels.
  RequestMetrics(obs::Metrics& metrics, const std::string& model_name, const RankLabels& labels, const Clock& clock,
                 const std::vector<std::string>& custom = {});

  const Clock& clock;
  obs::Histogram time_to_first_token, inter_token_latency, e2e_latency;
  obs::Histogram prompt_lengths, uncached_lengths, generation_lengths, retractions, get_loads;
  obs::Counter prompt_tokens, generation_tokens, cached_tokens, requests, structured, aborted;
  // What a rank tells of a request's way through it.
  struct Rank {
    obs::Histogram queue_time, waiting, prefill;
  };
  std::vector<Rank> ranks;
};

// Of one sample. Used by one thread at a time. A default-constructed one measures nothing.
class SampleMeter {
 public:
  SampleMeter() = default;
  // Time runs from here. `structured`: its output is held to a grammar.
  SampleMeter(std::shared_ptr<RequestMetrics> metrics, bool structured)
      : metrics_(std::move(metrics)), begun_(metrics_->clock.now()), structured_(structured) {}

  void saw(const RequestOutput& output);

 private:
  void saw_prompt(const RequestOutput& output);

  std::shared_ptr<RequestMetrics> metrics_;  // outlives the API: a rank may still speak of requests that it has dropped
  TimePoint begun_, last_;
  bool structured_ = false;
  int64_t tokens_ = 0;
  bool counted_prompt_ = false;
};

}  // namespace sluice::engine
