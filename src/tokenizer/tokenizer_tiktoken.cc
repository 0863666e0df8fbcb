// A tokenizer from tiktoken.model: a line per token, its bytes in base64 and its rank, which is its id. Two neighbours
// are merged when their bytes together are a token, the one of lowest rank first.
#include <algorithm>
#include <charconv>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer_impl.h"

namespace sluice::tokenizer {
namespace {

constexpr int32_t kMaxId = 16'000'000;
constexpr int32_t kReserved = 256;  // ids after the ranks that are special tokens, named or not

Error malformed(std::string message) { return {ErrorCode::kProtocol, "tiktoken.model: " + std::move(message)}; }

// Nothing when it is no base64.
std::optional<std::string> from_base64(std::string_view text) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.size() % 4 != 0) return std::nullopt;
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = (bits << 6) | static_cast<uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out.push_back(static_cast<char>((bits >> count) & 0xFF));
  }
  return out;
}

// Bytes by rank.
Result<std::vector<std::string>> read_ranks(std::string_view text) {
  std::vector<std::string> out;
  for (size_t line = 1; !text.empty(); ++line) {
    auto row = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), row.size() + 1));
    if (row.ends_with('\r')) row.remove_suffix(1);
    if (row.empty()) continue;
    const size_t space = row.find(' ');
    const auto bytes = from_base64(row.substr(0, space));
    int32_t rank = -1;
    const auto digits = row.substr(std::min(row.size(), space == std::string_view::npos ? row.size() : space + 1));
    const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    if (!bytes || bytes->empty() || problem != std::errc() || end != digits.data() + digits.size()) {
      return malformed(fmt::format("line {} is not base64 and a rank", line));
    }
    if (rank < 0 || rank > kMaxId) return malformed(fmt::format("line {} has rank {}", line, rank));
    if (out.size() <= static_cast<size_t>(rank)) out.resize(static_cast<size_t>(rank) + 1);
    if (!out[static_cast<size_t>(rank)].empty()) return malformed(fmt::format("rank {} comes twice", rank));
    out[static_cast<size_t>(rank)] = *bytes;
  }
  return out;
}

Result<std::unique_ptr<const Bpe>> make_bpe(const std::vector<std::string>& tokens) {
  BpeConfig config;
  config.whole_words_first = true;
  config.words = TokenTable({tokens.begin(), tokens.end()}, true);
  for (size_t b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    config.byte_ids[b] = config.words.find(std::string_view(&byte, 1));
    if (config.byte_ids[b] < 0) return malformed(fmt::format("there is no token of byte {}", b));
  }
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view bytes = tokens[id];
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const int32_t left = config.words.find(bytes.substr(0, cut));
      const int32_t right = left < 0 ? -1 : config.words.find(bytes.substr(cut));
      const auto rank = static_cast<int32_t>(id);
      if (right >= 0) config.merges.push_back({left, right, rank, rank});
    }
  }
  return std::make_unique<const Bpe>(std::move(config));
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_tiktoken(std::string_view ranks,
                                                                  std::string_view config_json) {
  SLUICE_TRY(const auto config, read_tokenizer_config(config_json));
  if (config.tokenizer_class != "TikTokenTokenizer") {
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("tiktoken.model: tokenizer_class \"{}\" is not supported; TikTokenTokenizer is",
                             config.tokenizer_class)};
  }
  auto impl = std::make_unique<Impl>();
  SLUICE_TRY(auto bytes, read_ranks(ranks));
  if (bytes.empty()) return malformed("it is empty");
  SLUICE_TRY(impl->bpe, make_bpe(bytes));
  SLUICE_TRY(auto pattern, Regex::compile(kKimiK2Pattern));
  impl->pre_tokenizer = PreTokenizer({SplitStep{std::move(pattern)}});

  std::vector<std::string> texts;
  for (const auto& token : bytes) texts.push_back(in_alphabet(token));
  const auto first = static_cast<int32_t>(bytes.size());
  for (int32_t id = first; id < first + kReserved; ++id) texts.push_back(fmt::format("<|reserved_token_{}|>", id));
  std::vector<AddedToken> added = config.added_tokens;
  std::erase_if(added, [&](const AddedToken& token) {
    return token.content.empty() || token.id < first || token.id >= first + kReserved;
  });
  impl->special.assign(texts.size(), false);
  std::vector<bool> named(texts.size());
  for (const auto& token : added) {
    const auto id = static_cast<size_t>(token.id);
    texts[id] = token.content;
    impl->special[id] = token.special;
    named[id] = true;
  }
  for (size_t id = bytes.size(); id < texts.size(); ++id) {
    bytes.push_back(texts[id]);
    if (!named[id]) added.push_back({.id = static_cast<int32_t>(id), .content = texts[id]});
  }
  impl->texts = TokenTable({texts.begin(), texts.end()}, true);
  impl->bytes = TokenTable({bytes.begin(), bytes.end()}, false);
  impl->raw_tokens = AddedTokenMatcher(added);
  impl->take(config);
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

}  // namespace sluice::tokenizer
