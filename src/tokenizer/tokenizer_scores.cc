// A tokenizer from the vocabulary of a GGUF file that was a SentencePiece model: of neighbours those are merged first
// whose piece has the best score.
#include <algorithm>
#include <cmath>
#include <map>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer_impl.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

Error malformed(std::string message) { return {ErrorCode::kProtocol, "vocabulary: " + std::move(message)}; }

std::string with_spaces(std::string_view piece) {
  std::string out(piece);
  for (size_t at = out.find(kSpace); at != std::string::npos; at = out.find(kSpace, at + 1)) {
    out.replace(at, kSpace.size(), " ");
  }
  return out;
}

// The place of each piece's score among all scores, the best first. Equal scores share one, so that the leftmost
// counts.
std::vector<int32_t> ranks_of(const std::vector<float>& scores) {
  std::map<float, int32_t, std::greater<>> rank_of;
  for (const float score : scores) rank_of.emplace(score, 0);
  int32_t next = 0;
  for (auto& [score, rank] : rank_of) rank = next++;
  std::vector<int32_t> out;
  for (const float score : scores) out.push_back(rank_of.at(score));
  return out;
}

// Every pair of pieces that makes a piece.
std::vector<BpeMerge> merges_of(const std::vector<std::string_view>& pieces, const TokenTable& words,
                                const std::vector<float>& scores) {
  const auto ranks = ranks_of(scores);
  std::vector<BpeMerge> out;
  for (size_t id = 0; id < pieces.size(); ++id) {
    const auto piece = pieces[id];
    for (size_t cut = piece.empty() ? 0 : utf8_step(piece).length; cut < piece.size();
         cut += utf8_step(piece.substr(cut)).length) {
      const int32_t left = words.find(piece.substr(0, cut));
      const int32_t right = left < 0 ? -1 : words.find(piece.substr(cut));
      if (right >= 0) out.push_back({left, right, static_cast<int32_t>(id), ranks[id]});
    }
  }
  return out;
}

// No piece goes on behind a space that it does not begin with, and the space is one: then no merge goes across a cut
// before a space.
bool keep_apart(const std::vector<std::string_view>& pieces) {
  return std::ranges::find(pieces, kSpace) != pieces.end() && std::ranges::none_of(pieces, [](std::string_view piece) {
           while (piece.starts_with(kSpace)) piece.remove_prefix(kSpace.size());
           return piece.find(kSpace) != std::string_view::npos;
         });
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_scores(const Vocabulary& v) {
  const size_t n = v.tokens.size();
  const bool finite = std::ranges::all_of(v.scores, [](float score) { return std::isfinite(score); });
  if (v.scores.size() != n || !finite) return malformed(fmt::format("{} scores for {} tokens", v.scores.size(), n));
  auto impl = std::make_unique<Impl>();
  std::vector<std::string> bytes(n);
  std::vector<std::string_view> pieces(n);  // empty: what text is never merged to
  std::vector<AddedToken> added;
  BpeConfig bpe;
  bpe.alphabet = BpeAlphabet::kCharacters;
  bpe.byte_ids.fill(-1);
  bpe.unknown_id = v.unk_id.value_or(-1);
  impl->special.assign(n, false);
  for (size_t i = 0; i < n; ++i) {
    const auto id = static_cast<int32_t>(i);
    const int32_t type = v.token_types.empty() ? Vocabulary::kNormal : v.token_types[i];
    const bool control = type == Vocabulary::kControl || type == Vocabulary::kUnknown;
    const int byte = type == Vocabulary::kByte ? fallback_byte(v.tokens[i]) : -1;
    impl->special[i] = control;
    if (control || type == Vocabulary::kUserDefined) {
      bytes[i] = v.tokens[i];
      added.push_back({.id = id, .content = v.tokens[i], .special = control});
    } else if (byte >= 0) {
      bytes[i] = std::string(1, static_cast<char>(byte));
      bpe.byte_ids[static_cast<size_t>(byte)] = id;
    } else {
      bytes[i] = with_spaces(v.tokens[i]);
      if (type == Vocabulary::kNormal) pieces[i] = v.tokens[i];
    }
  }
  bpe.words = TokenTable(pieces, true);
  bpe.merges = merges_of(pieces, bpe.words, v.scores);
  impl->bpe = std::make_unique<const Bpe>(std::move(bpe));
  impl->raw_tokens = AddedTokenMatcher(added);
  impl->texts = TokenTable({v.tokens.begin(), v.tokens.end()}, true);
  impl->bytes = TokenTable({bytes.begin(), bytes.end()}, false);
  const auto normalizer = [](bool prefix) -> Result<Normalizer> {
    std::vector<NormalizerStep> steps;
    if (prefix) steps.push_back(PrependStep{std::string(kSpace)});
    SLUICE_TRY(auto space, Regex::literal(" "));
    steps.push_back(ReplaceStep{std::move(space), std::string(kSpace)});
    return Normalizer(std::move(steps));
  };
  SLUICE_TRY(impl->normalizer, normalizer(v.add_space_prefix));
  if (keep_apart(pieces)) {
    SLUICE_TRY(impl->rest_normalizer, normalizer(false));
  }
  impl->strip_left = v.add_space_prefix ? 1 : 0;
  SLUICE_TRY_VOID(impl->take(v, /*add_bos=*/true));
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

}  // namespace sluice::tokenizer
