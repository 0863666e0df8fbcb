// Tokens that are found in the text before anything else looks at it: "<|im_end|>" and the like.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sluice::tokenizer {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space after it along
  bool single_word = false;  // only where no letter, digit or underscore is next to it
  bool normalized = false;   // looked for after normalisation
};

// A stretch of text, or one token.
struct TextSection {
  std::string_view text;
  int32_t token = -1;  // -1: `text` is text
};

// Leftmost matches, the longest of those that begin at one place. Immutable; any thread.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens);

  bool empty() const { return tokens_.empty(); }
  const std::vector<AddedToken>& tokens() const { return tokens_; }
  // Appends the sections of `text` in order; empty ones are left out. Special tokens are text unless `parse_special`.
  void split(std::string_view text, bool parse_special, std::vector<TextSection>& sections) const;

 private:
  // The token at the head of `text`, or -1.
  int32_t match(std::string_view text) const;
  // Where the next match could begin, from `from` on.
  size_t skip(std::string_view text, size_t from) const;

  std::vector<AddedToken> tokens_;
  // A trie by byte: nodes_[n] is the index in tokens_ of the token that ends at node n, or -1; edges_ leads from
  // (node << 8 | byte) to the next node.
  std::vector<int32_t> nodes_;
  std::unordered_map<uint32_t, uint32_t> edges_;
  std::array<uint32_t, 256> first_{};  // the edges of the root; 0: none
  int only_first_ = -1;                // the byte with which all tokens begin, if there is one
};

}  // namespace sluice::tokenizer
