// A SentencePiece model, through its library.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace sluice::tokenizer {

// Immutable; any thread.
class SentencePieces {
 public:
  // `model`: what the file holds. `always_prefix`: a text gets the model's space before it wherever it stands, and not
  // only at the start.
  static Result<std::unique_ptr<const SentencePieces>> load(std::string_view model, bool always_prefix);
  ~SentencePieces();

  // Appends the ids of a text without special tokens.
  void encode(std::string_view text, bool at_start, std::vector<int32_t>& ids) const;

  size_t size() const;
  const std::string& piece(int32_t id) const;
  enum class Kind { kText, kByte, kControl, kUnknown };
  Kind kind(int32_t id) const;
  bool has_prefix() const { return has_prefix_; }  // the model puts a space before a text

 private:
  SentencePieces();

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> inner_;  // without that space; null where it is always put
  bool has_prefix_ = false;
};

}  // namespace sluice::tokenizer
