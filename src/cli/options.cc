// `sluice options [command ...] --json|--markdown|--man`: the option tables, for scripts and the docs; with --man-pages
// FOLDER, one file per command for the installation.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"

namespace sluice::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Named {
  std::string path;  // "bench worker"
  const Command* command;
};

std::vector<Named> all_commands() {
  std::vector<Named> all;
  for (const auto& command : commands()) {
    all.push_back({std::string(command.name), &command});
    for (const auto& sub : command.subcommands) all.push_back({fmt::format("{} {}", command.name, sub.name), &sub});
  }
  return all;
}

std::string_view type_name(const OptionValue& value) {
  constexpr std::string_view kNames[] = {"bool", "int", "float", "string", "list", "int", "float", "string"};
  return kNames[value.index()];
}

Json json_of(const Named& named) {
  Json rows = Json::array();
  Json rejected = Json::array();
  if (named.command->options) {
    const OptionView view = named.command->options();
    for (const auto& spec : *view.specs) {
      Json row = {{"name", spec.name},
                  {"aliases", spec.aliases},
                  {"type", type_name(spec.value)},
                  {"optional", spec.value.index() >= 5},
                  {"default", internal::option_value_to_json(spec.value)},
                  {"choices", spec.choices},
                  {"read_by", spec.read_by},
                  {"group", spec.group},
                  {"help", spec.help}};
      if (spec.range.min > -1e299) row["min"] = spec.range.min;
      if (spec.range.max < 1e299) row["max"] = spec.range.max;
      rows.push_back(std::move(row));
    }
    for (const auto& flag : *view.rejected) {
      rejected.push_back({{"name", flag.name}, {"instead", flag.instead}, {"taken", flag.taken}});
    }
  }
  return {{"command", named.path},
          {"aliases", named.command->aliases},
          {"hidden", named.command->hidden},
          {"help", named.command->help},
          {"options", rows},
          {"rejected", rejected}};
}

std::string roff_escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else if ((c == '.' || c == '\'') && out.empty()) {
      out += "\\&";
      out += c;
    } else {
      out += c;
    }
  }
  return out;
}

// A default as one would type it; empty where there is none.
std::string typed(const OptionValue& value) {
  const auto json = internal::option_value_to_json(value);
  if (json.is_string()) return json.get<std::string>();
  if (!json.is_array()) return json.is_null() ? "" : json.dump();
  return fmt::format("{}", fmt::join(json.get<std::vector<std::string>>(), " "));
}

std::string page_name(const Named& named) {
  std::string page = "sluice-" + named.path;
  std::replace(page.begin(), page.end(), ' ', '-');
  return page;
}

std::string man_of(const Named& named) {
  const std::string page = page_name(named);
  std::string upper = page;
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  std::string out = fmt::format(
      ".TH {} 1 \"\" \"sluice {}\" \"User Commands\"\n.SH NAME\n{} \\- {}\n"
      ".SH SYNOPSIS\n.B sluice {}\n[flags]\n",
      roff_escape(upper), SLUICE_VERSION, roff_escape(page), roff_escape(named.command->help), named.path);
  std::string_view group = "\n";  // no group has this name
  if (named.command->options) {
    out += ".SH OPTIONS\n";
    for (const auto& spec : *named.command->options().specs) {
      if (spec.group != group) {
        group = spec.group;
        out += fmt::format(".SS \"{}\"\n", group.empty() ? "Options" : group);
      }
      out += fmt::format(".TP\n.B \\-\\-{}", roff_escape(spec.name));
      for (auto alias : spec.aliases)
        out += fmt::format(", {}{}", alias.size() == 1 ? "\\-" : "\\-\\-", roff_escape(alias));
      if (spec.value.index() != 0) out += spec.value.index() == 4 ? " [...]" : " value";
      out += fmt::format("\n{}\n", roff_escape(spec.help));
      if (const auto fallback = typed(spec.value); spec.value.index() != 0 && !fallback.empty()) {
        out += fmt::format("Default: {}.\n", roff_escape(fallback));
      }
      if (!spec.choices.empty())
        out += fmt::format("One of: {}.\n", roff_escape(fmt::format("{}", fmt::join(spec.choices, ", "))));
    }
  }
  for (const auto& sub : named.command->subcommands) {
    out += fmt::format(".SH SEE ALSO\nsluice\\-{}\\-{}(1)\n", named.path, sub.name);
  }
  return out;
}

std::string markdown_of(const Named& named) {
  const OptionView view = named.command->options();
  std::string out =
      fmt::format("# sluice {}\n\n{}\n\n{}", named.path, named.command->help, internal::options_markdown(*view.specs));
  if (!view.rejected->empty()) {
    out +=
        "\n## Refused\n\nFlags of the systems that this replaces which are not built: start-up ends with one line "
        "that says so.\n\n| flag | instead |\n|---|---|\n";
    for (const auto& flag : *view.rejected) {
      const auto taken = flag.taken.empty() ? "" : fmt::format(" Taken: {}.", fmt::join(flag.taken, ", "));
      out += fmt::format("| `--{}` | {}{} |\n", flag.name, flag.instead, taken);
    }
  }
  return out;
}

// The page of the program itself, which leads to those of its commands.
std::string overview_man() {
  std::string out = fmt::format(
      ".TH SLUICE 1 \"\" \"sluice {}\" \"User Commands\"\n.SH NAME\nsluice \\- serves large language models\n"
      ".SH SYNOPSIS\n.B sluice\n.I command\n[flags]\n.SH COMMANDS\n",
      SLUICE_VERSION);
  for (const auto& named : all_commands()) {
    if (named.command->hidden) continue;
    out += fmt::format(".TP\n.BR {} (1)\n{}\n", roff_escape(page_name(named)), roff_escape(named.command->help));
  }
  return out;
}

int write_man_pages(const std::filesystem::path& folder) {
  std::error_code problem;
  std::filesystem::create_directories(folder, problem);
  std::ofstream(folder / "sluice.1") << overview_man();
  for (const auto& named : all_commands()) {
    if (named.command->hidden) continue;
    std::ofstream file(folder / (page_name(named) + ".1"));
    file << man_of(named);
    if (!file.flush()) return fail({ErrorCode::kInternal, fmt::format("cannot write to {}", folder.string())});
  }
  return 0;
}

}  // namespace

int run_options(const Arguments& arguments) {
  if (arguments.size() == 2 && arguments[0] == "--man-pages") return write_man_pages(arguments[1]);
  std::string wanted;
  std::string form = "--json";
  for (const auto& word : arguments) {
    if (word.starts_with("--")) {
      form = word;
    } else {
      wanted += (wanted.empty() ? "" : " ") + word;
    }
  }
  if (form != "--json" && form != "--markdown" && form != "--man") {
    return fail({ErrorCode::kBadOption, "options prints --json, --markdown or --man"});
  }
  Json documents = Json::array();
  std::string out;
  bool found = false;
  for (const auto& named : all_commands()) {
    if (!wanted.empty() && named.path != wanted) continue;
    found = true;
    if (form == "--json") {
      documents.push_back(json_of(named));
    } else if (form == "--man") {
      out += man_of(named);
    } else if (named.command->options) {
      out += markdown_of(named);
    }
  }
  if (!found) return fail({ErrorCode::kBadOption, fmt::format("no command is called '{}'", wanted)});
  if (form == "--json") out = (wanted.empty() ? documents : documents[0]).dump(1) + "\n";
  std::fwrite(out.data(), 1, out.size(), stdout);
  return 0;
}

}  // namespace sluice::cli
