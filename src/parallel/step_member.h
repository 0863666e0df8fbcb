// One rank's part in the protocol of steps, without sockets, threads or a clock: what has happened goes in, what to do
// next comes out. engine/rank_loop.cc and engine/group_runner.cc carry it out over ZeroMQ and a Communicator,
// step_simulation_test.cc in a simulation.
//
// Before each step all ranks of an instance exchange a row each (step_sync.h). While nobody has work they park, and the
// front's next message wakes them. The front numbers what it sends to an instance (WorkNumbers) and tells every rank
// the number: so they park only when all have heard the same, and a control message takes effect on all of them between
// the same two steps.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>

#include "base/result.h"
#include "parallel/step_sync.h"
#include "parallel/topology.h"

namespace sluice::parallel {

// Used by the rank's thread.
class StepMember {
 public:
  // `configuration`: a hash of what all ranks must share besides the layout.
  explicit StepMember(const Layout& layout, uint64_t configuration = 0);

  enum class Next : uint8_t {
    kSleep,   // parked: nothing before the next message
    kPost,    // post a row, once the messages that are there are taken
    kAgain,   // likewise, when the next message comes or after a short while: work is on its way to some rank
    kGather,  // the row is posted: take those of all
    kEnd,     // the group has failed
  };
  Next next() const { return next_; }

  // ---- messages; not while rows are gathered

  // Of any kind.
  void heard();
  // What the front sent to the instance up to `number` has come to whomever it was for.
  void heard_of(uint64_t number);
  // A control message, by a hash of it: it waits for take_control(). `for_all`: each rank gets it, and not leaders
  // alone.
  void hold(uint64_t message, bool for_all);
  // Those that wait.
  size_t held() const { return held_.size(); }
  // Whether the time of the oldest of those has come, which is then no longer held. Asked after each exchange, until it
  // has not.
  bool take_control();

  // ---- exchanges

  // The row to send, `row` being what is known of this rank's batch and experts. `unready`: there is work here that
  // brings no tokens yet, so that the others must not go to sleep. Of leaders alone; neither with kSleep nor with kEnd.
  StepRow post(StepRow row, bool unready);
  // `rows` [tp_size] by rank, of the same exchange. An error is the group's end, before any data of the step move.
  Result<void> gathered(std::span<const StepRow> rows);
  // Of the last exchange, and at first one in which nobody has anything.
  const StepPlan& plan() const { return plan_; }
  // Of the one before it.
  const StepPlan& plan_before() const { return before_; }
  // Exchanges that this rank has posted a row for.
  int64_t exchanges() const { return seq_; }
  // The group has failed: the exchange, or a call of the step.
  void fail() { next_ = Next::kEnd; }

 private:
  const Layout layout_;
  Next next_ = Next::kSleep;
  int64_t seq_ = 0;
  uint64_t heard_of_ = 0;
  StepPlan plan_, before_;
  struct Held {
    uint64_t message = 0;
    bool for_all = false;
    uint64_t number = 0;  // 0: not told yet
  };
  std::deque<Held> held_;
  int64_t controls_ = 0, leader_controls_ = 0;  // as in the row
};

// The front's side: numbers what it sends to the ranks of one instance. Used by one thread.
class WorkNumbers {
 public:
  // A message goes to a rank.
  void sent() { ++sent_; }
  // The number that every rank is to be told, after what was sent; none if they know it, or are not `ready`, whose
  // messages are lost anyway.
  std::optional<uint64_t> tell(bool ready);

 private:
  uint64_t sent_ = 0;  // over all lives of the instance
  uint64_t told_ = 0;
};

}  // namespace sluice::parallel
