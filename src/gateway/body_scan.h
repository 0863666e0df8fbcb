// Reads the few fields of a request body that routing needs, in one pass, and leaves the bytes alone
// (gateway-reference.md 3.3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sluice::gateway {

enum class Endpoint : uint8_t { kChat, kGenerate, kCompletions, kEmbeddings, kRerank, kResponses, kOther };
inline constexpr size_t kNumEndpoints = 7;
std::string_view to_string(Endpoint endpoint);

struct BodyFacts {
  std::optional<std::string> model;
  bool stream = false;
  // Decoded text of the prompt: message texts joined by one space, the prompt, or token ids as decimals.
  std::string routing_text;
  std::optional<std::string> rid;
  std::optional<int64_t> max_tokens;

  // The data-parallel rank that the client asks for: routed_dp_rank, else data_parallel_rank.
  struct RankField {
    size_t begin = 0, end = 0;  // of the value in the body
    bool routed = false;        // by its newer name
  };
  std::vector<RankField> rank_fields;  // in the order of the body
  std::optional<int64_t> rank;
  bool rank_is_no_integer = false;  // what stands there is no rank
};

// The body with that rank under both names, everything else as it was. `facts` are of that body.
std::string with_rank(std::string_view body, const BodyFacts& facts, int64_t rank);

// `body` may get more capacity and keeps its bytes. Of a key that stands twice in an object the last one counts, as in
// the engines' parsers; what is not read is skipped without recursion, however deep. kInvalidArgument: not a JSON
// object, or a field of another type.
Result<BodyFacts> scan_body(std::string& body, Endpoint endpoint);

}  // namespace sluice::gateway
