// The types that --dtype and --kv-cache-dtype name.
#pragma once

#include <string>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sluice::models {

// Arithmetic of the matrix products; auto is this machine's best. kBadOption.
Result<tensor::DType> dtype_of(const std::string& name);
// Of the KV cache; auto is `dtype`. kBadOption.
Result<tensor::DType> kv_dtype_of(const std::string& name, tensor::DType dtype);

}  // namespace sluice::models
