#include "gateway/worker_rules.h"

#include <algorithm>
#include <iterator>
#include <type_traits>

namespace sluice::gateway {
namespace {

using R = WorkerRules;

// The bounds are those of the options.
constexpr WorkerRule kRules[] = {
    {"health", "timeout_secs", "health_check_timeout_secs", &R::timeout_secs, 1, 1e9},
    {"health", "check_interval_secs", "health_check_interval_secs", &R::check_interval_secs, 1, 1e9},
    {"health", "success_threshold", "health_success_threshold", &R::success_threshold, 1, 1e9},
    {"health", "failure_threshold", "health_failure_threshold", &R::failure_threshold, 1, 1e9},
    {"health", "disable_health_check", "disable_health_check", &R::disable_health_check},
    {"health", "drain_settle_secs", "", &R::drain_settle_secs, 0, 1e6},
    {"resilience", "max_retries", "", &R::max_retries, 1, 1000},
    {"resilience", "initial_backoff_ms", "", &R::initial_backoff_ms, 0, 1e9},
    {"resilience", "max_backoff_ms", "", &R::max_backoff_ms, 0, 1e9},
    {"resilience", "backoff_multiplier", "", &R::backoff_multiplier, 1, 1000},
    {"resilience", "jitter_factor", "", &R::jitter_factor, 0, 1},
    {"resilience", "disable_retry", "", &R::disable_retry},
    {"resilience", "cb_failure_threshold", "", &R::cb_failure_threshold, 1, 1e9},
    {"resilience", "cb_success_threshold", "", &R::cb_success_threshold, 1, 1e9},
    {"resilience", "cb_timeout_secs", "", &R::cb_timeout_secs, 1, 1e9},
    {"resilience", "cb_window_secs", "", &R::cb_window_secs, 1, 1e9},
    {"resilience", "disable_circuit_breaker", "", &R::disable_circuit_breaker},
};

}  // namespace

WorkerRules WorkerRules::from(const GatewayOptions& options) {
  return {.timeout_secs = options.health_check_timeout_secs,
          .check_interval_secs = options.health_check_interval_secs,
          .success_threshold = options.health_success_threshold,
          .failure_threshold = options.health_failure_threshold,
          .disable_health_check = options.disable_health_check,
          .drain_settle_secs = options.drain_settle_secs,
          .max_retries = options.retry_max_retries,
          .initial_backoff_ms = options.retry_initial_backoff_ms,
          .max_backoff_ms = options.retry_max_backoff_ms,
          .backoff_multiplier = options.retry_backoff_multiplier,
          .jitter_factor = options.retry_jitter_factor,
          .disable_retry = options.disable_retries,
          .cb_failure_threshold = options.cb_failure_threshold,
          .cb_success_threshold = options.cb_success_threshold,
          .cb_timeout_secs = options.cb_timeout_duration_secs,
          .cb_window_secs = options.cb_window_duration_secs,
          .disable_circuit_breaker = options.disable_circuit_breaker};
}

HealthRules WorkerRules::health() const {
  return {.failures = failure_threshold,
          .successes = success_threshold,
          .interval = std::chrono::seconds(check_interval_secs)};
}

RetryRules WorkerRules::retry() const {
  return {.attempts = disable_retry ? 1 : max_retries,
          .initial = std::chrono::milliseconds(initial_backoff_ms),
          .longest = std::chrono::milliseconds(max_backoff_ms),
          .multiplier = backoff_multiplier,
          .jitter = jitter_factor};
}

BreakerRules WorkerRules::breaker() const {
  return {.failure_threshold = cb_failure_threshold,
          .success_threshold = cb_success_threshold,
          .open_time = std::chrono::seconds(cb_timeout_secs),
          .window = std::chrono::seconds(cb_window_secs),
          .enabled = !disable_circuit_breaker};
}

double WorkerRule::of(const WorkerRules& rules) const {
  return std::visit([&](auto member) { return static_cast<double>(rules.*member); }, field);
}

void WorkerRule::set(WorkerRules& rules, double value) const {
  std::visit([&](auto member) { rules.*member = static_cast<std::remove_cvref_t<decltype(rules.*member)>>(value); },
             field);
}

std::span<const WorkerRule> worker_rules() { return kRules; }

const WorkerRule* find_worker_rule(std::string_view group, std::string_view name) {
  const auto at = std::ranges::find_if(kRules, [&](const WorkerRule& rule) {
    return group.empty() ? !rule.flat.empty() && rule.flat == name : rule.group == group && rule.name == name;
  });
  return at == std::end(kRules) ? nullptr : &*at;
}

void apply(const WorkerRuleChanges& changes, WorkerRules& rules) {
  for (const auto& [name, value] : changes) {
    const size_t dot = name.find('.');
    if (dot == std::string::npos) continue;
    const WorkerRule* rule = find_worker_rule(std::string_view(name).substr(0, dot), name.substr(dot + 1));
    if (rule != nullptr) rule->set(rules, value);
  }
}

}  // namespace sluice::gateway
