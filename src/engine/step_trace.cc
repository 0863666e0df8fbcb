#include "engine/step_trace.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace sluice::engine {

std::string to_json(const StepTraceOptions& options) {
  nlohmann::json json{{"path_prefix", options.path_prefix}};
  if (options.num_steps) json["num_steps"] = *options.num_steps;
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<StepTraceOptions> step_trace_options_from_json(std::string_view text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("path_prefix") || !json["path_prefix"].is_string()) {
    return Error{ErrorCode::kProtocol, "a trace needs a path_prefix"};
  }
  StepTraceOptions out{.path_prefix = json["path_prefix"].get<std::string>()};
  if (json.contains("num_steps") && json["num_steps"].is_number_integer()) {
    out.num_steps = json["num_steps"].get<int64_t>();
  }
  return out;
}

StepTrace::StepTrace(StepTraceOptions options, int64_t rank, const Clock& clock)
    : path_(fmt::format("{}-DP-{}.trace.json", options.path_prefix, rank)),
      rank_(rank),
      limit_(std::clamp<int64_t>(options.num_steps.value_or(kMaxSteps), 1, kMaxSteps)),
      start_(clock.now()),
      start_micros_(static_cast<double>(clock.unix_nanos()) / 1e3) {}

double StepTrace::micros(TimePoint time) const { return start_micros_ + seconds(time - start_) * 1e6; }

void StepTrace::bar(std::string_view name, int track, TimePoint begin, TimePoint end, std::string_view arguments) {
  events_ += fmt::format(
      ",\n{{\"name\":\"{}\",\"cat\":\"step\",\"ph\":\"X\",\"pid\":{},\"tid\":{},\"ts\":{:.3f},\"dur\":{:.3f},\"args\":"
      "{{{}}}}}",
      name, rank_, track, micros(begin), seconds(end - begin) * 1e6, arguments);
}

void StepTrace::add(const StepReport& step) {
  if (full()) return;
  ++steps_;
  const std::string_view kind = step.kind == StepPlan::Kind::kPrefill  ? "prefill"
                                : step.kind == StepPlan::Kind::kDecode ? "decode"
                                                                       : "mixed";
  bar(kind, 1, step.started, step.computed,
      fmt::format("\"step\":{},\"sequences\":{},\"tokens\":{},\"cached\":{},\"retracted\":{}", steps_, step.sequences,
                  step.tokens, step.cached, step.retracted));
  bar("plan", 2, step.begun, step.launched, "");
  bar("commit", 2, step.taken, step.committed, "");
  events_ += fmt::format(
      ",\n{{\"name\":\"requests\",\"ph\":\"C\",\"pid\":{},\"ts\":{:.3f},\"args\":{{\"running\":{},\"waiting\":{}}}}}"
      ",\n{{\"name\":\"KV tokens\",\"ph\":\"C\",\"pid\":{},\"ts\":{:.3f},\"args\":{{\"used\":{},\"cached\":{}}}}}",
      rank_, micros(step.committed), step.running, step.waiting, rank_, micros(step.committed), step.used_tokens,
      step.cached_tokens);
}

Result<void> StepTrace::write() const {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
  std::ofstream file(path_, std::ios::binary | std::ios::trunc);
  file << fmt::format(
              "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n"
              "{{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":{0},\"args\":{{\"name\":\"rank {0}\"}}}},\n"
              "{{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":{0},\"tid\":1,\"args\":{{\"name\":\"steps\"}}}},\n"
              "{{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":{0},\"tid\":2,\"args\":{{\"name\":\"scheduler\"}}}}",
              rank_)
       << events_ << "\n]}\n";
  file.close();
  if (file) return {};
  return Error{ErrorCode::kUnavailable, fmt::format("{} cannot be written: {}", path_, std::strerror(errno))};
}

}  // namespace sluice::engine
