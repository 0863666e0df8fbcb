// Where the files of the model and of its tokenizer are on this host.
#pragma once

#include <string>

#include "base/result.h"
#include "engine/options.h"

namespace sluice::engine {

struct ModelFiles {
  std::string model;
  std::string tokenizer;
};

// --model-path and --tokenizer-path, resolved. kNotFound and kBadOption name the flag.
Result<ModelFiles> find_model_files(const EngineOptions& options);

}  // namespace sluice::engine
