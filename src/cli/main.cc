#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstdio>

#include "base/process.h"
#include "cli/commands.h"

namespace sluice::cli {
namespace {

const Command* find(const std::vector<Command>& table, std::string_view name) {
  for (const auto& command : table) {
    if (command.name == name) return &command;
    if (std::find(command.aliases.begin(), command.aliases.end(), name) != command.aliases.end()) return &command;
  }
  return nullptr;
}

void print(std::FILE* to, const std::string& text) { std::fwrite(text.data(), 1, text.size(), to); }

std::string overview() {
  std::string out =
      "sluice serves large language models: engine workers, and a gateway that spreads requests over them.\n\n"
      "Usage: sluice <command> [flags]\n\nCommands:\n";
  for (const auto& command : commands()) {
    if (command.hidden) continue;
    out += fmt::format("  {:13} {}", command.name, command.help);
    if (!command.aliases.empty()) out += fmt::format(" (also: {})", fmt::join(command.aliases, ", "));
    out += '\n';
  }
  return out + "\nsluice <command> --help lists the flags of a command; sluice --version prints the version.\n";
}

std::string help_of(const Command& command, std::string_view path) {
  std::string out = fmt::format("{}\n\nUsage: sluice {}{}{}\n", command.help, path,
                                command.subcommands.empty() ? "" : " [subcommand]", command.options ? " [flags]" : "");
  if (!command.subcommands.empty()) out += "\nSubcommands:\n";
  for (const auto& sub : command.subcommands) out += fmt::format("  {:9} {}\n", sub.name, sub.help);
  if (command.options) out += "\n" + internal::options_help(*command.options().specs);
  return out;
}

bool wants_help(const Arguments& arguments) {
  return std::any_of(arguments.begin(), arguments.end(), [](const auto& a) { return a == "--help" || a == "-h"; });
}

bool wants_version(std::string_view argument) { return argument == "--version" || argument == "-V"; }

int print_version() {
  print(stdout, fmt::format("sluice {}\n", SLUICE_VERSION));
  return 0;
}

int dispatch(Arguments arguments) {
  if (arguments.empty()) {
    print(stderr, overview());
    return 2;
  }
  const std::string name = arguments[0];
  arguments.erase(arguments.begin());
  if (wants_version(name)) return print_version();
  if (name == "--help" || name == "-h" || name == "help") {
    if (name != "help" || arguments.empty()) {
      print(stdout, overview());
      return 0;
    }
    arguments.push_back("--help");
    return dispatch(std::move(arguments));
  }
  const Command* command = find(commands(), name);
  if (!command) {
    std::string known;
    for (const auto& c : commands()) {
      if (!c.hidden) known += fmt::format("{}{}", known.empty() ? "" : ", ", c.name);
    }
    return fail({ErrorCode::kBadOption, fmt::format("unknown command '{}'; the commands are: {}", name, known)});
  }
  std::string path(command->name);
  if (!arguments.empty()) {
    if (const Command* sub = find(command->subcommands, arguments[0])) {
      arguments.erase(arguments.begin());
      command = sub;
      path += fmt::format(" {}", sub->name);
    }
  }
  if (!arguments.empty() && wants_version(arguments[0])) return print_version();
  if (wants_help(arguments)) {
    print(stdout, help_of(*command, path));
    return 0;
  }
  if (command->run == nullptr) {  // it has subcommands and nothing of its own
    print(stderr, help_of(*command, path));
    return 2;
  }
  return command->run(arguments);
}

}  // namespace

}  // namespace sluice::cli

int main(int argc, char** argv) {
  sluice::end_with_parent();
  // A client that has gone away is an error of write(), not the end of the process.
  std::signal(SIGPIPE, SIG_IGN);
  // Ignored, as whoever started this may have left it, the ends of processes of ours would go unseen.
  std::signal(SIGCHLD, SIG_DFL);
  return sluice::cli::dispatch(sluice::cli::Arguments(argv + 1, argv + argc));
}
