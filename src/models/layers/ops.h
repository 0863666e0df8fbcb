// The two calls of which layers mostly consist.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "models/layers/weights.h"

namespace sluice::models {

// out = RMSNorm(in), rows of weight.size values that follow each other, stored as what products take.
void rms_norm(const kernels::Context& context, const WeightStore& weights, const VectorWeight& weight, const float* in,
              void* out, int64_t n, double epsilon);

// out = in W^T + bias, or out += that.
void product(const kernels::Context& context, const WeightStore& weights, const LinearWeight& weight, const void* in,
             float* out, int64_t n, const float* bias = nullptr, bool accumulate = false);

}  // namespace sluice::models
