#include "kernels/cpu/simd.h"

#include "kernels/cpu/simd.inc"

namespace sluice::kernels::cpu {

const Simd kSimdBase = {"base", rms_norm, silu_mul, narrow, widen, attention};

}  // namespace sluice::kernels::cpu
