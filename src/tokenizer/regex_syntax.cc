#include "tokenizer/regex_syntax.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <vector>

#include "tokenizer/newer_characters.h"

namespace sluice::tokenizer {

// The ranges are the letters in circles and squares, which are Alphabetic and of category So.
#define SLUICE_WORD_MEMBERS                    \
  "\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"   \
  "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}" \
  "\\p{L}\\p{M}\\p{Nl}\\p{Nd}\\p{Pc}"
const std::string_view kWordMembers = SLUICE_WORD_MEMBERS;

namespace {

constexpr int kDeepestClass = 16;

struct Members {
  std::string_view name;
  std::string_view members;
};
// What an escape of one letter stands for, where PCRE2 has something else. A capital letter: all other characters.
constexpr Members kEscapes[] = {
    {"d", "\\p{Nd}"},     {"h", "0-9A-Fa-f"},
    {"s", "\\p{wspace}"},  // PCRE2's also takes U+180E, which is no space since Unicode 6.3
    {"v", "\\x0B"},       {"w", SLUICE_WORD_MEMBERS},
};
// Likewise of [:name:].
constexpr Members kPosix[] = {
    {"alnum", "\\p{Alphabetic}\\p{Nd}"}, {"alpha", "\\p{Alphabetic}"},  {"digit", "\\p{Nd}"},
    {"lower", "\\p{Lowercase}"},         {"punct", "\\p{P}\\p{S}"},     {"space", "\\p{wspace}"},
    {"upper", "\\p{Uppercase}"},         {"word", SLUICE_WORD_MEMBERS},
};
// Oniguruma's \w has these as well, but not within a class.
constexpr std::string_view kMoreOfWords = "\\xB2\\xB3\\xB9\\xBC-\\xBE";

template <size_t n>
std::string_view members_of(const Members (&rows)[n], std::string_view name) {
  const auto* row = std::ranges::find(rows, name, &Members::name);
  return row == std::end(rows) ? std::string_view() : row->members;
}

bool is_property(std::string_view members) {
  return members.starts_with("\\p{") && members.find('}') + 1 == members.size();
}

// {n}, {n,}, {n,m} or {,m} at the head of `text`, as PCRE2 has it; nothing for other text.
struct Interval {
  size_t length = 0;
  bool exact = false;
  std::string text;
};
std::optional<Interval> interval_of(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789";
  const size_t end = text.find('}');
  if (!text.starts_with('{') || end == std::string_view::npos) return std::nullopt;
  const auto inside = text.substr(1, end - 1);
  const auto least = inside.substr(0, inside.find(','));
  const bool exact = least.size() == inside.size();
  const auto most = exact ? least : inside.substr(least.size() + 1);
  if (least.empty() && most.empty()) return std::nullopt;
  for (const auto number : {least, most}) {
    if (number.find_first_not_of(kDigits) != std::string_view::npos) return std::nullopt;
  }
  return Interval{end + 1, exact, fmt::format("{{{}{}}}", least.empty() ? "0" : "", inside)};
}

class Translator {
 public:
  Translator(std::string_view pattern, bool newer) : pattern_(pattern), newer_(newer) {}

  Result<std::string> run() {
    while (at_ < pattern_.size()) {
      SLUICE_TRY_VOID(step());
    }
    return std::move(out_);
  }

 private:
  // Members that one class of PCRE2 can have, and classes beside them, each a pattern of one character.
  struct Set {
    std::string members;
    std::vector<std::string> others;
  };

  std::string_view rest() const { return pattern_.substr(at_); }
  std::string_view take(size_t n) {
    const auto taken = rest().substr(0, n);
    at_ += taken.size();
    return taken;
  }
  Error refused(std::string_view why) const {
    return {ErrorCode::kProtocol, fmt::format("regular expression \"{}\": {} at byte {}", pattern_, why, at_)};
  }

