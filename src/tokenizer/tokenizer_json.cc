// A tokenizer from tokenizer.json: the pipeline of the `tokenizers` library, piece by piece. What is not built is
// refused by the name that the file gives it.
#include <simdjson.h>

#include <algorithm>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/regex_syntax.h"
#include "tokenizer/tokenizer_config.h"
#include "tokenizer/tokenizer_impl.h"

namespace sluice::tokenizer {

namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

Error malformed(std::string message) { return {ErrorCode::kProtocol, "tokenizer.json: " + std::move(message)}; }
Error unsupported(std::string message) { return {ErrorCode::kUnimplemented, "tokenizer.json: " + std::move(message)}; }

// Fields with a default. One of another type, and null, count as absent: what matters is checked by whoever needs it.
std::string_view string_or(element e, std::string_view key, std::string_view otherwise = {}) {
  std::string_view value;
  return e[key].get(value) == simdjson::SUCCESS ? value : otherwise;
}
bool bool_or(element e, std::string_view key, bool otherwise) {
  bool value = false;
  return e[key].get(value) == simdjson::SUCCESS ? value : otherwise;
}
int64_t int_or(element e, std::string_view key, int64_t otherwise) {
  int64_t value = 0;
  return e[key].get(value) == simdjson::SUCCESS ? value : otherwise;
}
// Absent or null gives nothing.
std::optional<element> field(element e, std::string_view key) {
  element value;
  if (e[key].get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}
std::vector<element> items_of(element e, std::string_view key) {
  std::vector<element> items;
  array values;
  if (e[key].get(values) == simdjson::SUCCESS) {
    for (const element item : values) items.push_back(item);
  }
  return items;
}

// The steps of a component with its Sequences flattened: (type, element).
struct Step {
  std::string_view type;
  element json;
};
Result<void> flatten(element json, std::string_view list_key, std::vector<Step>& steps, int depth = 0) {
  const auto type = string_or(json, "type");
  if (type.empty()) return malformed("a component has no type");
  if (type != "Sequence") {
    steps.push_back({type, json});
    return {};
  }
  if (depth > 16) return malformed("Sequences are nested too deep");
  for (const element child : items_of(json, list_key)) SLUICE_TRY_VOID(flatten(child, list_key, steps, depth + 1));
  return {};
}
Result<std::vector<Step>> steps_of(element root, std::string_view component, std::string_view list_key) {
  std::vector<Step> steps;
  if (const auto json = field(root, component)) SLUICE_TRY_VOID(flatten(*json, list_key, steps));
  return steps;
}

// {"String": "..."} or {"Regex": "..."}.
Result<Regex> pattern_of(element e) {
  const auto pattern = field(e, "pattern");
  if (!pattern) return malformed("a component has no pattern");
  std::string_view text;
  if ((*pattern)["String"].get(text) == simdjson::SUCCESS) return Regex::literal(text);
  if ((*pattern)["Regex"].get(text) == simdjson::SUCCESS) return Regex::compile(text);
  return malformed("a pattern is neither String nor Regex");
}

Result<Normalizer> read_normalizer(element root) {
  SLUICE_TRY(const auto components, steps_of(root, "normalizer", "normalizers"));
  std::vector<NormalizerStep> steps;
  for (const auto& [type, json] : components) {
    if (type == "NFC") {
      steps.push_back(UnicodeForm::kNfc);
    } else if (type == "NFD") {
      steps.push_back(UnicodeForm::kNfd);
    } else if (type == "NFKC") {
      steps.push_back(UnicodeForm::kNfkc);
    } else if (type == "NFKD") {
      steps.push_back(UnicodeForm::kNfkd);
    } else if (type == "Replace") {
      SLUICE_TRY(auto pattern, pattern_of(json));
      steps.push_back(ReplaceStep{std::move(pattern), std::string(string_or(json, "content"))});
    } else if (type == "Prepend") {
      steps.push_back(PrependStep{std::string(string_or(json, "prepend"))});
    } else if (type == "Strip") {
      steps.push_back(StripStep{bool_or(json, "strip_left", true), bool_or(json, "strip_right", true)});
    } else {
      return unsupported(fmt::format("normalizer {} is not supported", type));
    }
  }
  return Normalizer(std::move(steps));
}

Result<SplitBehavior> behavior_of(element json) {
  const auto name = string_or(json, "behavior", "Isolated");
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return malformed(fmt::format("unknown split behavior {}", name));
}

struct PreTokenization {
  std::vector<PreTokenizerStep> steps;
  bool byte_level = false;
};

Result<void> add_split(PreTokenization& out, std::string_view pattern, SplitBehavior behavior) {
  SLUICE_TRY(auto regex, Regex::compile(pattern));
  out.steps.push_back(SplitStep{std::move(regex), behavior, false});
  return {};
}

Result<PreTokenizerStep> read_metaspace(element json) {
  MetaspaceStep step{std::string(string_or(json, "replacement", "▁"))};
  const bool legacy_prefix = bool_or(json, "add_prefix_space", true);
  const auto scheme = string_or(json, "prepend_scheme", legacy_prefix ? "always" : "never");
  step.split = bool_or(json, "split", true);
  if (step.replacement.empty()) return malformed("Metaspace has an empty replacement");
  if (scheme == "always") {
    step.prepend = MetaspaceStep::Prepend::kAlways;
  } else if (scheme == "first") {
    step.prepend = MetaspaceStep::Prepend::kFirst;
  } else if (scheme == "never") {
    step.prepend = MetaspaceStep::Prepend::kNever;
  } else {
    return malformed(fmt::format("unknown prepend_scheme {}", scheme));
  }
  return PreTokenizerStep(std::move(step));
}

Result<void> read_pre_tokenizer_step(const Step& component, PreTokenization& out) {
  const auto& [type, json] = component;
  // ByteLevel spells bytes as characters; here words stay bytes, which is the same as long as nothing looks at them
  // afterwards.
  if (out.byte_level) return unsupported(fmt::format("pre_tokenizer {} after ByteLevel is not supported", type));
  if (type == "ByteLevel") {
    out.byte_level = true;
    if (bool_or(json, "add_prefix_space", true)) out.steps.push_back(PrefixSpaceStep{});
    if (bool_or(json, "use_regex", true)) return add_split(out, kGpt2Pattern, SplitBehavior::kIsolated);
    return {};
  }
  if (type == "Split") {
    SLUICE_TRY(auto pattern, pattern_of(json));
    SLUICE_TRY(const auto behavior, behavior_of(json));
    out.steps.push_back(SplitStep{std::move(pattern), behavior, bool_or(json, "invert", false)});
    return {};
  }
  if (type == "Digits") {
    const bool individual = bool_or(json, "individual_digits", false);
    return add_split(out, R"(\p{N})", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  }
  if (type == "Punctuation") {
    SLUICE_TRY(const auto behavior, behavior_of(json));
    return add_split(out, R"([\p{P}\x21-\x2F\x3A-\x40\x5B-\x60\x7B-\x7E])", behavior);
  }
  if (type == "Whitespace") {
    // \w+|[^\w\s]+ of Rust's regex crate, whose \w has the joiners too.
    const auto word = std::string(kWordMembers) + R"(\p{Join_Control})";
    SLUICE_TRY(auto pattern, Regex::compile(fmt::format(R"([{0}]+|[^{0}\s]+)", word)));
    out.steps.push_back(SplitStep{std::move(pattern), SplitBehavior::kRemoved, true});
    return {};
  }
  if (type == "WhitespaceSplit") return add_split(out, R"(\s)", SplitBehavior::kRemoved);
  if (type == "Metaspace") {
    SLUICE_TRY(auto step, read_metaspace(json));
    out.steps.push_back(std::move(step));
    return {};
  }
  return unsupported(fmt::format("pre_tokenizer {} is not supported", type));
}

// How a token becomes the bytes that it adds to the text.
struct Decoder {
  bool byte_level = false;
  bool byte_fallback = false;
  std::vector<std::pair<std::string, std::string>> replacements;
  size_t strip_left = 0;

  std::string bytes_of(std::string_view token) const {
    if (byte_level) return bytes_of_alphabet(token).value_or(std::string(token));
    if (byte_fallback) {
      if (const int byte = fallback_byte(token); byte >= 0) return std::string(1, static_cast<char>(byte));
    }
    std::string text(token);
    for (const auto& [from, to] : replacements) {
      for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
        text.replace(at, from.size(), to);
      }
    }
    return text;
  }
};

Result<Decoder> read_decoder(element root) {
  SLUICE_TRY(const auto components, steps_of(root, "decoder", "decoders"));
  if (components.empty()) return unsupported("a tokenizer without decoder is not supported");
  Decoder decoder;
  bool fused = false;
  for (const auto& [type, json] : components) {
    if (type == "ByteLevel") {
      decoder.byte_level = true;
    } else if (type == "ByteFallback") {
      decoder.byte_fallback = true;
    } else if (type == "Fuse") {
      fused = true;
    } else if (type == "Replace" && !fused) {
      const auto pattern = field(json, "pattern");
      const auto from = pattern ? string_or(*pattern, "String") : std::string_view();
      if (from.empty()) return unsupported("decoder Replace is supported with a String pattern");
      decoder.replacements.emplace_back(from, string_or(json, "content"));
    } else if (type == "Metaspace") {
      const bool legacy_prefix = bool_or(json, "add_prefix_space", true);
      const auto replacement = string_or(json, "replacement", "▁");
      if (replacement.empty()) return malformed("Metaspace has an empty replacement");
      decoder.replacements.emplace_back(replacement, " ");
      if (string_or(json, "prepend_scheme", legacy_prefix ? "always" : "never") != "never") decoder.strip_left = 1;
    } else if (type == "Strip" && fused && string_or(json, "content") == " " && int_or(json, "stop", 0) == 0) {
      decoder.strip_left = static_cast<size_t>(std::max<int64_t>(0, int_or(json, "start", 0)));
    } else {
      return unsupported(fmt::format("decoder {} is not supported{}", type, fused ? " after Fuse" : " here"));
    }
  }
  return decoder;
}

AddedToken read_added_token(element json, int32_t id) {
  const bool special = bool_or(json, "special", false);
  return {.id = id,
          .content = std::string(string_or(json, "content")),
          .special = special,
          .lstrip = bool_or(json, "lstrip", false),
          .rstrip = bool_or(json, "rstrip", false),
          .single_word = bool_or(json, "single_word", false),
          .normalized = bool_or(json, "normalized", !special)};
}

constexpr int64_t kMaxId = 16'000'000;  // far above every vocabulary; an id sizes a table

// Tokens by id: the model's vocabulary, then the added tokens. The views lead into the JSON document.
struct TokenList {
  std::vector<std::string_view> texts;
  size_t n_model = 0;  // tokens of the model have ids below it
  std::vector<AddedToken> added;

  Result<void> put(int64_t id, std::string_view text) {
    if (id < 0 || id > kMaxId) return malformed(fmt::format("token \"{}\" has id {}", text, id));
    if (texts.size() <= static_cast<size_t>(id)) texts.resize(static_cast<size_t>(id) + 1);
    texts[static_cast<size_t>(id)] = text;
    return {};
  }
};

Result<TokenList> read_vocabulary(element root, element model, const TokenizerConfig& config) {
  TokenList v;
  object entries;
  if (model["vocab"].get(entries) != simdjson::SUCCESS) return malformed("model.vocab is no object");
  for (const auto [text, id_json] : entries) {
    int64_t id = 0;
    if (id_json.get(id) != simdjson::SUCCESS) return malformed(fmt::format("token \"{}\" has no number", text));
    SLUICE_TRY_VOID(v.put(id, text));
  }
  v.n_model = v.texts.size();
  for (const element json : items_of(root, "added_tokens")) {
    const int64_t id = int_or(json, "id", -1);
    SLUICE_TRY_VOID(v.put(id, string_or(json, "content")));
    v.added.push_back(read_added_token(json, static_cast<int32_t>(id)));
  }
  // tokenizer_config.json may know tokens that tokenizer.json lacks.
  for (const auto& token : config.added_tokens) {
    if (std::ranges::any_of(v.added, [&](const AddedToken& known) { return known.content == token.content; })) continue;
    const auto known = std::ranges::find(v.texts, token.content);
    v.added.push_back(token);
    if (known != v.texts.end()) v.added.back().id = static_cast<int32_t>(known - v.texts.begin());
    SLUICE_TRY_VOID(v.put(v.added.back().id, token.content));
  }
  if (v.texts.empty()) return malformed("the vocabulary is empty");
  return v;
}

Result<std::vector<BpeMerge>> read_merges(element model, const TokenTable& texts) {
  array merges;
  if (model["merges"].get(merges) != simdjson::SUCCESS) return malformed("model.merges is no list");
  std::vector<BpeMerge> out;
  out.reserve(merges.size());
  std::string joined;
  for (const element merge : merges) {
    std::string_view left, right;
    array pair;
    if (std::string_view line; merge.get(line) == simdjson::SUCCESS) {
      const size_t space = line.find(' ');
      if (space == std::string_view::npos) return malformed(fmt::format("merge \"{}\" is not two tokens", line));
      left = line.substr(0, space);
      right = line.substr(space + 1);
    } else if (merge.get(pair) != simdjson::SUCCESS || pair.size() != 2 || pair.at(0).get(left) != simdjson::SUCCESS ||
               pair.at(1).get(right) != simdjson::SUCCESS) {
      return malformed(fmt::format("merge {} is neither a string nor two strings", out.size()));
    }
    joined.assign(left).append(right);
    const BpeMerge resolved{texts.find(left), texts.find(right), texts.find(joined)};
    if (resolved.left < 0 || resolved.right < 0 || resolved.result < 0) {
      return malformed(fmt::format("merge \"{} {}\" names a token that is not in the vocabulary", left, right));
    }
    out.push_back(resolved);
  }
  return out;
}

Result<std::unique_ptr<const Bpe>> read_bpe(element model, const TokenList& vocabulary, bool byte_level) {
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!string_or(model, key).empty()) return unsupported(fmt::format("model.{} is not supported", key));
  }
  if (double dropout = 0; model["dropout"].get(dropout) == simdjson::SUCCESS && dropout > 0) {
    return unsupported("model.dropout is not supported");
  }
  const std::vector<std::string_view> texts(vocabulary.texts.begin(),
                                            vocabulary.texts.begin() + static_cast<ptrdiff_t>(vocabulary.n_model));
  TokenTable table(texts, true);
  BpeConfig config;
  SLUICE_TRY(config.merges, read_merges(model, table));
  config.whole_words_first = bool_or(model, "ignore_merges", false);
  config.fuse_unknown = bool_or(model, "fuse_unk", false);
  if (const auto unknown = string_or(model, "unk_token"); !unknown.empty()) config.unknown_id = table.find(unknown);
  config.byte_ids.fill(-1);
  if (byte_level) {
    std::vector<std::string> bytes(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      bytes[i] = bytes_of_alphabet(texts[i]).value_or("");
      if (bytes[i].size() == 1) config.byte_ids[static_cast<unsigned char>(bytes[i][0])] = static_cast<int32_t>(i);
    }
    if (config.whole_words_first) config.words = TokenTable({bytes.begin(), bytes.end()}, true);
  } else {
    config.alphabet = BpeAlphabet::kCharacters;
    if (bool_or(model, "byte_fallback", false)) {
      for (size_t b = 0; b < 256; ++b) config.byte_ids[b] = table.find(fmt::format("<0x{:02X}>", b));
    }
    config.words = std::move(table);
  }
  return std::make_unique<const Bpe>(std::move(config));
}

