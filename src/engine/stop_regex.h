// Ends an answer where a regular expression of the client matches.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

struct pcre2_real_code_8;

namespace sluice::engine {

// The expressions of one request. Used by one thread.
class StopRegexes {
 public:
  // Bytes at the end of the answer in which they are looked for.
  static constexpr size_t kTail = 1024;

  // kInvalidArgument, naming stop_regex and the place in the pattern.
  static Result<StopRegexes> compile(const std::vector<std::string>& patterns);

  // The first pattern that matches somewhere in `tail`, from `from` on: what is before it is looked back at, and the
  // answer began there or earlier. Null: none does. What takes too many steps to find out, all patterns together, does
  // not match.
  const std::string* find(std::string_view tail, size_t from = 0) const;

 private:
  struct Pattern {
    std::string text;
    std::shared_ptr<const pcre2_real_code_8> code;
  };
  std::vector<Pattern> patterns_;
};

}  // namespace sluice::engine
