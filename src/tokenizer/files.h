// A tokenizer as it lies on disk beside a model from Hugging Face.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "tokenizer/tokenizer.h"

namespace sluice::tokenizer {

// `path`: a folder with tokenizer.json, tiktoken.model or tokenizer.model (the first that is there) and perhaps
// tokenizer_config.json, or a file in such a folder. kNotFound or kProtocol, naming the file.
Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const std::string& path);

// Jinja source of the chat template: `override_path` (a file) if given, else chat_template.jinja of the folder, else
// what the tokenizer's own files carry. Empty when there is none.
Result<std::string> load_chat_template(const std::string& path, const Tokenizer& tokenizer,
                                       const std::string& override_path);

}  // namespace sluice::tokenizer
