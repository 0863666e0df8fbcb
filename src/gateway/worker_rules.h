// What holds for one worker: the options of the gateway, and in their place what its registration says (the groups
// "health" and "resilience" of a body of /workers, and the older names beside them).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "gateway/breaker.h"
#include "gateway/health.h"
#include "gateway/options.h"
#include "gateway/retry.h"

namespace sluice::gateway {

// As in the bodies, with the defaults of the options.
struct WorkerRules {
  int64_t timeout_secs = 5;  // of a health check
  int64_t check_interval_secs = 60;
  int64_t success_threshold = 2;
  int64_t failure_threshold = 3;
  bool disable_health_check = false;
  int64_t drain_settle_secs = 5;

  // Of the requests of a model those of its first worker hold: which worker will get one is not known before.
  int64_t max_retries = 5;
  int64_t initial_backoff_ms = 50;
  int64_t max_backoff_ms = 30'000;
  double backoff_multiplier = 1.5;
  double jitter_factor = 0.2;
  bool disable_retry = false;

  int64_t cb_failure_threshold = 10;
  int64_t cb_success_threshold = 3;
  int64_t cb_timeout_secs = 60;
  int64_t cb_window_secs = 120;
  bool disable_circuit_breaker = false;

  static WorkerRules from(const GatewayOptions& options);
  HealthRules health() const;
  RetryRules retry() const;
  BreakerRules breaker() const;
};

// One of them.
struct WorkerRule {
  std::string_view group;
  std::string_view name;  // in its group
  std::string_view flat;  // beside the groups; empty = it has no such name
  std::variant<int64_t WorkerRules::*, double WorkerRules::*, bool WorkerRules::*> field;
  double least = 0, most = 1;

  double of(const WorkerRules& rules) const;
  void set(WorkerRules& rules, double value) const;
};
std::span<const WorkerRule> worker_rules();
// Null if there is none. `name` in `group`, or, with an empty group, beside the groups.
const WorkerRule* find_worker_rule(std::string_view group, std::string_view name);

// What a registration says, by "group.name"; true is 1. Names that are no rule's change nothing.
using WorkerRuleChanges = std::map<std::string, double>;
void apply(const WorkerRuleChanges& changes, WorkerRules& rules);

}  // namespace sluice::gateway
