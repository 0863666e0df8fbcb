// GET /get_loads: what the workers say about their load, in the shapes of both generations of the SGLang gateway.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "gateway/ask.h"
#include "gateway/engine_loads.h"
#include "gateway/fleet.h"
#include "net/client.h"

namespace sluice::gateway {

// Where a worker says how loaded it is.
enum class LoadSource : uint8_t { kUnknown, kLoads, kGetLoad, kMetrics };
// "unknown", "loads" (/v1/loads), "get_load" (/get_load) or "metrics" (/metrics).
std::string_view to_string(LoadSource source);

// Which of them each worker has, by its number: found out once. Any thread.
class LoadSources {
 public:
  LoadSource of(uint32_t worker) const {
    std::lock_guard lock(mutex_);
    const auto at = sources_.find(worker);
    return at == sources_.end() ? LoadSource::kUnknown : at->second;
  }
  void set(uint32_t worker, LoadSource source) {
    std::lock_guard lock(mutex_);
    sources_[worker] = source;
  }
  void forget(uint32_t worker) {
    std::lock_guard lock(mutex_);
    sources_.erase(worker);
  }

 private:
  mutable std::mutex mutex_;  // guards sources_
  std::map<uint32_t, LoadSource> sources_;
};

// Of one worker; -1 = it does not say.
struct LoadReport {
  std::string document;  // JSON, as /v1/loads has it
  int64_t used_tokens = -1;
  int64_t max_tokens = -1;      // that its KV pools hold
  int64_t waiting_tokens = -1;  // prompt tokens in its queue that its cache does not hold
  int64_t waiting_requests = -1;
  double kv_usage = 0;    // share of its KV pools, the fullest of its ranks
  double throughput = 0;  // generated tokens per second
  std::vector<RankLoad> ranks;
  LoadSource source = LoadSource::kUnknown;
};
// Asks /v1/loads, where that is unknown (404) /get_load, and where that is too /metrics; what has answered is asked
// first from then on. Runs on the client's loop; `sources` outlives it. None: it did not say, within 5 s for each
// question, or `interruption` (may be null) ended the wait.
net::Task<std::optional<LoadReport>> read_load(net::EventLoop& loop, net::Client& client, LoadSources& sources,
                                               WorkerPtr worker, std::shared_ptr<Interruption> interruption = nullptr);
// What an answer of that source says. None if it is not that. Of the ranks only `own_rank` counts, all if that is < 0.
std::optional<LoadReport> load_report(const std::string& text, LoadSource source, int64_t own_rank);

struct WorkerReport {
  std::string worker;                // URL
  std::optional<LoadReport> report;  // none: it did not say
};
// {"workers":[{worker,load,details}],"timestamp","version","dp_rank_count","loads":[...],"aggregate":{...}}; load -1 =
// unknown.
std::string loads_document(const std::vector<WorkerReport>& reports, int64_t unix_seconds);

}  // namespace sluice::gateway
