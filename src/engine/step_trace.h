// What a rank did, step by step, as a file that Perfetto (ui.perfetto.dev) and chrome://tracing open: a bar for each
// step while it is computed, below it what the scheduler does for it, and counters of requests and tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "engine/scheduler.h"

namespace sluice::engine {

struct StepTraceOptions {
  std::string path_prefix;           // the file is <path_prefix>-DP-<rank>.trace.json
  std::optional<int64_t> num_steps;  // stops by itself after so many
};
std::string to_json(const StepTraceOptions& options);
Result<StepTraceOptions> step_trace_options_from_json(std::string_view text);

// Used by one thread.
class StepTrace {
 public:
  // A longer trace would be too much for the page that shows it, and for memory.
  static constexpr int64_t kMaxSteps = 100'000;

  StepTrace(StepTraceOptions options, int64_t rank, const Clock& clock);

  void add(const StepReport& step);
  // As many steps as were asked for.
  bool full() const { return steps_ >= limit_; }
  const std::string& path() const { return path_; }
  // kUnavailable with the path and the cause.
  Result<void> write() const;

 private:
  void bar(std::string_view name, int track, TimePoint begin, TimePoint end, std::string_view arguments);
  double micros(TimePoint time) const;

  const std::string path_;
  const int64_t rank_;
  const int64_t limit_;
  const TimePoint start_;
  const double start_micros_;  // since 1970, so that the files of several ranks can be laid side by side
  int64_t steps_ = 0;
  std::string events_;  // JSON, each with a comma before it
};

}  // namespace sluice::engine
