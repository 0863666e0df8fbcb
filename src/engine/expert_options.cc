#include "engine/expert_options.h"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

#include "engine/deterministic.h"
#include "engine/environment.h"
#include "engine/layout_options.h"
#include "engine/memory_plan.h"

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

constexpr const char* kCapacityVariable = "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK";
constexpr int64_t kMostCapacity = 1024;

// Tokens of a rank that low_latency takes in a step.
Result<int64_t> capacity_of(const EngineOptions& options) {
  if (options.deepep_num_max_dispatch_tokens_per_rank) return *options.deepep_num_max_dispatch_tokens_per_rank;
  int64_t capacity = moe::DeepEpOptions{}.capacity;
  SLUICE_TRY_VOID(read_variable<int64_t>(kCapacityVariable, 1, kMostCapacity, capacity));
  return capacity;
}

constexpr const char* kBf16Variable = "SGLANG_DEEPEP_BF16_DISPATCH";
constexpr std::string_view kFp8 = "fp8_e4m3";

// With low_latency alone all steps must fit in the slab. With auto those that do not go by exact counts, and the slab
// is no larger than what only decodes can need.
Result<void> fit_slab(EngineOptions& options, std::vector<std::string>& lines) {
  const bool in_slab = options.moe_a2a_backend == "deepep" && options.deepep_mode != "normal";
  if (options.deepep_num_max_dispatch_tokens_per_rank && !in_slab) {
    return Error{ErrorCode::kBadOption,
                 "--deepep-num-max-dispatch-tokens-per-rank needs --moe-a2a-backend deepep and --deepep-mode "
                 "low_latency or auto"};
  }
  if (!in_slab || options.tp_size == 1) return {};
  SLUICE_TRY(int64_t capacity, capacity_of(options));
  const int64_t members = layout_of(options, 0).attention_tp_size();
  const StepLimits limits = plan_steps(options);
  if (options.deepep_mode == "auto") {
    capacity = std::min(capacity, parallel::part_of(limits.max_running_requests, {0, members}).count);
  }
  options.deepep_num_max_dispatch_tokens_per_rank = capacity;  // for ranks on hosts whose environment is another
  if (options.deepep_mode == "auto") return {};
  const int64_t most = capacity * members;
  if (limits.max_running_requests > most) {
    lines.push_back(fmt::format("--max-running-requests {} -> {}: --deepep-mode {} takes {} tokens of a rank ({})",
                                limits.max_running_requests, most, options.deepep_mode, capacity, kCapacityVariable));
    options.max_running_requests = most;
  }
  const int64_t largest = plan_steps(options).max_step_tokens;
  if (largest <= most) return {};
  return Error{
      ErrorCode::kBadOption,
      fmt::format("--deepep-mode low_latency takes {} tokens of a rank in a step ({}), {} of an attention group, "
                  "and steps have up to {}; lower --chunked-prefill-size, or use auto",
                  capacity, kCapacityVariable, most, largest)};
}

}  // namespace

Result<std::vector<std::string>> adjust_experts(EngineOptions& options) {
  std::vector<std::string> lines;
  if (const std::string mode = settled_deepep_mode(options); mode != options.deepep_mode) {
    options.deepep_mode = mode;
    lines.push_back(fmt::format("--deepep-mode is {}, for --deterministic", mode));
  }
  SLUICE_TRY_VOID(fit_slab(options, lines));
  SLUICE_TRY(const bool fp8, sends_fp8(options));
  if (fp8 && options.deepep_dispatch_dtype != kFp8) {
    options.deepep_dispatch_dtype = kFp8;  // for ranks on hosts whose environment is another
    lines.push_back(fmt::format("--deepep-dispatch-dtype is {}: {}=0", kFp8, kBf16Variable));
  }
  if (fp8 && options.tp_size == 1) {
    lines.emplace_back("--deepep-dispatch-dtype has no effect: one rank sends nothing");
  }
  if (options.tbo_token_distribution_threshold && !options.enable_two_batch_overlap) {
    return Error{ErrorCode::kBadOption, "--tbo-token-distribution-threshold needs --enable-two-batch-overlap"};
  }
  const std::pair<bool*, std::string_view> beside[] = {
      {&options.enable_two_batch_overlap, "--enable-two-batch-overlap"},
      {&options.enable_single_batch_overlap, "--enable-single-batch-overlap"}};
  for (const auto& [given, flag] : beside) {
    if (!*given) continue;
    if (options.moe_a2a_backend != "deepep") {
      return Error{ErrorCode::kBadOption,
                   fmt::format("{} needs --moe-a2a-backend deepep, which is {}", flag, options.moe_a2a_backend)};
    }
    if (options.tp_size > 1) continue;
    *given = false;
    lines.push_back(fmt::format("{} is off: one rank sends nothing", flag));
  }
  if (options.eplb_algorithm && options.init_expert_location == kTrivial && !options.enable_eplb) {
    return Error{ErrorCode::kBadOption,
                 "--eplb-algorithm balances loads, and there are none without --enable-eplb or a logical_count in "
                 "--init-expert-location"};
  }
  SLUICE_TRY(options.init_expert_location, read_location(options.init_expert_location));
  const bool trivial = expert_placement_of(options).trivial();
  if (trivial && options.ep_dispatch_algorithm) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--ep-dispatch-algorithm {} chooses among copies of experts, which only "
                             "--ep-num-redundant-experts, --init-expert-location and --enable-eplb make",
                             *options.ep_dispatch_algorithm)};
  }
  if (!trivial && !options.ep_dispatch_algorithm) {
    options.ep_dispatch_algorithm = "static";
    lines.push_back("--ep-dispatch-algorithm is static: experts have copies, or are not in their order");
  }
  if (options.enable_eplb && !options.expert_distribution_recorder_mode) {
    options.expert_distribution_recorder_mode = "stat";
    lines.push_back("--expert-distribution-recorder-mode is stat, for --enable-eplb");
  }
  return lines;
}

