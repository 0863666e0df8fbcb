// Where node 0 of an instance on several hosts is joined by the others.
#pragma once

#include <string>

#include "base/result.h"
#include "engine/nodes/link.h"
#include "engine/options.h"
#include "net/listen.h"

namespace sluice::engine {

struct JoinPoint {
  Endpoint at;               // as --dist-init-addr says
  net::Listening listening;  // there, of one loop
  std::string reached;       // as a number: the first of the addresses that it stands for
  std::string rank_address;  // of this host, for its ranks and those of others (interface.h)
};

// Listens at --dist-init-addr. kAlreadyExists, kInvalidArgument or kNotFound name the address and the interfaces that
// there are, kBadOption an interface that ranks cannot use.
Result<JoinPoint> open_join_point(const EngineOptions& options);

}  // namespace sluice::engine
