// The groups in which the ranks of an instance meet.
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/topology.h"

namespace sluice::parallel {

// One rank's view. Used by the rank's thread; `world` outlives it.
struct Groups {
  Layout layout;
  Communicator* all = nullptr;
  std::unique_ptr<Communicator> attention_tp;  // Layout::attention_tp()
  std::unique_ptr<Communicator> attention_dp;  // Layout::attention_dp()

  // That this rank has got from others in them.
  uint64_t received_bytes() const {
    return all->received_bytes() + attention_tp->received_bytes() + attention_dp->received_bytes();
  }
};

// A call of `world`, on all of its ranks, the layout's tp_rank being that in `world`.
Result<Groups> make_groups(Communicator& world, const Layout& layout);

}  // namespace sluice::parallel
