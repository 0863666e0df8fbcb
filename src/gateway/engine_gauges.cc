#include "gateway/engine_gauges.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "gateway/exposition.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;

struct Gauge {
  std::string_view sample;
  std::string_view member;  // of an entry of /v1/loads
};
constexpr Gauge kSglang[] = {{"num_running_reqs", "num_running_reqs"}, {"num_queue_reqs", "num_waiting_reqs"},
                             {"num_used_tokens", "num_used_tokens"},   {"max_total_num_tokens", "max_total_num_tokens"},
                             {"token_usage", "token_usage"},           {"gen_throughput", "gen_throughput"},
                             {"cache_hit_rate", "cache_hit_rate"},     {"utilization", "utilization"}};
// What vLLM calls a percentage is a share: 1 is full. The second name is that of older ones.
constexpr Gauge kVllm[] = {{"num_requests_running", "num_running_reqs"},
                           {"num_requests_waiting", "num_waiting_reqs"},
                           {"kv_cache_usage_perc", "token_usage"},
                           {"gpu_cache_usage_perc", "token_usage"}};
// vLLM's pool in blocks, and the tokens of one, are labels of this sample.
constexpr std::string_view kVllmPool = "cache_config_info";

constexpr double kMost = 1e15;

using Entry = std::map<std::string_view, double>;  // by member

void keep_largest(Entry& entry, std::string_view member, double value) {
  const auto [at, is_new] = entry.try_emplace(member, value);
  if (!is_new) at->second = std::max(at->second, value);
}

template <size_t N>
void read_gauge(Entry& entry, const Gauge (&gauges)[N], std::string_view name, std::string_view value) {
  const auto gauge = std::ranges::find(gauges, name, &Gauge::sample);
  if (gauge == std::end(gauges)) return;
  if (const auto amount = amount_in(value)) keep_largest(entry, gauge->member, *amount);
}

int64_t rank_in(std::string_view labels, std::string_view label) {
  constexpr int64_t kMostRank = 1'000'000;
  int64_t rank = 0;
  const auto text = label_in(labels, label).value_or("0");
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
  return error == std::errc() ? std::clamp<int64_t>(rank, 0, kMostRank) : 0;
}

void read_pool(Entry& entry, std::string_view labels) {
  const auto blocks = amount_in(label_in(labels, "num_gpu_blocks").value_or(""));
  const auto tokens = amount_in(label_in(labels, "block_size").value_or(""));
  if (blocks && tokens) keep_largest(entry, "max_total_num_tokens", *blocks * *tokens);
}

void read_line(std::string_view line, std::map<int64_t, Entry>& ranks) {
  const bool is_vllm = line.starts_with("vllm:");
  if (!is_vllm && !line.starts_with("sglang:") && !line.starts_with("sglang_")) return;
  const auto sample = read_sample(line);
  if (!sample) return;
  const std::string_view name = sample->name.substr(is_vllm ? 5 : 7);
  Entry& entry = ranks[rank_in(sample->labels, is_vllm ? "engine" : "dp_rank")];
  if (!is_vllm) return read_gauge(entry, kSglang, name, sample->value);
  if (name == kVllmPool) return read_pool(entry, sample->labels);
  read_gauge(entry, kVllm, name, sample->value);
}

// With what follows from the rest. None of a rank that does not say how full it is.
std::optional<Json> document_of(int64_t rank, const Entry& entry) {
  const auto said = [&](std::string_view member) {
    const auto at = entry.find(member);
    return at == entry.end() ? std::optional<double>() : at->second;
  };
  const auto usage = said("token_usage");
  if (!usage) return std::nullopt;
  Json document{{"dp_rank", rank}};
  for (const auto& [member, value] : entry) {
    const bool is_count = member.starts_with("num_") || member.starts_with("max_");
    document[std::string(member)] = is_count ? Json(static_cast<int64_t>(std::min(value, kMost))) : Json(value);
  }
  if (const auto pool = said("max_total_num_tokens"); pool && !said("num_used_tokens")) {
    document["num_used_tokens"] = static_cast<int64_t>(std::min(*pool * *usage, kMost));
  }
  const auto running = said("num_running_reqs"), waiting = said("num_waiting_reqs");
  if (running && waiting) document["num_total_reqs"] = static_cast<int64_t>(std::min(*running + *waiting, kMost));
  return document;
}

}  // namespace

Json loads_of_gauges(std::string_view exposition) {
  std::map<int64_t, Entry> ranks;
  while (!exposition.empty()) {
    const size_t end = exposition.find('\n');
    read_line(trimmed(exposition.substr(0, end)), ranks);
    exposition = end == std::string_view::npos ? std::string_view() : exposition.substr(end + 1);
  }
  Json loads = Json::array();
  for (const auto& [rank, entry] : ranks) {
    if (auto document = document_of(rank, entry)) loads.push_back(std::move(*document));
  }
  if (loads.empty()) return nullptr;
  return Json{{"loads", std::move(loads)}};
}

}  // namespace sluice::gateway
