// What tokenizer_config.json says, in the terms of this folder: the same for every kind of tokenizer file.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tokenizer/added_tokens.h"

namespace sluice::tokenizer {

struct TokenizerConfig {
  std::string tokenizer_class;
  std::vector<AddedToken> added_tokens;              // added_tokens_decoder
  std::map<std::string, std::string> special_texts;  // "bos_token" and so on, those that are there
  std::string chat_template;
  std::optional<bool> add_bos, add_eos, add_prefix_space, legacy;
};

// `json` may be empty. kProtocol when it is no JSON object.
Result<TokenizerConfig> read_tokenizer_config(std::string_view json);

}  // namespace sluice::tokenizer
