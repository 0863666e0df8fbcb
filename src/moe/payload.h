// How tokens' rows travel to experts: as they are, or as e4m3 with a float32 scale for each 128 values.
#pragma once

#include "moe/device_memory.h"
#include "moe/dispatcher.h"

namespace sluice::moe {

// Used by the rank's thread.
class Payload {
 public:
  Payload(const kernels::Backend& backend, const Sizes& sizes, bool fp8);

  // Once. kExhausted.
  Result<void> allocate(int64_t max_tokens, int64_t max_received);
  size_t bytes() const { return memory_.bytes(); }

  // A row on its way is `width` values of `dtype`; those of FP8 are bytes, which scales have some of.
  kernels::DType dtype() const { return row_.dtype; }
  int64_t width() const { return fp8() ? row_.bytes() : row_.width; }
  int64_t row_bytes() const { return row_.bytes(); }

  // Rows `x` [n, hidden] as they travel, until the next call.
  const void* pack(const kernels::Context& context, const void* x, int64_t n);
  // Where rows are to arrive that become those of `x`, and what makes them that.
  void* arrival(void* x) const { return fp8() ? arrived_ : x; }
  void unpack(const kernels::Context& context, void* x, int64_t n) const;

 private:
  bool fp8() const { return row_.dtype == kernels::DType::kF8E4M3; }

  const kernels::Backend& backend_;
  const kernels::DType dtype_;  // of rows before and after
  const kernels::KvRow row_;
  DeviceMemory memory_;
  void* packed_ = nullptr;   // [max_tokens] of row
  void* arrived_ = nullptr;  // [max_received] of row
};

}  // namespace sluice::moe
