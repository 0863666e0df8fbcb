// Weights of any shape that nobody trained, for measuring a model of real dimensions whose checkpoint is not here
// (--load-format dummy). They take next to no memory: all lie in the same few pages, repeated.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "tensor/stored_tensor.h"

namespace sluice::tensor {

// Matrices hold values around 0, so that activations keep their size from layer to layer; vectors hold 1, and those
// whose name ends in "bias" 0. The same name and shape give the same values. `is_fp8` says which matrices are stored in
// e4m3 with a scale for each block of 128x128; the others are bf16.
std::unique_ptr<TensorSource> dummy_source(std::function<bool(std::string_view name)> is_fp8);

}  // namespace sluice::tensor
