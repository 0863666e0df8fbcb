// How far two texts are the same, in bytes and in whole characters.
#pragma once

#include <cstddef>
#include <string_view>

namespace sluice::routing {

size_t common_prefix(std::string_view a, std::string_view b);
// `length` moved back to the start of the UTF-8 character that it cuts, if it cuts one. What is no UTF-8 is cut
// anywhere.
size_t whole_characters(std::string_view text, size_t length);

}  // namespace sluice::routing
