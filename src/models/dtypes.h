// The types that --dtype and --kv-cache-dtype name.
#pragma once

#include <string>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sluice::models {

// Arithmetic of the matrix products.
struct Arithmetic {
  tensor::DType dtype = tensor::DType::kF32;
  // Quantised weights stay so, and their inputs may be rounded to eight bits (kernels::LinearShape).
  bool rounded = false;
};
// auto is this machine's best for the weights at hand. kBadOption.
Result<Arithmetic> arithmetic_of(const std::string& name);
// Of the KV cache; auto is `dtype`. kBadOption.
Result<tensor::DType> kv_dtype_of(const std::string& name, tensor::DType dtype);

}  // namespace sluice::models
