#include "kernels/cpu/simd.h"

#include <cstdlib>
#include <string_view>

namespace sluice::kernels::cpu {

std::vector<const Simd*> runnable_simds() {
  std::vector<const Simd*> simds = {&kSimdBase};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    simds.push_back(&kSimdAvx2);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    simds.push_back(&kSimdAvx512);
    if (__builtin_cpu_supports("avx512vnni")) {
      simds.push_back(&kSimdAvx512Vnni);
      if (__builtin_cpu_supports("avx512bf16")) {
        simds.push_back(&kSimdAvx512Bf16);
        if (const Simd* amx = simd_amx()) simds.push_back(amx);
      }
    }
  }
  return simds;
}

const Simd& choose_simd() {
  const std::vector<const Simd*> simds = runnable_simds();
  if (const char* asked = std::getenv("SLUICE_SIMD")) {
    for (const Simd* simd : simds) {
      if (std::string_view(asked) == simd->name) return *simd;
    }
  }
  return *simds.back();
}

}  // namespace sluice::kernels::cpu
