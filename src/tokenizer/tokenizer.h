// Text to token ids and back, with ids equal to those of the libraries that the files are made for: byte-pair encoding
// from a Hugging Face tokenizer.json (`tokenizers`), from the vocabulary of a GGUF file (llama.cpp) or from Kimi's
// tiktoken.model (tiktoken), and SentencePiece models (the library itself).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sluice::tokenizer {

// A vocabulary as GGUF metadata describes it (tokenizer.ggml.*), independent of how the file is read.
struct Vocabulary {
  // Values of tokenizer.ggml.token_type.
  static constexpr int32_t kNormal = 1;
  static constexpr int32_t kUnknown = 2;
  static constexpr int32_t kControl = 3;  // special: hidden when special tokens are skipped
  static constexpr int32_t kUserDefined = 4;
  static constexpr int32_t kUnused = 5;
  static constexpr int32_t kByte = 6;

  std::string model = "gpt2";        // tokenizer.ggml.model: "gpt2", byte-level BPE, or "llama", SentencePiece's
  std::string pre_tokenizer;         // tokenizer.ggml.pre: "smollm", "gpt-2", "qwen2", "llama-bpe", ...
  std::vector<std::string> tokens;   // by id, in the byte-level alphabet ("Ġthe")
  std::vector<int32_t> token_types;  // by id; empty: all normal
  std::vector<std::string> merges;   // "left right", best first; of "gpt2"
  std::vector<float> scores;         // by id; of "llama"
  bool add_space_prefix = true;      // of "llama"
  std::optional<int32_t> bos_id, eos_id, unk_id, pad_id;
  std::optional<bool> add_bos, add_eos;  // unset: what llama.cpp does for this pre-tokenizer
  std::string chat_template;             // Jinja source; empty when the file has none
};

// Immutable once made; every member may be called from any thread at the same time.
class Tokenizer {
 public:
  // `tokenizer_json` is the text of tokenizer.json, `config_json` that of tokenizer_config.json (may be empty). An
  // error names the component or field that is unsupported or malformed.
  static Result<std::shared_ptr<const Tokenizer>> from_json(std::string_view tokenizer_json,
                                                            std::string_view config_json);
  static Result<std::shared_ptr<const Tokenizer>> from_vocabulary(const Vocabulary& vocabulary);
  // `ranks` is the text of tiktoken.model. The pattern that cuts text into words is no part of these files: the
  // tokenizer_class of tokenizer_config.json must be one whose pattern is known (TikTokenTokenizer, Kimi's).
  static Result<std::shared_ptr<const Tokenizer>> from_tiktoken(std::string_view ranks, std::string_view config_json);
  // `model` is what tokenizer.model holds.
  static Result<std::shared_ptr<const Tokenizer>> from_sentencepiece(std::string_view model,
                                                                     std::string_view config_json);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // `add_special`: adds what the model wants around a text (BOS, EOS). `parse_special`: the text of a special token is
  // that token; otherwise it is text like any other. Bytes that are not UTF-8 count as U+FFFD, as in Python's
  // decode(errors="replace"). Time is O(n log n) in the length of the text whatever it holds.
  std::vector<int32_t> encode(std::string_view text, bool add_special, bool parse_special = true) const;

  // Always valid UTF-8: a byte sequence that is not becomes U+FFFD. Ids outside the vocabulary give nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  // What one token adds to the text: raw bytes, perhaps not UTF-8 by themselves. Empty for an unknown id. The view
  // lives as long as the tokenizer.
  std::string_view token_bytes(int32_t id) const;
  // The token as the vocabulary spells it ("Ġthe"). Empty for an unknown id.
  std::string_view token_text(int32_t id) const;
  // The id of a token as the vocabulary spells it.
  std::optional<int32_t> id_of(std::string_view token_text) const;
  bool is_special(int32_t id) const;
  // One more than the largest id; ids without a token may lie below it.
  int32_t vocab_size() const;

  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;
  // "bos_token", "eos_token", "unk_token", "pad_token" to their texts, those that exist: variables of a chat template.
  const std::map<std::string, std::string>& special_tokens() const;

  // Jinja source of the chat template that came with the vocabulary; empty when there is none.
  const std::string& chat_template() const;

 private:
  friend class IncrementalDecoder;
  friend class PromptEncoder;
  struct Impl;
  static Result<std::shared_ptr<const Tokenizer>> from_scores(const Vocabulary& vocabulary);
  explicit Tokenizer(std::unique_ptr<const Impl> impl);

  const std::unique_ptr<const Impl> impl_;
};

// Text of a growing id sequence, piece by piece: a character is held back until all of its bytes are there, so that no
// piece ends in half a character, and the pieces together equal decode() of the whole. Used by one thread at a time.
class IncrementalDecoder {
 public:
  // `at_head`: the ids begin a text, where some vocabularies drop a space. Else they go on from others.
  IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special, bool at_head = true);

  // The text that this token completes; often its own bytes, sometimes nothing.
  std::string push(int32_t id);
  // What is still held back, as U+FFFD. After it the decoder is as new.
  std::string finish();
  // Bytes held back: 0 to 3.
  size_t pending() const { return pending_.size(); }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_;
  size_t at_head_;    // spaces to drop at the head of the text ...
  size_t strip_ = 0;  // ... and still to drop
  std::string pending_;
};

}  // namespace sluice::tokenizer
