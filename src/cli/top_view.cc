#include "cli/top_view.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace sluice::cli {
namespace {

using Json = nlohmann::json;

struct Row {
  std::string worker, rank;
  std::optional<double> running, waiting, used, total, rate, prompt, cached;
};

std::optional<double> number(const Json& entry, const char* key) {
  const auto at = entry.find(key);
  return at != entry.end() && at->is_number() ? std::optional(at->get<double>()) : std::nullopt;
}

// What a server sends must not steer the terminal.
std::string printable(std::string text) {
  std::ranges::replace_if(
      text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return text;
}

Row row_of(const Json& entry) {
  Row row{.running = number(entry, "num_running_reqs"),
          .waiting = number(entry, "num_waiting_reqs"),
          .used = number(entry, "num_used_tokens"),
          .total = number(entry, "max_total_num_tokens"),
          .rate = number(entry, "gen_throughput"),
          .prompt = number(entry, "prompt_tokens_total"),
          .cached = number(entry, "cached_tokens_total")};
  if (const auto at = entry.find("worker"); at != entry.end() && at->is_string()) {
    row.worker = printable(at->get<std::string>());
  }
  if (const auto rank = number(entry, "dp_rank")) row.rank = fmt::format("{:.0f}", *rank);
  return row;
}

std::string text(const std::optional<double>& value, int digits = 0) {
  return value ? fmt::format("{:.{}f}", *value, digits) : "-";
}
std::string percent(const std::optional<double>& part, const std::optional<double>& whole) {
  return part && whole && *whole > 0 ? fmt::format("{:.0f} %", 100 * *part / *whole) : "-";
}

// Of the rows that say it.
std::optional<double> sum(const std::vector<Row>& rows, std::optional<double> Row::*field) {
  std::optional<double> sum;
  for (const Row& row : rows) {
    if (row.*field) sum = sum.value_or(0) + *(row.*field);
  }
  return sum;
}

}  // namespace

Result<std::string> top_view(std::string_view url, std::string_view loads_document, size_t width) {
  const Json document = Json::parse(loads_document, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object() || !document.contains("loads") || !document["loads"].is_array()) {
    return Error{ErrorCode::kProtocol, fmt::format("{}/v1/loads is no list of loads", url)};
  }
  std::vector<Row> rows;
  for (const Json& entry : document["loads"]) {
    if (entry.is_object()) rows.push_back(row_of(entry));
  }
  size_t worker = 0;
  for (const Row& row : rows) worker = std::max(worker, row.worker.size());
  if (worker > 0) worker = std::max(worker, std::string_view("worker").size()) + 2;

  const auto used = sum(rows, &Row::used), total = sum(rows, &Row::total);
  std::vector<std::string> lines = {
      fmt::format("{}: {} rank{}, {} running, {} waiting, KV {}, {} tokens/s, {} of prompts cached", url, rows.size(),
                  rows.size() == 1 ? "" : "s", text(sum(rows, &Row::running)), text(sum(rows, &Row::waiting)),
                  percent(used, total), text(sum(rows, &Row::rate), 1),
                  percent(sum(rows, &Row::cached), sum(rows, &Row::prompt))),
      "",
      fmt::format("{:<{}}{:>4}{:>9}{:>9}{:>12}{:>12}{:>7}{:>10}{:>8}", worker > 0 ? "worker" : "", worker, "rank",
                  "running", "waiting", "KV used", "KV total", "KV", "tokens/s", "cached")};
  for (const Row& row : rows) {
    lines.push_back(fmt::format("{:<{}}{:>4}{:>9}{:>9}{:>12}{:>12}{:>7}{:>10}{:>8}", row.worker, worker, row.rank,
                                text(row.running), text(row.waiting), text(row.used), text(row.total),
                                percent(row.used, row.total), text(row.rate, 1), percent(row.cached, row.prompt)));
  }
  std::string out;
  for (const std::string& line : lines) out += (width > 0 ? line.substr(0, width) : line) + "\n";
  return out;
}

}  // namespace sluice::cli
