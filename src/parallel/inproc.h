// Ranks that are threads of one process: the reference. Everybody states its call, all compare, and each rank then
// reads what it gets where the others have it. Slow and plain on purpose: one lock for a whole world.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace sluice::parallel {

// One communicator for each rank.
std::vector<std::unique_ptr<Communicator>> make_inproc_group(int size, const GroupOptions& options = {});

}  // namespace sluice::parallel
