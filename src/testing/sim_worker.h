// An engine worker without a model, for tests and measurements: it speaks the HTTP contract that gateways expect from
// an engine (/generate, OpenAI endpoints, health, load, information, metrics) and misbehaves on request.
//
// Three modes. Canned: a fixed answer, made once, at once or after a fixed delay; what it costs is the HTTP exchange,
// so that relays can be measured. Simulated: a SimEngine in real time (or stepped by the test) decides when each token
// comes and what the prefix cache held. Tokens are words, and the answer is a function of the prompt alone: all workers
// agree. Cache simulation: the same with the CacheWorker of the policy simulator, always in real time, where tokens are
// four characters; of an answer the first token comes when the prompt is computed and the others at its end.
//
// Closing the connection of a request aborts it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "net/http.h"
#include "net/loop.h"
#include "testing/cache_worker.h"
#include "testing/sim_engine.h"

namespace sluice::testing {

struct SimWorkerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;
  std::string model = "sim-model";
  std::string api_key;                               // set: requests other than health checks need it as a bearer token
  int64_t default_tokens = 8;                        // generated where the request names no limit
  size_t record_limit = 1024;                        // requests kept for received(); 0 keeps none and saves the copies
  Duration idle_timeout = std::chrono::seconds(90);  // of kept-alive connections
  bool names_process = false;                        // each answer has X-Sluice-Process, of each start another one
  bool keeps_name = false;                           // the same after restart(), but for rename()
  size_t max_body_bytes = size_t{256} << 20;

  bool canned = false;
  Duration canned_delay{0};     // before the head of an answer
  int64_t canned_chunks = 8;    // tokens of an answer, and events of a streamed one
  Duration canned_interval{0};  // between two of them; 0 sends the whole stream in one write
  // Each event of a streamed answer tells when it was sent, as "sent_at_ns" of the machine's monotonic clock: a client
  // on the same machine sees how long it was under way.
  bool canned_stamp = false;
  int64_t canned_prompt_tokens = 16;  // what the usage of a canned answer claims
  int64_t canned_cached_tokens = 0;

  SimEngineOptions engine;
  std::optional<CacheSimulation> cache;  // in the engine's place; it sets the engine's KV pool and running requests
  int64_t dp_size = 1;      // engines behind this address, chosen by routed_dp_rank or else by least requests
  double time_scale = 1.0;  // simulated seconds per real second
  bool manual = false;      // simulated time moves by step() only
};

// What happens to the requests that it applies to.
struct SimFault {
  enum class Kind {
    kNone,
    kReset,      // the connection is closed without an answer
    kStall,      // the request is read and never answered
    kStatus,     // `status` with `body`, and Retry-After if set
    kSlowHead,   // everything `delay` later
    kDie,        // a stream is cut after `chunks` events, a whole answer before its first byte
    kHalfEvent,  // after `chunks` events half an event (in the middle of a character), then silence
    kMute,       // after `chunks` events silence
  };
  enum class Scope { kGeneration, kEverything };

  Kind kind = Kind::kNone;
  Scope scope = Scope::kGeneration;
  int status = 503;
  std::string body;  // empty: the engines' body for that status
  std::optional<int64_t> retry_after;
  int64_t chunks = 0;
  Duration delay{0};
  int64_t times = -1;  // requests that it still hits; -1 = all until replaced
};

// The kind of that name: none, reset, stall, status, slow_head, die, half_event or mute.
std::optional<SimFault::Kind> fault_kind(std::string_view name);

// How /health and /health_generate answer.
struct SimHealth {
  int status = 200;
  Duration delay{0};
};

struct SimReceived {
  std::string method;
  std::string target;
  net::Headers headers;
  std::string body;
};

struct SimCounters {
  int64_t requests = 0;     // of any kind, read to their end
  int64_t generations = 0;  // of which for /generate and the OpenAI endpoints
  int64_t completed = 0;    // of which answered to the end with 200
  int64_t client_gone = 0;  // of which left by the client, or cut by stop(), before that
  int64_t aborted = 0;      // by /abort_request
  int64_t faults = 0;       // requests that a fault hit
  int64_t health_checks = 0;
  int64_t load_reads = 0;
  int64_t flushes = 0;
};

// Any thread but a loop's, unless said otherwise.
class SimWorker {
 public:
  // `loops` outlives the worker. Errors are those of listening.
  static Result<std::unique_ptr<SimWorker>> start(net::LoopGroup& loops, SimWorkerOptions options = {});
  ~SimWorker();

  uint16_t port() const;
  std::string url() const;  // http://host:port

  // As if the process had been killed: the port refuses, every connection is closed, requests and caches are gone.
  void stop();
  // On the same port with empty caches. Faults, health and counters stay.
  Result<void> restart();
  // With `keeps_name`: what starts next has another name. Between stop() and restart().
  void rename();
  bool running() const;

  // Any thread. The next requests see them; a fault's `times` counts down from here.
  void set_fault(SimFault fault);
  void clear_fault() { set_fault({}); }
  void set_health(SimHealth health);

  // Any thread.
  SimCounters counters() const;
  std::vector<SimReceived> received() const;  // oldest first, at most record_limit
  void clear_received();
  // Generation requests under way.
  int64_t active() const;
  // Simulated mode; zeros when canned.
  SimLoad load(int64_t dp_rank = 0) const;
  // Prompt tokens of a text that the prefix cache holds.
  int64_t match(std::string_view text, int64_t dp_rank = 0) const;
  // Manual mode: one step of every engine with work. Returns the number of tokens that came out.
  size_t step();

 private:
  class Impl;
  explicit SimWorker(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace sluice::testing
