// The text of one sample as it grows: what a client may see of it at each moment.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/messages.h"
#include "tokenizer/tokenizer.h"

namespace sluice::engine {

// Follows a text byte by byte and knows how much of its end may be the beginning of a word (Knuth, Morris, Pratt).
class PrefixMatcher {
 public:
  explicit PrefixMatcher(std::string word);  // not empty

  void push(std::string_view text);
  // Bytes at the end of the text that begin the word and are not all of it.
  size_t matched() const { return matched_; }
  const std::string& word() const { return word_; }

 private:
  std::string word_;
  std::vector<size_t> fallback_;  // [word]: of the first i + 1 bytes, the longest proper prefix that is a suffix
  size_t matched_ = 0;
};

// Ranks decide when a sample ends; this cuts the text. No piece that it gives out ends in half a character, or in what
// later turns out to begin a stop string. Used by one thread at a time.
class OutputText {
 public:
  struct Options {
    bool skip_special = true;
    bool no_stop_trim = false;  // the stop string or token is shown
    std::vector<std::string> stop;
  };
  OutputText(std::shared_ptr<const tokenizer::Tokenizer> tokenizer, Options options);

  // Takes the next tokens, and why the sample ended if it did. Appends what may be shown now to `out`.
  void push(std::span<const int32_t> ids, const FinishReason& finish, std::string& out);
  // Something is kept back that may begin a stop string.
  bool holds_back() const { return !pending_.empty(); }

 private:
  size_t possible_stop() const;
  void cut_at_stop();

  const Options options_;
  tokenizer::IncrementalDecoder decoder_;
  std::vector<PrefixMatcher> matchers_;
  std::string pending_;  // decoded, not given out
};

}  // namespace sluice::engine
