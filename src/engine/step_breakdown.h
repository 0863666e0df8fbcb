// What a rank of an instance spends its steps on, phase by phase, as a file beside those of engine/step_trace.h. All
// ranks write one, those without requests of their own and those that compute for the leader of their group too;
// bench/dpa/step_breakdown.py puts them together.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "engine/step_trace.h"
#include "parallel/phase_clock.h"

namespace sluice::engine {

// Used by the rank's thread.
class StepBreakdown {
 public:
  // `process`: the rank's number among all of the server.
  StepBreakdown(parallel::PhaseClock& clock, int64_t process) : clock_(clock), process_(process) {}

  // The steps of the instance that follow, as many as the options say. kAlreadyExists.
  Result<void> start(const StepTraceOptions& options);
  // It has as many.
  bool full() const { return clock_.full(); }
  // Writes <path_prefix>-rank-<process>.steps.json; nothing without start(). kUnavailable with the path and the cause.
  Result<void> stop();

 private:
  parallel::PhaseClock& clock_;
  const int64_t process_;
  std::string path_;
};

}  // namespace sluice::engine
