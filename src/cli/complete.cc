// `sluice complete <words...>`: what may stand in the place of the last word. The completion scripts of the shells call
// it, so that they never disagree with the option tables.
#include <algorithm>
#include <cstdio>

#include "cli/commands.h"

namespace sluice::cli {
namespace {

struct Candidates {
  std::string_view prefix;
  std::string out;

  void add(std::string_view word, std::string_view help) {
    if (word.starts_with(prefix)) out += fmt::format("{}\t{}\n", word, help);
  }
};

const Command* find(const std::vector<Command>& table, std::string_view name) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const Command& command) {
    return command.name == name ||
           std::find(command.aliases.begin(), command.aliases.end(), name) != command.aliases.end();
  });
  return found == table.end() ? nullptr : &*found;
}

const internal::OptionSpec* find_option(const std::vector<internal::OptionSpec>& specs, std::string_view flag) {
  if (!flag.starts_with("--")) return nullptr;
  flag.remove_prefix(2);
  const auto found = std::find_if(specs.begin(), specs.end(), [&](const internal::OptionSpec& spec) {
    return spec.name == flag || std::find(spec.aliases.begin(), spec.aliases.end(), flag) != spec.aliases.end();
  });
  return found == specs.end() ? nullptr : &*found;
}

void add_commands(Candidates& candidates, const std::vector<Command>& table) {
  for (const auto& command : table) {
    if (!command.hidden) candidates.add(command.name, command.help);
  }
}

void add_flags(Candidates& candidates, const Command& command) {
  if (command.options) {
    for (const auto& spec : *command.options().specs) candidates.add(fmt::format("--{}", spec.name), spec.help);
  }
  candidates.add("--help", "Lists the flags.");
}

// A flag and its value in one word, which zsh leaves whole and bash splits at the "=".
Arguments without_equals(Arguments words) {
  const size_t count = words.size();
  if (count > 2 && words[count - 2] == "=") {
    words.erase(words.end() - 2);
  } else if (count > 1 && words.back() == "=") {
    words.back().clear();
  }
  return words;
}

}  // namespace

int run_complete(const Arguments& words) {
  const Arguments arguments = without_equals(words);
  Candidates candidates{arguments.empty() ? std::string_view() : std::string_view(arguments.back()), {}};
  if (arguments.size() <= 1) {
    add_commands(candidates, commands());
    candidates.add("--help", "Lists the commands.");
    candidates.add("--version", "Prints the version.");
  } else if (const Command* command = find(commands(), arguments[0])) {
    if (arguments.size() == 2) add_commands(candidates, command->subcommands);
    if (const Command* sub = arguments.size() > 2 ? find(command->subcommands, arguments[1]) : nullptr) command = sub;
    const std::string& last = arguments.back();
    const size_t equals = last.find('=');
    const bool attached = last.starts_with("--") && equals != std::string::npos;
    const std::string_view flag = attached ? std::string_view(last).substr(0, equals) : arguments[arguments.size() - 2];
    const internal::OptionSpec* before = command->options ? find_option(*command->options().specs, flag) : nullptr;
    if (before && !before->choices.empty()) {
      for (auto choice : before->choices)
        candidates.add(attached ? fmt::format("{}={}", flag, choice) : std::string(choice), "");
    } else if (!before || before->value.index() == 0 || candidates.prefix.starts_with("-")) {
      add_flags(candidates, *command);
    }
  }
  std::fwrite(candidates.out.data(), 1, candidates.out.size(), stdout);
  return 0;
}

}  // namespace sluice::cli
