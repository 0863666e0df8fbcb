#include "gateway/exposition.h"

#include <charconv>
#include <cmath>

namespace sluice::gateway {
namespace {

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == ':';
}

// The position of the quote that ends the label value which begins at `begin`; npos without one.
size_t end_of_value(std::string_view text, size_t begin) {
  for (size_t i = begin; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      return i;
    }
  }
  return std::string_view::npos;
}

// The position of the brace that closes the labels which begin here, quotes and escapes considered; npos without one.
size_t end_of_labels(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '}') return i;
    if (text[i] != '"') continue;
    i = end_of_value(text, i + 1);
    if (i == std::string_view::npos) break;
  }
  return std::string_view::npos;
}

}  // namespace

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

std::string_view take_metric_name(std::string_view& text) {
  size_t end = 0;
  while (end < text.size() && is_name_char(text[end])) ++end;
  const std::string_view name = text.substr(0, end);
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return {};
  text.remove_prefix(end);
  return name;
}

std::optional<ExpositionSample> read_sample(std::string_view line) {
  ExpositionSample sample{.name = take_metric_name(line)};
  if (sample.name.empty()) return std::nullopt;
  if (line.starts_with('{')) {
    const size_t end = end_of_labels(line);
    if (end == std::string_view::npos) return std::nullopt;
    sample.labels = trimmed(line.substr(1, end - 1));
    if (sample.labels.ends_with(',')) sample.labels.remove_suffix(1);
    line.remove_prefix(end + 1);
  } else if (!line.starts_with(' ') && !line.starts_with('\t')) {
    return std::nullopt;
  }
  sample.value = trimmed(line);
  if (sample.value.empty()) return std::nullopt;
  return sample;
}

std::optional<std::string_view> label_in(std::string_view labels, std::string_view name) {
  while (!labels.empty()) {
    const size_t equals = labels.find('=');
    if (equals == std::string_view::npos) return std::nullopt;
    const std::string_view key = trimmed(labels.substr(0, equals));
    const size_t begin = labels.find('"', equals);
    if (begin == std::string_view::npos) return std::nullopt;
    const size_t end = end_of_value(labels, begin + 1);
    if (end == std::string_view::npos) return std::nullopt;
    if (key == name) return labels.substr(begin + 1, end - begin - 1);
    const size_t comma = labels.find(',', end);
    if (comma == std::string_view::npos) return std::nullopt;
    labels.remove_prefix(comma + 1);
  }
  return std::nullopt;
}

std::optional<double> amount_in(std::string_view value) {
  double amount = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), amount);
  const bool is_whole = end == value.data() + value.size() || *end == ' ' || *end == '\t';
  if (error != std::errc() || !is_whole || !std::isfinite(amount) || amount < 0) return std::nullopt;
  return amount;
}

}  // namespace sluice::gateway
