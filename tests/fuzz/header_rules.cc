// What a gateway passes on of a head, in both directions, and what it reads of Retry-After.
#include <algorithm>

#include "fuzz.h"
#include "gateway/forward.h"
#include "gateway/outcome.h"

using namespace sluice;

namespace {

// Lines "Name:value", without the blanks around the value.
net::Headers headers_of(std::string_view text) {
  net::Headers headers;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const size_t colon = line.find(':');
    if (colon == 0 || colon == std::string_view::npos) continue;
    headers.add(std::string(line.substr(0, colon)), std::string(line.substr(colon + 1)));
  }
  return headers;
}

size_t count(const net::Headers& headers, std::string_view name) {
  return static_cast<size_t>(
      std::ranges::count_if(headers, [&](const auto& field) { return net::iequals(field.first, name); }));
}

bool holds(const net::Headers& headers, const net::Headers::Field& field) {
  return std::ranges::find(headers, field) != headers.end();
}

bool stays_on_its_connection(const net::Headers& headers, std::string_view name) {
  return !net::iequals(name, "trailer") && (net::is_hop_by_hop(name) || headers.has_token("connection", name));
}

void check_upstream(const net::Headers& fields, std::string_view key, int64_t rank, bool has_body) {
  const net::RequestHead client{.method = "POST", .target = "/generate?x=1", .headers = fields};
  const net::RequestHead head = gateway::upstream_head(client, key, rank, has_body);
  FUZZ_CHECK(head.method == client.method && head.target == client.target, "the first line stays");
  for (const char* name :
       {"transfer-encoding", "content-length", "host", "keep-alive", "upgrade", "trailer", "expect"}) {
    FUZZ_CHECK(count(head.headers, name) == 0, "what is of one connection stays there");
  }
  const bool has_key = !key.empty() || fields.has("authorization");
  FUZZ_CHECK(count(head.headers, "authorization") == (has_key ? 1 : 0), "there is one key");
  if (!key.empty()) {
    FUZZ_CHECK(head.headers.get("authorization") == "Bearer " + std::string(key), "the worker's key is sent");
  }
  FUZZ_CHECK(count(head.headers, "connection") <= 1 && head.headers.get("connection").value_or("TE") == "TE",
             "the connection is ours");
  if (has_body) FUZZ_CHECK(count(head.headers, "content-type") >= 1, "a body has a type");
  constexpr std::string_view kDecided[] = {"host",          "content-length", "expect",
                                           "authorization", "http2-settings", "trailer"};
  for (const auto& field : fields) {
    const std::string_view name = field.first;
    const bool decided = std::ranges::any_of(kDecided, [&](auto known) { return net::iequals(known, name); }) ||
                         net::iequals(name, gateway::kRankHeader);
    if (!decided && !stays_on_its_connection(fields, name)) FUZZ_CHECK(holds(head.headers, field), "the rest goes on");
  }
}

void check_relayed(const net::Headers& fields) {
  const net::Headers ours{{"x-request-id", "1"}, {"Vary", "Origin"}};
  const net::Headers relayed = gateway::relayed_headers(fields, ours);
  for (const auto& field : relayed) {
    FUZZ_CHECK(holds(fields, field), "nothing is invented");
    FUZZ_CHECK(!stays_on_its_connection(fields, field.first), "what is of one connection stays there");
    FUZZ_CHECK(!net::iequals(field.first, "content-length"), "the length is decided by who writes");
  }
  for (const auto& field : fields) {
    const bool left = stays_on_its_connection(fields, field.first) || net::iequals(field.first, "content-length") ||
                      net::iequals(field.first, "x-request-id");
    FUZZ_CHECK(left || holds(relayed, field), "the rest goes on");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t choice = input.byte();
  const int status = 100 + input.byte() * 2;
  const std::string_view text = input.rest();
  const net::Headers fields = headers_of(text);
  check_upstream(fields, choice & 1 ? "secret" : "", choice & 2 ? choice : -1, (choice & 4) != 0);
  check_relayed(fields);

  const auto after = gateway::retry_after(fields);
  const auto value = fields.get("retry-after");
  FUZZ_CHECK(!after || value, "no answer without the field");
  if (after) FUZZ_CHECK(*after >= Duration::zero() && *after <= std::chrono::hours(24), "a wait has bounds");
  const bool digits = value && !value->empty() && value->size() <= 4 &&
                      std::ranges::all_of(*value, [](char c) { return c >= '0' && c <= '9'; });
  if (digits) FUZZ_CHECK(after == std::chrono::seconds(std::stoi(std::string(*value))), "seconds are read");
  const auto outcome = gateway::classify(status, fields, text);
  FUZZ_CHECK(status >= 400 || outcome == gateway::Outcome::kOk, "only errors are judged");
  return 0;
}
