#include "gateway/engine_metrics.h"

#include <algorithm>
#include <array>
#include <optional>

namespace sluice::gateway {
namespace {

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == ':';
}

std::string shown_name(std::string_view name) {
  std::string shown(name);
  std::ranges::replace(shown, ':', '_');
  return shown;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

// Takes a metric's name off the front; empty if there is none.
std::string_view take_name(std::string_view& text) {
  size_t end = 0;
  while (end < text.size() && is_name_char(text[end])) ++end;
  const std::string_view name = text.substr(0, end);
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return {};
  text.remove_prefix(end);
  return name;
}

// The position of the brace that closes the labels which begin here, quotes and escapes considered; npos without one.
size_t end_of_labels(std::string_view text) {
  bool in_value = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_value) {
      if (text[i] == '\\') {
        ++i;
      } else if (text[i] == '"') {
        in_value = false;
      }
    } else if (text[i] == '"') {
      in_value = true;
    } else if (text[i] == '}') {
      return i;
    }
  }
  return std::string_view::npos;
}

// Does a sample of that name belong to that family?
bool belongs(std::string_view sample, std::string_view family) {
  if (family.empty() || !sample.starts_with(family)) return false;
  const std::string_view suffix = sample.substr(family.size());
  constexpr std::array<std::string_view, 7> kSuffixes{"", "_bucket", "_sum", "_count", "_total", "_created", "_info"};
  return std::ranges::find(kSuffixes, suffix) != kSuffixes.end();
}

std::string escaped(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

}  // namespace

EngineMetrics::Family& EngineMetrics::family(const std::string& name) {
  const auto [at, is_new] = index_.try_emplace(name, families_.size());
  if (is_new) families_.push_back({.name = name});
  return families_[at->second];
}

// "# HELP name text" or "# TYPE name type"; other comments say nothing to a reader.
void EngineMetrics::add_comment(std::string_view line, std::string& current) {
  line = trimmed(line.substr(1));
  const bool is_help = line.starts_with("HELP ");
  if (!is_help && !line.starts_with("TYPE ")) return;
  line = trimmed(line.substr(5));
  const std::string_view name = take_name(line);
  if (name.empty()) return;
  current = shown_name(name);
  Family& of = family(current);
  std::string& said = is_help ? of.help : of.type;
  if (said.empty()) said = trimmed(line);
}

void EngineMetrics::add_sample(std::string_view line, std::string_view label, const std::string& current) {
  const std::string_view name = take_name(line);
  if (name.empty()) return;
  std::string_view labels;
  if (line.starts_with('{')) {
    const size_t end = end_of_labels(line);
    if (end == std::string_view::npos) return;
    labels = trimmed(line.substr(1, end - 1));
    if (labels.ends_with(',')) labels.remove_suffix(1);
    line.remove_prefix(end + 1);
  } else if (!line.starts_with(' ') && !line.starts_with('\t')) {
    return;
  }
  const std::string_view value = trimmed(line);
  if (value.empty()) return;
  const std::string shown = shown_name(name);
  std::string key = shown + "{";
  if (!labels.empty()) key.append(labels).append(",");
  key.append(label).append("}");
  // Two spellings of one name ("a:b" and "a_b") would be the same series twice.
  if (!seen_.insert(key).second) return;
  family(belongs(shown, current) ? current : shown).samples.push_back(key.append(" ").append(value));
}

void EngineMetrics::add(std::string_view worker_address, std::string_view exposition) {
  const std::string label = "worker_addr=\"" + escaped(worker_address) + "\"";
  std::string current;
  while (!exposition.empty()) {
    const size_t end = exposition.find('\n');
    const std::string_view line = trimmed(exposition.substr(0, end));
    exposition = end == std::string_view::npos ? std::string_view() : exposition.substr(end + 1);
    if (line.starts_with('#')) {
      add_comment(line, current);
    } else if (!line.empty()) {
      add_sample(line, label, current);
    }
  }
}

std::string EngineMetrics::text() const {
  std::string out;
  for (const Family& of : families_) {
    if (of.samples.empty()) continue;
    if (!of.help.empty()) out.append("# HELP ").append(of.name).append(" ").append(of.help).append("\n");
    if (!of.type.empty()) out.append("# TYPE ").append(of.name).append(" ").append(of.type).append("\n");
    for (const std::string& sample : of.samples) out.append(sample).append("\n");
  }
  return out;
}

}  // namespace sluice::gateway
