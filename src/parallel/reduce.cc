#include "parallel/reduce.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/check.h"
#include "tensor/dtype.h"

namespace sluice::parallel {
namespace {

// Elements at a time: their sums stay in the first cache.
constexpr size_t kBlock = 1024;

struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

float widen(F16 v) { return tensor::f16_to_float(v.bits); }
float widen(Bf16 v) { return tensor::bf16_to_float(v.bits); }
template <class T>
T widen(T v) {
  return v;
}

void narrow(float v, F16& to) { to.bits = float_to_f16(v); }
void narrow(float v, Bf16& to) { to.bits = tensor::float_to_bf16(v); }
template <class T>
void narrow(T v, T& to) {
  to = v;
}

template <class T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;  // overflow wraps, as on every device
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}
// NaN wins, so that it is seen; which one of several does not matter for anybody.
template <class T>
T larger(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return a > b || a != a ? a : b;
  } else {
    return std::max(a, b);
  }
}

template <class T, class Op>
void reduce_blocks(std::span<const void* const> inputs, void* out, size_t bytes, Op op) {
  using Wide = decltype(widen(T{}));
  const size_t n = bytes / sizeof(T);
  std::array<Wide, kBlock> sums;
  std::array<T, kBlock> block;  // inputs and out may have any alignment
  for (size_t first = 0; first < n; first += kBlock) {
    const size_t count = std::min(kBlock, n - first);
    for (size_t rank = 0; rank < inputs.size(); ++rank) {
      std::memcpy(block.data(), static_cast<const T*>(inputs[rank]) + first, count * sizeof(T));
      if (rank == 0) {
        for (size_t i = 0; i < count; ++i) sums[i] = widen(block[i]);
      } else {
        for (size_t i = 0; i < count; ++i) sums[i] = op(sums[i], widen(block[i]));
      }
    }
    for (size_t i = 0; i < count; ++i) narrow(sums[i], block[i]);
    std::memcpy(static_cast<T*>(out) + first, block.data(), count * sizeof(T));
  }
}

template <class T>
void reduce_as(Reduction reduction, std::span<const void* const> inputs, void* out, size_t bytes) {
  using Wide = decltype(widen(T{}));
  if (reduction == Reduction::kMax) {
    reduce_blocks<T>(inputs, out, bytes, [](Wide a, Wide b) { return larger(a, b); });
  } else {
    reduce_blocks<T>(inputs, out, bytes, [](Wide a, Wide b) { return add(a, b); });
  }
}

}  // namespace

uint16_t float_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // from halfway above the largest
  if (magnitude < 0x38800000) {                       // subnormal: units of 2^-24, rounded by the addition
    const float units = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(units) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

void reduce(Element element, Reduction reduction, std::span<const void* const> inputs, void* out, size_t bytes) {
  switch (element) {
    case Element::kU8:
      return reduce_as<uint8_t>(reduction, inputs, out, bytes);
    case Element::kI32:
      return reduce_as<int32_t>(reduction, inputs, out, bytes);
    case Element::kI64:
      return reduce_as<int64_t>(reduction, inputs, out, bytes);
    case Element::kF32:
      return reduce_as<float>(reduction, inputs, out, bytes);
    case Element::kF16:
      return reduce_as<F16>(reduction, inputs, out, bytes);
    case Element::kBf16:
      return reduce_as<Bf16>(reduction, inputs, out, bytes);
    case Element::kF8E4M3:
      break;
  }
  SLUICE_CHECK(false, "no reduction of {}", to_string(element));
}

}  // namespace sluice::parallel
