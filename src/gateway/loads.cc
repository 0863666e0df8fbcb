#include "gateway/loads.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <nlohmann/json.hpp>

#include "gateway/client_json.h"
#include "gateway/control.h"
#include "gateway/engine_gauges.h"
#include "protocol/json.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;

// -1 if nobody says.
int64_t sum_of(const Json& list, const char* key) {
  constexpr double kMost = 1e15;  // of anything that is counted in tokens or requests
  int64_t sum = -1;
  if (!list.is_array()) return sum;
  for (const auto& entry : list) {
    if (!entry.is_object() || !entry.contains(key) || !entry[key].is_number()) continue;
    const double total = static_cast<double>(std::max<int64_t>(sum, 0)) + entry[key].get<double>();
    sum = static_cast<int64_t>(std::clamp(total, 0.0, kMost));
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

std::vector<RankLoad> ranks_of(const Json& list, bool is_oldest) {
  constexpr double kMostRank = 1e6;
  std::vector<RankLoad> ranks;
  if (!list.is_array()) return ranks;
  for (const Json& entry : list) {
    if (!entry.is_object()) continue;
    RankLoad rank{.rank = static_cast<int64_t>(std::clamp(number_in(entry, "dp_rank").value_or(0), 0.0, kMostRank)),
                  .running = number_in(entry, "num_running_reqs"),
                  .waiting = number_in(entry, "num_waiting_reqs"),
                  .token_usage = number_in(entry, "token_usage"),
                  .throughput = number_in(entry, "gen_throughput"),
                  .hit_rate = number_in(entry, "cache_hit_rate")};
    // /get_load counts those that wait among all.
    const auto all = number_in(entry, "num_reqs");
    if (is_oldest && all && rank.waiting) rank.running = *all - *rank.waiting;
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

std::string_view path_of(LoadSource source) {
  if (source == LoadSource::kMetrics) return "/metrics";
  return source == LoadSource::kGetLoad ? "/get_load" : "/v1/loads";
}

// The known one first: a worker that has become another is found out by its 404.
std::array<LoadSource, 3> sources_from(LoadSource known) {
  std::array sources{LoadSource::kLoads, LoadSource::kGetLoad, LoadSource::kMetrics};
  if (const auto at = std::ranges::find(sources, known); at != sources.end()) {
    std::rotate(sources.begin(), at, std::next(at));
  }
  return sources;
}

}  // namespace

std::string_view to_string(LoadSource source) {
  switch (source) {
    case LoadSource::kLoads:
      return "loads";
    case LoadSource::kGetLoad:
      return "get_load";
    case LoadSource::kMetrics:
      return "metrics";
    case LoadSource::kUnknown:
      break;
  }
  return "unknown";
}

std::optional<LoadReport> load_report(const std::string& text, LoadSource source, int64_t own_rank) {
  const bool is_oldest = source == LoadSource::kGetLoad;
  Json document;
  if (source == LoadSource::kMetrics) {
    document = loads_of_gauges(text);
  } else {
    // A worker's own text, as deep as it likes: copying a tree and writing it out take stack.
    auto parsed = parse_client_json(text);
    if (!parsed.ok()) return std::nullopt;
    document = std::move(parsed).value();
    if (is_oldest) document = Json{{"loads", document}};
  }
  if (!document.is_object() || !document.contains("loads")) return std::nullopt;
  // Of a rank's worker only its own entry counts.
  if (own_rank >= 0 && document["loads"].is_array()) {
    Json own = Json::array();
    for (auto& entry : document["loads"]) {
      if (entry.is_object() && entry.contains("dp_rank") && entry["dp_rank"] == own_rank) own.push_back(entry);
    }
    document["loads"] = std::move(own);
  }
  LoadReport report;
  const Json& loads = document["loads"];
  report.used_tokens = sum_of(loads, is_oldest ? "num_tokens" : "num_used_tokens");
  report.max_tokens = sum_of(loads, "max_total_num_tokens");
  report.waiting_tokens = sum_of(loads, "num_waiting_uncached_tokens");
  report.waiting_requests = sum_of(loads, "num_waiting_reqs");
  report.kv_usage = most_of(loads, "token_usage");
  report.throughput = mean_of(loads, "gen_throughput") * static_cast<double>(loads.size());
  report.ranks = ranks_of(loads, is_oldest);
  report.source = source;
  report.document = protocol::dump(document);
  return report;
}

net::Task<std::optional<LoadReport>> read_load(net::EventLoop& loop, net::Client& client, LoadSources& sources,
                                               WorkerPtr worker, std::shared_ptr<Interruption> interruption) {
  constexpr Duration kBound = std::chrono::seconds(5);
  for (const LoadSource source : sources_from(sources.of(worker->number))) {
    Question question{"GET", std::string(path_of(source)), key_headers(*worker), nullptr};
    const auto answer = co_await ask_worker(loop, client, worker, std::move(question), kBound, interruption);
    if (answer.ok() && answer->status == 404) continue;
    if (!answer.ok() || answer->status != 200) co_return std::nullopt;
    auto report = load_report(answer->body, source, worker->dp.rank);
    if (report) sources.set(worker->number, source);
    co_return report;
  }
  sources.forget(worker->number);
  co_return std::nullopt;
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
  return protocol::dump(Json{{"workers", shorts},
                             {"timestamp", unix_seconds},
                             {"version", "sluice"},
                             {"dp_rank_count", longs.size()},
                             {"loads", longs},
                             {"aggregate", aggregate}});
}

}  // namespace sluice::gateway