// What post-processors put around a text.
struct Around {
  std::vector<int32_t> prefix, suffix;
};

Result<void> read_template(element json, Around& out) {
  bool before = true;
  Around mine;
  for (const element piece : items_of(json, "single")) {
    if (field(piece, "Sequence")) {
      before = false;
      continue;
    }
    const auto special = field(piece, "SpecialToken");
    if (!special) return malformed("TemplateProcessing has a piece of unknown kind");
    const auto name = string_or(*special, "id");
    const auto all = field(json, "special_tokens");
    const auto token = all ? field(*all, name) : std::nullopt;
    if (!token) return malformed(fmt::format("TemplateProcessing names {} without ids", name));
    for (const element id_json : items_of(*token, "ids")) {
      int64_t id = -1;
      if (id_json.get(id) != simdjson::SUCCESS || id < 0 || id > kMaxId) {
        return malformed(fmt::format("TemplateProcessing has no valid id for {}", name));
      }
      (before ? mine.prefix : mine.suffix).push_back(static_cast<int32_t>(id));
    }
  }
  out.prefix.insert(out.prefix.begin(), mine.prefix.begin(), mine.prefix.end());
  out.suffix.insert(out.suffix.end(), mine.suffix.begin(), mine.suffix.end());
  return {};
}

Result<Around> read_post_processor(element root) {
  SLUICE_TRY(const auto components, steps_of(root, "post_processor", "processors"));
  Around around;
  for (const auto& [type, json] : components) {
    if (type == "ByteLevel") continue;  // moves offsets only
    if (type != "TemplateProcessing") return unsupported(fmt::format("post_processor {} is not supported", type));
    SLUICE_TRY_VOID(read_template(json, around));
  }
  return around;
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_json(std::string_view tokenizer_json,
                                                              std::string_view config_json) {
  SLUICE_TRY(const auto config, read_tokenizer_config(config_json));
  simdjson::dom::parser parser;
  element root;
  if (const auto error = parser.parse(simdjson::padded_string(tokenizer_json)).get(root)) {
    return malformed(simdjson::error_message(error));
  }
  if (!root.is_object()) return malformed("it is no object");
  const auto model = field(root, "model");
  if (!model) return malformed("it has no model");
  // Old files leave the type out; merges mark a BPE model.
  const auto type = string_or(*model, "type", field(*model, "merges") ? "BPE" : "of unknown type");
  if (type != "BPE") return unsupported(fmt::format("model {} is not supported; BPE is", type));

  auto impl = std::make_unique<Impl>();
  SLUICE_TRY(const TokenList vocabulary, read_vocabulary(root, *model, config));
  SLUICE_TRY(impl->normalizer, read_normalizer(root));
  PreTokenization words;
  SLUICE_TRY(const auto components, steps_of(root, "pre_tokenizer", "pretokenizers"));
  for (const auto& component : components) SLUICE_TRY_VOID(read_pre_tokenizer_step(component, words));
  impl->pre_tokenizer = PreTokenizer(std::move(words.steps));
  SLUICE_TRY(impl->bpe, read_bpe(*model, vocabulary, words.byte_level));
  SLUICE_TRY(auto around, read_post_processor(root));
  for (const auto* ids : {&around.prefix, &around.suffix}) {
    for (const int32_t id : *ids) {
      if (static_cast<size_t>(id) < vocabulary.texts.size()) continue;
      return malformed(fmt::format("TemplateProcessing adds token {}, there are {}", id, vocabulary.texts.size()));
    }
  }
  impl->prefix = std::move(around.prefix);
  impl->suffix = std::move(around.suffix);

  SLUICE_TRY(const Decoder decoder, read_decoder(root));
  impl->strip_left = decoder.strip_left;
  std::vector<std::string> bytes;
  bytes.reserve(vocabulary.texts.size());
  for (const auto text : vocabulary.texts) bytes.push_back(decoder.bytes_of(text));
  impl->bytes = TokenTable({bytes.begin(), bytes.end()}, false);
  impl->texts = TokenTable(vocabulary.texts, true);

  impl->special.assign(vocabulary.texts.size(), false);
  std::vector<AddedToken> raw, later;
  for (auto token : vocabulary.added) {
    if (token.special) impl->special[static_cast<size_t>(token.id)] = true;
    if (!token.normalized) {
      raw.push_back(std::move(token));
      continue;
    }
    std::string storage;
    token.content = std::string(impl->normalizer.apply(token.content, storage));
    later.push_back(std::move(token));
  }
  impl->raw_tokens = AddedTokenMatcher(raw);
  impl->later_tokens = AddedTokenMatcher(later);

  impl->take(config);
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

}  // namespace sluice::tokenizer
