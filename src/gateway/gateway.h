// The gateway as a library: `sluice gateway` and `sluice serve` are thin shells around it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "gateway/options.h"
#include "net/listen.h"

namespace sluice::obs {
class Metrics;
}

namespace sluice::gateway {

// What a gateway gets from the one that it takes over from, or from the service manager: sockets that listen already.
struct Inheritance {
  std::vector<net::Socket> http, health, metrics;
  std::optional<std::string> fleet;  // of the predecessor; JSON (gateway/succession)
};

class Gateway {
 public:
  // Listens when it returns; readiness comes with the workers. The workers of --worker-urls are in the fleet, unproven.
  // With a fleet to inherit, those are the workers; it accepts only when those that were healthy have passed a check,
  // or one of them has and 30 s have passed; kUnavailable if none has. `clock` judges ages (of faults, of what a worker
  // asked for); it outlives the gateway.
  static Result<std::unique_ptr<Gateway>> start(const GatewayOptions& options, const Clock& clock = real_clock(),
                                                Inheritance inherited = {});
  // Ends at once what drain() has left.
  ~Gateway();

  uint16_t port() const;
  // Port of --health-check-port; 0 without it.
  uint16_t health_port() const;
  // Port of the Prometheus endpoint.
  uint16_t metrics_port() const;
  obs::Metrics& metrics();

  // For whoever owns the worker's process (`sluice serve`). Any thread.
  // It has just reported that it serves: into the fleet as healthy, without waiting for a probe. Where the URL is in
  // the fleet already, this is a new process behind it: a new generation, so that prefix claims and faults of the old
  // one are forgotten. `api_key`: what this worker asks for, empty = nothing; not given = --api-key.
  void worker_started(const std::string& url, std::optional<std::string> api_key = std::nullopt);
  // Its process has ended: nothing is sent there until worker_started() or until a probe passes.
  void worker_ended(const std::string& url);
  // Whether a byte of an answer to a client has come from there in the last so long.
  bool heard_within(const std::string& url, Duration time) const;

  // Readiness turns to 503 at once, connections are accepted a little longer, then what is in flight may end; all
  // within `grace`. Returns how many requests were cut off. Not on a loop's thread.
  size_t drain(Duration grace);

  // For a successor: other descriptors of the sockets, and the workers, their keys among them. From here on nobody can
  // change them through the API. kTimeout if a change under way is not made within ten seconds, and then keep_fleet()
  // is in order. Any thread but a loop's.
  Result<Inheritance> bequeath();
  // The successor did not come: they can be changed again.
  void keep_fleet();
  // The successor serves: the sockets are its alone, who waits in their queues too. Returns when every connection has
  // ended (each is closed with its next answer) or after `grace`, and how many requests were cut off.
  size_t retire(Duration grace);

 private:
  class Impl;
  explicit Gateway(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::gateway
