// --deepep-mode, and what else deepep can be told.
#pragma once

#include <cstdint>
#include <numeric>

#include "kernels/kernels.h"

namespace sluice::moe {

enum class DeepEpMode : uint8_t {
  kNormal,      // exact counts: buffers of any size
  kLowLatency,  // a slab of fixed size for each expert, whose addresses stay the same
  kAuto,        // kNormal where a rank prefills or has more tokens than the slab takes, else kLowLatency
};

struct DeepEpOptions {
  DeepEpMode mode = DeepEpMode::kNormal;
  int64_t capacity = 128;  // tokens that a rank may have in a step which goes through the slab
  bool fp8 = false;        // rows are sent in e4m3
};

// A row of `hidden` values on its way to its experts. Where 128 does not divide it, what shares a scale does.
inline kernels::KvRow payload_row(int64_t hidden, kernels::DType dtype, bool fp8) {
  if (!fp8) return {.dtype = dtype, .width = hidden};
  return {.dtype = kernels::DType::kF8E4M3, .width = hidden, .group = std::gcd(hidden, kernels::kScaledValues)};
}

}  // namespace sluice::moe
