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
  // Of one that goes on with another, which ended where a text may be cut: before a space between two letters.
  void encode_rest(std::string_view text, std::vector<int32_t>& ids) const;
  // No piece goes on behind a space that it does not begin with, so that pieces before and after such a cut are chosen
  // apart.
  bool may_be_cut() const { return may_be_cut_; }

  size_t size() const;
  const std::string& piece(int32_t id) const;
  enum class Kind { kText, kByte, kControl, kUnknown };
  Kind kind(int32_t id) const;
  bool has_prefix() const { return has_prefix_; }  // the model puts a space before a text

 private:
  SentencePieces();

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> inner_;  // without the prefix; null where there is none
  bool has_prefix_ = false;
  bool always_prefix_ = false;
  bool may_be_cut_ = false;
};

}  // namespace sluice::tokenizer
