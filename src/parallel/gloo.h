// Ranks on several hosts, over TCP: gloo connects all with all and sends and receives; the collectives are ours, since
// gloo's sums depend on the order of arrival. Each call sends a message to each rank, with its header and little data;
// what is longer follows once all agree.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "parallel/rendezvous.h"
#include "parallel/shm_segment.h"

namespace sluice::parallel {

struct GlooJoin {
  RankIdentity who;
  std::string rendezvous;  // host:port of a RendezvousServer
  // Of this host, by which the others reach it: an address or a name. It is listened at on ports that the system gives.
  std::string address;
  // Of one rank, of whoever starts this process: its only sign says where the rank was last. Null: nobody looks.
  std::shared_ptr<ShmSegment> shown_in;
};

// Waits for all ranks, each step for at most options.join_limit. Options are equal on all ranks.
Result<std::unique_ptr<Communicator>> join_gloo(const GlooJoin& join, const GroupOptions& options = {});

}  // namespace sluice::parallel
