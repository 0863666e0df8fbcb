// What a rank of an instance needs to compute while its rows are on their way: a second thread, and groups of its own
// for each half of a batch, so that the halves' calls need no common order.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/groups.h"
#include "parallel/turns.h"

namespace sluice::parallel {

class Overlap {
 public:
  // A call of `world`, on all of its ranks, which outlives this. One half: batches are whole, and something else is
  // computed while their rows are on their way.
  static Result<std::unique_ptr<Overlap>> make(Communicator& world, const Layout& layout, size_t halves = 2);

  Turns& turns() { return turns_; }
  // Calls of them give the turn away.
  const Groups& half(size_t number) const { return halves_[number].groups; }
  size_t halves() const { return halves_.size(); }
  uint64_t received_bytes() const;

  // `first` on this thread, which has the turn, and `second` on the rank's other one, from the next turn on. Returns
  // when both have ended, with the error of one of them. `first` counts as having reached every mark when it ends.
  // What one of them throws fails the world at once, so that nobody waits for this rank, and the other ends soon; then
  // it is thrown on, or is an error if `second` threw it.
  using Work = std::function<Result<void>()>;
  Result<void> both(const Work& first, const Work& second);

 private:
  struct Half {
    std::unique_ptr<Communicator> all;
    Groups groups;
  };
  class Beside;

  Overlap() = default;
  Result<void> run(const Work& work);

  Turns turns_;
  std::vector<Half> halves_;
  Strand strand_{turns_};
};

}  // namespace sluice::parallel
