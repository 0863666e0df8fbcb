// `kill -USR2`: a new process takes the gateway over, with the same arguments and on the same sockets, so that nobody
// who connects meanwhile is refused.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "base/stop_signals.h"
#include "gateway/gateway.h"

namespace sluice::cli {

// What this process was started with: by a predecessor (SLUICE_LISTEN_*, SLUICE_FLEET_FD), or by a service manager
// (LISTEN_FDS, with LISTEN_FDNAMES "health" and "metrics" for those ports). Call once, before threads start.
Result<gateway::Inheritance> inheritance();

// How this process was started, so that it can be done again. Read it early: a link may be turned, a file replaced.
struct CommandLine {
  std::string program;
  std::vector<std::string> arguments;
  static CommandLine own();
};

// Starts the successor and waits until it serves, at most a minute. If it does not, it is ended, and the error says
// why: this process goes on. kCancelled: a signal to stop came, and is left for whoever waits for signals.
Result<void> start_successor(const CommandLine& command, gateway::Gateway& gateway, StopSignals& signals);

// Tells systemd, where it started this service, that the main process is this one.
void announce_main_process();

}  // namespace sluice::cli
