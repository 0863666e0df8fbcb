// What holds for every tokenizer, whatever file it was made from.
#pragma once

#include <string>
#include <string_view>

#include "fuzz.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace sluice::fuzz {

inline void check_tokenizer(const std::shared_ptr<const tokenizer::Tokenizer>& tokenizer, std::string_view text) {
  const int32_t size = tokenizer->vocab_size();
  for (const bool special : {false, true}) {
    const auto ids = tokenizer->encode(text, special, special);
    for (const int32_t id : ids) FUZZ_CHECK(id >= 0 && id < size, "an id is one of the vocabulary");
    for (const bool skip : {false, true}) {
      const std::string whole = tokenizer->decode(ids, skip);
      FUZZ_CHECK(tokenizer::is_valid_utf8(whole), "a text is UTF-8");
      tokenizer::IncrementalDecoder decoder(tokenizer, skip);
      std::string pieces;
      for (const int32_t id : ids) {
        pieces += decoder.push(id);
        FUZZ_CHECK(decoder.pending() <= 3, "at most one character is held back");
      }
      pieces += decoder.finish();
      FUZZ_CHECK(pieces == whole, "the pieces of a text are the text");
    }
    FUZZ_CHECK(ids == tokenizer->encode(text, special, special), "words that were met before are encoded as they were");
  }
  for (const auto id : {tokenizer->bos_id(), tokenizer->eos_id(), tokenizer->pad_id()}) {
    FUZZ_CHECK(!id || (*id >= 0 && *id < size), "a special token is one of the vocabulary");
  }
  for (const int32_t id : {-1, 0, size - 1, size, INT32_MAX}) {
    (void)tokenizer->token_bytes(id);
    (void)tokenizer->is_special(id);
  }
}

}  // namespace sluice::fuzz
