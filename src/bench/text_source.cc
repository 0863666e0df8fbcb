#include "bench/text_source.h"

#include <algorithm>

#include "base/check.h"

namespace sluice::bench {
namespace {

constexpr std::string_view kWords[] = {
    "the",   "of",     "and",   "to",    "in",      "is",      "that",  "for",    "was",     "with",    "as",
    "on",    "be",     "at",    "by",    "this",    "had",     "not",   "are",    "but",     "from",    "or",
    "have",  "an",     "they",  "which", "one",     "you",     "were",  "her",    "all",     "she",     "there",
    "would", "their",  "we",    "him",   "been",    "has",     "when",  "who",    "will",    "more",    "no",
    "if",    "out",    "so",    "said",  "what",    "up",      "its",   "about",  "into",    "than",    "them",
    "can",   "only",   "other", "new",   "some",    "could",   "time",  "these",  "two",     "may",     "then",
    "do",    "first",  "any",   "my",    "now",     "such",    "like",  "our",    "over",    "man",     "me",
    "even",  "most",   "made",  "after", "also",    "did",     "many",  "before", "must",    "through", "back",
    "years", "where",  "much",  "your",  "way",     "well",    "down",  "should", "because", "each",    "just",
    "those", "people", "how",   "too",   "little",  "state",   "good",  "very",   "make",    "world",   "still",
    "own",   "see",    "men",   "work",  "long",    "here",    "get",   "both",   "between", "life",    "being",
    "under", "never",  "day",   "same",  "another", "know",    "while", "last",   "might",   "us",      "great",
    "old",   "year",   "off",   "come",  "since",   "against", "go",    "came",   "right",   "used",    "take",
    "three", "house",  "water", "place", "small",   "found",   "part",  "school", "number",  "part",    "city",
    "night", "point",  "home",  "room",  "side",    "head",    "hand",  "river",  "white",   "black",   "paper",
    "light", "form",   "power", "story", "music",   "table",   "open",  "high",   "low",     "read",    "word",
};
constexpr uint64_t kWordCount = std::size(kWords);

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // what half a character is decoded to
constexpr int kSettlingRounds = 20;

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t i = 0; i < text.size();) {
    if (is_space(text[i])) {
      ++i;
      continue;
    }
    const size_t start = i;
    while (i < text.size() && !is_space(text[i])) ++i;
    words.push_back(text.substr(start, i - start));
  }
  return words;
}

// Joins `count` words that `word(i)` names.
template <class F>
Passage join(int64_t count, F word) {
  Passage passage{.tokens = count};
  passage.text.reserve(static_cast<size_t>(count) * 6);
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0) passage.text.push_back(' ');
    passage.text.append(word(i));
  }
  return passage;
}

}  // namespace

TextSource::TextSource(std::shared_ptr<const tokenizer::Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {
  if (!tokenizer_) return;
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    if (tokenizer_->is_special(id) || tokenizer_->token_bytes(id).empty()) continue;
    if (tokenizer_->decode({&id, 1}, /*skip_special=*/false).find(kReplacement) == std::string::npos) {
      ordinary_.push_back(id);
    }
  }
  added_tokens_ = static_cast<int64_t>(tokenizer_->encode("", /*add_special=*/true).size());
}

int64_t TextSource::count(std::string_view text) const {
  if (!tokenizer_) return static_cast<int64_t>(words_of(text).size());
  return static_cast<int64_t>(tokenizer_->encode(text, /*add_special=*/false).size());
}

Passage TextSource::from_ids(std::vector<int32_t> ids) const {
  Passage passage{.text = tokenizer_->decode(ids, /*skip_special=*/false), .tokens = static_cast<int64_t>(ids.size())};
  passage.ids = std::move(ids);
  return passage;
}

template <class Filler>
Passage TextSource::settled(std::vector<int32_t> ids, Filler filler) const {
  const size_t wanted = ids.size();
  Passage passage = from_ids(std::move(ids));
  for (int round = 0; round < kSettlingRounds; ++round) {
    passage.ids = tokenizer_->encode(passage.text, /*add_special=*/false);
    passage.tokens = static_cast<int64_t>(passage.ids.size());
    if (passage.ids.size() == wanted) break;
    passage.ids.resize(std::min(passage.ids.size(), wanted));
    while (passage.ids.size() < wanted) passage.ids.push_back(filler(passage.ids.size()));
    passage = from_ids(std::move(passage.ids));
  }
  return passage;
}

Passage TextSource::random(Rng& rng, int64_t tokens) const {
  if (!tokenizer_) return join(tokens, [&](int64_t) { return kWords[rng.below(kWordCount)]; });
  std::vector<int32_t> ids(static_cast<size_t>(std::max<int64_t>(tokens, 0)));
  const auto draw = [&](size_t) { return ordinary_[rng.below(ordinary_.size())]; };
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = draw(i);
  return settled(std::move(ids), draw);
}

Passage TextSource::sequence(uint64_t offset, int64_t tokens) const {
  if (!tokenizer_) {
    return join(tokens, [&](int64_t i) { return kWords[(offset + static_cast<uint64_t>(i)) % kWordCount]; });
  }
  std::vector<int32_t> ids(static_cast<size_t>(std::max<int64_t>(tokens, 0)));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = ordinary_[(offset + i) % ordinary_.size()];
  return from_ids(std::move(ids));
}

Passage TextSource::fit(std::string_view text, int64_t tokens) const {
  if (!tokenizer_) {
    const auto words = words_of(text);
    SLUICE_CHECK(!words.empty(), "a text without words cannot be made {} tokens long", tokens);
    return join(tokens, [&](int64_t i) { return words[static_cast<size_t>(i) % words.size()]; });
  }
  const auto once = tokenizer_->encode(text, /*add_special=*/false);
  SLUICE_CHECK(!once.empty(), "a text without tokens cannot be made {} tokens long", tokens);
  std::vector<int32_t> ids(static_cast<size_t>(std::max<int64_t>(tokens, 0)));
  const auto repeat = [&](size_t i) { return once[i % once.size()]; };
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = repeat(i);
  return settled(std::move(ids), repeat);
}

}  // namespace sluice::bench
