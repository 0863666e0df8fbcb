#include "models/dtypes.h"

#include <fmt/format.h>

#include "kernels/kernels.h"

namespace sluice::models {

Result<Arithmetic> arithmetic_of(const std::string& name) {
  if (name == "auto") return Arithmetic{kernels::best_dtype(), /*rounded=*/true};
  if (name == "bfloat16" || name == "bf16") return Arithmetic{tensor::DType::kBf16};
  if (name == "float32" || name == "float" || name == "f32") return Arithmetic{tensor::DType::kF32};
  return Error{ErrorCode::kBadOption, fmt::format("--dtype {} is not supported; auto, bfloat16 and float32 are", name)};
}

Result<tensor::DType> kv_dtype_of(const std::string& name, tensor::DType dtype) {
  if (name == "auto") return dtype;
  if (name == "bfloat16" || name == "bf16") return tensor::DType::kBf16;
  if (name == "fp8_e4m3") return tensor::DType::kF8E4M3;
  return Error{ErrorCode::kBadOption,
               fmt::format("--kv-cache-dtype {} is not supported; auto, bfloat16 and fp8_e4m3 are", name)};
}

}  // namespace sluice::models
