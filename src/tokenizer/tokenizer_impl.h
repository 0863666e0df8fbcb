// The parts of a Tokenizer, as its two makers (tokenizer_json.cc, tokenizer_vocabulary.cc) fill them in.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/prompt_encoder.h"
#include "tokenizer/sentence_pieces.h"
#include "tokenizer/token_table.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_config.h"

namespace sluice::tokenizer {

struct Tokenizer::Impl {
  TokenTable texts;                // by id, as the vocabulary spells them
  TokenTable bytes;                // by id, what each adds to a decoded text
  std::vector<bool> special;       // by id
  AddedTokenMatcher raw_tokens;    // found before normalisation
  AddedTokenMatcher later_tokens;  // found after it
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<const Bpe> bpe;
  std::unique_ptr<const SentencePieces> pieces;  // in place of the three above
  // Of a vocabulary that reads a text as one word, if it may be cut nevertheless: of what follows a cut.
  std::optional<Normalizer> rest_normalizer;
  std::vector<int32_t> prefix, suffix;  // around a text that asks for special tokens
  size_t strip_left = 0;                // spaces dropped at the head of a decoded text

  std::optional<int32_t> bos_id, eos_id, pad_id;
  std::map<std::string, std::string> special_texts;
  std::string chat_template;

  // Appends the ids of a text between tokens that are found before normalisation.
  void encode_section(std::string_view text, bool at_start, bool parse_special, std::vector<int32_t>& ids) const;

  // Whether a text is one word and may be cut between words all the same. Then encode_rest() appends the ids of what
  // follows a cut.
  bool has_rest() const { return rest_normalizer || (pieces != nullptr && pieces->may_be_cut()); }
  void encode_rest(std::string_view text, std::vector<int32_t>& ids) const;

  // Where texts may be cut so that their words are those of the pieces (prompt_encoder.h); found by trying.
  Cuts cuts() const;
  bool survives(Cuts cuts) const;
  bool rest_survives() const;

  // Special tokens and the chat template. After `texts`.
  void take(const TokenizerConfig& config);
  // Likewise from a GGUF file, with what stands around a text. kProtocol for ids that are not there.
  Result<void> take(const Vocabulary& vocabulary, bool add_bos);
};

}  // namespace sluice::tokenizer
