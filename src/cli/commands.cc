#include "cli/commands.h"

#include <cstdio>

namespace sluice::cli {

// Rows of the engine stand inside the #if: the gateway builds without it.
const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
#if SLUICE_ENGINE
    {.name = "serve",
     .help = "Starts engine workers on this machine, and a gateway in front of them.",
     .run = run_serve,
     .options = serve_options},
#endif
    {.name = "gateway",
     .aliases = {"launch_router", "launch", "start"},
     .help = "Routes requests to workers that run already.",
     .run = run_gateway,
     .options = gateway_options},
    {.name = "bench",
     .help = "Loads a server and measures it; its subcommands are a server to measure gateways with, and a simulator.",
     .run = run_bench,
     .options = bench_options,
     .subcommands = {{.name = "worker",
                      .help = "A simulated engine worker: no model, scripted latencies, faults on request.",
                      .run = run_bench_worker,
                      .options = bench_worker_options},
                     {.name = "policy",
                      .help = "Routing policies side by side, with simulated workers in virtual time.",
                      .run = run_bench_policy,
                      .options = bench_policy_options}}},
    {.name = "top",
     .help = "Shows what the ranks of a server do: requests, KV cache, tokens per second.",
     .run = run_top,
     .options = top_options},
#if SLUICE_ENGINE
    {.name = "server",
     .aliases = {"launch_server"},
     .help = "Runs a model behind an OpenAI-compatible HTTP API.",
     .run = run_server,
     .options = server_options},
    {.name = "explain",
     .help = "What a layout means for a model: what each rank holds, how many tokens fit, what is sent, how fast it "
             "can be.",
     .run = run_explain,
     .options = explain_options},
    {.name = "check-cluster",
     .help = "Says whether the hosts of `sluice server --nnodes N` can be one; runs on each, with the server's flags.",
     .run = run_check_cluster,
     .options = server_options},
    {.name = "rank", .help = "One rank of a server.", .run = run_rank, .hidden = true},
    {.name = "grammar", .help = "Compiles the grammars of a rank.", .run = run_grammar, .hidden = true},
#endif
    {.name = "complete", .help = "Completes a command line.", .run = run_complete, .hidden = true},
    {.name = "options", .help = "Prints the option tables.", .run = run_options, .hidden = true},
  };
  return table;
}

int fail(const Error& error) {
  std::fputs(fmt::format("sluice: {}\n", error.message).c_str(), stderr);
  return error.code == ErrorCode::kBadOption ? 2 : 1;
}

std::string url_of(std::string_view host, uint16_t port, bool tls) {
  const bool bare_ipv6 = host.find(':') != std::string_view::npos && !host.starts_with('[');
  return fmt::format("http{}://{}{}{}:{}", tls ? "s" : "", bare_ipv6 ? "[" : "", host, bare_ipv6 ? "]" : "", port);
}

void announce(std::string_view host, uint16_t port, bool tls) {
  std::fputs(fmt::format("listening on {}\n", url_of(host, port, tls)).c_str(), stdout);
  std::fflush(stdout);
}

}  // namespace sluice::cli
