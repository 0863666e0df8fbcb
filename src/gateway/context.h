// What the parts of one gateway share.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/admission.h"
#include "gateway/certificates.h"
#include "gateway/engine_loads.h"
#include "gateway/fleet.h"
#include "gateway/options.h"
#include "gateway/policy/policy.h"
#include "gateway/retry.h"
#include "obs/journal.h"
#include "obs/metrics.h"
#include "routing/prefix_index.h"

namespace sluice::obs {
class TraceExporter;
}

namespace sluice::gateway {

class AccessLog;
class Control;
class Gatekeeper;
class KvCaches;

// Sums of the last 60 s, for sglang_cache_hit_rate. Any thread.
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

// What the index says, and what the engines do.
struct HitRates {
  HitRate predicted, reported;
};

// As net::parse_url(); kInvalidArgument also of a list of several, and of a mere word, which is more likely a mistake
// than a host on port 80.
Result<net::Url> parse_worker_url(std::string_view text);
// kInvalidArgument unless it is printable ASCII, which an empty one is.
Result<void> check_api_key(std::string_view api_key);

struct Context {
  // `time` outlives this.
  Context(const GatewayOptions& gateway_options, std::vector<double> buckets, const Clock& time,
          Certificates loaded_certificates = {});
  ~Context();

  const GatewayOptions options;
  const Certificates certificates;
  const Clock& clock;
  obs::Metrics metrics;
  obs::Journal journal{4096};
  Fleet fleet;
  routing::PrefixIndex index;
  const std::unique_ptr<Policy> policy;
  const std::map<std::string, std::string, std::less<>> model_aliases;
  Admission admission;
  const RetryRules retry;
  RetryBudget retry_budget;
  HitRates hits;  // of all requests
  EngineLoads engine_loads;
  std::atomic<bool> draining{false};
  std::atomic<bool> bequeathed{false};  // a successor has the fleet as it is: nobody may change it
  std::atomic<bool> some_busy{false};   // a worker's window may be narrowed; gateway/liveness widens it
  // Set before the first request.
  Control* control = nullptr;
  const Gatekeeper* gatekeeper = nullptr;
  std::unique_ptr<AccessLog> access_log;       // null without --access-log
  std::unique_ptr<obs::TraceExporter> tracer;  // null without --enable-trace
  std::unique_ptr<KvCaches> kv;                // null without --tokenizer-path

  // Into the fleet, with its metric series and under control's eyes; or the worker that is there already, with that key
  // if it is not empty. `source`: "static" or "manual". `is_bounded`: a new one is refused (kExhausted) while
  // --job-queue-capacity others wait for their first health check to pass. `id`: as in Fleet::add(). Any thread.
  Result<WorkerPtr> add_worker(const std::string& url, const std::string& api_key, const char* source,
                               bool is_bounded = false, const std::string& id = {});
  // Of all ranks of the worker's engine, from the next request on; they are probed at once, and asked for their models
  // again. As add_worker() refuses a key that is not printable ASCII (kInvalidArgument). Any thread.
  Result<void> change_key(const Worker& worker, const std::string& api_key);
  // From its next check and request on. Any thread.
  void change_rules(const WorkerPtr& worker, const WorkerRuleChanges& changes);
  // The engine's ranks take its place, ready. Any thread.
  void expand_worker(const Worker& engine, int64_t ranks);
  // It has left the fleet: its series go, unless the same address has been added again meanwhile. Any thread.
  void remove_series(const Worker& worker);
  // For Retry-After, at least 1: until one of `workers` is back, as far as that is known; else until requests have
  // ended, one of which may be a worker's trial. Any thread.
  int64_t seconds_until_back(const WorkerList& workers) const;
  // A new process behind the URL, or an emptied cache.
  void forget_prefixes(Worker& worker);

  struct NamedPolicy {
    std::string name;
    std::unique_ptr<Policy> policy;
    std::unique_ptr<HitRates> hits = std::make_unique<HitRates>();  // of the model's requests
  };
  // With --enable-igw each model has a policy of its own: the one that the label "policy" of its first worker names
  // when the first request for it comes, else --policy. Lives as long as this. Any thread.
  const NamedPolicy& policy_of(const std::string& model);
  // Calls visit(model, its hit rates) for each model that has a policy of its own. Any thread.
  void each_model(const std::function<void(const std::string&, const HitRates&)>& visit) const;
  // Calls visit(policy) for each policy that has been made. Any thread.
  void each_policy(const std::function<void(const Policy&)>& visit) const;

 private:
  // Held while workers come or go together with their series, which those of one address share.
  std::mutex coming_and_going_;
  mutable std::mutex policies_mutex_;  // guards the map
  std::map<std::string, NamedPolicy> policies_;

  Result<void> room_for(const net::Url& address) const;
  WorkerSeries series_of(const std::string& label);
  void attend(const WorkerPtr& worker);
};

}  // namespace sluice::gateway
