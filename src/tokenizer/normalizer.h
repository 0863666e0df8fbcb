// What happens to text before it is cut into words: Unicode normalisation, replacements, a prefix.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tokenizer/regex.h"

namespace sluice::tokenizer {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

struct ReplaceStep {
  Regex pattern;
  std::string content;
};
struct PrependStep {
  std::string text;
};
struct StripStep {
  bool left;
  bool right;
};
using NormalizerStep = std::variant<UnicodeForm, ReplaceStep, PrependStep, StripStep>;

// Immutable; any thread.
class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }
  // `text` after every step, valid UTF-8 as it was before. The result is `text` itself when nothing changes, else it
  // lies in `storage`.
  std::string_view apply(std::string_view text, std::string& storage) const;

 private:
  std::vector<NormalizerStep> steps_;
};

}  // namespace sluice::tokenizer
