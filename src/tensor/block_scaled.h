// Checkpoints in FP8 as DeepSeek-V3 is published: matrices in e4m3, and beside each "<name>.weight" a
// "<name>.weight_scale_inv" with a factor for every block of them, in float32 or, as Qwen3's are, in 16 bits.
#pragma once

#include <memory>

#include "tensor/stored_tensor.h"

namespace sluice::tensor {

// `source`, with the scales put to the tensors that have some. What is wrong with scales is an error of find().
std::unique_ptr<TensorSource> block_scaled(std::unique_ptr<TensorSource> source, int64_t block_rows,
                                           int64_t block_columns);

}  // namespace sluice::tensor