  Result<void> step() {
    const char c = rest().front();
    if (c == '[') {
      SLUICE_TRY(const auto set, take_class(0));
      begin_atom(set);
    } else if (c == '\\') {
      take_escape();
    } else if (c == '(') {
      groups_.push_back(out_.size());
      take_group();
    } else if (c == ')') {
      begin_atom(take(1));
      if (groups_.empty()) return {};
      atom_ = groups_.back();
      groups_.pop_back();
    } else if (const auto interval = interval_of(rest())) {
      take_interval(*interval);
    } else if (c == '*' || c == '+' || c == '?') {
      out_ += take(1);
    } else {
      size_t n = 1;
      while (n < rest().size() && (static_cast<unsigned char>(rest()[n]) & 0xC0) == 0x80) ++n;
      begin_atom(take(n));
    }
    return {};
  }

  // Appends what a quantifier after it repeats.
  void begin_atom(std::string_view text) {
    atom_ = out_.size();
    out_ += text;
  }

  // Ruby's (?m: is what others call (?s:.
  void take_group() {
    out_ += take(1);
    if (!rest().starts_with('?')) return;
    const size_t end = rest().find_first_not_of("imx-", 1);
    if (end == std::string_view::npos || (rest()[end] != ':' && rest()[end] != ')')) return;
    for (const char c : take(end)) out_.push_back(c == 'm' ? 's' : c);
  }

  // {n,m}+ repeats an interval and {n}? makes it optional; elsewhere they are possessive and lazy.
  void take_interval(const Interval& interval) {
    take(interval.length);
    if (!rest().starts_with('+') && !(interval.exact && rest().starts_with('?'))) {
      out_ += interval.text;
      return;
    }
    out_.insert(atom_, "(?:");
    out_ += interval.text + ")";
  }

  // The property with what is newer beside it.
  std::string property(std::string_view name) const {
    return fmt::format("\\p{{{}}}{}", name, newer_ ? newer_characters(name) : "");
  }
  // The same for each property among members of a class.
  std::string with_newer(std::string_view members) const {
    std::string out;
    while (!members.empty()) {
      const size_t end = members.starts_with("\\p{") ? members.find('}') + 1 : 1;
      out += end > 1 ? property(members.substr(3, end - 4)) : std::string(members.substr(0, end));
      members.remove_prefix(end);
    }
    return out;
  }

  // An escape sequence with all that belongs to it.
  std::string_view take_sequence() {
    constexpr std::string_view kHex = "0123456789abcdefABCDEF";
    if (rest().size() < 2) return take(1);  // PCRE2 refuses it
    const char kind = rest()[1];
    size_t end = 2;
    if (rest().substr(2).starts_with('{') && std::string_view("gkopPx").find(kind) != std::string_view::npos) {
      end = rest().find('}') + 1;  // 0 when there is none
      if (end == 0) end = 2;
    } else if (kind == 'x') {
      while (end < 4 && end < rest().size() && kHex.find(rest()[end]) != std::string_view::npos) ++end;
    } else if (kind >= '0' && kind <= '9') {
      while (end < rest().size() && rest()[end] >= '0' && rest()[end] <= '9') ++end;
    } else if (kind == 'c') {
      end = 3;
    }
    return take(end);
  }

  void take_escape() {
    const auto sequence = take_sequence();
    const auto word = with_newer(kWordMembers).append(kMoreOfWords);
    if (sequence == "\\w" || sequence == "\\W") {
      begin_atom(fmt::format("[{}{}]", sequence == "\\w" ? "" : "^", word));
    } else if (sequence == "\\b") {
      begin_atom(fmt::format("(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))", word));
    } else if (sequence == "\\B") {
      begin_atom(fmt::format("(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))", word));
    } else {
      Set set;
      add_sequence(set, sequence);
      const bool plain = set.others.empty() && (set.members == sequence || is_property(set.members));
      begin_atom(plain ? set.members : spelled(set, false));
    }
  }

