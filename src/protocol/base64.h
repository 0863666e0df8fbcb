// Binary values in JSON.
#pragma once

#include <bit>
#include <string>
#include <string_view>

namespace sluice::protocol {

static_assert(std::endian::native == std::endian::little, "clients read base64 as little-endian numbers");

// With padding (RFC 4648, section 4).
std::string base64_of(std::string_view bytes);

}  // namespace sluice::protocol
