#include "models/sharding.h"

#include <fmt/format.h>

#include <algorithm>

namespace sluice::models {
namespace {

Result<void> divides(std::string_view parts, int64_t size, std::string_view what, int64_t count) {
  if (count % size == 0) return {};
  return Error{ErrorCode::kBadOption,
               fmt::format("{} makes {} parts of the model's {} {}, which they do not divide; the nearest that do: {}",
                           parts, size, count, what, fmt::join(parallel::nearest_divisors(count, size), ", "))};
}

Result<std::optional<moe::ExpertMap>> expert_map_of(const ModelConfig& config, const parallel::Layout& layout,
                                                    const moe::ExpertPlacement& placement) {
  std::optional<moe::ExpertMap> map;
  if (placement.trivial()) return map;
  const std::string_view flags =
      placement.moves ? "--enable-eplb" : "--ep-num-redundant-experts and --init-expert-location";
  if (!config.moe) return Error{ErrorCode::kBadOption, fmt::format("{}: the model has no experts", flags)};
  if (std::ranges::find(config.moe->sparse, true) == config.moe->sparse.end()) {
    return Error{ErrorCode::kBadOption, fmt::format("{}: no layer of the model has experts", flags)};
  }
  if (layout.ep_size == 1) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("{}: experts must be divided among ranks, which --ep-size 1 does not; set --ep-size or "
                             "--moe-a2a-backend deepep",
                             flags)};
  }
  SLUICE_TRY(map, moe::make_expert_map(placement, {.layers = config.num_layers,
                                                   .experts = config.moe->experts,
                                                   .groups = config.moe->groups,
                                                   .ranks = layout.ep_size}));
  return map;
}

}  // namespace

Result<std::optional<moe::ExpertMap>> check_sharding(const ModelConfig& config, const parallel::Layout& layout,
                                                     const moe::ExpertPlacement& placement) {
  SLUICE_TRY_VOID(check_layout(layout));
  const int64_t heads = layout.attention_tp_size();
  const std::string attention = layout.dp_attention()
                                    ? fmt::format("--tp-size {} with --dp-size {}", layout.tp_size, layout.dp_size)
                                    : fmt::format("--tp-size {}", layout.tp_size);
  SLUICE_TRY_VOID(divides(attention, heads, "attention heads", config.num_heads));
  // Key heads are divided, or several ranks have the same one.
  if (!config.mla && heads % config.num_kv_heads != 0) {
    SLUICE_TRY_VOID(divides(attention, heads, "key heads", config.num_kv_heads));
  }
  const bool has_dense = !config.moe || std::ranges::count(config.moe->sparse, false) > 0;
  if (has_dense) {
    SLUICE_TRY_VOID(divides(fmt::format("--tp-size {}", layout.tp_size), layout.dense_ffn().size,
                            "columns of dense FFNs (intermediate_size)", config.intermediate_size));
  }
  SLUICE_TRY(auto map, expert_map_of(config, layout, placement));
  if (!config.moe) {
    if (layout.ep_size == 1 && layout.a2a == parallel::MoeAllToAll::kNone) return map;
    return Error{ErrorCode::kBadOption, "--ep-size and --moe-a2a-backend: the model has no experts"};
  }
  const MoeConfig& moe = *config.moe;
  if (!map) {
    SLUICE_TRY_VOID(divides(fmt::format("--ep-size {}", layout.ep_size), layout.ep_size, "experts", moe.experts));
  }
  SLUICE_TRY_VOID(divides(fmt::format("--tp-size {} with --ep-size {}", layout.tp_size, layout.ep_size),
                          layout.expert_tp_size(), "columns of an expert", moe.expert_width));
  if (moe.shared_width > 0) {
    SLUICE_TRY_VOID(divides(fmt::format("--tp-size {}", layout.tp_size), layout.shared_experts().size,
                            "columns of the shared experts", moe.shared_width));
  }
  return map;
}

}  // namespace sluice::models
