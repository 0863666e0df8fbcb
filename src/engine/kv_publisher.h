// Tells gateways what happens to a rank's prefix cache: KV events over ZeroMQ, with a buffer to ask for what was
// missed. A thread of its own encodes, sends and answers; the scheduler never waits for it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "protocol/kv_events.h"

namespace sluice::engine {

// --kv-events-config.
struct KvEventsConfig {
  bool enabled = false;  // publisher zmq
  std::string endpoint = "tcp://*:5557";
  std::string replay_endpoint;  // empty: none
  int64_t buffer_steps = 10'000;
  int64_t hwm = 100'000;             // messages that wait for a slow subscriber
  int64_t max_queue_size = 100'000;  // batches that wait for the thread
  std::string topic;
};
// kBadOption names the member and what it may be. An unknown member is refused.
Result<KvEventsConfig> parse_kv_events_config(std::string_view json);

// Where rank `rank` publishes: tcp at the port plus the rank, ipc and inproc with the suffix _dp<rank>, rank 0 as it
// is. kBadOption for a port that is none.
Result<std::string> kv_endpoint_of_rank(const std::string& endpoint, int64_t rank);
// The same configuration for another server on this host, whose ranks come after `ranks` others. kBadOption.
Result<std::string> kv_events_config_after(std::string_view json, int64_t ranks);

// publish() is used by one thread.
class KvPublisher {
 public:
  // Binds where the endpoint has a wildcard or is no tcp, else connects. kUnavailable says which endpoint and why. The
  // first message says that the cache is empty.
  static Result<std::unique_ptr<KvPublisher>> open(const KvEventsConfig& config, int64_t dp_rank, const Clock& clock);
  ~KvPublisher();

  // Returns at once. One message; where max_queue_size of them wait, it is lost, and subscribers see the gap.
  void publish(std::vector<protocol::KvEvent> events);

  // Where it publishes, with the port that a wildcard became; for tests.
  std::string endpoint() const;
  std::string replay_endpoint() const;

 private:
  class Impl;
  explicit KvPublisher(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine
