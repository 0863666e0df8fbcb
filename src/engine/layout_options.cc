#include "engine/layout_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "engine/memory_plan.h"
#include "engine/rank.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kDeepEp = "deepep";
// SGLang's factor.
constexpr double kDpAttentionConservativeness = 0.3;

}  // namespace

std::vector<std::string> adjust_layout(EngineOptions& options) {
  std::vector<std::string> lines;
  const auto change = [&](std::string_view flag, auto& value, auto to, std::string_view why) {
    if (value == to) return;
    lines.push_back(fmt::format("--{} {} -> {}: {}", flag, value, to, why));
    value = to;
  };
  if (options.enable_dp_attention && options.dp_size == 1) {
    options.enable_dp_attention = false;
    lines.push_back("--enable-dp-attention is off: --dp-size is 1");
  }
  if (options.enable_dp_lm_head && !options.enable_dp_attention) {
    options.enable_dp_lm_head = false;
    lines.push_back("--enable-dp-lm-head is off: there is no DP attention");
  }
  if (options.dp_fixed_shape_max_bs > 0 && !options.enable_dp_attention) {
    options.dp_fixed_shape_max_bs = 0;
    lines.push_back("--dp-fixed-shape-max-bs is off: there is no DP attention");
  }
  if (options.enable_prefill_delayer && !options.enable_dp_attention) {
    options.enable_prefill_delayer = false;
    options.prefill_delayer_token_usage_low_watermark.reset();
    lines.push_back("--enable-prefill-delayer is off: there is no DP attention");
  }
  if (options.moe_a2a_backend == kDeepEp) {
    change("ep-size", options.ep_size, options.tp_size, "deepep sends tokens among all ranks");
  }
  if (!options.enable_dp_attention) return lines;
  int64_t chunk = plan_steps(options).chunk;
  change("chunked-prefill-size", chunk, std::max<int64_t>(1, chunk / options.dp_size), "of each attention group");
  options.chunked_prefill_size = chunk;
  change("schedule-conservativeness", options.schedule_conservativeness,
         options.schedule_conservativeness * kDpAttentionConservativeness, "with DP attention");
  if (options.max_running_requests) {
    change("max-running-requests", *options.max_running_requests,
           std::max<int64_t>(1, *options.max_running_requests / options.dp_size), "of each attention group");
  }
  return lines;
}

parallel::Layout layout_of(const EngineOptions& options, int64_t tp_rank) {
  return {.tp_rank = tp_rank,
          .tp_size = options.tp_size,
          .dp_size = options.enable_dp_attention ? options.dp_size : 1,
          .ep_size = options.ep_size,
          .a2a = options.moe_a2a_backend == kDeepEp ? parallel::MoeAllToAll::kDeepEp : parallel::MoeAllToAll::kNone,
          .dense_data_parallel = options.moe_dense_tp_size == 1,
          .dp_lm_head = options.enable_dp_lm_head};
}

int64_t instance_count(const EngineOptions& options) { return options.enable_dp_attention ? 1 : options.dp_size; }

int64_t rank_count(const EngineOptions& options) { return instance_count(options) * options.tp_size; }

int64_t ranks_per_host(const EngineOptions& options) { return rank_count(options) / options.nnodes; }

int64_t host_workers() {
  const char* text = std::getenv(kHostWorkersVariable);
  return std::max<int64_t>(1, text ? std::atoll(text) : 1);
}

}  // namespace sluice::engine
