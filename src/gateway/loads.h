// GET /get_loads: what the workers say about their load, in the shapes of both generations of the SGLang gateway
// (gateway-reference.md 3.6, 1.1).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "gateway/ask.h"
#include "gateway/engine_loads.h"
#include "gateway/fleet.h"
#include "net/client.h"

namespace sluice::gateway {

// Of one worker.
struct LoadReport {
  std::string document;  // JSON, as /v1/loads has it
  int64_t used_tokens = -1;
  int64_t max_tokens = -1;     // that its KV pools hold
  int64_t waiting_tokens = 0;  // prompt tokens in its queue that its cache does not hold
  double kv_usage = 0;         // share of its KV pools, the fullest of its ranks
  double throughput = 0;       // generated tokens per second
  std::vector<RankLoad> ranks;
  std::string_view mode;  // which of its endpoints has said this: "loads" or "get_load"
};
// Asks /v1/loads, and where that is unknown /get_load. Runs on the client's loop.
// None: it did not say, within 5 s for each question, or `interruption` (may be null) ended the wait.
net::Task<std::optional<LoadReport>> read_load(net::EventLoop& loop, net::Client& client, WorkerPtr worker,
                                               std::shared_ptr<Interruption> interruption = nullptr);
// What such an answer says; `modern` = /v1/loads, else /get_load. None if it is not that. Of the ranks only `own_rank`
// counts, all if that is < 0.
std::optional<LoadReport> load_report(const std::string& text, bool modern, int64_t own_rank);

struct WorkerReport {
  std::string worker;                // URL
  std::optional<LoadReport> report;  // none: it did not say
};
// {"workers":[{worker,load,details}],"timestamp","version","dp_rank_count","loads":[...],"aggregate":{...}}; load -1 =
// unknown.
std::string loads_document(const std::vector<WorkerReport>& reports, int64_t unix_seconds);

}  // namespace sluice::gateway
