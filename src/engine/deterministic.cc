#include "engine/deterministic.h"

#include <fmt/format.h>

#include <string_view>

namespace sluice::engine {

std::string settled_dtype(const EngineOptions& options) {
  return options.deterministic && options.dtype == "auto" ? "float32" : options.dtype;
}

// With auto the order of sums depends on whether another request prefills.
std::string settled_deepep_mode(const EngineOptions& options) {
  const bool chosen_by_others = options.moe_a2a_backend == "deepep" && options.deepep_mode == "auto";
  return options.deterministic && chosen_by_others ? "normal" : options.deepep_mode;
}

Result<std::vector<std::string>> settle_deterministic(EngineOptions& options) {
  std::vector<std::string> lines;
  if (!options.deterministic) return lines;
  struct Against {
    bool given;
    std::string_view flag, why;
  };
  const Against against[] = {
      {options.enable_eplb, "--enable-eplb", "experts move by the load, and with them the order of sums"},
      {options.ep_dispatch_algorithm == "dynamic", "--ep-dispatch-algorithm dynamic",
       "copies of experts are chosen at random"},
      {options.deepep_dispatch_dtype == "fp8_e4m3", "--deepep-dispatch-dtype fp8_e4m3",
       "rows are rounded on their way, which one rank does not do"},
      {options.enable_two_batch_overlap, "--enable-two-batch-overlap",
       "where a batch is cut depends on the other requests in it"},
  };
  for (const auto& [given, flag, why] : against) {
    if (given) {
      return Error{ErrorCode::kBadOption, fmt::format("{} does not go with --deterministic: {}", flag, why)};
    }
  }
  if (options.dtype == "auto") {
    options.dtype = settled_dtype(options);
    lines.emplace_back("--dtype is float32, for --deterministic");
  }
  return lines;
}

std::optional<uint64_t> common_seed(const EngineOptions& options) {
  if (!options.deterministic) return std::nullopt;
  return static_cast<uint64_t>(options.random_seed.value_or(42));  // SGLang's
}

}  // namespace sluice::engine
