// Starts the workers of `sluice serve`, follows their start-up through their ready pipes, and starts them again when
// they end, or when they do not answer any more. One thread, which sleeps in poll(2).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/process.h"
#include "base/result.h"

namespace sluice::cli {

class Supervisor {
 public:
  // Called on the thread of run() and stop().
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void on_progress(size_t worker, double share, const std::string& what) = 0;
    virtual void on_ready(size_t worker, const std::string& url) = 0;
    // It has ended, and is started again after `restart_in` if that is set. `cause` is one line.
    virtual void on_down(size_t worker, const std::string& cause, std::optional<Duration> restart_in) = 0;
    // Whether anything has come from the worker in the last so long, of what others ask it.
    virtual bool heard_within(size_t /*worker*/, Duration /*time*/) { return false; }
  };

  struct Options {
    bool restart = true;
    Duration startup_timeout = std::chrono::seconds(1800);
    // A worker that was ready and has answered nothing for so long, or up to a third longer, is killed; zero: never.
    Duration answer_timeout = std::chrono::seconds(30);
    RestartBackoff::Options backoff = {};
  };

  // `workers[i]` is started as it stands, plus the ready pipe. `listener` outlives this.
  Supervisor(std::vector<ProcessOptions> workers, Options options, Listener& listener);
  ~Supervisor();  // kills what still runs

  // Starts the workers and watches them until `stop_descriptor` is readable. An error: a worker ended by itself, or was
  // not ready in time, before any worker was ever ready; the others still run then.
  Result<void> run(int stop_descriptor);

  // SIGTERM to every worker's group, SIGKILL to what is left after `grace`.
  void stop(Duration grace);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// The number of a port that no other `sluice serve` of this machine takes while this lives, though nobody listens there
// yet: between choosing a port and the worker that binds it, seconds may pass.
class PortClaim {
 public:
  PortClaim(PortClaim&& other) noexcept : port_(other.port_), lock_(std::exchange(other.lock_, -1)) {}
  PortClaim& operator=(PortClaim&&) = delete;
  ~PortClaim();

  // Nothing if another process has it.
  static std::optional<PortClaim> take(uint16_t port);
  uint16_t port() const { return port_; }

 private:
  PortClaim(uint16_t port, int lock) : port_(port), lock_(lock) {}
  uint16_t port_;
  int lock_;
};

// `count` ports from `base` on that can be bound on `host` now and are not `taken`, ascending. kExhausted if there are
// too few up to 65535; kNotFound if `host` is no address of this machine.
Result<std::vector<PortClaim>> free_ports(const std::string& host, uint16_t base, size_t count, uint16_t taken);

}  // namespace sluice::cli
