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
  // Values that one scale may be for, where rows have scales: `group`, which divides width.
  Plane declare(int64_t width, int64_t group);
  // Before allocate(): all planes are of this type, kF32, kBf16 or kF8E4M3.
  void store_as(kernels::DType dtype);
  // Of one token, in all planes.
  size_t bytes_per_token() const { return static_cast<size_t>(bytes_per_token_); }
  // Once, after all declarations. Memory is taken only as it is touched. kExhausted.
  Result<void> allocate(int64_t slots);

  const kernels::KvRow& row(Plane plane) const { return rows_[plane.index].format; }
  // After allocate(): [slots] of row().
  void* at(Plane plane) const { return memory_ + slots_ * rows_[plane.index].bytes_before; }

 private:
  const kernels::Backend& backend_;
  kernels::DType dtype_;
  struct Row {
    kernels::KvRow format;
    int64_t bytes_before = 0;  // of a token in the planes before this one
  };
  std::vector<Row> rows_;  // by plane
  int64_t bytes_per_token_ = 0;
  int64_t slots_ = 0;
  char* memory_ = nullptr;
};

}  // namespace sluice::models
