// What stands between the HTTP handlers of the simulated worker and its engines: handlers that wait, engines that get
// real time, and requests that are aborted when nobody waits for them any more.
#pragma once

#include <boost/asio/basic_waitable_timer.hpp>

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "net/loop.h"
#include "testing/sim_engine.h"

namespace sluice::testing {

// One exchange that waits: for tokens, for a delay to pass, or for the client to leave. Its loop's thread only, but for
// `loop`.
class SimWait {
 public:
  struct Event {
    size_t sequence = 0;
    int64_t tokens = 0;
    int64_t cached_tokens = 0;
    bool aborted = false;
  };

  explicit SimWait(net::EventLoop& its_loop) : loop(its_loop), timer_(its_loop.executor()) {}

  void leave();
  void push(Event event);

  // Until there is an event or the client left; false if it left.
  net::Task<bool> wait_event();
  // False if the client left meanwhile.
  net::Task<bool> sleep(Duration duration);
  net::Task<> wait_gone();

  net::EventLoop& loop;
  bool gone = false;
  std::deque<Event> events;

 private:
  using Timer = net::asio::basic_waitable_timer<std::chrono::steady_clock,
                                                net::asio::wait_traits<std::chrono::steady_clock>, net::Executor>;
  net::Task<> doze(Duration bound);

  Timer timer_;
};

// One engine and the requests in it.
struct SimRank {
  struct Target {
    std::shared_ptr<SimWait> wait;
    size_t sequence = 0;
    std::string rid;
  };

  explicit SimRank(const SimEngineOptions& options) : engine(options) {}

  std::mutex mu;
  // Guarded by mu.
  SimEngine engine;
  std::unordered_map<SimEngine::Id, Target> targets;
  bool driven = false;
  bool stopped = false;

  // mu held. Wakes the handlers that wait for these tokens.
  size_t deliver(const std::vector<SimEngine::Emission>& emissions);
};

// Gives an engine real time while it has work. Steps follow each other on a schedule, so that late timers do not add
// up.
net::Task<> drive(net::EventLoop& loop, std::shared_ptr<SimRank> rank, double time_scale);

// The abort of a request that is not answered to its end.
class SimSubmission {
 public:
  explicit SimSubmission(std::shared_ptr<SimRank> rank) : rank_(std::move(rank)) {}
  SimSubmission(const SimSubmission&) = delete;
  SimSubmission& operator=(const SimSubmission&) = delete;
  ~SimSubmission();
  void add(SimEngine::Id id) { ids_.push_back(id); }

 private:
  std::shared_ptr<SimRank> rank_;
  std::vector<SimEngine::Id> ids_;
};

}  // namespace sluice::testing
