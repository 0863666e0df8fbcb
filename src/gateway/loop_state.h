// What each event loop keeps for itself, so that a request takes no lock: its connections to the workers, its copy of
// the fleet, and handles of the metric series that it has met.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "gateway/body_scan.h"
#include "gateway/context.h"
#include "gateway/fleet.h"
#include "gateway/live_exchanges.h"
#include "gateway/live_requests.h"
#include "gateway/policy/policy.h"
#include "gateway/selection.h"
#include "net/client.h"
#include "net/loop.h"
#include "obs/metrics.h"

namespace sluice::gateway {

// Series of one kind of request: by model, endpoint, and whether it streams.
struct RequestSeries {
  obs::Counter requests, retries, retries_exhausted, retries_refused, tokens_in, tokens_out;
  obs::Histogram duration, ttft, tpot, inter_chunk, generation;
};

// Series of one path and method.
struct RouteSeries {
  obs::Counter requests;
  obs::Histogram duration;
};

// Series of one policy.
struct PolicySeries {
  obs::Histogram decision, match_ratio;
  std::array<std::optional<obs::Counter>, kNumReasons> branches;
};

// Loop thread only.
class LoopState {
 public:
  LoopState(net::EventLoop& event_loop, const net::ClientOptions& options, obs::Metrics& metrics);

  // The current list of workers; valid until the next call.
  const WorkerList& fleet(const Fleet& shared);
  // Fleet::roster(), without its lock; valid until the next call.
  const Roster* roster(const Fleet& shared, std::string_view model, std::optional<int64_t> rank);
  // The most data-parallel ranks of an engine; 0 without a worker.
  int64_t most_ranks(const Fleet& shared);
  // The ring of the list of the last call of fleet() or roster().
  const routing::HashRing& ring();
  // The model that the worker serves, "unknown" while it has not said.
  const std::string& model_of(const Worker& worker);
  // Context::policy_of(), without its lock.
  const Context::NamedPolicy& policy_of(Context& context, const std::string& model);

  RequestSeries& requests(const std::string& model, Endpoint endpoint, bool stream);
  // `method` and `path` are literals, or live as long as this.
  RouteSeries& route(std::string_view method, std::string_view path);
  void count_response(std::string_view path, int status, std::string_view error_code);
  void count_upstream_response(int status);
  void count_request_error(const std::string& model, Endpoint endpoint, int status);
  // A choice, and why: the attempt goes to that worker.
  void count_selection(const Worker& worker, std::string_view policy, Reason reason);
  // The policy's rule, also where it chose nobody.
  void count_branch(std::string_view policy, Reason reason);
  PolicySeries& of_policy(std::string_view name);
  // Before the attempt that follows `attempt` others.
  void count_backoff(int64_t attempt, Duration pause);
  // Whether there is time to weigh all workers for the record of a choice that is made now: so many times a second,
  // which bounds what it costs under load.
  bool may_weigh_all(TimePoint now);
  void count_queue_wait(Duration waited) { queue_wait_.observe(seconds(waited)); }
  void count_admission(bool allowed) { (allowed ? admitted_ : rejected_).add(); }

  net::EventLoop& loop;
  net::Client client;
  Rng rng;
  ChoiceScratch choices;
  LiveRequests live;
  LiveExchanges exchanges;
  struct {
    std::string document;
    TimePoint at;
  } loads;  // the last answer of /get_loads

 private:
  // What is kept of a worker.
  struct KnownWorker {
    uint32_t version = UINT32_MAX;  // of its information
    std::string model;
    obs::Counter requests;  // by model
    // By model and by the policy that chose it last.
    std::string policy;
    obs::Counter selection;
    std::array<std::optional<obs::Counter>, kNumReasons> selections;
  };
  KnownWorker& known(const Worker& worker);

  obs::Metrics& metrics_;
  std::shared_ptr<const WorkerList> workers_;
  uint64_t version_ = 0;
  int64_t most_ranks_ = 0;
  std::shared_ptr<const Roster> everybody_;  // null: not asked for since version_ changed
  std::map<std::string, std::map<std::optional<int64_t>, std::shared_ptr<const Roster>>, std::less<>> rosters_;
  std::shared_ptr<const Roster> nobody_;  // the last empty one that was asked for
  routing::HashRing ring_;
  uint64_t ring_version_ = 0;
  std::map<std::string, const Context::NamedPolicy*> policies_;  // by model
  std::unordered_map<uint32_t, KnownWorker> known_;              // by number of the worker

  static constexpr int kWeighedPerSecond = 1000;
  int64_t weigh_second_ = 0;
  int weighed_ = 0;  // in that second

  obs::Counter admitted_, rejected_;
  obs::Histogram queue_wait_;
  std::map<std::string, PolicySeries, std::less<>> policy_series_;  // by name
  static constexpr size_t kMostBackoffs = 10;                       // the last one is for all that come later
  std::array<std::optional<obs::Histogram>, kMostBackoffs> backoffs_;
  std::map<std::string, std::array<std::unique_ptr<RequestSeries>, 2 * kNumEndpoints>, std::less<>> requests_;
  std::map<std::pair<const char*, const char*>, RouteSeries> routes_;
  std::map<std::pair<const char*, int>, obs::Counter> responses_;  // without an error code of ours
  std::map<int, obs::Counter> upstream_responses_;
};

}  // namespace sluice::gateway
