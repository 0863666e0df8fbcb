// A tokenizer from a GGUF vocabulary, with the rules of llama.cpp (src/llama-vocab.cpp).
#include <algorithm>
#include <span>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer_impl.h"

namespace sluice::tokenizer {

namespace {

#define SLUICE_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SLUICE_UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define SLUICE_LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define SLUICE_PUNCTUATION_AND_SPACE " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SLUICE_PUNCTUATION_SLASH_AND_SPACE " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

// Each pattern isolates its matches in what the one before it left, as the models' own tokenizer.json files say.
constexpr std::string_view kGpt2[] = {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"};
constexpr std::string_view kSmollm[] = {R"(\p{N})", kGpt2[0]};
constexpr std::string_view kFalcon[] = {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2[0], "[0-9][0-9][0-9]"};
constexpr std::string_view kDefault[] = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2[0], R"(\p{N}+)", "[0-9][0-9][0-9]"};
constexpr std::string_view kQwen2[] = {SLUICE_CONTRACTIONS
                                       "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" SLUICE_PUNCTUATION_AND_SPACE};
constexpr std::string_view kLlama3[] = {SLUICE_CONTRACTIONS
                                        "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" SLUICE_PUNCTUATION_AND_SPACE};
constexpr std::string_view kDeepseekV3[] = {
    R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
    R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr std::string_view kDeepseekCoder[] = {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", "[一-龥ࠀ-一가-퟿]+",
                                               R"(\p{N})"};
constexpr std::string_view kDeepseekLlm[] = {
    R"([\r\n])",
    R"(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⲳⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)",
    R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)",
    R"(\s+$)",
    "[一-龥ࠀ-一가-퟿]+",
    R"(\p{N}+)"};
constexpr std::string_view kTekken[] = {"[^\\r\\n\\p{L}\\p{N}]?[" SLUICE_UPPER "]*[" SLUICE_LOWER
                                        "]+|[^\\r\\n\\p{L}\\p{N}]?[" SLUICE_UPPER "]+[" SLUICE_LOWER
                                        "]*|\\p{N}|" SLUICE_PUNCTUATION_SLASH_AND_SPACE};
constexpr std::string_view kGpt4o[] = {"[^\\r\\n\\p{L}\\p{N}]?[" SLUICE_UPPER "]*[" SLUICE_LOWER
                                       "]+" SLUICE_CONTRACTIONS "?|[^\\r\\n\\p{L}\\p{N}]?[" SLUICE_UPPER
                                       "]+[" SLUICE_LOWER "]*" SLUICE_CONTRACTIONS
                                       "?|\\p{N}{1,3}|" SLUICE_PUNCTUATION_SLASH_AND_SPACE};
const std::string_view kKimiK2[] = {kKimiK2Pattern};

struct PreTokenizerRow {
  std::string_view name;  // tokenizer.ggml.pre
  std::span<const std::string_view> patterns;
  bool whole_words_first = false;
  bool add_bos = false;
};

const PreTokenizerRow kPreTokenizers[] = {
    {"", kDefault},
    {"default", kDefault},
    {"gpt-2", kGpt2},
    {"gpt2", kGpt2},
    {"phi-2", kGpt2},
    {"mpt", kGpt2},
    {"olmo", kGpt2},
    {"smollm", kSmollm},
    {"starcoder", kSmollm},
    {"refact", kSmollm},
    {"command-r", kSmollm},
    {"codeshell", kSmollm},
    {"exaone", kSmollm},
    {"falcon", kFalcon},
    {"qwen2", kQwen2},
    {"deepseek-r1-qwen", kQwen2},
    {"stablelm2", kQwen2},
    {"hunyuan", kQwen2},
    {"llama-bpe", kLlama3, true, true},
    {"llama3", kLlama3, true, true},
    {"llama-v3", kLlama3, true, true},
    {"falcon3", kLlama3, true, true},
    {"pixtral", kLlama3, true, true},
    {"dbrx", kLlama3},
    {"smaug-bpe", kLlama3},
    {"glm4", kLlama3},
    {"chatglm-bpe", kLlama3},
    {"deepseek-llm", kDeepseekLlm},
    {"deepseek-coder", kDeepseekCoder},
    {"deepseek-v3", kDeepseekV3},
    {"tekken", kTekken, true, true},
    {"gpt-4o", kGpt4o},
    {"llama4", kGpt4o},
    {"minimax-m2", kGpt4o},
    {"kimi-k2", kKimiK2},
};

Error malformed(std::string message) { return {ErrorCode::kProtocol, "vocabulary: " + std::move(message)}; }

Result<PreTokenizer> make_pre_tokenizer(const PreTokenizerRow& row) {
  std::vector<PreTokenizerStep> steps;
  for (const auto pattern : row.patterns) {
    SLUICE_TRY(auto regex, Regex::compile(pattern));
    steps.push_back(SplitStep{std::move(regex)});
  }
  return PreTokenizer(std::move(steps));
}

Result<std::vector<BpeMerge>> resolve_merges(const std::vector<std::string>& merges, const TokenTable& texts) {
  std::vector<BpeMerge> out;
  out.reserve(merges.size());
  std::string joined;
  for (const std::string_view merge : merges) {
    // A token may hold spaces only where it begins: the first one is never the separator.
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos) return malformed(fmt::format("merge \"{}\" is not two tokens", merge));
    const auto left = merge.substr(0, space), right = merge.substr(space + 1);
    joined.assign(left).append(right);
    const BpeMerge resolved{texts.find(left), texts.find(right), texts.find(joined)};
    if (resolved.left < 0 || resolved.right < 0 || resolved.result < 0) {
      return malformed(fmt::format("merge \"{}\" names a token that is not there", merge));
    }
    out.push_back(resolved);
  }
  return out;
}

}  // namespace

