#include "engine/http_api.h"

#include <algorithm>
#include <cstdlib>
#include <span>

#include "base/check.h"
#include "base/log.h"
#include "engine/api/context.h"
#include "engine/api/rank_metrics.h"
#include "engine/api/routes.h"
#include "engine/deterministic.h"
#include "engine/grammar/grammar.h"
#include "engine/layout_options.h"
#include "engine/server_environment.h"
#include "net/tls.h"
#include "obs/trace_exporter.h"
#include "protocol/errors.h"
#include "protocol/secret.h"

namespace sluice::engine {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

ServerEnvironment checked_environment() {
  auto environment = server_environment();
  SLUICE_CHECK(environment.ok(), "{}", environment.error().message);  // a Front has refused it
  return std::move(environment).value();
}

nlohmann::ordered_json public_args(const EngineOptions& options) {
  const auto all = engine_options_to_json(options);
  auto out = nlohmann::ordered_json::object();
  for (const auto& [name, value] : all.items()) {
    if (name != "api_key" && name != "admin_api_key" && name != "ssl_keyfile_password") out[name] = value;
  }
  out["grammar_backend"] = grammar_backend(options);
  return out;
}

ApiSettings settings_of(const EngineOptions& options) {
  ApiSettings out;
  out.weight_version = options.weight_version;
  out.api_key = options.api_key;
  out.admin_api_key = options.admin_api_key;
  out.dp_size = options.dp_size;
  out.layout = layout_of(options, 0);
  out.stream_interval = options.stream_interval;
  out.seed = common_seed(options);
  out.allow_auto_truncate = options.allow_auto_truncate;
  out.stream_output = options.stream_output;
  out.report_cached = !options.disable_cache_report;
  out.metrics = options.enable_metrics;
  out.labels = options.tokenizer_metrics_allowed_custom_labels;
  out.labels_header = options.tokenizer_metrics_custom_labels_header;
  out.embedding = options.is_embedding;
  out.hidden_states = options.enable_return_hidden_states;
  out.routed_experts = options.enable_return_routed_experts;
  if (find_grammar_backend("xgrammar") == nullptr) {
    out.why_no_grammar = "this build is without grammars (SLUICE_GRAMMAR=OFF)";
  } else if (grammar_backend(options) == "none") {
    out.why_no_grammar = "the server runs with --grammar-backend none";
  }
  const ServerEnvironment environment = checked_environment();
  out.health_generates = environment.health_generates;
  out.health_timeout = environment.health_timeout;
  out.trace_level = environment.trace_level;
  if (auto rank = variable("SGLANG_DP_RANK"); !rank.empty()) out.own_dp_rank = std::move(rank);
  if (options.reasoning_parser) out.reasoning_format = parsers::find_reasoning_format(*options.reasoning_parser);
  if (options.tool_call_parser) out.tool_call_format = parsers::find_tool_call_format(*options.tool_call_parser);
  out.stored_responses = {.count = static_cast<size_t>(options.max_stored_responses),
                          .bytes = static_cast<size_t>(options.max_stored_response_mb) << 20};
  out.server_args = public_args(options);
  return out;
}

constexpr std::string_view kLatency = "sglang:func_latency_seconds";

obs::Family latency_family() {
  obs::Family out{.name = kLatency,
                  .help = "Time in the functions that serve endpoints.",
                  .kind = obs::Kind::kHistogram,
                  .labels = {"name"}};
  for (double bound = 0.05; out.buckets.size() < 18; bound *= 1.5) out.buckets.push_back(bound);
  return out;
}

std::vector<obs::Family> store_families() {
  return {
      {.name = "sluice:stored_responses", .help = "Responses that can be asked for again.", .kind = obs::Kind::kGauge},
      {.name = "sluice:stored_response_bytes", .help = "Memory that they take.", .kind = obs::Kind::kGauge},
      {.name = "sluice:dropped_responses_total", .help = "Responses that were dropped to make room for others."}};
}

constexpr std::string_view kTraces = "sluice:traces_total";

std::shared_ptr<obs::TraceExporter> exporter_of(const EngineOptions& options, obs::Metrics& metrics,
                                                std::shared_ptr<net::TlsContext> tls) {
  if (!options.enable_trace) return nullptr;
  auto endpoint = obs::parse_trace_endpoint(options.otlp_traces_endpoint);
  SLUICE_CHECK(endpoint.ok(), "--otlp-traces-endpoint has not been checked: {}", options.otlp_traces_endpoint);
  const auto counter = [&](const char* result) { return metrics.counter(kTraces, {result}); };
  return std::make_shared<obs::TraceExporter>(
      std::move(*endpoint), obs::trace_service_name("sglang"),
      obs::TraceExporter::Counters{counter("exported"), counter("queue_full"), counter("failed")},
      obs::TraceExporter::Timing{}, std::move(tls));
}

ApiSettings with_traces(ApiSettings settings, std::shared_ptr<obs::TraceExporter> traces) {
  settings.traces = std::move(traces);
  return settings;
}

bool authorized(const ApiSettings& settings, Access access, const net::Headers& headers) {
  if (access == Access::kOpen) return true;
  const auto& key = access == Access::kAdmin && settings.admin_api_key ? settings.admin_api_key : settings.api_key;
  if (!key) return true;
  constexpr std::string_view kBearer = "Bearer ";
  const auto given = headers.get("authorization");
  return given && given->starts_with(kBearer) && protocol::same_secret(given->substr(kBearer.size()), *key);
}

bool is_json(const net::Headers& headers) {
  auto type = headers.get("content-type").value_or("");
  type = type.substr(0, type.find(';'));
  while (type.ends_with(' ')) type.remove_suffix(1);
  return net::iequals(type, "application/json");
}

std::string comma_separated(std::string_view methods) {
  std::string out;
  for (const char c : methods) out += c == ' ' ? std::string(", ") : std::string(1, c);
  return out;
}

// What keeps a call from its endpoint, if anything does.
std::optional<net::Response> obstacle(const ApiSettings& settings, const net::RequestHead& head, const Route* route) {
  const auto path = head.path();
  if (route == nullptr) {
    if (path == "/get_weight_version") return error_response(404, "the weight version is in /model_info");
    return error_response(404, fmt::format("there is nothing at {}", path.substr(0, 200)));
  }
  if (head.method == "OPTIONS" || !allows(*route, head.method)) {
    auto response = head.method == "OPTIONS"
                        ? net::Response{.status = 204, .headers = {}, .body = ""}
                        : error_response(405, fmt::format("{} takes {}, not {}", route->path,
                                                          comma_separated(route->methods), head.method.substr(0, 20)));
    response.headers.set("Allow", comma_separated(route->methods));
    return response;
  }
  if (!authorized(settings, route->access, head.headers)) {
    auto response = net::Response::json(401, protocol::auth_error_body(401));
    response.headers.set("WWW-Authenticate", "Bearer");
    return response;
  }
  if (route->serve == nullptr) return error_response(501, fmt::format("{} {}", path.substr(0, 200), route->why));
  if (route->json_only && !is_json(head.headers)) {
    return error_response(400, "Unsupported Media Type: Only 'application/json' is allowed");
  }
  return std::nullopt;
}

}  // namespace

