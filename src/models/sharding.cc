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

}  // namespace

Result<void> check_sharding(const ModelConfig& config, const parallel::Layout& layout) {
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
  if (!config.moe) {
    if (layout.ep_size == 1 && layout.a2a == parallel::MoeAllToAll::kNone) return {};
    return Error{ErrorCode::kBadOption, "--ep-size and --moe-a2a-backend: the model has no experts"};
  }
  const MoeConfig& moe = *config.moe;
  SLUICE_TRY_VOID(divides(fmt::format("--ep-size {}", layout.ep_size), layout.ep_size, "experts", moe.experts));
  SLUICE_TRY_VOID(divides(fmt::format("--tp-size {} with --ep-size {}", layout.tp_size, layout.ep_size),
                          layout.expert_tp_size(), "columns of an expert", moe.expert_width));
  if (moe.shared_width == 0) return {};
  return divides(fmt::format("--tp-size {}", layout.tp_size), layout.shared_experts().size,
                 "columns of the shared experts", moe.shared_width);
}

}  // namespace sluice::models
