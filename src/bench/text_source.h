// Texts of a wanted number of tokens: with the model's tokenizer exactly, without one by words, of which the common
// ones that are used here are one token each in most vocabularies.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "tokenizer/tokenizer.h"

namespace sluice::bench {

// A text together with its length, and its tokens where there is a tokenizer.
struct Passage {
  std::string text;
  std::vector<int32_t> ids;
  int64_t tokens = 0;
};

// Any thread.
class TextSource {
 public:
  // `tokenizer` may be null.
  explicit TextSource(std::shared_ptr<const tokenizer::Tokenizer> tokenizer);

  bool exact() const { return tokenizer_ != nullptr; }
  const tokenizer::Tokenizer* tokenizer() const { return tokenizer_.get(); }

  // Tokens of a text, without those that a server adds around it.
  int64_t count(std::string_view text) const;
  // Tokens that a server puts around every text by itself.
  int64_t added_tokens() const { return added_tokens_; }

  // A text of `tokens` random ordinary tokens.
  Passage random(Rng& rng, int64_t tokens) const;
  // Consecutive ids of the vocabulary from `offset` on, round its end; a tokenizer may read their text as other tokens.
  Passage sequence(uint64_t offset, int64_t tokens) const;
  // `text` cut or repeated to `tokens` tokens; it is not empty.
  Passage fit(std::string_view text, int64_t tokens) const;

 private:
  Passage from_ids(std::vector<int32_t> ids) const;
  // The text of `ids`, changed at its end until a tokenizer reads it as so many tokens as there are ids: tokens that
  // come to stand side by side may merge or fall apart. `filler(i)` is put where the i-th token is missing.
  template <class Filler>
  Passage settled(std::vector<int32_t> ids, Filler filler) const;

  const std::shared_ptr<const tokenizer::Tokenizer> tokenizer_;
  std::vector<int32_t> ordinary_;  // ids of tokens that are text by themselves: not special, not half a character
  int64_t added_tokens_ = 0;
};

}  // namespace sluice::bench
