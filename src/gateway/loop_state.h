// What each event loop keeps for itself, so that a request takes no lock: its connections to the workers, its copy of
// the fleet, and handles of the metric series that it has met.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "gateway/body_scan.h"
#include "gateway/context.h"
#include "gateway/fleet.h"
#include "gateway/policy/policy.h"
#include "net/client.h"
#include "net/loop.h"
#include "obs/metrics.h"

namespace sluice::gateway {

// Series of one kind of request: by model, endpoint, and whether it streams.
struct RequestSeries {
  obs::Counter requests, retries, retries_exhausted, tokens_in, tokens_out;
  obs::Histogram duration, ttft, generation;
};

// Series of one path and method.
struct RouteSeries {
  obs::Counter requests;
  obs::Histogram duration;
};

// Loop thread only.
class LoopState {
 public:
  LoopState(net::EventLoop& event_loop, const net::ClientOptions& options, obs::Metrics& metrics);

  // The current list of workers; valid until the next call.
  const WorkerList& fleet(const Fleet& shared);
  // The list of the last call of fleet().
  const WorkerList& last_fleet() const { return *workers_; }
  // The ring of that list.
  const routing::HashRing& ring();
  // The model that the worker serves, "unknown" while it has not said.
  const std::string& model_of(const Worker& worker);
  bool serves(const Worker& worker, std::string_view model);
  // Context::policy_of(), without its lock.
  const Context::NamedPolicy& policy_of(Context& context, const std::string& model);

  RequestSeries& requests(const std::string& model, Endpoint endpoint, bool stream);
  // `method` and `path` are literals, or live as long as this.
  RouteSeries& route(std::string_view method, std::string_view path);
  void count_response(std::string_view path, int status, std::string_view error_code);
  void count_upstream_response(int status);
  void count_request_error(const std::string& model, Endpoint endpoint, int status);
  void count_selection(const Worker& worker, std::string_view policy, Reason reason);
  void count_admission(bool allowed) { (allowed ? admitted_ : rejected_).add(); }

  net::EventLoop& loop;
  net::Client client;
  Rng rng;
  std::vector<Candidate> candidates;  // scratch of one choice
  struct {
    std::string document;
    TimePoint at;
  } loads;  // the last answer of /get_loads

 private:
  struct KnownModel {
    uint32_t version = 0;
    std::string model = "unknown";
    std::vector<std::string> all{};
  };
  const KnownModel& known_of(const Worker& worker);

  obs::Metrics& metrics_;
  std::shared_ptr<const WorkerList> workers_;
  uint64_t version_ = 0;
  routing::HashRing ring_;
  uint64_t ring_version_ = 0;
  std::map<std::string, const Context::NamedPolicy*> policies_;  // by model
  std::map<uint32_t, KnownModel> models_;                        // by number of the worker

  obs::Counter admitted_, rejected_;
  std::map<std::string, std::array<std::unique_ptr<RequestSeries>, 2 * kNumEndpoints>, std::less<>> requests_;
  std::map<std::pair<const char*, const char*>, RouteSeries> routes_;
  std::map<std::pair<const char*, int>, obs::Counter> responses_;  // without an error code of ours
  std::map<int, obs::Counter> upstream_responses_;
  std::map<std::pair<uint32_t, Reason>, obs::Counter> selections_;
};

}  // namespace sluice::gateway
