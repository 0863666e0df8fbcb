// Finds what --model-path names.
#pragma once

#include <string>

#include "base/result.h"

namespace sluice::models {

// A folder with config.json, a .gguf file, or a hub name ("org/name") in the local Hugging Face cache (HF_HUB_CACHE,
// HF_HOME, ~/.cache/huggingface/hub). Returns an absolute path; otherwise kNotFound with a message that says how to
// download the model.
Result<std::string> locate_model(const std::string& model_path);

}  // namespace sluice::models
