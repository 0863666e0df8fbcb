// `sluice rank`: one rank of a server, started by it (engine/rank.h); `sluice grammar`: what compiles a rank's
// grammars, started by that (engine/grammar/process.h).
#include "engine/rank.h"

#include "cli/commands.h"
#include "engine/grammar/process.h"

namespace sluice::cli {

int run_rank(const Arguments& /*arguments*/) { return engine::run_rank_process(); }
int run_grammar(const Arguments& /*arguments*/) { return engine::run_grammar_process(); }

}  // namespace sluice::cli
