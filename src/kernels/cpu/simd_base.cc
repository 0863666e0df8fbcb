#include "kernels/cpu/simd.h"

// Its text is for one instruction set, so it is included where that is compiled.
#include "kernels/cpu/simd.inc"
#include "kernels/cpu/simd_attention.inc"
#include "kernels/cpu/simd_products.inc"
#include "kernels/cpu/simd_tiles.inc"
// Of all that was included.
#include "kernels/cpu/simd_table.inc"

namespace sluice::kernels::cpu {

const Simd kSimdBase = simd_named("base");

}  // namespace sluice::kernels::cpu
