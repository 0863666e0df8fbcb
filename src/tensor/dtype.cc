#include "tensor/dtype.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace sluice::tensor {
namespace {

struct Layout {
  std::string_view name;
  size_t elements;
  size_t bytes;
};

constexpr Layout layout_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return {"F32", 1, 4};
    case DType::kF16:
      return {"F16", 1, 2};
    case DType::kBf16:
      return {"BF16", 1, 2};
    case DType::kI32:
      return {"I32", 1, 4};
    case DType::kQ8_0:
      return {"Q8_0", 32, 34};
    case DType::kQ4_0:
      return {"Q4_0", 32, 18};
    case DType::kQ4_1:
      return {"Q4_1", 32, 20};
    case DType::kQ4_K:
      return {"Q4_K", 256, 144};
    case DType::kQ6_K:
      return {"Q6_K", 256, 210};
    case DType::kF8E4M3:
      return {"F8_E4M3", 1, 1};
  }
  return {"?", 1, 1};
}

uint16_t read_u16(const uint8_t* from) {
  uint16_t value;
  std::memcpy(&value, from, 2);
  return value;
}
float read_f16(const uint8_t* from) { return f16_to_float(read_u16(from)); }

// One block of each quantised type; the layouts are those of the GGUF format (ggml-common.h of llama.cpp).
void q8_0(const uint8_t* block, float* to) {
  const float scale = read_f16(block);
  for (int i = 0; i < 32; ++i) to[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
}

void q4_0(const uint8_t* block, float* to) {
  const float scale = read_f16(block);
  for (int i = 0; i < 16; ++i) {
    to[i] = scale * static_cast<float>((block[2 + i] & 0xf) - 8);
    to[i + 16] = scale * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void q4_1(const uint8_t* block, float* to) {
  const float scale = read_f16(block);
  const float minimum = read_f16(block + 2);
  for (int i = 0; i < 16; ++i) {
    to[i] = scale * static_cast<float>(block[4 + i] & 0xf) + minimum;
    to[i + 16] = scale * static_cast<float>(block[4 + i] >> 4) + minimum;
  }
}

void q4_k(const uint8_t* block, float* to) {
  const float scale = read_f16(block);
  const float min_scale = read_f16(block + 2);
  const uint8_t* packed = block + 4;  // 8 six-bit scales and 8 six-bit minima in 12 bytes
  const uint8_t* quants = block + 16;
  const auto scale_and_min = [&](int j, int& s, int& m) {
    if (j < 4) {
      s = packed[j] & 63;
      m = packed[j + 4] & 63;
    } else {
      s = (packed[j + 4] & 0xf) | ((packed[j - 4] >> 6) << 4);
      m = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4);
    }
  };
  for (int pair = 0; pair < 4; ++pair) {
    int s0, m0, s1, m1;
    scale_and_min(2 * pair, s0, m0);
    scale_and_min(2 * pair + 1, s1, m1);
    const float d0 = scale * static_cast<float>(s0), n0 = min_scale * static_cast<float>(m0);
    const float d1 = scale * static_cast<float>(s1), n1 = min_scale * static_cast<float>(m1);
    for (int i = 0; i < 32; ++i) to[64 * pair + i] = d0 * static_cast<float>(quants[32 * pair + i] & 0xf) - n0;
    for (int i = 0; i < 32; ++i) to[64 * pair + 32 + i] = d1 * static_cast<float>(quants[32 * pair + i] >> 4) - n1;
  }
}

void q6_k(const uint8_t* block, float* to) {
  const uint8_t* low = block;
  const uint8_t* high = block + 128;
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
  const float scale = read_f16(block + 208);
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 32; ++i) {
      const int group = i / 16;
      const uint8_t h = high[32 * half + i];
      const int q0 = ((low[64 * half + i] & 0xf) | ((h & 3) << 4)) - 32;
      const int q1 = ((low[64 * half + 32 + i] & 0xf) | (((h >> 2) & 3) << 4)) - 32;
      const int q2 = ((low[64 * half + i] >> 4) | (((h >> 4) & 3) << 4)) - 32;
      const int q3 = ((low[64 * half + 32 + i] >> 4) | (((h >> 6) & 3) << 4)) - 32;
      float* out = to + 128 * half + i;
      const int8_t* s = scales + 8 * half + group;
      out[0] = scale * static_cast<float>(s[0] * q0);
      out[32] = scale * static_cast<float>(s[2] * q1);
      out[64] = scale * static_cast<float>(s[4] * q2);
      out[96] = scale * static_cast<float>(s[6] * q3);
    }
  }
}

}  // namespace

std::string_view to_string(DType dtype) { return layout_of(dtype).name; }
size_t block_elements(DType dtype) { return layout_of(dtype).elements; }
size_t block_bytes(DType dtype) { return layout_of(dtype).bytes; }

float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0) {  // zero and subnormals
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint8_t float_to_f8_e4m3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return sign | 0x7f;
  const float size = std::min(std::abs(value), 448.0f);
  // Subnormal values have the exponent of the smallest normal ones.
  const int exponent = size == 0 ? -6 : std::max(std::ilogb(size), -6);
  const auto eighths = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));  // 8 to 16 where it is normal
  return static_cast<uint8_t>(sign | ((exponent + 6) * 8 + eighths));
}

float f8_e4m3_to_float(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7f;
  float value = static_cast<float>(magnitude) * 0x1p-9f;  // subnormals are whole numbers of 2^-9
  if (magnitude >= 8) value = std::bit_cast<float>((magnitude << 20) + (uint32_t{120} << 23));
  if (magnitude == 0x7f) value = std::bit_cast<float>(0x7fc00000);
  return (bits & 0x80) != 0 ? -value : value;
}

void to_float(DType dtype, const void* from, size_t elements, float* to) {
  if (elements == 0) return;  // there may be nowhere to read from or to write to
  const auto* bytes = static_cast<const uint8_t*>(from);
  switch (dtype) {
    case DType::kF32:
      std::memcpy(to, from, elements * 4);
      return;
    case DType::kF16:
      for (size_t i = 0; i < elements; ++i) to[i] = read_f16(bytes + 2 * i);
      return;
    case DType::kBf16:
      for (size_t i = 0; i < elements; ++i) to[i] = bf16_to_float(read_u16(bytes + 2 * i));
      return;
    case DType::kF8E4M3:
      for (size_t i = 0; i < elements; ++i) to[i] = f8_e4m3_to_float(bytes[i]);
      return;
    case DType::kI32:
      break;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ4_K:
    case DType::kQ6_K: {
      const size_t per_block = block_elements(dtype);
      SLUICE_CHECK(elements % per_block == 0, "{} values of {} are not whole blocks of {}", elements, to_string(dtype),
                   per_block);
      for (size_t i = 0; i < elements; i += per_block, bytes += block_bytes(dtype), to += per_block) {
        switch (dtype) {
          case DType::kQ8_0:
            q8_0(bytes, to);
            break;
          case DType::kQ4_0:
            q4_0(bytes, to);
            break;
          case DType::kQ4_1:
            q4_1(bytes, to);
            break;
          case DType::kQ4_K:
            q4_k(bytes, to);
            break;
          default:
            q6_k(bytes, to);
            break;
        }
      }
      return;
    }
  }
  SLUICE_CHECK(false, "{} is not a type of weights", to_string(dtype));
}

}  // namespace sluice::tensor
