#include "gateway/usage.h"

#include <charconv>

namespace sluice::gateway {
namespace {

// The number after the last "key": in the text.
std::optional<int64_t> last_number(std::string_view text, std::string_view key) {
  const size_t at = text.rfind(key);
  if (at == std::string_view::npos) return std::nullopt;
  size_t begin = at + key.size();
  while (begin < text.size() && text[begin] == ' ') ++begin;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

std::optional<Usage> read_usage(std::string_view text) {
  if (text.size() > Tail::kBytes) text.remove_prefix(text.size() - Tail::kBytes);
  const auto prompt = last_number(text, "\"prompt_tokens\":");
  if (!prompt) return std::nullopt;
  return Usage{.prompt_tokens = *prompt,
               .cached_tokens = last_number(text, "\"cached_tokens\":").value_or(0),
               .completion_tokens = last_number(text, "\"completion_tokens\":").value_or(0)};
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
