// A tokenizer from a SentencePiece model, with the rules of transformers around it: special tokens are found first, and
// what lies between them is encoded by the library.
#include <algorithm>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer_impl.h"

namespace sluice::tokenizer {
namespace {

constexpr size_t kMaxPieces = 16'000'000;

std::string bytes_of(const SentencePieces& pieces, int32_t id) {
  const auto& piece = pieces.piece(id);
  if (const int byte = fallback_byte(piece); byte >= 0 && pieces.kind(id) == SentencePieces::Kind::kByte) {
    return std::string(1, static_cast<char>(byte));
  }
  std::string out;
  for (size_t at = 0; at < piece.size();) {
    const bool space = std::string_view(piece).substr(at).starts_with("\xE2\x96\x81");
    out += space ? ' ' : piece[at];
    at += space ? 3 : 1;
  }
  return out;
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_sentencepiece(std::string_view model,
                                                                       std::string_view config_json) {
  SLUICE_TRY(auto config, read_tokenizer_config(config_json));
  auto impl = std::make_unique<Impl>();
  // `legacy`, which is the default, encodes each stretch of text as if it stood at the start.
  SLUICE_TRY(impl->pieces, SentencePieces::load(model, config.legacy.value_or(true)));
  const auto& pieces = *impl->pieces;
  if (pieces.size() == 0 || pieces.size() > kMaxPieces) {
    return Error{ErrorCode::kProtocol, fmt::format("tokenizer.model: {} pieces", pieces.size())};
  }
  std::vector<std::string> texts, bytes;
  std::vector<AddedToken> added;
  for (int32_t id = 0; static_cast<size_t>(id) < pieces.size(); ++id) {
    texts.push_back(pieces.piece(id));
    bytes.push_back(bytes_of(pieces, id));
    const auto kind = pieces.kind(id);
    const bool special = kind == SentencePieces::Kind::kControl || kind == SentencePieces::Kind::kUnknown;
    if (special) added.push_back({.id = id, .content = pieces.piece(id), .special = true});
    if (kind == SentencePieces::Kind::kUnknown) config.special_texts.try_emplace("unk_token", texts.back());
  }
  for (const auto& token : config.added_tokens) {
    const auto id = static_cast<size_t>(token.id);
    if (token.content.empty() || token.id < 0 || id > kMaxPieces) continue;
    if (texts.size() <= id) texts.resize(id + 1), bytes.resize(id + 1);
    texts[id] = bytes[id] = token.content;
    std::erase_if(added, [&](const AddedToken& known) { return known.id == token.id; });
    added.push_back(token);
  }
  config.special_texts.try_emplace("bos_token", "<s>");
  config.special_texts.try_emplace("eos_token", "</s>");

  impl->special.assign(texts.size(), false);
  for (const auto& token : added) impl->special[static_cast<size_t>(token.id)] = token.special;
  impl->texts = TokenTable({texts.begin(), texts.end()}, true);
  impl->bytes = TokenTable({bytes.begin(), bytes.end()}, false);
  impl->raw_tokens = AddedTokenMatcher(added);
  impl->strip_left = pieces.has_prefix() ? 1 : 0;
  impl->take(config);
  if (config.add_bos.value_or(true) && impl->bos_id) impl->prefix.push_back(*impl->bos_id);
  if (config.add_eos.value_or(false) && impl->eos_id) impl->suffix.push_back(*impl->eos_id);
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

}  // namespace sluice::tokenizer
