// `sluice rank`: one rank of a server, started by it (engine/rank.h).
#include "engine/rank.h"

#include "cli/commands.h"

namespace sluice::cli {

int run_rank(const Arguments& /*arguments*/) { return engine::run_rank_process(); }

}  // namespace sluice::cli
