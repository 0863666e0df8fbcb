// What the parts of one gateway share.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gateway/admission.h"
#include "gateway/engine_loads.h"
#include "gateway/fleet.h"
#include "gateway/options.h"
#include "gateway/policy/policy.h"
#include "gateway/retry.h"
#include "obs/journal.h"
#include "obs/metrics.h"
#include "routing/prefix_index.h"

namespace sluice::gateway {

class Control;

// Sums of the last 60 s, for sglang_cache_hit_rate (gateway-reference.md 1.4). Any thread.
class HitRate {
 public:
  void add(int64_t hits, int64_t total, TimePoint now);
  // -1 while there is no data.
  double value(TimePoint now) const;

 private:
  struct Part {
    int64_t second = -1000;
    int64_t hits = 0;
    int64_t total = 0;
  };
  mutable std::mutex mutex_;  // guards parts_
  std::array<Part, 60> parts_{};
};

struct Context {
  // `time` outlives this.
  Context(const GatewayOptions& gateway_options, std::vector<double> buckets, const Clock& time);

  const GatewayOptions options;
  const Clock& clock;
  obs::Metrics metrics;
  obs::Journal journal{4096};
  Fleet fleet;
  routing::PrefixIndex index;
  const std::unique_ptr<Policy> policy;
  Admission admission;
  const RetryRules retry;
  RetryBudget retry_budget;
  HitRate predicted;
  HitRate reported;
  EngineLoads engine_loads;
  std::atomic<bool> draining{false};
  Control* control = nullptr;  // set before the first request

  // Into the fleet (or the worker that is there already), with its metric series and under control's eyes. `source`:
  // "static" or "manual". Any thread.
  Result<WorkerPtr> add_worker(const std::string& url, const std::string& api_key, const char* source);
  // A new process behind the URL, or an emptied cache.
  void forget_prefixes(Worker& worker);
};

}  // namespace sluice::gateway
