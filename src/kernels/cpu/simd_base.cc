#include "kernels/cpu/simd.h"

// Its text is for one instruction set, so it is included where that is compiled.
#include "kernels/cpu/simd.inc"
#include "kernels/cpu/simd_attention.inc"
#include "kernels/cpu/simd_tiles.inc"

namespace sluice::kernels::cpu {

const Simd kSimdBase = {"base",    rms_norm,    silu_mul,       sigmoid_mul,    narrow,       widen,      write_kv,
                        read_kv,   attention,   softmax_step,   lightning_step, scale,        add_scaled, dot_f8,
                        expand_f8, dot_f8_tile, expand_f8_tile, round_row,      kTileKernels, dot_pairs,  pack_pairs};

}  // namespace sluice::kernels::cpu
