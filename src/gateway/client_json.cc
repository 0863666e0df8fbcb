#include "gateway/client_json.h"

#include <algorithm>

namespace sluice::gateway {
namespace {

// Of a text that may not be JSON at all: never less than the depth to which a parser would build it.
int depth_of(std::string_view text) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

Result<nlohmann::ordered_json> parse_client_json(std::string_view text) {
  if (depth_of(text) > kMaxJsonDepth) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("the JSON is nested deeper than {} levels", kMaxJsonDepth)};
  }
  auto document = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) return Error{ErrorCode::kInvalidArgument, "the text is not valid JSON"};
  return document;
}

}  // namespace sluice::gateway
