#include "gateway/error_shape.h"

#include <nlohmann/json.hpp>

#include "net/sse.h"
#include "protocol/json.h"

namespace sluice::gateway {

std::string quoted(std::string_view text) { return protocol::dump(text); }

net::Response error_response(int status, std::string_view code, std::string_view message) {
  auto response =
      net::Response::json(status, fmt::format(R"({{"error":{{"type":{},"code":{},"message":{},"param":null}}}})",
                                              quoted(net::reason_phrase(status)), quoted(code), quoted(message)));
  response.headers.set("X-SMG-Error-Code", std::string(code));
  return response;
}

std::string stream_error_event(std::string_view message) {
  std::string event;
  net::append_sse(event, fmt::format(R"({{"error":{{"message":{},"type":"stream_error"}}}})", quoted(message)));
  return event;
}

}  // namespace sluice::gateway
