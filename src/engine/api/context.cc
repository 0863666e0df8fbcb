#include "engine/api/context.h"

#include <algorithm>

#include "base/machine.h"
#include "protocol/errors.h"
#include "protocol/fields.h"

namespace sluice::engine {
namespace {

// Tokenizing is a small part of serving, and the cores belong to the ranks.
size_t pool_threads() { return static_cast<size_t>(std::clamp<int64_t>(usable_cores() / 4, 1, 4)); }

protocol::SamplingDefaults defaults_of(const models::ModelConfig& config) {
  protocol::SamplingDefaults out;
  out.temperature = config.temperature.value_or(out.temperature);
  out.top_p = config.top_p.value_or(out.top_p);
  out.top_k = config.top_k.value_or(out.top_k);
  if (out.top_k == 0) out.top_k = -1;  // generation configs say 0 for "all"
  out.min_p = config.min_p.value_or(out.min_p);
  out.repetition_penalty = config.repetition_penalty.value_or(out.repetition_penalty);
  return out;
}

}  // namespace

RankLabels rank_labels(const ApiSettings& settings, const ServedModel& model) {
  return {model.name, static_cast<size_t>(settings.dp_size), settings.own_dp_rank, settings.layout};
}

ApiContext::ApiContext(ApiSettings s, ServedModel m, Backend& b, obs::Metrics& me)
    : settings(std::move(s)),
      model(std::move(m)),
      chat_defaults(defaults_of(model.config)),
      clock(real_clock()),
      started_at(unix_seconds()),
      backend(b),
      metrics(me),
      request_metrics(me, model.name, rank_labels(settings, model), clock, settings.labels),
      tracer(settings.traces, clock, settings.trace_level),
      pool(pool_threads()),
      prompts(model.tokenizer),
      responses(settings.stored_responses),
      rng_(random_seed()),
      model_path_(model.path),
      weight_version_(settings.weight_version) {}

std::string ApiContext::model_path() {
  const std::lock_guard lock(mu_);
  return model_path_;
}

std::string ApiContext::weight_version() {
  const std::lock_guard lock(mu_);
  return weight_version_;
}

void ApiContext::set_weights(std::string path, std::string version) {
  const std::lock_guard lock(mu_);
  model_path_ = std::move(path);
  if (!version.empty()) weight_version_ = std::move(version);
}

void ApiContext::set_weight_version(std::string version) {
  const std::lock_guard lock(mu_);
  weight_version_ = std::move(version);
}

LengthLimits ApiContext::limits() {
  {
    const std::lock_guard lock(mu_);
    if (limits_.context_length > 0) return limits_;
  }
  for (const auto& rank : backend.ranks()) {
    if (rank.info.context_length == 0) continue;
    const std::lock_guard lock(mu_);
    limits_ = {rank.info.context_length, rank.info.max_req_input_len - 1};
    return limits_;
  }
  return {};
}

std::string ApiContext::new_rid() {
  const std::lock_guard lock(mu_);
  const uint64_t high = rng_.next();
  return fmt::format("{:016x}{:016x}", high, rng_.next());
}

net::Task<std::optional<std::string>> read_body(ApiCall& call) {
  auto body = co_await call.exchange.read_body(kMaxBodyBytes);
  if (call.trace != nullptr) call.trace->body_read();
  if (body.ok()) co_return std::move(*body);
  co_await answer_error(call, body.error());
  co_return std::nullopt;
}

net::Task<> answer(ApiCall& call, net::Response response) {
  call.status = response.status;
  // A client that has left is not told.
  const auto sent = co_await call.exchange.respond(std::move(response));
  (void)sent;
}

net::Task<> answer_made(ApiCall& call, Result<net::Response> made) {
  if (made.ok()) {
    co_await answer(call, std::move(*made));
  } else {
    co_await answer_error(call, made.error());
  }
}

net::Task<> answer_error(ApiCall& call, const Error& error) {
  co_await answer(call, error_response(protocol::http_status(error.code), error.message));
}

net::Response error_response(int status, std::string_view message, std::string_view reason) {
  return net::Response::json(status, protocol::error_body(status, message, reason));
}

net::Response json_response(const nlohmann::ordered_json& document) {
  return net::Response::json(200, protocol::dump(document));
}

net::Task<> answer_from_body(ApiCall& call,
                             Result<nlohmann::ordered_json> (*make)(ApiContext&, std::string_view body)) {
  const auto text = co_await read_body(call);
  if (!text) co_return;
  const auto made = co_await run_off_loop(call, text->size(), [&] { return make(call.api, *text); });
  if (made.ok()) {
    co_await answer(call, json_response(*made));
  } else {
    co_await answer_error(call, made.error());
  }
}

}  // namespace sluice::engine
