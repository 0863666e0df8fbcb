// What is read of an answer's end: in any cut, and never from the text of a client or a model.
#include <nlohmann/json.hpp>

#include "fuzz.h"
#include "gateway/usage.h"

using namespace sluice;
using gateway::read_usage;
using gateway::Usage;

namespace {

bool same(const std::optional<Usage>& a, const std::optional<Usage>& b) {
  return a.has_value() == b.has_value() &&
         (!a || (a->prompt_tokens == b->prompt_tokens && a->cached_tokens == b->cached_tokens &&
                 a->completion_tokens == b->completion_tokens));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t seed = input.byte();
  const int64_t prompt = input.byte() * 1000, cached = input.byte();
  const std::string_view text = input.rest();
  const auto whole = read_usage(text);
  if (whole) {
    FUZZ_CHECK(whole->prompt_tokens >= 0 && whole->cached_tokens >= 0 && whole->completion_tokens >= 0,
               "counts are not negative");
  }
  fuzz::Splits splits(seed);
  gateway::Tail tail;
  for (std::string_view rest = text; !rest.empty();) {
    // Pieces of all sizes: short ones, and more than the tail keeps.
    const size_t piece = std::min(rest.size(), splits.next(rest.size()) << (splits.next(100) % 14));
    tail.append(rest.substr(0, piece));
    rest.remove_prefix(piece);
  }
  FUZZ_CHECK(same(read_usage(tail.text()), whole), "cuts make no difference");

  // An answer whose text is the input.
  const auto replace = nlohmann::json::error_handler_t::replace;
  nlohmann::ordered_json answer{{"choices", {{{"text", std::string(text)}}}}};
  FUZZ_CHECK(!read_usage(answer.dump(-1, ' ', false, replace)), "a text is no report");
  answer["usage"] = {{"prompt_tokens", prompt}, {"prompt_tokens_details", {{"cached_tokens", cached}}}};
  const auto reported = read_usage(answer.dump(-1, ' ', false, replace));
  FUZZ_CHECK(reported && reported->prompt_tokens == prompt && reported->cached_tokens == cached, "the report is read");
  FUZZ_CHECK(reported->completion_tokens == 0, "what is not reported is not taken from the text");
  return 0;
}
