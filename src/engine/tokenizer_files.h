// The tokenizer that comes with a model, whatever form the model has on disk.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "tokenizer/tokenizer.h"

namespace sluice::engine {

// `path` is a folder with tokenizer.json (and perhaps tokenizer_config.json), or a .gguf file, of which only the
// metadata is read. kNotFound or kProtocol, naming the file.
Result<std::shared_ptr<const tokenizer::Tokenizer>> load_tokenizer(const std::string& path);

}  // namespace sluice::engine
