// The processes of `sluice serve`: one `sluice server` per worker.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/process.h"
#include "cli/serve_options.h"

namespace sluice::cli {

// How worker i of command.workers() is started: on ports[i], with its part of `cores` where --threads does not say
// otherwise, and with the memory file in which all of them keep one copy of the packed weights (-1: each its own).
std::vector<ProcessOptions> serve_workers(const ServeCommand& command, const std::vector<uint16_t>& ports,
                                          int64_t cores, int weights_fd);

}  // namespace sluice::cli
