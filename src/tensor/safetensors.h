// Checkpoints in the safetensors format: one file, or a folder with model.safetensors or model.safetensors.index.json
// and its shards. Only headers are read at open; data is mapped. Where there is an embed_tokens.weight but no
// model.embed_tokens.weight, names are found with "model." before them too.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "tensor/stored_tensor.h"

namespace sluice::tensor {

// `folder` holds model.safetensors or an index with shards. Errors name the file, the tensor and what is wrong with it.
Result<std::unique_ptr<TensorSource>> open_safetensors(const std::string& folder);
// One file.
Result<std::unique_ptr<TensorSource>> open_safetensors_file(const std::string& path);

}  // namespace sluice::tensor
