// GET /v1/loads, which gateways poll.
#include <algorithm>
#include <charconv>
#include <ctime>

#include "engine/api/info_api.h"
#include "engine/api/rank_metrics.h"
#include "obs/exposition.h"

namespace sluice::engine {
namespace {

using nlohmann::ordered_json;

struct Sections {
  bool memory = false;
  bool queues = false;
};

// "core" is always there; the sections of features that are not built are known and empty.
Result<Sections> read_sections(std::string_view list) {
  constexpr std::string_view kKnown[] = {"core", "memory", "spec", "lora", "disagg", "queues", "all"};
  Sections out;
  while (!list.empty()) {
    const auto name = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), name.size() + 1));
    if (std::find(std::begin(kKnown), std::end(kKnown), name) == std::end(kKnown)) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("include holds '{}'; valid are {}", name.substr(0, 60), fmt::join(kKnown, ", "))};
    }
    out.memory |= name == "memory" || name == "all";
    out.queues |= name == "queues" || name == "all";
  }
  return out;
}

ordered_json load_json(size_t rank, const RankState& state, const Sections& sections) {
  constexpr double kGiB = 1024.0 * 1024 * 1024;
  const auto& load = state.load;
  ordered_json out = {{"dp_rank", rank},
                      {"num_running_reqs", load.num_running_reqs},
                      {"num_waiting_reqs", load.num_waiting_reqs},
                      {"num_total_reqs", load.num_running_reqs + load.num_waiting_reqs},
                      {"num_used_tokens", load.num_used_tokens},
                      {"num_active_tokens", load.num_used_tokens},
                      {"num_total_tokens", load.num_used_tokens + load.num_waiting_tokens},
                      {"num_waiting_uncached_tokens", load.num_waiting_tokens},
                      {"max_total_num_tokens", load.max_total_num_tokens},
                      {"token_usage", token_usage(load)},
                      {"gen_throughput", load.gen_throughput},
                      {"cache_hit_rate", load.cache_hit_rate},
                      {"utilization", rank_utilization(load)},
                      {"max_running_requests", load.max_running_requests},
                      {"prompt_tokens_total", load.prompt_tokens_total},
                      {"cached_tokens_total", load.cached_tokens_total},
                      {"generation_tokens_total", load.generation_tokens_total},
                      {"timestamp", static_cast<double>(load.unix_nanos) / 1e9}};
  if (sections.memory) {
    out["memory"] = {{"weight_gb", static_cast<double>(state.info.weight_bytes) / kGiB},
                     {"kv_cache_gb", static_cast<double>(state.info.kv_bytes) / kGiB},
                     {"graph_gb", 0.0},
                     {"token_capacity", state.info.max_total_num_tokens}};
  }
  if (sections.queues) {
    out["queues"] = {{"waiting", load.num_waiting_reqs},
                     {"grammar", load.num_grammar_reqs},
                     {"paused", load.num_paused_reqs},
                     {"retracted", load.num_retracted_reqs}};
  }
  return out;
}

ordered_json aggregate(const ordered_json& loads) {
  int64_t running = 0, waiting = 0;
  double usage = 0, throughput = 0, utilization = 0;
  for (const auto& load : loads) {
    running += load["num_running_reqs"].get<int64_t>();
    waiting += load["num_waiting_reqs"].get<int64_t>();
    usage += load["token_usage"].get<double>();
    throughput += load["gen_throughput"].get<double>();
    utilization += load["utilization"].get<double>();
  }
  const auto count = static_cast<double>(std::max<size_t>(loads.size(), 1));
  return {{"total_running_reqs", running},        {"total_waiting_reqs", waiting},
          {"total_reqs", running + waiting},      {"avg_token_usage", usage / count},
          {"avg_throughput", throughput / count}, {"avg_utilization", utilization / count}};
}

std::string exposition(const ordered_json& loads) {
  std::string out;
  if (loads.empty()) return out;
  for (const auto& [name, value] : loads.front().items()) {
    if (!value.is_number() || name == "dp_rank") continue;
    out += fmt::format("# TYPE sglang_{} gauge\n", name);
    for (const auto& load : loads) {
      out += fmt::format("sglang_{}{{dp_rank=\"{}\"}} {}\n", name, load["dp_rank"].get<int64_t>(), load[name].dump());
    }
  }
  return out;
}

std::string iso_time(int64_t unix_seconds) {
  const auto time = static_cast<std::time_t>(unix_seconds);
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

Result<std::optional<size_t>> read_rank(std::string_view query, size_t count) {
  const auto text = net::query_value(query, "dp_rank");
  if (!text) return std::optional<size_t>();
  size_t rank = 0;
  const auto [end, problem] = std::from_chars(text->data(), text->data() + text->size(), rank);
  if (problem != std::errc() || end != text->data() + text->size() || rank >= count) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("dp_rank must be an integer in [0, {}], got '{}'", count - 1, text->substr(0, 60))};
  }
  return std::optional(rank);
}

Result<net::Response> make(ApiContext& api, std::string_view query) {
  const auto ranks = api.backend.ranks();
  SLUICE_TRY(const auto sections, read_sections(net::query_value(query, "include").value_or("core")));
  SLUICE_TRY(const auto only, read_rank(query, ranks.size()));
  const auto format = net::query_value(query, "format").value_or("json");
  if (format != "json" && format != "prometheus") {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("format must be json or prometheus, got '{}'", format.substr(0, 60))};
  }
  auto list = ordered_json::array();
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (!only || *only == i) list.push_back(load_json(i, ranks[i], sections));
  }
  if (format == "prometheus") {
    auto page = net::Response::text(200, exposition(list));
    page.headers.set("Content-Type", std::string(obs::kExpositionContentType));
    return page;
  }
  ordered_json out = {
      {"timestamp", iso_time(api.unix_seconds())}, {"version", SLUICE_VERSION}, {"dp_rank_count", list.size()}};
  out["aggregate"] = aggregate(list);
  out["accelerator"] = "cpu";
  out["num_accelerators"] = 1;
  out["loads"] = std::move(list);
  return json_response(out);
}

}  // namespace

net::Task<> loads(ApiCall& call) {
  const TimePoint begun = call.api.clock.now();
  auto made = make(call.api, call.exchange.request().query());
  call.api.request_metrics.of({})->get_loads.observe(seconds(call.api.clock.now() - begun));
  if (made.ok()) {
    co_await answer(call, std::move(*made));
  } else {
    co_await answer_error(call, made.error());
  }
}

}  // namespace sluice::engine
