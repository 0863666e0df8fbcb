#include "engine/step_breakdown.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace sluice::engine {
namespace {

double micros(TimePoint time) { return seconds(time.time_since_epoch()) * 1e6; }

nlohmann::json json_of(const parallel::RecordedStep& step) {
  nlohmann::json spent = nlohmann::json::object();
  for (size_t phase = 0; phase < step.spent.size(); ++phase) {
    if (step.spent[phase] == Duration::zero()) continue;
    spent[to_string(static_cast<parallel::Phase>(phase))] = seconds(step.spent[phase]) * 1e6;
  }
  return {{"exchange", step.exchange},
          {"arrived_us", micros(step.arrived)},
          {"left_us", micros(step.left)},
          {"ended_us", micros(step.ended)},
          {"queued_us", seconds(step.queued) * 1e6},
          {"queued_awake_us", seconds(step.queued_awake) * 1e6},
          {"tokens", step.tokens},
          {"extend", step.extend},
          {"spent_us", std::move(spent)}};
}

}  // namespace

Result<void> StepBreakdown::start(const StepTraceOptions& options) {
  if (clock_.runs()) return Error{ErrorCode::kAlreadyExists, "a profile is being taken already"};
  path_ = fmt::format("{}-rank-{}.steps.json", options.path_prefix, process_);
  clock_.start(static_cast<size_t>(options.num_steps.value_or(StepTrace::kMaxSteps)));
  return {};
}

Result<void> StepBreakdown::stop() {
  if (!clock_.runs()) return {};
  const auto steps = clock_.stop();
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
  std::ofstream file(path_, std::ios::binary | std::ios::trunc);
  file << fmt::format("{{\"rank\":{},\"steps\":[", process_);
  for (size_t i = 0; i < steps.size(); ++i) file << (i == 0 ? "\n" : ",\n") << json_of(steps[i]).dump();
  file << "\n]}\n";
  file.close();
  if (file) return {};
  return Error{ErrorCode::kUnavailable, fmt::format("{} cannot be written: {}", path_, std::strerror(errno))};
}

}  // namespace sluice::engine
