// What the parts of one gateway share, and what each loop keeps for itself.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gateway/admission.h"
#include "gateway/body_scan.h"
#include "gateway/fleet.h"
#include "gateway/options.h"
#include "gateway/policy/policy.h"
#include "gateway/retry.h"
#include "net/client.h"
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
  Context(const GatewayOptions& gateway_options, std::vector<double> buckets);

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
  std::atomic<bool> draining{false};
  Control* control = nullptr;  // set before the first request

  // Into the fleet (or the worker that is there already), with its metric series and under control's eyes. `source`:
  // "static" or "manual". Any thread.
  Result<WorkerPtr> add_worker(const std::string& url, const std::string& api_key, const char* source);
  // A new process behind the URL, or an emptied cache.
  void forget_prefixes(Worker& worker);
};

// Handles of the series of one kind of request.
struct RequestSeries {
  obs::Counter requests, tokens_in, tokens_out;
  obs::Histogram duration, ttft, generation;
};

// Loop thread only.
struct LoopState {
  LoopState(net::EventLoop& event_loop, const net::ClientOptions& options)
      : loop(event_loop), client(event_loop, options), rng(random_seed()) {}

  net::EventLoop& loop;
  net::Client client;
  Rng rng;
  std::vector<Candidate> candidates;  // scratch of one choice
  std::shared_ptr<const WorkerList> workers;
  uint64_t version = 0;
  std::map<std::pair<std::string, int>, RequestSeries> series;  // by model; endpoint * 2 + streaming
  std::map<std::pair<std::string, uint32_t>, obs::Counter> selections;
  std::map<obs::LabelValues, obs::Counter> counters;      // by family and labels: see count()
  std::map<obs::LabelValues, obs::Histogram> histograms;  // likewise

  // A counter whose labels are few; resolved once per loop, so that requests take no lock of the metrics.
  obs::Counter& count(obs::Metrics& metrics, const char* family, obs::LabelValues values) {
    obs::LabelValues key = values;
    key.emplace_back(family);
    const auto at = counters.find(key);
    if (at != counters.end()) return at->second;
    return counters.emplace(std::move(key), metrics.counter(family, std::move(values))).first->second;
  }
  obs::Histogram& histogram(obs::Metrics& metrics, const char* family, obs::LabelValues values) {
    obs::LabelValues key = values;
    key.emplace_back(family);
    const auto at = histograms.find(key);
    if (at != histograms.end()) return at->second;
    return histograms.emplace(std::move(key), metrics.histogram(family, std::move(values))).first->second;
  }

  const WorkerList& fleet(const Fleet& shared) {
    if (version != shared.version()) {
      version = shared.version();
      workers = shared.snapshot();
    }
    return *workers;
  }
};

}  // namespace sluice::gateway
