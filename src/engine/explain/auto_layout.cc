#include "engine/explain/auto_layout.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/explain/explain.h"

namespace sluice::engine {
namespace {

// What is not known before anybody has asked anything.
constexpr Workload kAssumed{.input_tokens = 1024, .output_tokens = 256};
constexpr int64_t kAssumedRequests = 32;
constexpr size_t kMostLines = 4;  // of layouts

Result<void> check_free(const EngineOptions& options) {
  const std::pair<std::string_view, bool> given[] = {
      {"dp-size", options.dp_size != 1},
      {"enable-dp-attention", options.enable_dp_attention},
      {"ep-size", options.ep_size != 1},
      {"moe-a2a-backend", options.moe_a2a_backend != "none"},
      {"moe-dense-tp-size", options.moe_dense_tp_size.has_value()},
      {"enable-dp-lm-head", options.enable_dp_lm_head},
      {"ep-num-redundant-experts", options.ep_num_redundant_experts > 0},
      {"init-expert-location", options.init_expert_location != "trivial"},
      {"enable-eplb", options.enable_eplb},
      {"deepep-mode", options.deepep_mode != "auto"},
      {"deepep-num-max-dispatch-tokens-per-rank", options.deepep_num_max_dispatch_tokens_per_rank.has_value()},
      {"deepep-dispatch-dtype", options.deepep_dispatch_dtype != "auto"},
      {"enable-single-batch-overlap", options.enable_single_batch_overlap},
      {"enable-two-batch-overlap", options.enable_two_batch_overlap}};
  for (const auto& [flag, is_given] : given) {
    if (!is_given) continue;
    return Error{
        ErrorCode::kBadOption,
        fmt::format("--layout auto chooses --{0} or what it depends on; leave out one of --layout and --{0}", flag)};
  }
  return {};
}

}  // namespace

Result<std::vector<std::string>> choose_layout(EngineOptions& options, const Hardware& machine) {
  SLUICE_TRY_VOID(check_free(options));
  SLUICE_TRY(const DescribedModel model, describe_model(options, /*here=*/true));
  const int64_t requests = options.max_running_requests.value_or(kAssumedRequests);
  // A context that is shorter than what is assumed leaves half of it to each.
  Workload load = kAssumed;
  if (load.input_tokens + load.output_tokens > model.context_length) {
    load.input_tokens = load.output_tokens = std::max<int64_t>(1, model.context_length / 2);
  }
  const auto ranks = options.tp_size > 1 ? std::optional(options.tp_size) : std::nullopt;
  const auto weighed = weigh_layouts(model, options, machine, load, {requests}, ranks);
  if (weighed.empty()) {
    SLUICE_TRY(const LayoutFacts plain, examine_layout(model, options, machine, load, {requests}));
    return Error{ErrorCode::kExhausted, fmt::format("--layout auto: no layout fits this machine. With {}: {}",
                                                    layout_flags(plain), plain.why_not)};
  }
  std::vector<std::string> lines{fmt::format(
      "--layout auto assumes {} requests at once of {} prompt and {} output tokens, prompts all unlike, and {} cores "
      "that "
      "reach {:.1f} GB/s and {:.3f} TFLOP/s together (measured)",
      requests, load.input_tokens, load.output_tokens, machine.devices, machine.bandwidth / 1e9, machine.flops / 1e12)};
  for (size_t i = 0; i < std::min(weighed.size(), kMostLines); ++i) {
    const LayoutFacts& facts = weighed[i];
    const Prediction& predicted = facts.predictions.back();
    lines.push_back(fmt::format("{}: {}: {:.1f} output tokens/s, {} of {} requests run at once, {} unique tokens",
                                i == 0 ? "chosen" : "not chosen", layout_flags(facts), predicted.output_tokens_per_s,
                                predicted.running, requests, facts.unique_tokens));
  }
  const EngineOptions& best = weighed[0].options;
  options.tp_size = best.tp_size;
  options.dp_size = best.dp_size;
  options.enable_dp_attention = best.enable_dp_attention;
  options.ep_size = best.ep_size;
  options.moe_a2a_backend = best.moe_a2a_backend;
  options.moe_dense_tp_size = best.moe_dense_tp_size;
  options.enable_dp_lm_head = best.enable_dp_lm_head;
  return lines;
}

}  // namespace sluice::engine
