// Memory of kernels that grows to what a step needs and is kept for the next one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice::kernels::cpu {

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// `size` values whose contents do not matter.
template <class T>
T* at_least(std::vector<T>& memory, int64_t size) {
  if (memory.size() < static_cast<size_t>(size)) memory.resize(static_cast<size_t>(size));
  return memory.data();
}

// Bytes for vectors to be stored in, so that none lies in two lines of the cache.
struct alignas(64) CacheLine {
  char bytes[64];
};
inline char* at_least_bytes(std::vector<CacheLine>& memory, int64_t bytes) {
  return at_least(memory, (bytes + 63) / 64)->bytes;
}

}  // namespace sluice::kernels::cpu
