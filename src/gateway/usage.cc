#include "gateway/usage.h"

#include <array>
#include <charconv>
#include <cstring>

namespace sluice::gateway {
namespace {

// The number that the text begins with, after spaces.
std::optional<int64_t> number_of(std::string_view text) {
  size_t begin = 0;
  while (begin < text.size() && text[begin] == ' ') ++begin;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

std::optional<Usage> read_usage(std::string_view text) {
  if (text.size() > Tail::kBytes) text.remove_prefix(text.size() - Tail::kBytes);
  if (text.empty()) return std::nullopt;
  // The last of each counts, and they stand near the end: from colon to colon, backwards.
  constexpr std::string_view kEnding = "_tokens\"";
  struct Key {
    std::string_view name;
    size_t value;
  };
  // The second names of two are those of /v1/responses.
  constexpr Key kKeys[] = {{"\"prompt_tokens\"", 0},
                           {"\"input_tokens\"", 0},
                           {"\"cached_tokens\"", 1},
                           {"\"completion_tokens\"", 2},
                           {"\"output_tokens\"", 2}};
  std::array<std::optional<int64_t>, 3> values;
  std::array<bool, 3> met{};
  for (std::string_view rest = text; met != std::array{true, true, true};) {
    const void* const colon = ::memrchr(rest.data(), ':', rest.size());
    if (colon == nullptr) break;
    rest = rest.substr(0, static_cast<size_t>(static_cast<const char*>(colon) - rest.data()));
    if (!rest.ends_with(kEnding)) continue;
    for (const Key& key : kKeys) {
      if (met[key.value] || !rest.ends_with(key.name)) continue;
      met[key.value] = true;
      values[key.value] = number_of(text.substr(rest.size() + 1));
    }
  }
  const auto& [prompt, cached, completion] = values;
  if (!prompt) return std::nullopt;
  return Usage{
      .prompt_tokens = *prompt, .cached_tokens = cached.value_or(0), .completion_tokens = completion.value_or(0)};
}

void Tail::append(std::string_view part) {
  if (part.size() >= kBytes) {
    text_.assign(part.substr(part.size() - kBytes));
    return;
  }
  if (text_.size() + part.size() > 2 * kBytes) text_.erase(0, text_.size() - kBytes);
  text_.append(part);
}

}  // namespace sluice::gateway
