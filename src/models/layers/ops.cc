#include "models/layers/ops.h"

namespace sluice::models {

void rms_norm(const kernels::Context& context, const WeightStore& weights, const VectorWeight& weight, const float* in,
              void* out, int64_t n, double epsilon) {
  context.backend->rms_norm(context, {.in = in,
                                      .weight = weights.address(weight),
                                      .out = out,
                                      .out_dtype = weights.dtype(),
                                      .n = n,
                                      .width = weight.size,
                                      .in_stride = weight.size,
                                      .out_stride = weight.size,
                                      .epsilon = static_cast<float>(epsilon)});
}

void product(const kernels::Context& context, const WeightStore& weights, const LinearWeight& weight, const void* in,
             float* out, int64_t n, const float* bias, bool accumulate) {
  context.backend->linear(context, {.shape = &weight.shape,
                                    .weight = weights.address(weight),
                                    .in = in,
                                    .out = out,
                                    .n = n,
                                    .bias = bias,
                                    .accumulate = accumulate});
}

int64_t ungated_row_bytes(const kernels::Backend& backend, const kernels::LinearShape& shape) {
  return backend.fuses_gates(shape) ? 0 : shape.out * static_cast<int64_t>(sizeof(float));
}

}  // namespace sluice::models
