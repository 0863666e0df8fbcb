#include "tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <optional>

#include "tokenizer/newer_characters.h"

namespace sluice::tokenizer {

const std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

#define SLUICE_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define SLUICE_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define SLUICE_CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
const std::string_view kKimiK2Pattern =
    "[\\p{Han}]+|[^\\r\\n\\p{L}\\p{N}]?" SLUICE_UPPER "*" SLUICE_LOWER "+" SLUICE_CONTRACTION
    "|[^\\r\\n\\p{L}\\p{N}]?" SLUICE_UPPER "+" SLUICE_LOWER "*" SLUICE_CONTRACTION
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

namespace {

using WordList = std::vector<std::string_view>;

void add(WordList& out, std::string_view word) {
  if (!word.empty()) out.push_back(word);
}

void split_isolated(const Regex& pattern, std::string_view word, bool newer, WordList& out) {
  size_t done = 0;
  std::optional<Regex::Match> match;
  while (pattern.next(word, match, newer)) {
    add(out, word.substr(done, match->begin - done));
    add(out, word.substr(match->begin, match->end - match->begin));
    done = match->end;
  }
  add(out, word.substr(done));
}

struct Part {
  size_t begin;
  size_t end;
  bool match;
};

void split_general(const SplitStep& step, std::string_view word, bool newer, WordList& out) {
  std::vector<Part> parts;
  size_t done = 0;
  std::optional<Regex::Match> match;
  while (step.pattern.next(word, match, newer)) {
    if (match->begin > done) parts.push_back({done, match->begin, step.invert});
    parts.push_back({match->begin, match->end, !step.invert});
    done = match->end;
  }
  if (done < word.size()) parts.push_back({done, word.size(), step.invert});

  // Merging joins neighbours into one part; what is kept of the pair's kind is what the next neighbour asks about.
  std::vector<Part> joined;
  for (const auto& part : parts) {
    bool join = false;
    if (!joined.empty()) {
      switch (step.behavior) {
        case SplitBehavior::kMergedWithPrevious:
          join = part.match && !joined.back().match;
          break;
        case SplitBehavior::kMergedWithNext:
          join = !part.match && joined.back().match;
          break;
        case SplitBehavior::kContiguous:
          join = part.match == joined.back().match;
          break;
        case SplitBehavior::kIsolated:
        case SplitBehavior::kRemoved:
          break;
      }
    }
    if (join) {
      joined.back().end = part.end;
      joined.back().match = part.match;
    } else {
      joined.push_back(part);
    }
  }
  for (const auto& part : joined) {
    if (step.behavior == SplitBehavior::kRemoved && part.match) continue;
    add(out, word.substr(part.begin, part.end - part.begin));
  }
}

void replace_spaces(const MetaspaceStep& step, std::string_view word, bool first, std::deque<std::string>& storage,
                    WordList& out) {
  std::string text;
  for (const char c : word) {
    if (c == ' ') {
      text += step.replacement;
    } else {
      text.push_back(c);
    }
  }
  const bool prepend =
      step.prepend == MetaspaceStep::Prepend::kAlways || (step.prepend == MetaspaceStep::Prepend::kFirst && first);
  if (prepend && !text.starts_with(step.replacement)) text.insert(0, step.replacement);
  std::string_view rest = storage.emplace_back(std::move(text));
  while (step.split && !rest.empty()) {
    const size_t end = rest.find(step.replacement, 1);
    if (end == std::string_view::npos) break;
    out.push_back(rest.substr(0, end));
    rest.remove_prefix(end);
  }
  add(out, rest);
}

}  // namespace

bool PreTokenizer::looks_at_start() const {
  return std::ranges::any_of(steps_, [](const PreTokenizerStep& step) {
    const auto* metaspace = std::get_if<MetaspaceStep>(&step);
    return metaspace != nullptr && metaspace->prepend == MetaspaceStep::Prepend::kFirst;
  });
}

void PreTokenizer::split(std::string_view text, bool at_start, Words& out) const {
  out.clear();
  add(out.words, text);
  const bool newer = has_newer_characters(text);
  for (const auto& step : steps_) {
    out.next.clear();
    if (const auto* split = std::get_if<SplitStep>(&step)) {
      const bool isolated = split->behavior == SplitBehavior::kIsolated;
      for (const auto word : out.words) {
        isolated ? split_isolated(split->pattern, word, newer, out.next) : split_general(*split, word, newer, out.next);
      }
    } else if (const auto* metaspace = std::get_if<MetaspaceStep>(&step)) {
      for (size_t i = 0; i < out.words.size(); ++i) {
        replace_spaces(*metaspace, out.words[i], at_start && i == 0, out.storage, out.next);
      }
    } else {
      for (const auto word : out.words) {
        out.next.push_back(word.starts_with(' ') ? word : std::string_view(out.storage.emplace_back(" ").append(word)));
      }
    }
    out.words.swap(out.next);
  }
}

}  // namespace sluice::tokenizer
