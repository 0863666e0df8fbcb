// Characters that are newer than the Unicode tables of our regular expressions.
#pragma once

#include <string_view>

namespace sluice::tokenizer {

// What to put beside \p{<property>} in a class so that it has the characters that the `tokenizers` package knows: those
// assigned in Unicode 15 and 16. Empty for a property that has none, or is not one of the categories of tokenizers'
// patterns.
std::string_view newer_characters(std::string_view property);

// Whether `text`, valid UTF-8, has any of them.
bool has_newer_characters(std::string_view text);

}  // namespace sluice::tokenizer
