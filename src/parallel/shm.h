// Ranks that are processes of one host. Each rank writes what it sends into memory of its own in a ShmSegment, all
// meet, and each reads what it gets; what is longer than a slot goes in pieces, two slots in turn, so that one piece is
// written while the last is read. What lies in buffer() is read where it lies.
#pragma once

#include <memory>

#include "parallel/communicator.h"
#include "parallel/shm_segment.h"

namespace sluice::parallel {

// kInvalidArgument or kAlreadyExists where this rank of so many cannot be in this segment. Options are equal on all
// ranks.
Result<std::unique_ptr<Communicator>> join_shm(std::shared_ptr<ShmSegment> segment, int rank, int size,
                                               const GroupOptions& options = {});

}  // namespace sluice::parallel
