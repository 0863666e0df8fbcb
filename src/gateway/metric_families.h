// Every metric family that the gateway shows; docs/metrics.md has the same list for operators, and a test compares
// them.
#pragma once

#include <vector>

#include "obs/metrics.h"

namespace sluice::gateway {

// `buckets`: of the histograms of durations. Who moves each: gateway/router (smg_http_*), gateway/exchange and
// gateway/loop_state (smg_router_*, what a choice and a worker did), gateway/control (health, loads, registrations),
// gateway/gateway (gauges). `by_model`: the hit rate of each model is shown by itself.
std::vector<obs::Family> metric_families(const std::vector<double>& buckets, bool by_model = false);

}  // namespace sluice::gateway
