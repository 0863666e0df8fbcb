// Patterns as Oniguruma's Ruby syntax has them, which tokenizer.json is written in, spelled for PCRE2.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace sluice::tokenizer {

// The members of a class with the letters, marks, digits and connectors of words: \w of Unicode's guidelines (UTS 18)
// but for the two joiners.
extern const std::string_view kWordMembers;

// The pattern for PCRE2 where it means something else there: intersections and unions of classes, \w and \b, \h, \s,
// {n,m}+ and {,m}. `newer`: categories get the characters that are newer than PCRE2's tables (newer_characters.h); \P
// and \D stay as they are, since tokenizers' patterns do not have them. kProtocol for a class that is
// empty, has no end or is nested too deep.
Result<std::string> to_pcre2(std::string_view pattern, bool newer);

}  // namespace sluice::tokenizer
