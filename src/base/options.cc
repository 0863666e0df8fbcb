#include "base/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

namespace sluice::internal {
namespace {

using Json = nlohmann::json;

constexpr size_t kNoRow = ~size_t{0};

// Something that may follow the dashes: a row's name or alias, or a rejected flag.
struct Name {
  std::string_view text;
  size_t row;  // kNoRow for a rejected flag
  const RejectedFlag* rejected = nullptr;
};

std::vector<Name> all_names(const std::vector<OptionSpec>& specs, const std::vector<RejectedFlag>& rejected) {
  std::vector<Name> names;
  for (size_t row = 0; row < specs.size(); ++row) {
    names.push_back({specs[row].name, row});
    for (auto alias : specs[row].aliases) names.push_back({alias, row});
  }
  for (const auto& flag : rejected) names.push_back({flag.name, kNoRow, &flag});
  return names;
}

Error bad(std::string message) { return Error{ErrorCode::kBadOption, std::move(message)}; }

std::string joined(const std::vector<std::string_view>& words, std::string_view separator) {
  return fmt::format("{}", fmt::join(words, separator));
}

std::string dashed(std::string_view name) { return fmt::format("{}{}", name.size() == 1 ? "-" : "--", name); }

// Levenshtein distance, two rows.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t above = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, above + 1, diagonal + (a[i] == b[j] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row.back();
}

Error unknown_flag(std::string_view written, std::string_view name, const std::vector<Name>& names) {
  const Name* nearest = nullptr;
  size_t least = std::max<size_t>(2, name.size() / 3) + 1;
  for (const auto& candidate : names) {
    if (candidate.rejected) continue;
    // A name that contains the word, or is contained in it, is a better guess than its length suggests.
    size_t d = distance(name, candidate.text);
    if (name.size() >= 4 && candidate.text.find(name) != std::string_view::npos) d = std::min<size_t>(d, 2);
    if (d < least) {
      least = d;
      nearest = &candidate;
    }
  }
  if (nearest) return bad(fmt::format("unknown flag {}; did you mean {}?", written, dashed(nearest->text)));
  return bad(fmt::format("unknown flag {}; --help lists the flags", written));
}

// True for "-x" and "--x", false for words, "-", and negative numbers.
bool looks_like_flag(std::string_view word) {
  if (word.size() < 2 || word[0] != '-') return false;
  if (word[1] == '-') return true;
  const bool number = (word[1] >= '0' && word[1] <= '9') || (word[1] == '.' && word.size() > 2);
  return !number && word != "-inf";
}

Result<const Name*> find_name(std::string_view written, std::string_view name, const std::vector<Name>& names,
                              bool allow_prefixes) {
  for (const auto& candidate : names) {
    if (candidate.text == name) return &candidate;
  }
  if (!allow_prefixes || name.empty() || !written.starts_with("--")) return unknown_flag(written, name, names);
  std::vector<const Name*> matches;
  for (const auto& candidate : names) {
    if (candidate.text.size() > 1 && candidate.text.starts_with(name)) matches.push_back(&candidate);
  }
  if (matches.empty()) return unknown_flag(written, name, names);
  const bool one_row = std::all_of(matches.begin(), matches.end(), [&](const Name* match) {
    return match->row == matches[0]->row && match->rejected == matches[0]->rejected;
  });
  if (one_row) return matches[0];
  std::string list;
  for (const auto* match : matches) list += fmt::format("{}{}", list.empty() ? "" : ", ", dashed(match->text));
  return bad(fmt::format("{} is ambiguous: it could be {}", written, list));
}

template <class T>
Result<T> parse_number(const OptionSpec& spec, std::string_view word) {
  constexpr bool kInteger = std::is_same_v<T, int64_t>;
  const char* begin = word.data() + (word.starts_with('+') ? 1 : 0);
  const char* end = word.data() + word.size();
  T value{};
  const auto [stop, problem] = std::from_chars(begin, end, value);
  bool valid = problem == std::errc{} && stop == end;
  if constexpr (!kInteger) valid = valid && !std::isnan(value);
  if (!valid) {
    return bad(
        fmt::format("{} expects {}, not '{}'", dashed(spec.name), kInteger ? "a whole number" : "a number", word));
  }
  return value;
}

Result<OptionValue> parse_value(const OptionSpec& spec, std::string_view word) {
  const OptionValue& like = spec.value;
  if (std::holds_alternative<int64_t>(like) || std::holds_alternative<std::optional<int64_t>>(like)) {
    SLUICE_TRY(const int64_t number, parse_number<int64_t>(spec, word));
    if (std::holds_alternative<int64_t>(like)) return OptionValue(number);
    return OptionValue(std::optional<int64_t>(number));
  }
  if (std::holds_alternative<double>(like) || std::holds_alternative<std::optional<double>>(like)) {
    SLUICE_TRY(const double number, parse_number<double>(spec, word));
    if (std::holds_alternative<double>(like)) return OptionValue(number);
    return OptionValue(std::optional<double>(number));
  }
  if (std::holds_alternative<std::optional<std::string>>(like)) {
    return OptionValue(std::optional<std::string>(std::string(word)));
  }
  return OptionValue(std::string(word));
}

std::string number_text(double number) {
  if (number == std::floor(number) && std::abs(number) < 1e15) return fmt::format("{}", static_cast<int64_t>(number));
  return fmt::format("{}", number);
}

std::string range_text(const OptionRange& range) {
  const bool low = range.min > -1e299;
  const bool high = range.max < 1e299;
  if (low && high) return fmt::format("{} to {}", number_text(range.min), number_text(range.max));
  if (low) return fmt::format("at least {}", number_text(range.min));
  if (high) return fmt::format("at most {}", number_text(range.max));
  return "";
}

Result<void> check_number(const OptionSpec& spec, double value) {
  if (value >= spec.range.min && value <= spec.range.max) return {};
  return bad(fmt::format("{} is {}, but must be {}", dashed(spec.name), number_text(value), range_text(spec.range)));
}

Result<void> check_choice(const OptionSpec& spec, std::string_view value) {
  if (spec.choices.empty() || std::find(spec.choices.begin(), spec.choices.end(), value) != spec.choices.end()) {
    return {};
  }
  return bad(fmt::format("{} is '{}', but must be one of: {}", dashed(spec.name), value, joined(spec.choices, ", ")));
}

// "none" for an absent value, "" for a flag that takes no value.
std::string default_text(const OptionValue& value) {
  if (std::holds_alternative<bool>(value)) return std::get<bool>(value) ? "on" : "off";
  if (const auto* number = std::get_if<int64_t>(&value)) return fmt::format("{}", *number);
  if (const auto* number = std::get_if<double>(&value)) return number_text(*number);
  if (const auto* text = std::get_if<std::string>(&value)) return text->empty() ? "none" : *text;
  if (const auto* list = std::get_if<StringList>(&value)) {
    return list->empty() ? "none" : fmt::format("{}", fmt::join(*list, " "));
  }
  if (const auto* number = std::get_if<std::optional<int64_t>>(&value)) {
    return *number ? fmt::format("{}", **number) : "none";
  }
  if (const auto* number = std::get_if<std::optional<double>>(&value)) return *number ? number_text(**number) : "none";
  const auto& text = std::get<std::optional<std::string>>(value);
  return text ? *text : "none";
}

std::string_view metavar(const OptionSpec& spec) {
  if (!spec.metavar.empty()) return spec.metavar;
  if (std::holds_alternative<int64_t>(spec.value) || std::holds_alternative<std::optional<int64_t>>(spec.value)) {
    return "N";
  }
  if (std::holds_alternative<double>(spec.value) || std::holds_alternative<std::optional<double>>(spec.value)) {
    return "X";
  }
  return spec.choices.empty() ? "TEXT" : "NAME";
}

// "--worker-urls [URL ...]", "--port N", "--verbose".
std::string usage_of(const OptionSpec& spec, std::string_view name) {
  if (std::holds_alternative<bool>(spec.value)) return dashed(name);
  if (std::holds_alternative<StringList>(spec.value)) return fmt::format("{} [{} ...]", dashed(name), metavar(spec));
  return fmt::format("{} {}", dashed(name), metavar(spec));
}

void append_wrapped(std::string& out, std::string_view text, size_t indent, size_t width) {
  size_t column = 0;
  while (!text.empty()) {
    const size_t space = text.find(' ');
    const std::string_view word = text.substr(0, space);
    text = space == std::string_view::npos ? std::string_view() : text.substr(space + 1);
    if (column > 0 && column + 1 + word.size() > width - indent) {
      out += '\n';
      column = 0;
    }
    if (column == 0) {
      out.append(indent, ' ');
    } else {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
  }
  out += '\n';
}

std::string facts_of(const OptionSpec& spec) {
  std::vector<std::string> facts;
  if (!std::holds_alternative<bool>(spec.value)) facts.push_back("default " + default_text(spec.value));
  if (!spec.choices.empty()) facts.push_back("one of " + joined(spec.choices, ", "));
  if (const auto range = range_text(spec.range); !range.empty()) facts.push_back(range);
  if (!spec.aliases.empty()) {
    std::string also;
    for (auto alias : spec.aliases) also += fmt::format("{}{}", also.empty() ? "also " : ", ", dashed(alias));
    facts.push_back(also);
  }
  return fmt::format("{}", fmt::join(facts, "; "));
}

std::vector<std::string_view> groups_of(const std::vector<OptionSpec>& specs) {
  std::vector<std::string_view> groups;
  for (const auto& spec : specs) {
    if (std::find(groups.begin(), groups.end(), spec.group) == groups.end()) groups.push_back(spec.group);
  }
  return groups;
}

std::string markdown_cell(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

Result<void> validate_option(const OptionSpec& spec, const OptionValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return check_number(spec, static_cast<double>(*number));
  if (const auto* number = std::get_if<double>(&value)) return check_number(spec, *number);
  if (const auto* text = std::get_if<std::string>(&value)) return check_choice(spec, *text);
  if (const auto* list = std::get_if<StringList>(&value)) {
    for (const auto& word : *list) SLUICE_TRY_VOID(check_choice(spec, word));
    return {};
  }
  if (const auto* number = std::get_if<std::optional<int64_t>>(&value)) {
    return *number ? check_number(spec, static_cast<double>(**number)) : Result<void>();
  }
  if (const auto* number = std::get_if<std::optional<double>>(&value)) {
    return *number ? check_number(spec, **number) : Result<void>();
  }
  if (const auto* text = std::get_if<std::optional<std::string>>(&value)) {
    return *text ? check_choice(spec, **text) : Result<void>();
  }
  return {};
}

Result<std::vector<std::pair<size_t, OptionValue>>> parse_options(const std::vector<OptionSpec>& specs,
                                                                  const std::vector<RejectedFlag>& rejected,
                                                                  const std::vector<std::string>& arguments,
                                                                  bool allow_prefixes) {
  const auto names = all_names(specs, rejected);
  std::vector<std::pair<size_t, OptionValue>> given;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view word = arguments[i];
    if (!looks_like_flag(word)) return bad(fmt::format("unexpected argument '{}': flags begin with --", word));
    const size_t equals = word.find('=');
    const std::string_view written = word.substr(0, equals);
    const std::string_view name = written.substr(written.starts_with("--") ? 2 : 1);
    SLUICE_TRY(const Name* match, find_name(written, name, names, allow_prefixes));
    std::optional<std::string_view> attached;
    if (equals != std::string_view::npos) attached = word.substr(equals + 1);
    if (match->rejected) {
      const RejectedFlag& flag = *match->rejected;
      if (flag.taken.empty()) return bad(fmt::format("{} is not implemented: {}", dashed(flag.name), flag.instead));
      if (!attached && i + 1 < arguments.size()) attached = arguments[++i];
      if (!attached) return bad(fmt::format("{} expects a value", dashed(flag.name)));
      if (std::find(flag.taken.begin(), flag.taken.end(), *attached) != flag.taken.end()) continue;
      return bad(fmt::format("{} {} is not implemented, only {}: {}", dashed(flag.name), *attached,
                             joined(flag.taken, ", "), flag.instead));
    }
    const OptionSpec& spec = specs[match->row];
    if (std::holds_alternative<bool>(spec.value)) {
      if (attached) return bad(fmt::format("{} takes no value", dashed(spec.name)));
      given.emplace_back(match->row, OptionValue(true));
      continue;
    }
    if (std::holds_alternative<StringList>(spec.value)) {
      // Repeating the flag appends; the first use replaces the default.
      auto earlier = std::find_if(given.begin(), given.end(), [&](const auto& g) { return g.first == match->row; });
      StringList list;
      if (earlier != given.end()) list = std::get<StringList>(earlier->second);
      if (attached) {
        list.emplace_back(*attached);
      } else {
        while (i + 1 < arguments.size() && !looks_like_flag(arguments[i + 1])) list.push_back(arguments[++i]);
      }
      OptionValue value(std::move(list));
      SLUICE_TRY_VOID(validate_option(spec, value));
      if (earlier != given.end()) {
        earlier->second = std::move(value);
      } else {
        given.emplace_back(match->row, std::move(value));
      }
      continue;
    }
    if (!attached) {
      if (i + 1 >= arguments.size() || looks_like_flag(arguments[i + 1])) {
        return bad(fmt::format("{} expects a value", dashed(spec.name)));
      }
      attached = arguments[++i];
    }
    SLUICE_TRY(OptionValue value, parse_value(spec, *attached));
    SLUICE_TRY_VOID(validate_option(spec, value));
    given.emplace_back(match->row, std::move(value));
  }
  return given;
}

std::string options_help(const std::vector<OptionSpec>& specs) {
  constexpr size_t kIndent = 8;
  constexpr size_t kWidth = 100;
  std::string out;
  for (auto group : groups_of(specs)) {
    out += fmt::format("{}{}:\n", out.empty() ? "" : "\n", group.empty() ? "Options" : group);
    for (const auto& spec : specs) {
      if (spec.group != group) continue;
      out += fmt::format("  {}\n", usage_of(spec, spec.name));
      append_wrapped(out, spec.help, kIndent, kWidth);
      if (const auto facts = facts_of(spec); !facts.empty()) append_wrapped(out, "[" + facts + "]", kIndent, kWidth);
    }
  }
  return out;
}

std::string options_markdown(const std::vector<OptionSpec>& specs) {
  std::string out;
  for (auto group : groups_of(specs)) {
    out += fmt::format("{}## {}\n\n| flag | default | valid | meaning |\n|---|---|---|---|\n", out.empty() ? "" : "\n",
                       group.empty() ? "Options" : group);
    for (const auto& spec : specs) {
      if (spec.group != group) continue;
      std::string flags = fmt::format("`{}`", usage_of(spec, spec.name));
      for (auto alias : spec.aliases) flags += fmt::format(", `{}`", dashed(alias));
      const std::string valid = spec.choices.empty() ? range_text(spec.range) : joined(spec.choices, ", ");
      out += fmt::format("| {} | {} | {} | {} |\n", markdown_cell(flags), markdown_cell(default_text(spec.value)),
                         markdown_cell(valid), markdown_cell(spec.help));
    }
  }
  return out;
}

Json option_value_to_json(const OptionValue& value) {
  return std::visit(
      [](const auto& v) -> Json {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::optional<int64_t>> || std::is_same_v<T, std::optional<double>> ||
                      std::is_same_v<T, std::optional<std::string>>) {
          return v ? Json(*v) : Json(nullptr);
        } else {
          return Json(v);
        }
      },
      value);
}

}  // namespace sluice::internal
