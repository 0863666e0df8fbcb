// Reads the few fields of a request body that routing needs, in one pass, and leaves the bytes alone
// (gateway-reference.md 3.3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

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
  std::string routing_text;
  std::optional<std::string> rid;
  std::optional<int64_t> max_tokens;
};

// `body` may get more capacity and keeps its bytes. Of a key that stands twice in an object the last one counts, as in
// the engines' parsers; what is not read is skipped without recursion, however deep. kInvalidArgument: not a JSON
// object, or a field of another type.
Result<BodyFacts> scan_body(std::string& body, Endpoint endpoint);

}  // namespace sluice::gateway
