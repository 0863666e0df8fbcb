// What is asked of many ranks at once, as a flush or other weights: each of them answers or ends, or the time is over,
// and who asked hears of it once. Used by one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/backend.h"
#include "engine/messages.h"

namespace sluice::engine {

class ControlRounds {
 public:
  explicit ControlRounds(const Clock& clock) : clock_(clock) {}

  // A round of `ranks`, to which the caller then sends the request, with the id that it gets here. `done` is called as
  // Backend::control() says, from here on from any call of this object's; at once where there are no ranks.
  void begin(ControlRequest& request, std::set<size_t> ranks, Duration at_most, Backend::OnControl done);
  // What a reply of the rank with this id answers; nothing: it is asked no such thing any more.
  std::optional<ControlKind> asked(size_t rank, uint64_t id) const;
  void take(size_t rank, ControlReply reply);
  // Ranks that have ended: what was asked of them holds for their successors.
  void drop(const std::set<size_t>& ranks);
  // Ends those whose time is over, naming the ranks that have not answered.
  void expire();
  void cancel_all(const std::string& why);

  // Whether an answer of the rank is to come.
  bool waits_for(size_t rank) const;
  // When expire() has something to do next.
  std::optional<TimePoint> due() const;

  // What a rank that starts now takes over: a pause, and the weights that the others have or are being asked to load;
  // empty: those that all started with.
  bool paused() const { return paused_; }
  std::string model_file() const;

 private:
  struct Round {
    ControlRequest request;
    std::set<size_t> waiting_for;
    Duration at_most;
    TimePoint due;
    Backend::OnControl done;
    bool done_by_some = false;
    std::vector<std::string> refusals;
    Backend::RankAnswers answers;
  };
  using Place = std::vector<Round>::iterator;

  // Return the place of the next one.
  Place finish_if_answered(Place round);
  Place finish(Place round, Result<Backend::RankAnswers> result);

  const Clock& clock_;
  std::vector<Round> rounds_;
  uint64_t last_id_ = 0;
  bool paused_ = false;
  std::string loaded_;  // model file of the last kLoadWeights that all did
};

}  // namespace sluice::engine
