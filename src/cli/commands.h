// The subcommands of `sluice`. A command is one file of this folder and one row in commands.cc; help, man pages, shell
// completion and the option dumps come from the row.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/options.h"
#include "base/result.h"

namespace sluice::cli {

using Arguments = std::vector<std::string>;  // without the program's and the command's name

// What help and dumps need of an OptionTable<S>, whatever S is.
struct OptionView {
  const std::vector<internal::OptionSpec>* specs = nullptr;
  const std::vector<RejectedFlag>* rejected = nullptr;
};

template <class S>
OptionView view_of(const OptionTable<S>& table) {
  return {&table.specs(), &table.rejected()};
}

struct Command {
  std::string_view name;
  std::vector<std::string_view> aliases;
  std::string_view help;  // one line
  // Exit status of the process. --help never gets here.
  int (*run)(const Arguments& arguments) = nullptr;
  // Null for a command that takes no options.
  OptionView (*options)() = nullptr;
  bool hidden = false;                    // started by other commands, not by people
  std::vector<Command> subcommands = {};  // "bench worker": chosen by the first argument
};

// Every command of this build, in the order of --help.
const std::vector<Command>& commands();

// One line on stderr; the exit status that goes with it: 2 for a bad command line, else 1.
int fail(const Error& error);

// "http://127.0.0.1:30000", with brackets around IPv6.
std::string url_of(std::string_view host, uint16_t port, bool tls = false);

// "listening on http://127.0.0.1:30000": the one line on stdout that says where a listening command was bound. Scripts
// read it, so every such command prints it once, through here.
void announce(std::string_view host, uint16_t port, bool tls = false);

// Defined in the file of the command's name.
int run_gateway(const Arguments& arguments);
OptionView gateway_options();
int run_server(const Arguments& arguments);
OptionView server_options();
int run_explain(const Arguments& arguments);
OptionView explain_options();
int run_serve(const Arguments& arguments);
OptionView serve_options();
int run_check_cluster(const Arguments& arguments);
int run_rank(const Arguments& arguments);
int run_grammar(const Arguments& arguments);
int run_bench(const Arguments& arguments);
OptionView bench_options();
int run_bench_worker(const Arguments& arguments);
OptionView bench_worker_options();
int run_bench_policy(const Arguments& arguments);
OptionView bench_policy_options();
int run_top(const Arguments& arguments);
OptionView top_options();
int run_options(const Arguments& arguments);
int run_complete(const Arguments& arguments);

}  // namespace sluice::cli
