#include "kernels/cpu/simd.h"

#include <cstdlib>
#include <string_view>

namespace sluice::kernels::cpu {

const Simd& simd() {
  static const Simd& chosen = []() -> const Simd& {
    const char* asked = std::getenv("SLUICE_SIMD");
    const std::string_view limit = asked == nullptr ? "" : asked;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx512 && limit != "avx2" && limit != "base") return kSimdAvx512;
    if (avx2 && limit != "base") return kSimdAvx2;
    return kSimdBase;
  }();
  return chosen;
}

}  // namespace sluice::kernels::cpu
