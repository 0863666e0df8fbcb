// Latencies and token counts of requests, measured where their output arrives (engine-wide names: docs/engine-api.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/messages.h"
#include "obs/metrics.h"

namespace sluice::engine {

std::vector<obs::Family> request_families();

// Handles, resolved once. Any thread.
struct RequestMetrics {
  RequestMetrics(obs::Metrics& metrics, const std::string& model_name, const Clock& clock);

  const Clock& clock;
  obs::Histogram time_to_first_token, inter_token_latency, e2e_latency;
  obs::Counter prompt_tokens, generation_tokens, cached_tokens, requests, aborted;
};

// Of one sample. Used by one thread at a time. A default-constructed one measures nothing.
class SampleMeter {
 public:
  SampleMeter() = default;
  // Time runs from here.
  explicit SampleMeter(std::shared_ptr<RequestMetrics> metrics)
      : metrics_(std::move(metrics)), begun_(metrics_->clock.now()) {}

  void saw(const RequestOutput& output);

 private:
  std::shared_ptr<RequestMetrics> metrics_;  // outlives the API: a rank may still speak of requests that it has dropped
  TimePoint begun_, last_;
  int64_t tokens_ = 0;
  bool counted_prompt_ = false;
};

}  // namespace sluice::engine
