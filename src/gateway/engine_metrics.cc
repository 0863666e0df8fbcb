#include "gateway/engine_metrics.h"

#include <algorithm>
#include <array>

#include "gateway/exposition.h"

namespace sluice::gateway {
namespace {

std::string shown_name(std::string_view name) {
  std::string shown(name);
  std::ranges::replace(shown, ':', '_');
  return shown;
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
  const std::string_view name = take_metric_name(line);
  if (name.empty()) return;
  current = shown_name(name);
  Family& of = family(current);
  std::string& said = is_help ? of.help : of.type;
  if (said.empty()) said = trimmed(line);
}

void EngineMetrics::add_sample(std::string_view line, std::string_view label, const std::string& current) {
  const auto sample = read_sample(line);
  if (!sample) return;
  const std::string shown = shown_name(sample->name);
  std::string key = shown + "{";
  if (!sample->labels.empty()) key.append(sample->labels).append(",");
  key.append(label).append("}");
  // Two spellings of one name ("a:b" and "a_b") would be the same series twice.
  if (!seen_.insert(key).second) return;
  family(belongs(shown, current) ? current : shown).samples.push_back(key.append(" ").append(sample->value));
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
