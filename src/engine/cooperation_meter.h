// Tells what a rank computes in the steps of an instance apart by how many of its attention groups prefilled in them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "engine/messages.h"

namespace sluice::engine {

// Used by one thread.
class CooperationMeter {
 public:
  // After a step, before the next: what `load` has counted since the last call was computed beside `prefilling` groups.
  // Sets load.cooperation.
  void attribute(int64_t prefilling, LoadSnapshot& load) {
    const auto groups = static_cast<size_t>(std::clamp<int64_t>(prefilling, 0, DpCooperation::kMostGroups));
    const std::array<uint64_t, 3> tokens = {load.prompt_tokens_total - load.cached_tokens_total,
                                            load.cached_tokens_total, load.generation_tokens_total};
    for (size_t i = 0; i < tokens.size(); ++i) {
      counts_.tokens[groups][i] += tokens[i] - tokens_[i];
      counts_.seconds[groups][i] += load.forward_seconds[i] - seconds_[i];
      seconds_[i] = load.forward_seconds[i];
    }
    tokens_ = tokens;
    load.cooperation = counts_;
  }

 private:
  DpCooperation counts_;
  std::array<uint64_t, 3> tokens_{};
  std::array<double, 3> seconds_{};
};

}  // namespace sluice::engine
