// Products of plain row-major matrices that a step makes itself, such as queries and cached keys. Each is one
// single-threaded call of oneDNN, by any thread of the pool.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/kernels.h"

namespace sluice::kernels::cpu {

// C [m, n] = A [m, k] B, or C += A B; A and B of dtype, C float32, all rows contiguous.
struct PlainShape {
  int64_t m = 0;
  int64_t k = 0;
  int64_t n = 0;
  DType dtype = DType::kF32;
  bool b_transposed = false;  // B lies as [n, k], else as [k, n]
  bool accumulate = false;
  auto operator<=>(const PlainShape&) const = default;
};

class PlainProducts {
 public:
  // `threads` of the pool that multiply() is called from.
  explicit PlainProducts(int threads);
  ~PlainProducts();

  // Makes what multiply() needs for a shape, if it is not there yet. To be called before the pool runs: an error of
  // oneDNN cannot leave a task.
  void prepare(const PlainShape& shape) const;
  // `thread` is the caller's number in the pool.
  void multiply(const PlainShape& shape, const void* a, const void* b, float* c, int thread) const;
  // oneDNN's name of what it chose; "ref..." must not happen.
  std::string implementation(const PlainShape& shape) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::kernels::cpu
