// Regular expressions of tokenizers, on PCRE2 with its JIT, reading patterns as Oniguruma does where the two differ.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

struct pcre2_real_code_8;

namespace sluice::tokenizer {

// Immutable; any thread.
class Regex {
 public:
  // kProtocol for a pattern that does not compile, with the place in it.
  static Result<Regex> compile(std::string_view pattern);
  static Result<Regex> literal(std::string_view text);

  struct Match {
    size_t begin;
    size_t end;
  };
  // The match after `match` in `text` (valid UTF-8), the first one if it is unset. Empty matches count, but not where
  // the one before ended. False when there is none, and when the search gives up on its limits, which are far above
  // what tokenizer patterns need. `newer`: the text has characters that are newer than PCRE2's tables
  // (newer_characters.h); slower.
  bool next(std::string_view text, std::optional<Match>& match, bool newer = false) const;

 private:
  struct Code {
    std::shared_ptr<const pcre2_real_code_8> code;
    bool jit = false;
  };
  static Result<Code> compile(std::string_view pattern, uint32_t options);
  Regex(Code code, Code newer_code) : code_(std::move(code)), newer_code_(std::move(newer_code)) {}

  Code code_, newer_code_;
};

}  // namespace sluice::tokenizer
