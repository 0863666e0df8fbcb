// Byte-pair encoding (Sennrich et al. 2016): a word is a row of symbols, and the pair of neighbours with the best rank,
// the leftmost of equals, is merged until no pair has a rank.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/token_table.h"

namespace sluice::tokenizer {

struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t result;
  int32_t rank = -1;  // the lowest is merged first; -1: the place in the list
};

// What a symbol is at the start.
enum class BpeAlphabet {
  kBytes,       // one per byte of the word
  kCharacters,  // one per character that the vocabulary has; <0xNN> or the unknown token for others
};

struct BpeConfig {
  BpeAlphabet alphabet = BpeAlphabet::kBytes;
  // By id: raw bytes of a token (kBytes), or its text (kCharacters).
  TokenTable words;
  std::array<int32_t, 256> byte_ids;  // kBytes: the id of each byte; kCharacters: that of <0xNN> with byte fallback. -1
  std::vector<BpeMerge> merges;       // of equal pairs the last counts
  int32_t unknown_id = -1;            // -1: what has no symbol is dropped
  bool fuse_unknown = false;          // neighbours that are unknown make one token
  bool whole_words_first = false;     // a word that is a token is that token, whatever the merges say
};

// Immutable; any thread. Words met lately are remembered per thread, in a table of fixed size.
class Bpe {
 public:
  explicit Bpe(BpeConfig config);

  // Appends the ids of one word. O(n log n).
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

 private:
  struct Pair {
    uint64_t key;  // left << 32 | right; kFree: no entry
    uint32_t rank;
    int32_t result;
  };
  static constexpr uint64_t kFree = ~uint64_t{0};

  const Pair* find(int32_t left, int32_t right) const;
  void symbols_of(std::string_view word, std::vector<int32_t>& symbols) const;
  void encode_uncached(std::string_view word, std::vector<int32_t>& ids) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;

  BpeConfig config_;
  std::vector<Pair> pairs_;  // open addressing, a power of two
  uint32_t serial_;          // tells the words of one vocabulary from those of another in a thread's table
};

}  // namespace sluice::tokenizer
