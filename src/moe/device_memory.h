// Device memory of one owner, which goes with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"

namespace sluice::moe {

class DeviceMemory {
 public:
  // `backend` outlives this.
  explicit DeviceMemory(const kernels::Backend& backend) : backend_(backend) {}
  ~DeviceMemory() {
    for (const auto& [memory, bytes] : owned_) backend_.release(memory, bytes);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // kExhausted.
  template <class T>
  Result<T*> take(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    SLUICE_TRY(void* memory, backend_.allocate(bytes));
    owned_.emplace_back(memory, bytes);
    return static_cast<T*>(memory);
  }

  size_t bytes() const {
    size_t sum = 0;
    for (const auto& [memory, bytes] : owned_) sum += bytes;
    return sum;
  }

 private:
  const kernels::Backend& backend_;
  std::vector<std::pair<void*, size_t>> owned_;
};

}  // namespace sluice::moe
