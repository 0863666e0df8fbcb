// The calls of which layers mostly consist.
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

// Of a row of the buffer that a product of gates and what they gate needs beside its result: none where the device
// multiplies both at once.
int64_t ungated_row_bytes(const kernels::Backend& backend, const kernels::LinearShape& shape);

}  // namespace sluice::models
