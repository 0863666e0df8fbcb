// Errors that the gateway itself makes: one shape, and the code in a header too.
// Messages name phases and workers' ids, never URLs or keys.
#pragma once

#include <string>
#include <string_view>

#include "net/http.h"

namespace sluice::gateway {

// {"error":{"type":<reason phrase>,"code":code,"message":message,"param":null}} with X-SMG-Error-Code.
net::Response error_response(int status, std::string_view code, std::string_view message);
// `data: {"error":{"message":...,"type":"stream_error"}}`, the last event of a stream whose worker broke.
std::string stream_error_event(std::string_view message);
// A JSON string literal.
std::string quoted(std::string_view text);

}  // namespace sluice::gateway
