#include "cli/commands.h"

namespace sluice::cli {

// Rows of the engine stand inside the #if: the gateway builds without it.
const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
#if SLUICE_ENGINE
#endif
    {.name = "complete", .help = "Completes a command line.", .run = run_complete, .hidden = true},
    {.name = "options", .help = "Prints the option tables.", .run = run_options, .hidden = true},
  };
  return table;
}

}  // namespace sluice::cli
