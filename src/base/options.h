// Options, declared once. One row per option holds its name, aliases, the struct member that it fills, default, range,
// help and the file that reads it; parsing, --help, validation, the JSON dump and the docs page all come from the rows.
// A component declares `struct XOptions` and `const OptionTable<XOptions>& x_option_table()` in its own folder; only
// cli/ knows command lines. Defaults live in the rows and nowhere else: make an XOptions with table.defaults().
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"

namespace sluice {

using StringList = std::vector<std::string>;
// bool: a presence flag. int64_t, double: numbers with a range. string: free text or one of `choices`. StringList:
// zero or more words after one flag; repeating the flag appends.
// The optional forms are for options whose absence means something ("computed", "no limit").
using OptionValue = std::variant<bool, int64_t, double, std::string, StringList, std::optional<int64_t>,
                                 std::optional<double>, std::optional<std::string>>;

struct OptionRange {
  double min = -1e300;
  double max = 1e300;
};

template <class S>
struct OptionRow {
  using Field = std::variant<bool S::*, int64_t S::*, double S::*, std::string S::*, StringList S::*,
                             std::optional<int64_t> S::*, std::optional<double> S::*, std::optional<std::string> S::*>;
  std::string_view name;                  // without the leading dashes
  std::vector<std::string_view> aliases;  // likewise
  Field field;
  OptionValue value;                      // the default; its alternative matches the field's
  OptionRange range;                      // inclusive; numbers only
  std::vector<std::string_view> choices;  // strings only; empty = free
  std::string_view metavar;
  std::string_view read_by;  // path under src/ of the file that reads it, without extension
  std::string_view group;    // heading in --help and in the docs page
  std::string_view help;
};

// A flag of the systems that we replace which is recognised and not built: start-up ends with one line, unless its
// value is one of those that ask for what is done anyway.
struct RejectedFlag {
  std::string_view name;     // without dashes
  std::string_view instead;  // what to do instead, a sentence
  std::vector<std::string_view> taken = {};
};

namespace internal {

// One row with its struct type erased; base/options.cc works on these.
struct OptionSpec {
  std::string_view name;
  std::vector<std::string_view> aliases;
  OptionValue value;
  OptionRange range;
  std::vector<std::string_view> choices;
  std::string_view metavar;
  std::string_view read_by;
  std::string_view group;
  std::string_view help;
};

// The command line as (row index, value) pairs in order; rows not named are absent. `rejected` flags (but
// for their values that are taken, which change nothing) and unknown ones are errors of kind kBadOption; so is a value
// outside the range or choices. "--flag=value" and "--flag value" both work, a negative number is a value, and an
// unambiguous prefix of a name is accepted where `allow_prefixes` is set (as argparse does). "--no-<bool>" is not
// created.
Result<std::vector<std::pair<size_t, OptionValue>>> parse_options(const std::vector<OptionSpec>& specs,
                                                                  const std::vector<RejectedFlag>& rejected,
                                                                  const std::vector<std::string>& arguments,
                                                                  bool allow_prefixes);
Result<void> validate_option(const OptionSpec& spec, const OptionValue& value);
std::string options_help(const std::vector<OptionSpec>& specs);
std::string options_markdown(const std::vector<OptionSpec>& specs);
nlohmann::json option_value_to_json(const OptionValue& value);

}  // namespace internal

template <class S>
class OptionTable {
 public:
  OptionTable(std::initializer_list<OptionRow<S>> rows, std::vector<RejectedFlag> rejected = {})
      : rows_(rows), rejected_(std::move(rejected)) {
    for (const auto& row : rows_) {
      SLUICE_CHECK(row.field.index() == row.value.index(), "option {}: its default has another type than its field",
                   row.name);
      specs_.push_back(
          {row.name, row.aliases, row.value, row.range, row.choices, row.metavar, row.read_by, row.group, row.help});
    }
  }

  S defaults() const {
    S options{};
    for (const auto& row : rows_) set(options, row, row.value);
    return options;
  }

  // Fills a struct from arguments (without the program and subcommand names), starting from the defaults.
  Result<S> parse(const std::vector<std::string>& arguments, bool allow_prefixes = true) const {
    S options = defaults();
    auto given = internal::parse_options(specs_, rejected_, arguments, allow_prefixes);
    if (!given.ok()) return std::move(given).error();
    for (auto& [index, value] : *given) set(options, rows_[index], value);
    return options;
  }

  OptionValue get(const S& options, size_t index) const {
    return std::visit([&](auto member) { return OptionValue(options.*member); }, rows_[index].field);
  }

  void assign(S& options, size_t index, const OptionValue& value) const { set(options, rows_[index], value); }

  const std::vector<internal::OptionSpec>& specs() const { return specs_; }
  const std::vector<RejectedFlag>& rejected() const { return rejected_; }
  std::string help() const { return internal::options_help(specs_); }
  std::string markdown() const { return internal::options_markdown(specs_); }
  size_t size() const { return rows_.size(); }

 private:
  static void set(S& options, const OptionRow<S>& row, const OptionValue& value) {
    std::visit([&](auto member) { options.*member = std::get<std::decay_t<decltype(options.*member)>>(value); },
               row.field);
  }

  std::vector<OptionRow<S>> rows_;
  std::vector<RejectedFlag> rejected_;
  std::vector<internal::OptionSpec> specs_;
};

}  // namespace sluice
