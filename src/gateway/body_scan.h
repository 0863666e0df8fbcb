// Reads the few fields of a request body that routing needs, in one pass, and leaves the bytes alone; and what an
// engine says to programs in the body of an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gateway/prompt_text.h"

namespace sluice::gateway {

enum class Endpoint : uint8_t {
  kChat,
  kGenerate,
  kCompletions,
  kEmbeddings,
  kRerank,
  kResponses,
  kClassify,
  kMessages,
  kOther
};
inline constexpr size_t kNumEndpoints = 9;
std::string_view to_string(Endpoint endpoint);

struct BodyFacts {
  std::optional<std::string> model;
  bool stream = false;
  // Decoded text of the prompt: message texts joined by one space, the prompt, or token ids as decimals.
  PromptText routing_text;
  std::optional<std::string> rid;
  std::string previous;  // previous_response_id of /v1/responses; empty: none
  std::optional<int64_t> max_tokens;

  // Where values stand in the body that a gateway may have to change, in the order of the body.
  struct Field {
    enum class Key : uint8_t { kModel, kRoutedRank, kOlderRank } key;
    size_t begin = 0, end = 0;  // of the value
  };
  std::vector<Field> fields;
  std::optional<int64_t> rank;      // routed_dp_rank, else data_parallel_rank
  bool rank_is_no_integer = false;  // what stands there is no rank
};

// What is changed in a body on its way.
struct BodyChanges {
  std::optional<int64_t> rank;         // under both names, added where they are missing
  std::optional<std::string> model{};  // where there is one
  bool any() const { return rank || model; }
};
// The body with the changes, everything else as it was. `facts` are of that body.
std::string changed_body(std::string_view body, const BodyFacts& facts, const BodyChanges& changes);

// `body` may get more capacity and keeps its bytes, of which the prompt may be a view. Of a key that stands twice in an
// object the last one counts, as in the engines' parsers; what is not read is skipped without recursion, however deep.
// kInvalidArgument: not a JSON object, or a field of another type.
Result<BodyFacts> scan_body(std::string& body, Endpoint endpoint);

// The string "reason" of an error's body, in the object itself or in its "error"; empty where there is none.
std::string scan_error_reason(std::string_view body);

}  // namespace sluice::gateway
