// Who may call what.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gateway/options.h"
#include "net/http.h"

namespace sluice::gateway {

// kServing wants --api-key; kControl a control-plane key with the role admin where there are such keys, else --api-key;
// kPublic nothing.
enum class Access : uint8_t { kServing, kPublic, kControl };

class Gatekeeper {
 public:
  // The control-plane keys are those of --control-plane-api-keys, or where there are none those of `environment`, the
  // value of CONTROL_PLANE_API_KEYS: separated by commas or white space. kBadOption for one that is malformed, which
  // the message names by its place and never by its text.
  static Result<Gatekeeper> from(const GatewayOptions& options, const char* environment);

  // The answer to a request that may not pass; none if it may.
  std::optional<net::Response> refuse(Access access, const net::RequestHead& head) const;
  // Whether the request carries a key of the control plane, of whatever role: that is for nobody but this gateway.
  bool has_control_key(const net::RequestHead& head) const;

 private:
  struct ControlKey {
    bool is_admin = false;
    std::string secret;
  };
  static Result<ControlKey> parse_key(std::string_view text, size_t place);
  std::optional<net::Response> refuse_control(std::optional<std::string_view> token) const;

  // Constant after construction.
  std::optional<std::string> api_key_;
  std::vector<ControlKey> control_keys_;
};

}  // namespace sluice::gateway
