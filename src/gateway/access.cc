#include "gateway/access.h"

#include "protocol/secret.h"

namespace sluice::gateway {
namespace {

std::optional<std::string_view> bearer_token(const net::RequestHead& head) {
  constexpr std::string_view kScheme = "Bearer ";
  const auto value = head.headers.get("authorization");
  if (!value || !value->starts_with(kScheme)) return std::nullopt;
  return value->substr(kScheme.size());
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const size_t end = text.find_first_of(", \t\r\n");
    if (end != 0) words.emplace_back(text.substr(0, end));
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  }
  return words;
}

net::Response refusal(int status, std::string text, std::string_view challenge) {
  auto response = text.empty() ? net::Response{status, {}, ""} : net::Response::text(status, std::move(text));
  if (!challenge.empty()) response.headers.add("WWW-Authenticate", std::string(challenge));
  return response;
}

constexpr std::string_view kControlChallenge = R"(Bearer realm="control-plane")";

}  // namespace

Result<Gatekeeper::ControlKey> Gatekeeper::parse_key(std::string_view text, size_t place) {
  const Error malformed{
      ErrorCode::kBadOption,
      fmt::format("--control-plane-api-keys: key {} is not id:name:role:key with role admin or user", place)};
  std::string_view parts[3];
  for (std::string_view& part : parts) {
    const size_t colon = text.find(':');
    if (colon == 0 || colon == std::string_view::npos) return malformed;
    part = text.substr(0, colon);
    text.remove_prefix(colon + 1);
  }
  const std::string_view role = parts[2];
  if ((role != "admin" && role != "user") || text.empty()) return malformed;
  return ControlKey{role == "admin", std::string(text)};
}

Result<Gatekeeper> Gatekeeper::from(const GatewayOptions& options, const char* environment) {
  Gatekeeper keeper;
  keeper.api_key_ = options.api_key;
  std::vector<std::string> texts = options.control_plane_api_keys;
  if (texts.empty() && environment != nullptr) texts = words_of(environment);
  for (size_t i = 0; i < texts.size(); ++i) {
    SLUICE_TRY(ControlKey key, parse_key(texts[i], i + 1));
    keeper.control_keys_.push_back(std::move(key));
  }
  return keeper;
}

std::optional<net::Response> Gatekeeper::refuse(Access access, const net::RequestHead& head) const {
  if (access == Access::kPublic) return std::nullopt;
  if (access == Access::kControl && !control_keys_.empty()) return refuse_control(bearer_token(head));
  if (!api_key_) return std::nullopt;
  const auto token = bearer_token(head);
  if (token && protocol::same_secret(*token, *api_key_)) return std::nullopt;
  return refusal(401, "", "Bearer");
}

bool Gatekeeper::has_control_key(const net::RequestHead& head) const {
  if (control_keys_.empty()) return false;
  const auto token = bearer_token(head);
  bool known = false;
  for (const ControlKey& key : control_keys_) known = (token && protocol::same_secret(*token, key.secret)) || known;
  return known;
}

std::optional<net::Response> Gatekeeper::refuse_control(std::optional<std::string_view> token) const {
  if (!token) return refusal(401, "Missing or invalid Authorization header", kControlChallenge);
  // All of them, so that the time does not tell which one was near.
  bool known = false, is_admin = false;
  for (const ControlKey& key : control_keys_) {
    const bool same = protocol::same_secret(*token, key.secret);
    known = known || same;
    is_admin = is_admin || (same && key.is_admin);
  }
  if (!known) return refusal(401, "Invalid control plane API key", kControlChallenge);
  if (!is_admin) return refusal(403, "Admin role required for control plane access", "");
  return std::nullopt;
}

}  // namespace sluice::gateway
