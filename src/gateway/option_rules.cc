// What no row of the table of options can say by itself.
#include <algorithm>
#include <charconv>

#include "gateway/context.h"
#include "gateway/options.h"
#include "obs/trace_exporter.h"

namespace sluice::gateway {

Result<void> validate(const GatewayOptions& options) {
  const auto bad = [](std::string message) { return Error{ErrorCode::kBadOption, std::move(message)}; };
  for (const std::string& url : options.worker_urls) {
    const auto parsed = parse_worker_url(url);
    if (!parsed.ok()) return bad(fmt::format("--worker-urls: {}", parsed.error().message));
  }
  if (options.api_key) {
    if (const auto good = check_api_key(*options.api_key); !good.ok()) return bad("--api-key: " + good.error().message);
  }
  if (options.tls_cert_path.has_value() != options.tls_key_path.has_value()) {
    return bad("--tls-cert-path and --tls-key-path need each other");
  }
  if (options.client_cert_path.has_value() != options.client_key_path.has_value()) {
    return bad("--client-cert-path and --client-key-path need each other");
  }
  if (options.queue_size > 0 && options.queue_timeout_secs == 0) {
    return bad("--queue-timeout-secs must be greater than 0 while --queue-size is");
  }
  if (options.retry_max_backoff_ms < options.retry_initial_backoff_ms) {
    return bad(fmt::format("--retry-max-backoff-ms {} is less than --retry-initial-backoff-ms {}",
                           options.retry_max_backoff_ms, options.retry_initial_backoff_ms));
  }
  if (!options.health_check_endpoint.starts_with('/')) {
    return bad(fmt::format("--health-check-endpoint {} must begin with /", options.health_check_endpoint));
  }
  for (const std::string& pair : options.model_alias) {
    const size_t at = pair.find('=');
    if (at == std::string::npos || at == 0 || at + 1 == pair.size()) {
      return bad(fmt::format("--model-alias {} is not alias=model", pair));
    }
  }
  if (options.api_key && options.api_key->empty()) return bad("--api-key must not be empty");
  if (options.access_log == "off" && !options.access_log_file.empty()) {
    return bad("--access-log-file needs --access-log text or json");
  }
  if (const auto endpoint = obs::parse_trace_endpoint(options.otlp_traces_endpoint); !endpoint.ok()) {
    return bad(fmt::format("--otlp-traces-endpoint: {}", endpoint.error().message));
  }
  return duration_buckets(options).ok() ? Result<void>() : Result<void>(duration_buckets(options).error());
}

Result<std::vector<double>> duration_buckets(const GatewayOptions& options) {
  if (options.prometheus_duration_buckets.empty()) {
    return std::vector<double>{.001, .005, .01, .025, .05, .1,  .25, .5,  1,    2.5,  5,    10,   15,   30,  45,
                               60,   90,   120, 180,  240, 300, 480, 900, 1200, 1800, 2700, 3600, 5400, 7200};
  }
  std::vector<double> bounds;
  for (const std::string& text : options.prometheus_duration_buckets) {
    double bound = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bound);
    if (error != std::errc() || end != text.data() + text.size() || !(bound > 0) || bound > 1e9) {
      return Error{ErrorCode::kBadOption,
                   fmt::format("--prometheus-duration-buckets: {} is not a number of seconds above 0", text)};
    }
    bounds.push_back(bound);
  }
  std::sort(bounds.begin(), bounds.end());
  bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
  return bounds;
}

}  // namespace sluice::gateway
