// The control thread: probes workers, registers new ones, polls loads, and takes removed ones out when their work is
// done. A loop of its own, so that a saturated data path never delays a probe.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "gateway/context.h"
#include "gateway/health.h"
#include "gateway/liveness.h"
#include "gateway/loads.h"
#include "net/client.h"
#include "net/loop.h"

namespace sluice::gateway {

// The worker's own key, if it has one.
net::Headers key_headers(const Worker& worker);

class Control {
 public:
  explicit Control(Context& context);
  ~Control();
  void stop();  // idempotent; nothing of it runs afterwards

  // All: any thread.
  void watch(WorkerPtr worker);    // begins to probe it
  void suspect(WorkerPtr worker);  // it met a fault: probe soon
  // It is known to serve; `is_another` process than before, of which no answer has been seen.
  void started(WorkerPtr worker, bool is_another);
  void ended(WorkerPtr worker);      // it is known not to
  void restarted(WorkerPtr worker);  // an answer has come from a new process
  void remove(WorkerPtr worker);     // draining, then out
  void rules_changed(WorkerPtr worker);
  void key_changed(WorkerPtr worker);
  void served_before(WorkerPtr worker);  // the predecessor: it is asked at once, not after --worker-startup-delay
  // What answers questions for the load.
  LoadSources& load_sources() { return load_sources_; }

 private:
  struct Watch;
  void with_watch(const WorkerPtr& worker, std::function<void(Watch&)> act);
  // Whether the worker is asked whether it serves; without checks none is, once it has passed one.
  static bool is_probed(const Worker& worker);
  net::Task<> run(std::shared_ptr<Watch> watch);
  net::Task<bool> take_turn(std::shared_ptr<Watch> watch);
  void wake_next();
  net::Task<> wait_for_probe(std::shared_ptr<Watch> watch);
  net::Task<bool> examine(std::shared_ptr<Watch> watch);
  // What a worker turned out to have: one rank, several that are watched in its place, or it did not say.
  enum class Ranks { kOne, kWatched, kUnknown };
  net::Task<Ranks> replace_by_ranks(std::shared_ptr<Watch> watch);
  void take_verdict(Watch& watch, bool passed);
  void plan_next_probe(Watch& watch);
  static bool is_lost(const Watch& watch);
  net::Task<> drain(std::shared_ptr<Watch> watch);
  net::Task<Result<net::Response>> ask(WorkerPtr worker, std::string target, Duration bound);
  // Whether it passed; none where this process could not ask.
  net::Task<std::optional<bool>> probe(std::shared_ptr<Watch> watch);
  net::Task<std::optional<int64_t>> read_ranks(std::shared_ptr<Watch> watch);
  net::Task<> read_models(std::shared_ptr<Watch> watch);
  net::Task<> read_models_beside(std::shared_ptr<Watch> watch);
  net::Task<> watch_certificates();
  void attend_kv(const WorkerPtr& worker);
  void begin_anew(Watch& watch);
  // Both: any thread.
  void forget_process(Worker& worker);
  void forget_load(const Worker& worker);
  net::Task<> prove(std::shared_ptr<Watch> watch);
  net::Task<> watch_progress();
  net::Task<> poll_loads();
  net::Task<> poll_load(WorkerPtr worker);

  Context& context_;
  net::EventLoop loop_{"control"};
  net::Client client_;
  LoadSources load_sources_;
  // Control thread only.
  std::map<const Worker*, std::shared_ptr<Watch>> watches_;
  int64_t registering_ = 0;                     // that are asked whether they serve, and never did
  std::deque<std::shared_ptr<Watch>> in_line_;  // for that
  Liveness liveness_;
};

}  // namespace sluice::gateway
