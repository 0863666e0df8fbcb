// What stands between the HTTP handlers of the simulated worker and its engines: handlers that wait, engines that get
// real time, and requests that are aborted when nobody waits for them any more.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "net/loop.h"
#include "testing/cache_worker.h"
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
  net::Task<> doze(Duration bound);

  net::Timer timer_;
};

// A CacheWorker in real time, with the words of a SimEngine.
class SimCache {
 public:
  SimCache(CacheSimulation simulation, double time_scale)
      : simulation_(simulation), worker_(simulation.rules), time_scale_(time_scale) {}

  SimEngine::Id submit(const std::vector<uint64_t>& prompt, int64_t output_tokens);
  bool abort(SimEngine::Id id);
  // What has come out until now.
  std::vector<SimEngine::Emission> advance();
  // When something comes out next; none: there is nothing to do.
  std::optional<TimePoint> next_event() const;
  bool has_work() const { return worker_.open() > 0; }
  void flush() { worker_.flush(); }
  int64_t match(const std::vector<uint64_t>& prompt) const;
  SimLoad load() const;

 private:
  Duration now() const;
  void collect(CacheWorker::Events events);

  const CacheSimulation simulation_;
  CacheWorker worker_;
  const double time_scale_;
  const TimePoint start_ = real_clock().now();
  SimEngine::Id next_id_ = 1;
  std::vector<SimEngine::Emission> ready_;
  SimLoad totals_;
};

// One engine and the requests in it.
struct SimRank {
  struct Target {
    std::shared_ptr<SimWait> wait;
    size_t sequence = 0;
    std::string rid;
  };

  explicit SimRank(const SimEngineOptions& options) : engine(options) {}
  SimRank(const SimEngineOptions& options, const CacheSimulation& simulation, double time_scale)
      : engine(options), cache(std::make_unique<SimCache>(simulation, time_scale)) {}

  std::mutex mu;
  // Guarded by mu.
  SimEngine engine;
  std::unique_ptr<SimCache> cache;  // set: in the engine's place
  std::unordered_map<SimEngine::Id, Target> targets;
  bool driven = false;
  bool stopped = false;
  TimePoint next_look;         // of drive_cache()
  std::function<void()> wake;  // makes it look now; empty while it does not run

  // mu held. As SimEngine's.
  Result<SimEngine::Id> submit(std::vector<uint64_t> prompt, std::vector<uint64_t> output);
  bool abort(SimEngine::Id id) { return cache ? cache->abort(id) : engine.abort(id); }
  bool has_work() const { return cache ? cache->has_work() : engine.has_work(); }
  bool flush();
  SimLoad load() const { return cache ? cache->load() : engine.load(); }
  int64_t match(const std::vector<uint64_t>& prompt) const {
    return cache ? cache->match(prompt) : engine.match(prompt);
  }
  // mu held. Wakes the handlers that wait for these tokens.
  size_t deliver(const std::vector<SimEngine::Emission>& emissions);
};

// Gives an engine real time while it has work. Steps follow each other on a schedule, so that late timers do not add
// up.
net::Task<> drive(net::EventLoop& loop, std::shared_ptr<SimRank> rank, double time_scale);
// The same for a rank with a cache in the engine's place. Late timers do not move what comes after them.
net::Task<> drive_cache(net::EventLoop& loop, std::shared_ptr<SimRank> rank);

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
