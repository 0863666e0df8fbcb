#include "engine/emulated_link.h"

#include "engine/environment.h"

namespace sluice::engine {

Result<std::optional<parallel::LatencyOptions>> emulated_link(const parallel::Layout& layout, int64_t nodes) {
  constexpr double kMostMillis = 1000, kLeastRate = 0.01, kMostRate = 1e6;
  double millis = 0, megabytes_per_s = 0;
  SLUICE_TRY_VOID(read_variable("SLUICE_EMULATED_LATENCY_MS", 0.0, kMostMillis, millis));
  SLUICE_TRY_VOID(read_variable("SLUICE_EMULATED_MB_PER_S", kLeastRate, kMostRate, megabytes_per_s));
  std::optional<parallel::LatencyOptions> link;
  if (millis == 0 && megabytes_per_s == 0) return link;
  link.emplace();
  link->latency = from_seconds(millis / 1e3);
  link->bytes_per_second = megabytes_per_s * 1e6;
  for (int64_t rank = 0; nodes > 1 && rank < layout.tp_size; ++rank) {
    link->hosts.push_back(static_cast<int>(rank / (layout.tp_size / nodes)));
  }
  return link;
}

}  // namespace sluice::engine
