// Keys of callers, as both halves compare them.
#pragma once

#include <string_view>

namespace sluice::protocol {

// True if the texts are equal and there is a secret; takes a time that depends on `given` alone, which whoever tries
// keys knows already.
bool same_secret(std::string_view given, std::string_view secret);

}  // namespace sluice::protocol
