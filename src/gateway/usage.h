// The token counts that an answer reports about itself, found without parsing the answer: engines write them near its
// end, so the last few kilobytes are enough, of a stream as well.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace sluice::gateway {

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
};

// From `usage` of the OpenAI routes or `meta_info` of /generate, the last one in the text; none if there is none. Text
// of a client or a model is never taken for it: inside a JSON string the quotes of a key are escaped.
std::optional<Usage> read_usage(std::string_view text);

// The last bytes of what went by.
class Tail {
 public:
  static constexpr size_t kBytes = 4096;

  void append(std::string_view part);
  std::string_view text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace sluice::gateway