class HttpApi::Impl {
 public:
  Impl(const EngineOptions& options, ServedModel model, Backend& backend, obs::Metrics& metrics,
       std::shared_ptr<net::TlsContext> traces)
      : ranks_(metrics, backend, rank_labels(settings_of(options), model),
               {.page_size = options.page_size,
                .states = model.config.lightning.has_value(),
                .prefill_delayer = options.enable_prefill_delayer,
                .expert_ranks = options.enable_eplb ? options.ep_size : 0,
                .cooperation = checked_environment().metrics_of_cooperation}),
        api_(with_traces(settings_of(options), exporter_of(options, metrics, std::move(traces))), std::move(model),
             backend, metrics),
        stored_(metrics.gauge("sluice:stored_responses")),
        stored_bytes_(metrics.gauge("sluice:stored_response_bytes")),
        dropped_(metrics.counter("sluice:dropped_responses_total")),
        refresh_(metrics.before_render([this] { show_store(); })) {}
  ~Impl() { stop(); }

  void stop() {
    const auto lost = api_.responses.going_on();
    api_.background.stop();
    if (lost.empty()) return;
    constexpr size_t kNamed = 8;
    SLUICE_LOG(warn, "engine/http_api", "{} responses in the background end with the server: {}{}", lost.size(),
               fmt::join(std::span(lost).first(std::min(kNamed, lost.size())), ", "),
               lost.size() > kNamed ? ", ..." : "");
  }

  net::Task<> handle(net::ServerExchange& exchange) {
    const Route* route = find_route(exchange.request().path());
    ApiCall call{api_, exchange};
    if (auto response = obstacle(api_.settings, exchange.request(), route)) {
      co_await answer(call, std::move(*response));
      co_return;
    }
    const TimePoint begun = api_.clock.now();
    if (route->traced) call.trace = api_.tracer.begin(exchange.request(), route->path);
    co_await route->serve(call);
    if (api_.settings.metrics) {
      api_.metrics.histogram(kLatency, {std::string(route->path)}).observe(seconds(api_.clock.now() - begun));
    }
    if (call.trace != nullptr) call.trace->answered(call.status == 0 && exchange.started() ? 200 : call.status);
  }

  void set_status(ServerStatus status) { api_.status = status; }

 private:
  void show_store() {
    const auto size = api_.responses.size();
    stored_.set(static_cast<double>(size.count));
    stored_bytes_.set(static_cast<double>(size.bytes));
    dropped_.add(static_cast<double>(size.dropped) - dropped_.value());
  }

  RankMetrics ranks_;
  ApiContext api_;
  obs::Gauge stored_, stored_bytes_;
  obs::Counter dropped_;
  std::shared_ptr<void> refresh_;
};

HttpApi::HttpApi(const EngineOptions& options, ServedModel model, Backend& backend, obs::Metrics& metrics,
                 std::shared_ptr<net::TlsContext> traces) {
  metrics.declare(
      request_families(rank_labels(settings_of(options), model), options.tokenizer_metrics_allowed_custom_labels));
  metrics.declare({latency_family()});
  metrics.declare(store_families());
  metrics.declare({{.name = kTraces, .help = "Traces of requests, by what became of them.", .labels = {"result"}}});
  impl_ = std::make_unique<Impl>(options, std::move(model), backend, metrics, std::move(traces));
}
HttpApi::~HttpApi() = default;

net::Handler HttpApi::handler() {
  return [impl = impl_.get()](net::ServerExchange& exchange) { return impl->handle(exchange); };
}

void HttpApi::stop() { impl_->stop(); }

void HttpApi::set_status(ServerStatus status) { impl_->set_status(status); }

}  // namespace sluice::engine
