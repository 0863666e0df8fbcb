#include "engine/expert_options.h"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

namespace sluice::engine {
namespace {

constexpr std::string_view kTrivial = "trivial";

Result<std::string> read_location(const std::string& given) {
  if (given == kTrivial || given.starts_with('{')) return given;
  const auto bad = [&](std::string_view why) {
    return Error{ErrorCode::kBadOption, fmt::format("--init-expert-location {}: {}", given, why)};
  };
  if (given.ends_with(".pt")) {
    return bad("files of torch are not read; write its logical_count or physical_to_logical_map as JSON");
  }
  std::ifstream file(given);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return bad("is neither trivial nor JSON nor a file that can be read");
  return text.str();
}

}  // namespace

Result<std::vector<std::string>> adjust_experts(EngineOptions& options) {
  std::vector<std::string> lines;
  if (options.eplb_algorithm && options.init_expert_location == kTrivial) {
    return Error{ErrorCode::kBadOption,
                 "--eplb-algorithm balances a logical_count, which --init-expert-location does not give"};
  }
  SLUICE_TRY(options.init_expert_location, read_location(options.init_expert_location));
  if (!expert_placement_of(options).trivial() && !options.ep_dispatch_algorithm) {
    options.ep_dispatch_algorithm = "static";
    lines.push_back("--ep-dispatch-algorithm is static: experts have copies, or are not in their order");
  }
  return lines;
}

moe::ExpertPlacement expert_placement_of(const EngineOptions& options) {
  return {.redundant = options.ep_num_redundant_experts,
          .location = options.init_expert_location,
          .algorithm = options.eplb_algorithm.value_or("auto"),
          .choice = options.ep_dispatch_algorithm == "dynamic" ? moe::CopyChoice::kDynamic : moe::CopyChoice::kStatic,
          .nodes = options.nnodes};
}

Result<std::optional<moe::ExpertRecorder::Options>> expert_recorder_of(const EngineOptions& options) {
  std::optional<moe::ExpertRecorder::Options> recorder;
  if (!options.expert_distribution_recorder_mode) return recorder;
  recorder.emplace();
  SLUICE_TRY(recorder->mode, moe::record_mode(*options.expert_distribution_recorder_mode));
  recorder->steps = options.expert_distribution_recorder_buffer_size.value_or(recorder->steps);
  return recorder;
}

}  // namespace sluice::engine
