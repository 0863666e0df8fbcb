#include "kernels/cpu/simd.h"

#include "kernels/cpu/simd.inc"

namespace sluice::kernels::cpu {

const Simd kSimdAvx2 = {"avx2",  rms_norm,  silu_mul,     sigmoid_mul,    narrow,    widen,       write_kv,
                        read_kv, attention, softmax_step, lightning_step, scale,     add_scaled,  dot_q4,
                        dot_q8,  expand_q4, expand_q8,    dot_f8,         expand_f8, dot_f8_tile, expand_f8_tile};

}  // namespace sluice::kernels::cpu