Result<void> Tokenizer::Impl::take(const Vocabulary& v, bool add_bos) {
  const auto special_token = [&](std::optional<int32_t> id, const char* name) -> Result<std::optional<int32_t>> {
    if (!id) return id;
    if (*id < 0 || static_cast<size_t>(*id) >= v.tokens.size()) {
      return malformed(fmt::format("{} has id {} of {}", name, *id, v.tokens.size()));
    }
    special_texts[name] = v.tokens[static_cast<size_t>(*id)];
    return id;
  };
  SLUICE_TRY(bos_id, special_token(v.bos_id, "bos_token"));
  SLUICE_TRY(eos_id, special_token(v.eos_id, "eos_token"));
  SLUICE_TRY(pad_id, special_token(v.pad_id, "pad_token"));
  SLUICE_TRY_VOID(special_token(v.unk_id, "unk_token"));
  if (v.add_bos.value_or(add_bos) && v.bos_id) prefix.push_back(*v.bos_id);
  if (v.add_eos.value_or(false) && v.eos_id) suffix.push_back(*v.eos_id);
  chat_template = v.chat_template;
  return {};
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_vocabulary(const Vocabulary& v) {
  const size_t n = v.tokens.size();
  if (n == 0 || n > INT32_MAX) return malformed(fmt::format("{} tokens", n));
  if (!v.token_types.empty() && v.token_types.size() != n) {
    return malformed(fmt::format("{} token types for {} tokens", v.token_types.size(), n));
  }
  if (v.model == "llama") return from_scores(v);
  if (v.model != "gpt2") {
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("tokenizer model \"{}\" is not supported; byte-level BPE (\"gpt2\") and SentencePiece's "
                             "(\"llama\") are",
                             v.model)};
  }
  const auto* row = std::ranges::find(kPreTokenizers, v.pre_tokenizer, &PreTokenizerRow::name);
  if (row == std::end(kPreTokenizers)) {
    std::string known;
    for (const auto& r : kPreTokenizers) known += (known.empty() ? "" : ", ") + std::string(r.name);
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("pre-tokenizer \"{}\" is not supported; supported: {}", v.pre_tokenizer, known)};
  }
  auto impl = std::make_unique<Impl>();
  const std::vector<std::string_view> texts(v.tokens.begin(), v.tokens.end());
  impl->texts = TokenTable(texts, true);
  impl->special.assign(n, false);

  std::vector<std::string> bytes(n);
  std::vector<AddedToken> added;
  BpeConfig bpe;
  bpe.byte_ids.fill(-1);
  for (size_t i = 0; i < n; ++i) {
    const int32_t type = v.token_types.empty() ? Vocabulary::kNormal : v.token_types[i];
    const bool control = type == Vocabulary::kControl || type == Vocabulary::kUnknown;
    impl->special[i] = control;
    if (control || type == Vocabulary::kUserDefined) {
      bytes[i] = v.tokens[i];
      added.push_back({.id = static_cast<int32_t>(i), .content = v.tokens[i], .special = control});
      continue;
    }
    bytes[i] = bytes_of_alphabet(v.tokens[i]).value_or(v.tokens[i]);
    if (bytes[i].size() == 1) bpe.byte_ids[static_cast<unsigned char>(bytes[i][0])] = static_cast<int32_t>(i);
  }
  impl->raw_tokens = AddedTokenMatcher(added);
  const std::vector<std::string_view> byte_views(bytes.begin(), bytes.end());
  impl->bytes = TokenTable(byte_views, false);

  SLUICE_TRY(bpe.merges, resolve_merges(v.merges, impl->texts));
  bpe.whole_words_first = row->whole_words_first;
  if (bpe.whole_words_first) bpe.words = TokenTable(byte_views, true);
  impl->bpe = std::make_unique<const Bpe>(std::move(bpe));
  SLUICE_TRY(impl->pre_tokenizer, make_pre_tokenizer(*row));

  SLUICE_TRY_VOID(impl->take(v, row->add_bos));
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

}  // namespace sluice::tokenizer
