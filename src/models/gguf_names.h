// A GGUF file under the tensor names of the Hugging Face layout.
#pragma once

#include <memory>

#include "tensor/gguf.h"
#include "tensor/stored_tensor.h"

namespace sluice::models {

std::unique_ptr<tensor::TensorSource> gguf_source(std::shared_ptr<const tensor::GgufFile> file);

}  // namespace sluice::models
