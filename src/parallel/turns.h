// A rank's work that goes on in two places: while one waits for other ranks, the other computes. One computes at a
// time, so that the device, its streams and its threads have one user, and calls of a group stay in their order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/result.h"
#include "parallel/communicator.h"

namespace sluice::parallel {

// Who may compute. In the order in which they asked for it. Any thread.
class Turns {
 public:
  explicit Turns(const Clock& clock = real_clock()) : clock_(clock) {}

  // A place in the queue, which must be taken: those behind it wait.
  uint64_t queue();
  void take(uint64_t place);
  void take() { take(queue()); }
  // The rest is for who has the turn.
  void give();
  // To whoever is queued, and the next one again.
  void yield();
  // Gives it away while `wait` waits for something outside.
  template <class Wait>
  auto while_away(Wait wait) {
    struct Back {  // also if waiting throws
      Turns& turns;
      const Marks left;
      ~Back() { turns.come_back(left); }
    } const back{*this, leave()};
    return wait();
  }

  // How far the first of two parts that follow each other has come, and the turn given away until it is there.
  void reach(int64_t mark);
  void wait_for(int64_t mark);

  // Time in while_away(), of all that were, and the part of it in which another had the turn.
  struct Times {
    Duration away{};
    Duration covered{};
  };
  Times times() const;

 private:
  struct Marks {
    TimePoint when;
    Duration computed;
  };
  Marks leave();
  void come_back(const Marks& left);
  Marks marks() const;  // with mu_ held
  void give_locked();

  const Clock& clock_;
  mutable std::mutex mu_;
  std::condition_variable changed_;
  // Guarded by mu_.
  uint64_t next_ = 0;
  uint64_t serving_ = 0;
  std::optional<TimePoint> since_;  // somebody has the turn
  Duration computed_{};             // before that
  Times times_;
  int64_t mark_ = 0;
};

// While it lives, this thread has the turn.
class Turn {
 public:
  explicit Turn(Turns& turns) : turns_(turns) { turns_.take(); }
  ~Turn() { turns_.give(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Turns& turns_;
};

// The second thread of a rank. Used by the rank's first one, which has the turn.
class Strand {
 public:
  explicit Strand(Turns& turns) : turns_(turns) {}
  ~Strand();
  Strand(const Strand&) = delete;
  Strand& operator=(const Strand&) = delete;

  // `work` gets the next turn. end() comes before the next begin(), and before what `work` refers to is gone: see
  // Overlap::both(). If it throws, there is no work.
  void begin(std::function<Result<void>()> work);
  // Gives the turn away until the work is done; what it returned.
  Result<void> end();

 private:
  void run();

  Turns& turns_;
  std::mutex mu_;
  std::condition_variable changed_;
  // Guarded by mu_.
  std::function<Result<void>()> work_;
  uint64_t place_ = 0;
  std::optional<Result<void>> result_;
  bool stopping_ = false;

  std::thread thread_;  // from the first work on
};

// A communicator whose calls give the turn away. Its caller has the turn. `turns` outlives it and what is split from
// it.
std::unique_ptr<Communicator> give_turns(std::unique_ptr<Communicator> inner, Turns& turns);

}  // namespace sluice::parallel
