// How the next token is chosen and when to stop, as clients spell it.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "protocol/fields.h"

namespace sluice::protocol {

// Values for what a request leaves out.
struct SamplingDefaults {
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = -1;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
};

// What an answer is held to.
struct Grammar {
  enum class Kind { kJsonSchema, kRegex, kEbnf, kStructuralTag };
  Kind kind = Kind::kJsonSchema;
  std::string text;
  std::string field;  // where the client gave it, for errors
};
inline constexpr size_t kMaxGrammarBytes = 256 * 1024;

struct Sampling {
  std::optional<int64_t> max_new_tokens;  // absent: what the endpoint gives who does not ask
  int64_t min_new_tokens = 0;
  double temperature = 1.0;  // below 1e-6 = greedy
  double top_p = 1.0;
  int64_t top_k = -1;  // -1 = all
  double min_p = 0.0;
  double frequency_penalty = 0.0;
  double presence_penalty = 0.0;
  double repetition_penalty = 1.0;
  int64_t n = 1;
  std::vector<std::string> stop;
  std::vector<std::string> stop_regex;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool no_stop_trim = false;
  bool skip_special_tokens = true;
  std::optional<uint64_t> seed;
  std::optional<int64_t> stream_interval;
  std::map<int32_t, double> logit_bias;
  std::optional<Grammar> grammar;
};

inline constexpr int64_t kMaxSamples = 128;  // largest n

inline constexpr size_t kMaxStopBytes = 4096;       // of one stop string
inline constexpr size_t kMaxStopRegexBytes = 1024;  // of one stop_regex

// Every sample has a copy of its parameters: about how many bytes that is, and an error in `fields` where those of all
// samples are too many together.
inline constexpr size_t kMaxCopiedBytes = size_t{64} << 20;
size_t copied_bytes(const Sampling& sampling);
void check_copies(Fields& fields, size_t bytes);

// The object `sampling_params` of /generate.
Result<Sampling> parse_sampling_params(const nlohmann::ordered_json& object);

// Adds a grammar; an error in `fields` when there is one already, or when it is too long.
void set_grammar(Fields& fields, Sampling& sampling, Grammar grammar);

// What the OpenAI endpoints have at the top level, except the length, whose name and default differ.
Sampling read_openai_sampling(Fields& fields, const SamplingDefaults& defaults);

}  // namespace sluice::protocol
