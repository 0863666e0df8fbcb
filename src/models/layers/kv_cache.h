// What the layers keep of every token: the KV cache of a rank.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"

namespace sluice::models {

// Planes are declared while a model is built, one row of each per token, and allocated once their length is known.
// Grouped-query attention declares two per layer, keys and values; latent attention one; a layer without a cache none.
class KvCache {
 public:
  struct Plane {
    size_t index = 0;
  };

  KvCache(const kernels::Backend& backend, kernels::DType dtype) : backend_(backend), dtype_(dtype) {}
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  kernels::DType dtype() const { return dtype_; }
  Plane declare(int64_t width);
  // Of one token, in all planes.
  size_t bytes_per_token() const;
  // Once, after all declarations. Memory is taken only as it is touched. kExhausted.
  Result<void> allocate(int64_t slots);

  // After allocate(): [slots, width] of dtype.
  void* at(Plane plane) const {
    return memory_ + static_cast<size_t>(slots_ * before_[plane.index]) * tensor::block_bytes(dtype_);
  }

 private:
  const kernels::Backend& backend_;
  const kernels::DType dtype_;
  std::vector<int64_t> before_;  // values of a token in the planes before this one
  int64_t values_per_token_ = 0;
  int64_t slots_ = 0;
  char* memory_ = nullptr;
};

}  // namespace sluice::models
