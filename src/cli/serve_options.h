// The command line of `sluice serve`: the engine's flags for the workers, the gateway's with the prefix --router-, and
// a few of its own.
#pragma once

#include <string>
#include <vector>

#include "cli/commands.h"
#include "engine/options.h"
#include "gateway/options.h"

namespace sluice::cli {

struct ServeOptions {
  int64_t replicas;
  int64_t router_dp_worker_base_port;
  std::string worker_host;
  int64_t worker_startup_timeout;  // seconds
  int64_t worker_answer_timeout;   // seconds; 0 = none
  bool router_disable_worker_restart;
  bool router_disable_arg_fallback;
};

const OptionTable<ServeOptions>& serve_option_table();

struct ServeCommand {
  ServeOptions serve;
  engine::EngineOptions engine;
  gateway::GatewayOptions gateway;
  // The engine's flags as they were given, for every worker; without those that are decided per worker: --dp-size,
  // --host, --port and --threads.
  std::vector<std::string> worker_flags;

  // With DP attention --dp-size are the attention groups of a worker, which the gateway sees as workers of their own;
  // without, it is the number of workers.
  bool dp_attention() const { return engine.enable_dp_attention && engine.dp_size > 1; }
  int64_t workers() const { return dp_attention() ? serve.replicas : engine.dp_size; }
};

// A gateway option takes the value of --router-<name>; else, unless --router-disable-arg-fallback, the engine's value
// of the same name if there is one that is not empty; else its default. Host and port are always the engine's, and the
// metrics are on that host unless --router-prometheus-host says otherwise.
Result<ServeCommand> parse_serve(const Arguments& arguments);

}  // namespace sluice::cli