Result<bool> sends_fp8(const EngineOptions& options) {
  if (options.moe_a2a_backend != "deepep") {
    if (options.deepep_dispatch_dtype == "auto") return false;
    return Error{ErrorCode::kBadOption,
                 fmt::format("--deepep-dispatch-dtype {} is of --moe-a2a-backend deepep, which is {}",
                             options.deepep_dispatch_dtype, options.moe_a2a_backend)};
  }
  if (options.deepep_dispatch_dtype == kFp8) return true;
  bool bf16 = true;
  SLUICE_TRY_VOID(read_variable(kBf16Variable, bf16));
  return !bf16;
}

bool overlaps(const EngineOptions& options) {
  if (options.moe_a2a_backend != "deepep" || options.tp_size == 1) return false;
  return options.enable_two_batch_overlap || options.enable_single_batch_overlap || options.nnodes > 1;
}

std::optional<double> split_threshold_of(const EngineOptions& options) {
  if (!options.enable_two_batch_overlap) return std::nullopt;
  return options.tbo_token_distribution_threshold.value_or(0.48);
}

moe::DeepEpOptions deepep_of(const EngineOptions& options) {
  moe::DeepEpOptions deepep{.fp8 = options.deepep_dispatch_dtype == kFp8};
  if (options.deepep_mode == "normal") return deepep;
  deepep.mode = options.deepep_mode == "auto" ? moe::DeepEpMode::kAuto : moe::DeepEpMode::kLowLatency;
  deepep.capacity = options.deepep_num_max_dispatch_tokens_per_rank.value_or(deepep.capacity);
  return deepep;
}

moe::ExpertPlacement expert_placement_of(const EngineOptions& options) {
  return {.redundant = options.ep_num_redundant_experts,
          .location = options.init_expert_location,
          .algorithm = options.eplb_algorithm.value_or("auto"),
          .choice = options.ep_dispatch_algorithm == "dynamic" ? moe::CopyChoice::kDynamic : moe::CopyChoice::kStatic,
          .nodes = options.nnodes,
          .moves = options.enable_eplb};
}

std::optional<moe::RebalanceOptions> rebalance_of(const EngineOptions& options) {
  if (!options.enable_eplb) return std::nullopt;
  const moe::RebalanceOptions defaults;
  return moe::RebalanceOptions{
      .steps = options.eplb_rebalance_num_iterations.value_or(defaults.steps),
      .layers_at_once = options.eplb_rebalance_layers_per_chunk.value_or(defaults.layers_at_once),
      .at_most_balanced = options.eplb_min_rebalancing_utilization_threshold.value_or(defaults.at_most_balanced)};
}

Result<std::optional<moe::ExpertRecorder::Options>> expert_recorder_of(const EngineOptions& options) {
  std::optional<moe::ExpertRecorder::Options> recorder;
  if (!options.expert_distribution_recorder_mode) return recorder;
  recorder.emplace();
  SLUICE_TRY(recorder->mode, moe::record_mode(*options.expert_distribution_recorder_mode));
  // As long as what experts are placed by.
  const auto rebalance = rebalance_of(options);
  recorder->steps =
      options.expert_distribution_recorder_buffer_size.value_or(rebalance ? rebalance->steps : recorder->steps);
  return recorder;
}

}  // namespace sluice::engine
