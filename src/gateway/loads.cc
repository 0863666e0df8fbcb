#include "gateway/loads.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "gateway/control.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;

std::string text_of(const Json& document) { return document.dump(-1, ' ', false, Json::error_handler_t::replace); }

// -1 if nobody says.
int64_t sum_of(const Json& list, const char* key) {
  int64_t sum = -1;
  if (!list.is_array()) return sum;
  for (const auto& entry : list) {
    if (!entry.is_object() || !entry.contains(key) || !entry[key].is_number()) continue;
    sum = std::max<int64_t>(sum, 0) + entry[key].get<int64_t>();
  }
  return sum;
}

double most_of(const Json& list, const char* key) {
  double most = 0;
  for (const auto& entry : list) {
    if (entry.is_object() && entry.contains(key) && entry[key].is_number())
      most = std::max(most, entry[key].get<double>());
  }
  return most;
}

double mean_of(const Json& list, const char* key) {
  double sum = 0;
  size_t count = 0;
  for (const auto& entry : list) {
    if (!entry.is_object() || !entry.contains(key) || !entry[key].is_number()) continue;
    sum += entry[key].get<double>();
    ++count;
  }
  return count == 0 ? 0 : sum / static_cast<double>(count);
}

std::optional<double> number_in(const Json& entry, const char* key) {
  const auto at = entry.find(key);
  return at != entry.end() && at->is_number() ? std::optional(at->get<double>()) : std::nullopt;
}

std::vector<RankLoad> ranks_of(const Json& list, bool modern) {
  std::vector<RankLoad> ranks;
  if (!list.is_array()) return ranks;
  for (const Json& entry : list) {
    if (!entry.is_object()) continue;
    RankLoad rank{.rank = static_cast<int64_t>(number_in(entry, "dp_rank").value_or(0)),
                  .running = number_in(entry, "num_running_reqs"),
                  .waiting = number_in(entry, "num_waiting_reqs"),
                  .token_usage = number_in(entry, "token_usage"),
                  .throughput = number_in(entry, "gen_throughput"),
                  .hit_rate = number_in(entry, "cache_hit_rate")};
    // /get_load counts those that wait among all.
    const auto all = number_in(entry, "num_reqs");
    if (!modern && all && rank.waiting) rank.running = *all - *rank.waiting;
    ranks.push_back(rank);
  }
  return ranks;
}

// The entries of a worker's own document, with its name.
void append_entries(const Json& details, const std::string& worker, Json& out) {
  if (!details.is_object() || !details.contains("loads") || !details["loads"].is_array()) return;
  for (Json entry : details["loads"]) {
    if (!entry.is_object()) continue;
    entry["worker"] = worker;
    entry["worker_type"] = "regular";
    out.push_back(std::move(entry));
  }
}

}  // namespace

net::Task<std::optional<LoadReport>> read_load(net::Client& client, const Worker& worker) {
  constexpr Duration kBound = std::chrono::seconds(5);
  constexpr net::ClientTimeouts kTimeouts{.connect = kBound, .head = kBound, .silence = kBound};
  auto answer = co_await client.fetch(worker.address, "GET", "/v1/loads", key_headers(worker), "", kTimeouts);
  const bool modern = !answer.ok() || answer->status != 404;
  if (!modern) answer = co_await client.fetch(worker.address, "GET", "/get_load", key_headers(worker), "", kTimeouts);
  if (!answer.ok() || answer->status != 200) co_return std::nullopt;
  Json document = Json::parse(answer->body, nullptr, false);
  if (document.is_discarded()) co_return std::nullopt;
  if (!modern) document = Json{{"loads", document}};
  if (!document.is_object() || !document.contains("loads")) co_return std::nullopt;
  // Of a rank's worker only its own entry counts.
  if (worker.dp.rank >= 0 && document["loads"].is_array()) {
    Json own = Json::array();
    for (auto& entry : document["loads"]) {
      if (entry.is_object() && entry.contains("dp_rank") && entry["dp_rank"] == worker.dp.rank) own.push_back(entry);
    }
    document["loads"] = std::move(own);
  }
  LoadReport report;
  const Json& loads = document["loads"];
  report.used_tokens = sum_of(loads, modern ? "num_used_tokens" : "num_tokens");
  report.max_tokens = sum_of(loads, "max_total_num_tokens");
  report.waiting_tokens = std::max<int64_t>(0, sum_of(loads, "num_waiting_uncached_tokens"));
  report.kv_usage = most_of(loads, "token_usage");
  report.throughput = mean_of(loads, "gen_throughput") * static_cast<double>(loads.size());
  report.ranks = ranks_of(loads, modern);
  report.mode = modern ? "loads" : "get_load";
  report.document = text_of(document);
  co_return report;
}

std::string loads_document(const std::vector<WorkerReport>& reports, int64_t unix_seconds) {
  Json shorts = Json::array(), longs = Json::array();
  for (const WorkerReport& of : reports) {
    Json entry{{"worker", of.worker}, {"load", of.report ? of.report->used_tokens : -1}};
    if (of.report) {
      Json details = Json::parse(of.report->document, nullptr, false);
      append_entries(details, of.worker, longs);
      if (!details.is_discarded()) entry["details"] = std::move(details);
    }
    shorts.push_back(std::move(entry));
  }
  const int64_t running = std::max<int64_t>(0, sum_of(longs, "num_running_reqs"));
  const int64_t waiting = std::max<int64_t>(0, sum_of(longs, "num_waiting_reqs"));
  const Json aggregate{{"total_running_reqs", running},
                       {"total_waiting_reqs", waiting},
                       {"total_reqs", running + waiting},
                       {"avg_token_usage", mean_of(longs, "token_usage")},
                       {"avg_throughput", mean_of(longs, "gen_throughput")},
                       {"avg_utilization", mean_of(longs, "utilization")}};
  return text_of(Json{{"workers", shorts},
                      {"timestamp", unix_seconds},
                      {"version", "sluice"},
                      {"dp_rank_count", longs.size()},
                      {"loads", longs},
                      {"aggregate", aggregate}});
}

}  // namespace sluice::gateway
