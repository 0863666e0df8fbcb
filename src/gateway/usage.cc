#include "gateway/usage.h"

#include <array>
#include <charconv>
#include <cstring>
#include <iterator>

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
  constexpr std::string_view kKeys[] = {"\"prompt_tokens\"", "\"cached_tokens\"", "\"completion_tokens\""};
  std::array<std::optional<int64_t>, std::size(kKeys)> values;
  std::array<bool, std::size(kKeys)> met{};
  for (std::string_view rest = text; met != std::array{true, true, true};) {
    const void* const colon = ::memrchr(rest.data(), ':', rest.size());
    if (colon == nullptr) break;
    rest = rest.substr(0, static_cast<size_t>(static_cast<const char*>(colon) - rest.data()));
    if (!rest.ends_with(kEnding)) continue;
    for (size_t i = 0; i < std::size(kKeys); ++i) {
      if (met[i] || !rest.ends_with(kKeys[i])) continue;
      met[i] = true;
      values[i] = number_of(text.substr(rest.size() + 1));
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