  void add_sequence(Set& set, std::string_view sequence) const {
    if (sequence.starts_with("\\p{")) {
      set.members += with_newer(sequence);
    } else if (sequence.size() == 2) {
      const char lower = static_cast<char>(sequence[1] | 0x20);
      const auto members = members_of(kEscapes, std::string_view(&lower, 1));
      if (!members.empty()) return add_members(set, members, lower != sequence[1]);
      set.members += sequence;
    } else {
      set.members += sequence;
    }
  }

  void add_members(Set& set, std::string_view members, bool negated) const {
    if (!negated) {
      set.members += with_newer(members);
    } else if (is_property(members)) {
      set.members += fmt::format("\\P{}", members.substr(2));
    } else {
      set.others.push_back(fmt::format("[^{}]", with_newer(members)));
    }
  }

  // One character of the set, or one that is not in it.
  static std::string spelled(const Set& set, bool negated) {
    if (set.others.empty()) return fmt::format("[{}{}]", negated ? "^" : "", set.members);
    std::string any;
    if (!set.members.empty()) any = fmt::format("[{}]", set.members);
    for (const auto& other : set.others) any += (any.empty() ? "" : "|") + other;
    return negated ? fmt::format("(?:(?!{})\\p{{Any}})", any) : fmt::format("(?:{})", any);
  }

  // What a class matches, as a pattern of one character.
  Result<std::string> take_class(int depth) {
    if (depth > kDeepestClass) return refused("classes are nested too deep");
    take(1);
    const bool negated = rest().starts_with('^');
    if (negated) take(1);
    std::vector<Set> sides(1);
    // Where it comes first it is a member.
    if (rest().starts_with(']')) add_literal(sides.back(), take(1));
    while (!rest().starts_with(']')) {
      if (rest().empty()) return refused("a class has no end");
      SLUICE_TRY_VOID(take_member(sides, depth));
    }
    take(1);
    for (const auto& side : sides) {
      if (side.members.empty() && side.others.empty()) return refused("a class has no members");
    }
    if (sides.size() == 1) return spelled(sides[0], negated);
    std::string both;
    for (size_t i = 1; i < sides.size(); ++i) both += fmt::format("(?={})", spelled(sides[i], false));
    both += spelled(sides[0], false);
    return negated ? fmt::format("(?:(?!{})\\p{{Any}})", both) : fmt::format("(?:{})", both);
  }

  Result<void> take_member(std::vector<Set>& sides, int depth) {
    Set& set = sides.back();
    if (rest().starts_with("&&")) {
      take(2);
      sides.emplace_back();
    } else if (rest().starts_with('\\')) {
      add_sequence(set, take_sequence());
    } else if (const auto posix = posix_of(rest()); !posix.empty()) {
      add_posix(set, take(posix.size()));
    } else if (rest().starts_with('[')) {
      SLUICE_TRY(auto other, take_class(depth + 1));
      set.others.push_back(std::move(other));
    } else {
      add_literal(set, take(1));
    }
    return {};
  }

  // Members are put together from several places: what means something at some of them does not here.
  static void add_literal(Set& set, std::string_view c) {
    if (c == "^" || c == "]") set.members.push_back('\\');
    set.members += c;
  }

  // [:name:] at the head of `text`.
  static std::string_view posix_of(std::string_view text) {
    if (!text.starts_with("[:")) return {};
    const size_t end = text.find_first_not_of("^abcdefghijklmnopqrstuvwxyz", 2);
    const bool closed = end != std::string_view::npos && text.substr(end).starts_with(":]");
    return closed ? text.substr(0, end + 2) : std::string_view();
  }
  void add_posix(Set& set, std::string_view posix) const {
    auto name = posix.substr(2, posix.size() - 4);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    const auto members = members_of(kPosix, name);
    if (!members.empty()) return add_members(set, members, negated);
    set.members += posix;
  }

  const std::string_view pattern_;
  const bool newer_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where in `out_` the latest atom begins
  std::vector<size_t> groups_;  // and each open group
};

}  // namespace

Result<std::string> to_pcre2(std::string_view pattern, bool newer) { return Translator(pattern, newer).run(); }

}  // namespace sluice::tokenizer
