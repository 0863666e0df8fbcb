// What SGLang's servers take from their environment beside flags, of time limits, health, metrics and traces.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "base/result.h"

namespace sluice::engine {

struct ServerEnvironment {
  // Absent: no limit.
  std::optional<Duration> waiting_timeout;  // SGLANG_REQ_WAITING_TIMEOUT, seconds
  std::optional<Duration> running_timeout;  // SGLANG_REQ_RUNNING_TIMEOUT, seconds
  // How long a rank has for the token that a health probe asks it for.
  Duration health_timeout = std::chrono::seconds(20);  // SGLANG_HEALTH_CHECK_TIMEOUT, seconds
  bool health_generates = true;         // SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION: false: /health asks no rank
  bool metrics_of_cooperation = false;  // SGLANG_ENABLE_METRICS_DP_ATTENTION
  int64_t trace_level = 3;  // SGLANG_TRACE_LEVEL, as Tracer::Level: how much is recorded of requests at first
};

// kBadOption names the variable and what it may be.
Result<ServerEnvironment> server_environment();

}  // namespace sluice::engine
