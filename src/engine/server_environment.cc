#include "engine/server_environment.h"

#include "engine/environment.h"

namespace sluice::engine {
namespace {

// SGLang's default, -1, is no limit.
Result<std::optional<Duration>> limit(const char* name) {
  double given = -1;
  SLUICE_TRY_VOID(read_variable(name, -1.0, 1e9, given));
  if (given <= 0) return std::optional<Duration>();
  return std::optional<Duration>(from_seconds(given));
}

}  // namespace

Result<ServerEnvironment> server_environment() {
  ServerEnvironment out;
  SLUICE_TRY(out.waiting_timeout, limit("SGLANG_REQ_WAITING_TIMEOUT"));
  SLUICE_TRY(out.running_timeout, limit("SGLANG_REQ_RUNNING_TIMEOUT"));
  double health = seconds(out.health_timeout);
  SLUICE_TRY_VOID(read_variable("SGLANG_HEALTH_CHECK_TIMEOUT", 0.1, 3600.0, health));
  out.health_timeout = from_seconds(health);
  SLUICE_TRY_VOID(read_variable("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", out.health_generates));
  SLUICE_TRY_VOID(read_variable("SGLANG_ENABLE_METRICS_DP_ATTENTION", out.metrics_of_cooperation));
  SLUICE_TRY_VOID(read_variable("SGLANG_TRACE_LEVEL", int64_t{0}, int64_t{3}, out.trace_level));
  return out;
}

}  // namespace sluice::engine
