#include "kernels/cpu/quantised.h"

#include <cstring>

namespace sluice::kernels::cpu {
namespace {

using tensor::DType;

float half_at(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return tensor::f16_to_float(bits);
}

}  // namespace

bool keeps_blocks(DType stored) { return stored == DType::kQ4_0 || stored == DType::kQ4_1 || stored == DType::kQ8_0; }

size_t kept_block_bytes(DType stored) { return stored == DType::kQ8_0 ? sizeof(Q8Block) : sizeof(Q4Block); }

void keep_blocks(DType stored, const void* from, int64_t count, void* to) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  for (int64_t i = 0; i < count; ++i, bytes += tensor::block_bytes(stored)) {
    const float scale = half_at(bytes);
    if (stored == DType::kQ8_0) {
      Q8Block& block = static_cast<Q8Block*>(to)[i];
      block.scale = scale;
      std::memcpy(block.quants, bytes + 2, sizeof(block.quants));
      continue;
    }
    Q4Block& block = static_cast<Q4Block*>(to)[i];
    block.scale = scale;
    block.offset = stored == DType::kQ4_1 ? half_at(bytes + 2) : -8 * scale;
    std::memcpy(block.quants, bytes + (stored == DType::kQ4_1 ? 4 : 2), sizeof(block.quants));
  }
}

}  // namespace sluice::kernels::cpu
