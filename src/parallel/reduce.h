// The reductions of the collectives: in rank order, so that all ranks and all members get the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "parallel/collective.h"

namespace sluice::parallel {

// out[i] = the reduction of inputs[0][i], inputs[1][i], ... in that order, for bytes / bytes_of(element) elements.
// `out` may be one of the inputs; else they lie apart. Not for kF8E4M3.
void reduce(Element element, Reduction reduction, std::span<const void* const> inputs, void* out, size_t bytes);

// Round to nearest, ties to even; NaN stays NaN.
uint16_t float_to_f16(float value);

}  // namespace sluice::parallel
