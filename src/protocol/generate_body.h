// Bodies of POST /generate, the native endpoint of SGLang workers.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "protocol/fields.h"
#include "protocol/sampling.h"

namespace sluice::protocol {

// A prompt as it was sent: text, ids, or what stands in place of the ids' embeddings.
struct Prompt {
  std::string text;
  std::optional<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> embeds = {};  // [tokens][width], all of one width; empty: not given
};

// Of a request's metrics, name to value.
using Labels = std::map<std::string, std::string>;
inline constexpr size_t kMaxLabels = 16;
inline constexpr size_t kMaxLabelBytes = 128;  // of a name or a value

// Fields that say where a request goes and how it is known, on every generating endpoint.
struct Routing {
  std::string rid;                 // empty: the server makes one
  std::optional<int64_t> dp_rank;  // routed_dp_rank, else data_parallel_rank
  std::string extra_key;           // namespace of the prefix cache; cache_salt and extra_key joined
  std::optional<int64_t> priority;
  std::string routing_key;
  bool background = false;  // goes on when its client has left
  Labels labels;            // custom_labels
};

// What is wanted of the model's inside.
struct Insides {
  bool hidden_states = false;   // the final norm's output, of every position
  bool routed_experts = false;  // which experts every token went to
};

struct GenerateItem {
  Prompt prompt;
  Insides insides;
  Sampling sampling;
  std::string rid;
  std::string extra_key;
  bool return_logprob = false;
  int64_t logprob_start_len = -1;  // -1: output only
  int64_t top_logprobs_num = 0;
  std::vector<int32_t> token_ids_logprob;
};

struct GenerateBody {
  bool batch = false;  // the prompt was a list, so the answer is one too
  std::vector<GenerateItem> items;
  std::string rid;  // of the whole batch, when one string was given; its items are <rid>_<index>
  bool stream = false;
  bool return_text_in_logprobs = false;
  bool log_metrics = true;
  std::optional<int64_t> dp_rank;
  std::optional<int64_t> priority;
  std::string routing_key;
  bool background = false;
  Labels labels;
};

inline constexpr size_t kMaxBatch = 4096;         // prompts of one request
inline constexpr int64_t kMaxTopLogprobs = 1024;  // alternatives per token
inline constexpr size_t kMaxRidBytes = 256;
inline constexpr size_t kMaxKeyBytes = 1024;  // of extra_key, cache_salt and routing_key, each

// What of a body decides the form of an error, whatever is wrong with it.
struct GenerateForm {
  bool object = false;  // the text is a JSON object
  bool stream = false;  // and asks for a stream
};
// `form`, if given, is filled in also where the body is refused.
Result<GenerateBody> parse_generate_body(std::string_view text, GenerateForm* form = nullptr);

// Shared by the OpenAI bodies: rid, routed_dp_rank, data_parallel_rank, extra_key, cache_salt, priority,
// routing_key, background, custom_labels; refuses the fields of section 1.4 of the engine reference.
Routing read_routing(Fields& fields);
// An object of strings, as custom_labels is. `name` is what messages call it.
Result<Labels> read_labels(const nlohmann::ordered_json& object, std::string_view name);
Insides read_insides(Fields& fields);
void refuse_out_of_scope(Fields& fields);

}  // namespace sluice::protocol
