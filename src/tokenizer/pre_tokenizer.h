// Cuts normalised text into the words that BPE sees one by one.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tokenizer/regex.h"

namespace sluice::tokenizer {

// What becomes of the matches of a pattern: words of their own, dropped, joined with a neighbour, or joined with
// matches next to them.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  Regex pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // the pattern describes what lies between the matches
};
// A space before each word that has none: ByteLevel's add_prefix_space.
struct PrefixSpaceStep {};
// SentencePiece's spelling of spaces: each becomes `replacement`.
struct MetaspaceStep {
  enum class Prepend { kNever, kFirst, kAlways };
  std::string replacement;
  Prepend prepend = Prepend::kAlways;
  bool split = true;  // words begin at a replacement
};
using PreTokenizerStep = std::variant<SplitStep, PrefixSpaceStep, MetaspaceStep>;

// GPT-2's pattern, which ByteLevel uses by default.
extern const std::string_view kGpt2Pattern;
// Kimi-K2's, which its files do not carry.
extern const std::string_view kKimiK2Pattern;

// Words of one text. They view the text, or `storage` where a step changed them.
struct Words {
  std::vector<std::string_view> words;
  std::vector<std::string_view> next;  // scratch
  std::deque<std::string> storage;

  void clear() {
    words.clear();
    storage.clear();
  }
};

// Immutable; any thread.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  // Fills `out.words`. `at_start`: the text begins what the caller encodes.
  void split(std::string_view text, bool at_start, Words& out) const;
  // Whether `at_start` makes a difference.
  bool looks_at_start() const;

 private:
  std::vector<PreTokenizerStep> steps_;
};

}  // namespace sluice::tokenizer
