// --deepep-mode.
#pragma once

#include <cstdint>

namespace sluice::moe {

enum class DeepEpMode : uint8_t {
  kNormal,      // exact counts: buffers of any size
  kLowLatency,  // a slab of fixed size for each expert, whose addresses stay the same
  kAuto,        // kNormal in steps in which a rank prefills, else kLowLatency
};

struct DeepEpOptions {
  DeepEpMode mode = DeepEpMode::kNormal;
  int64_t capacity = 128;  // kLowLatency: tokens that a rank may have in a step
};

}  // namespace sluice::moe
