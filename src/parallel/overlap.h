// What a rank of an instance needs to compute while its rows are on their way: a second thread, and groups of its own
// for each half of a batch, so that the halves' calls need no common order.
#pragma once

#include <array>
#include <memory>

#include "parallel/groups.h"
#include "parallel/turns.h"

namespace sluice::parallel {

class Overlap {
 public:
  // A call of `world`, on all of its ranks, which outlives this.
  static Result<std::unique_ptr<Overlap>> make(Communicator& world, const Layout& layout);

  Turns& turns() { return turns_; }
  Strand& strand() { return strand_; }
  // Calls of them give the turn away.
  const Groups& half(size_t number) const { return halves_[number].groups; }
  uint64_t received_bytes() const;

 private:
  struct Half {
    std::unique_ptr<Communicator> all;
    Groups groups;
  };

  Overlap() : strand_(turns_) {}

  Turns turns_;
  Strand strand_;
  std::array<Half, 2> halves_;
};

}  // namespace sluice::parallel
