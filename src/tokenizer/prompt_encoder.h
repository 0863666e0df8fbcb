// Tokenizes prompts, most of which begin as an earlier one did: a chat comes back with each turn, and many prompts
// share their first pages. What was tokenized before is not tokenized again.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "tokenizer/segment_cache.h"
#include "tokenizer/tokenizer.h"

namespace sluice::tokenizer {

// Where texts may be cut: nowhere; before a space between two letters; there, and between a newline and a letter or
// ideograph.
enum class Cuts { kNone, kWords, kWordsAndLines };

// Cuts a text into segments of some 500 bytes at places where no word of any pre-tokenizer goes across, and keeps the
// ids of segments. The places depend on the text before them only, so that texts that begin alike are cut alike.
// Special tokens cut as well. Any thread.
//
// Whether cutting is right for a tokenizer is tried out when this is made; where it is not (models that read a text as
// one word), every prompt is tokenized as a whole. SentencePiece's model is cut where its vocabulary shows that no
// piece goes across; the beginning of a text, and what follows a special token, is tokenized each time.
class PromptEncoder {
 public:
  static constexpr size_t kDefaultBytes = size_t{64} << 20;
  explicit PromptEncoder(std::shared_ptr<const Tokenizer> tokenizer, size_t max_bytes = kDefaultBytes);

  // What Tokenizer::encode(text, add_special) gives.
  std::vector<int32_t> encode(std::string_view text, bool add_special);

  Cuts cuts() const { return cuts_; }
  // Bytes of text that were tokenized, not found, so far.
  uint64_t tokenized_bytes() const { return tokenized_bytes_.load(std::memory_order_relaxed); }
  size_t cached_bytes() const { return cache_.bytes(); }

 private:
  void encode_section(std::string_view text, bool at_start, std::vector<int32_t>& ids);

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const Cuts cuts_;
  SegmentCache cache_;
  std::atomic<uint64_t> tokenized_bytes_{0};
};

// The first place at or after `from` (> 0) where a text may be cut; its size when there is none. For tests.
size_t next_cut(std::string_view text, size_t from, Cuts cuts);

}  // namespace sluice::tokenizer
