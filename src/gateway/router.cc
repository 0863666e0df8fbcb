#include "gateway/router.h"

#include <algorithm>

#include "gateway/access_log.h"
#include "gateway/admin.h"
#include "gateway/error_shape.h"
#include "gateway/exchange.h"

namespace sluice::gateway {
namespace {

// Proxied to one worker.
struct Proxied {
  std::string_view path;
  Endpoint endpoint;
  std::string_view id_prefix;
};
constexpr Proxied kProxied[] = {
    {"/generate", Endpoint::kGenerate, "gnt-"},
    {"/v1/chat/completions", Endpoint::kChat, "chatcmpl-"},
    {"/v1/completions", Endpoint::kCompletions, "cmpl-"},
    {"/v1/embeddings", Endpoint::kEmbeddings, "req-"},
    {"/v1/classify", Endpoint::kClassify, "req-"},
    {"/v1/rerank", Endpoint::kRerank, "req-"},
    {"/rerank", Endpoint::kRerank, "req-"},
    {"/v1/responses", Endpoint::kResponses, "resp-"},
    {"/v1/messages", Endpoint::kMessages, "msg_"},
    {"/v1/score", Endpoint::kOther, "req-"},
    {"/encode", Endpoint::kOther, "req-"},
    {"/tokenize", Endpoint::kOther, "req-"},
    {"/v1/tokenize", Endpoint::kOther, "req-"},
    {"/detokenize", Endpoint::kOther, "req-"},
    {"/v1/detokenize", Endpoint::kOther, "req-"},
};

const Proxied* find_proxied(std::string_view path) {
  for (const Proxied& row : kProxied) {
    if (row.path == path) return &row;
  }
  return nullptr;
}

constexpr std::string_view kOther = "other";

// `methods` as "GET, POST".
bool takes(std::string_view methods, std::string_view method) {
  while (!methods.empty()) {
    const size_t comma = methods.find(", ");
    if (methods.substr(0, comma) == method) return true;
    methods = comma == std::string_view::npos ? std::string_view() : methods.substr(comma + 2);
  }
  return false;
}

net::Response body_refusal(const Error& error) {
  switch (error.code) {
    case ErrorCode::kTooLarge:
      return error_response(413, "request_body_too_large", error.message);
    case ErrorCode::kTimeout:
      return error_response(408, "request_body_timeout", error.message);
    default:
      return error_response(400, "bad_request", error.message);
  }
}

std::string_view known_method(std::string_view method) {
  for (const std::string_view known : {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"}) {
    if (method == known) return known;
  }
  return kOther;
}

}  // namespace

Router::Router(Context& context, Gatekeeper gatekeeper, std::vector<std::unique_ptr<LoopState>>& loops)
    : context_(context),
      gatekeeper_(std::move(gatekeeper)),
      loops_(loops),
      active_(context.metrics.gauge("smg_http_connections_active")) {
  context_.gatekeeper = &gatekeeper_;
}

LoopState& Router::state_of(net::EventLoop& loop) {
  const auto at = std::find_if(loops_.begin(), loops_.end(), [&](const auto& state) { return &state->loop == &loop; });
  SLUICE_CHECK(at != loops_.end(), "a request on a loop of somebody else");
  return **at;
}

std::string Router::request_id(const net::RequestHead& head, std::string_view path, LoopState& loop) const {
  for (const std::string& name : context_.options.request_id_headers) {
    const auto value = head.headers.get(name);
    if (value && !value->empty() && value->size() <= 256) return std::string(*value);
  }
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  const Proxied* proxied = find_proxied(path);
  constexpr size_t kRandom = 24;
  std::string id;
  id.reserve(16 + kRandom);
  id += proxied != nullptr ? proxied->id_prefix : "req-";
  // Eight characters of one number: a fraction, of which the digits are taken from the top.
  for (size_t i = 0; i < kRandom / 8; ++i) {
    uint64_t fraction = loop.rng.next();
    for (int digit = 0; digit < 8; ++digit) {
      const auto scaled = static_cast<unsigned __int128>(fraction) * kAlphabet.size();
      id += kAlphabet[static_cast<size_t>(scaled >> 64)];
      fraction = static_cast<uint64_t>(scaled);
    }
  }
  return id;
}

void Router::add_cors(const net::RequestHead& head, net::Headers& headers) const {
  const auto& allowed = context_.options.cors_allowed_origins;
  if (allowed.empty()) {
    headers.add("Access-Control-Allow-Origin", "*");
    headers.add("Access-Control-Expose-Headers", "*");
    return;
  }
  const auto origin = head.headers.get("origin");
  if (!origin || std::find(allowed.begin(), allowed.end(), *origin) == allowed.end()) return;
  headers.add("Access-Control-Allow-Origin", std::string(*origin));
  headers.add("Access-Control-Expose-Headers", "x-request-id");
  headers.add("Vary", "Origin");
}

void Router::log_own_answer(const net::ServerExchange& client, std::string_view id, TimePoint begun,
                            const Exchange::End& end, size_t bytes) const {
  obs::RequestRecord record;
  record.id = id;
  record.status = end.status;
  record.outcome = to_string(end.status == 0 ? Outcome::kClientGone : classify(end.status));
  record.error_code = end.error_code;
  record.answer_bytes = bytes;
  record.took = context_.clock.now() - begun;
  record.started_unix_nanos = context_.clock.unix_nanos() - record.took.count();
  context_.access_log->add(record, client.request(), client.peer_address());
}

net::Task<> Router::handle(net::ServerExchange& client) {
  const TimePoint begun = context_.clock.now();
  LoopState& loop = state_of(client.loop());
  const net::RequestHead& head = client.request();
  const std::string_view path = head.path();
  const Proxied* proxied = find_proxied(path);
  const AdminRoute* admin = proxied != nullptr ? nullptr : find_admin_route(path);
  // Both are literals: labels from a set of ours, whatever clients send.
  const std::string_view label = proxied != nullptr ? proxied->path : admin != nullptr ? admin->label : kOther;
  RouteSeries& series = loop.route(known_method(head.method), label);
  series.requests.add();
  active_.add(1);
  const auto place = loop.live.enter(begun);

  net::Headers extra;
  std::string id = request_id(head, path, loop);
  extra.add("x-request-id", id);
  add_cors(head, extra);

  Exchange::End end;
  net::Response response;
  bool answered_by_exchange = false, is_relayed = false;
  const std::string_view methods = proxied != nullptr ? "POST" : admin != nullptr ? admin->methods : "";
  std::optional<net::Response> refusal = gatekeeper_.refuse(admin != nullptr ? admin->access : Access::kServing, head);
  if (head.method == "OPTIONS" && head.headers.has("access-control-request-method")) {
    response.status = 200;
    const bool any = context_.options.cors_allowed_origins.empty();
    response.headers.add("Access-Control-Allow-Methods", any ? "*" : "GET, POST, PUT, PATCH, DELETE, OPTIONS");
    response.headers.add("Access-Control-Allow-Headers", any ? "*" : "content-type, authorization");
    response.headers.add("Access-Control-Max-Age", "3600");
  } else if (proxied == nullptr && admin == nullptr) {
    response = error_response(404, "unknown_url", fmt::format("there is nothing at {}", path));
  } else if (!takes(methods, head.method)) {
    response = error_response(405, "method_not_allowed", fmt::format("{} takes {}", label, methods));
    response.headers.add("Allow", std::string(methods));
  } else if (refusal) {
    response = std::move(*refusal);
  } else if (proxied != nullptr) {
    Exchange exchange(context_, loop, client, proxied->endpoint, proxied->path, std::move(id), extra);
    end = co_await exchange.run();
    answered_by_exchange = true;
  } else {
    constexpr size_t kSmallBody = size_t{1} << 20;
    const auto limit = static_cast<size_t>(context_.options.max_payload_size);
    auto body = co_await client.read_body(admin->large_body ? limit : std::min(limit, kSmallBody));
    if (body.ok()) {
      const std::string own_path(path);
      AdminCall call{context_, loop, loops_, head, own_path, std::move(body).value()};
      std::function<void()> on_gone = [interruption = call.interruption] { interruption->end(); };
      client.on_client_gone(std::move(on_gone));
      response = co_await answer_admin(call);
      std::function<void()> nothing;
      client.on_client_gone(std::move(nothing));
      is_relayed = call.is_relayed;
    } else {
      response = body_refusal(body.error());
    }
  }
  if (!answered_by_exchange) {
    end.status = response.status;
    // A label of ours, from a set of ours: what a worker puts there goes to the client alone.
    if (!is_relayed) end.error_code = std::string(response.headers.get("X-SMG-Error-Code").value_or(""));
    for (const auto& [name, value] : extra) {
      if (net::iequals(name, "vary")) {
        response.headers.add(name, value);
      } else {
        response.headers.set(name, value);
      }
    }
    end.head_at = context_.clock.now();
    const size_t bytes = response.body.size();
    const auto sent = co_await client.respond(std::move(response));
    if (!sent.ok()) end.status = 0;
    if (context_.access_log != nullptr) log_own_answer(client, *extra.get("x-request-id"), begun, end, bytes);
  }
  active_.add(-1);
  series.duration.observe(seconds(end.head_at.value_or(context_.clock.now()) - begun));
  if (end.status != 0) loop.count_response(label, end.status, end.error_code);
}

}  // namespace sluice::gateway
