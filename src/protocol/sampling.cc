#include "protocol/sampling.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

namespace sluice::protocol {
namespace {

constexpr size_t kMaxStops = 64;
constexpr size_t kMaxStopTokens = 1024;

std::map<int32_t, double> read_logit_bias(Fields& fields) {
  const auto* value = fields.find("logit_bias");
  if (value == nullptr) return {};
  std::map<int32_t, double> out;
  bool good = value->is_object();
  if (good) {
    for (const auto& [key, bias] : value->items()) {
      int32_t id = -1;
      const auto [end, problem] = std::from_chars(key.data(), key.data() + key.size(), id);
      good = problem == std::errc() && end == key.data() + key.size() && id >= 0 && bias.is_number() &&
             std::abs(bias.get<double>()) <= 1e6;
      if (!good) break;
      out[id] = bias.get<double>();
    }
  }
  if (!good) fields.fail("logit_bias must be an object of token ids, as strings, to numbers in [-1e6, 1e6]");
  return out;
}

void read_grammars(Fields& fields, Sampling& out) {
  constexpr std::pair<const char*, Grammar::Kind> kFields[] = {{"json_schema", Grammar::Kind::kJsonSchema},
                                                               {"regex", Grammar::Kind::kRegex},
                                                               {"ebnf", Grammar::Kind::kEbnf},
                                                               {"structural_tag", Grammar::Kind::kStructuralTag}};
  for (const auto& [name, kind] : kFields) {
    const auto* value = fields.find(name);
    if (value == nullptr) continue;
    // Schemas and tags are JSON: as text, which is the runtime's way, or as they are.
    const bool json = kind == Grammar::Kind::kJsonSchema || kind == Grammar::Kind::kStructuralTag;
    std::string text = json && value->is_object() ? dump(*value) : fields.text(name);
    if (text.empty() && fields.ok()) fields.fail(fmt::format("{} must not be empty", fields.full_name(name)));
    set_grammar(fields, out, {.kind = kind, .text = std::move(text), .field = fields.full_name(name)});
  }
}

// The fields that both spellings share.
Sampling read_common(Fields& fields, const SamplingDefaults& defaults) {
  Sampling out;
  out.temperature = fields.number("temperature", defaults.temperature, {.min = 0});
  out.top_p = fields.number("top_p", defaults.top_p, {.min = 0, .max = 1, .open_below = true});
  out.top_k = fields.integer("top_k", defaults.top_k, {.min = -1});
  if (out.top_k == 0) fields.fail("top_k must be -1 (all tokens) or an integer of at least 1, got 0");
  out.min_p = fields.number("min_p", defaults.min_p, {.min = 0, .max = 1});
  out.frequency_penalty = fields.number("frequency_penalty", 0, {.min = -2, .max = 2});
  out.presence_penalty = fields.number("presence_penalty", 0, {.min = -2, .max = 2});
  out.repetition_penalty = fields.number("repetition_penalty", defaults.repetition_penalty, {.min = 0, .max = 2});
  out.n = fields.integer("n", 1, {.min = 1, .max = kMaxSamples});
  out.stop = fields.texts("stop", kMaxStopBytes);
  std::erase(out.stop, "");
  if (out.stop.size() > kMaxStops) fields.fail(fmt::format("stop must hold at most {} strings", kMaxStops));
  out.stop_token_ids = fields.token_ids("stop_token_ids", kMaxStopTokens);
  out.ignore_eos = fields.boolean("ignore_eos", false);
  out.no_stop_trim = fields.boolean("no_stop_trim", false);
  out.skip_special_tokens = fields.boolean("skip_special_tokens", true);
  out.logit_bias = read_logit_bias(fields);
  read_grammars(fields, out);
  out.stop_regex = fields.texts("stop_regex", kMaxStopRegexBytes);
  std::erase(out.stop_regex, "");
  if (out.stop_regex.size() > kMaxStops) fields.fail(fmt::format("stop_regex must hold at most {} strings", kMaxStops));
  // What a custom logit processor would read; without one it means nothing.
  if (const auto* params = fields.find("custom_params"); params != nullptr && !params->is_object()) {
    fields.fail(fmt::format("{} must be an object", fields.full_name("custom_params")));
  }
  return out;
}

void check_together(Fields& fields, const Sampling& sampling) {
  if (sampling.max_new_tokens && sampling.min_new_tokens > *sampling.max_new_tokens) {
    fields.fail(fmt::format("min_new_tokens must be in [0, max_new_tokens ({})], got {}", *sampling.max_new_tokens,
                            sampling.min_new_tokens));
  }
}

}  // namespace

void set_grammar(Fields& fields, Sampling& sampling, Grammar grammar) {
  if (sampling.grammar) {
    return fields.fail(
        fmt::format("{} and {} cannot be given together: an answer is held to one of json_schema, regex, "
                    "ebnf, structural_tag and response_format",
                    sampling.grammar->field, grammar.field));
  }
  if (grammar.text.size() > kMaxGrammarBytes) {
    return fields.fail(
        fmt::format("{} must have at most {} bytes, got {}", grammar.field, kMaxGrammarBytes, grammar.text.size()));
  }
  sampling.grammar = std::move(grammar);
}

size_t copied_bytes(const Sampling& sampling) {
  constexpr size_t kPerStopByte = 12;  // in three copies, and a table of a word for each byte
  constexpr size_t kPerBias = 64;      // a node of the map
  size_t out = sampling.logit_bias.size() * kPerBias + sampling.stop_token_ids.size() * sizeof(int32_t);
  for (const auto& stop : sampling.stop) out += stop.size() * kPerStopByte;
  for (const auto& regex : sampling.stop_regex) out += regex.size();
  if (sampling.grammar) out += sampling.grammar->text.size();
  return out;
}

void check_copies(Fields& fields, size_t bytes) {
  if (bytes <= kMaxCopiedBytes) return;
  fields.fail(
      fmt::format("stop, stop_regex, stop_token_ids, logit_bias and grammars take {} bytes of all samples together, "
                  "{} at most: ask for fewer samples, or for less of each",
                  bytes, kMaxCopiedBytes));
}

Result<Sampling> parse_sampling_params(const nlohmann::ordered_json& object) {
  if (!object.is_object()) return Error{ErrorCode::kInvalidArgument, "sampling_params must be an object"};
  Fields fields(object, "sampling_params.");
  Sampling out = read_common(fields, SamplingDefaults{});
  out.max_new_tokens = fields.integer("max_new_tokens", {.min = 0, .max = INT32_MAX});
  out.min_new_tokens = fields.integer("min_new_tokens", 0, {.min = 0, .max = INT32_MAX});
  if (const auto seed = fields.integer("sampling_seed")) out.seed = static_cast<uint64_t>(*seed);
  out.stream_interval = fields.integer("stream_interval", {.min = 1, .max = INT32_MAX});
  fields.boolean("spaces_between_special_tokens", true);  // means nothing to byte-level vocabularies
  // As the OpenAI endpoints call them.
  fields.refuse("max_tokens", "it is called max_new_tokens here");
  fields.refuse("min_tokens", "it is called min_new_tokens here");
  fields.refuse("seed", "it is called sampling_seed here");
  fields.refuse_others();
  check_together(fields, out);
  if (!fields.ok()) return fields.error();
  return out;
}

Sampling read_openai_sampling(Fields& fields, const SamplingDefaults& defaults) {
  Sampling out = read_common(fields, defaults);
  out.min_new_tokens = fields.integer("min_tokens", 0, {.min = 0, .max = INT32_MAX});
  if (const auto seed = fields.integer("seed")) out.seed = static_cast<uint64_t>(*seed);
  return out;
}

}  // namespace sluice::protocol
