// What the simulated worker answers besides generation: information, load, metrics, and its own control.
#include <algorithm>
#include <ctime>
#include <functional>
#include <nlohmann/json.hpp>

#include "testing/sim_worker_impl.h"

namespace sluice::testing {
namespace {

using Json = nlohmann::ordered_json;
using net::Response;

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

Response SimWorker::Impl::answer(const net::RequestHead& request, const std::string& body) {
  const std::string_view path = request.path();
  if (path == "/flush_cache") return flush();
  if (request.method != "GET") {
    if (path == "/abort_request") return abort(body);
    if (path == "/start_profile" || path == "/stop_profile") return Response::text(200, "There is no profiler here.\n");
  } else {
    if (path == "/ping") return Response::text(200, "");
    if (path == "/v1/models" || path == "/v1/models/" + options_.model) return models(path);
    if (path == "/server_info" || path == "/get_server_info") return Response::json(200, server_info());
    if (path == "/model_info" || path == "/get_model_info") return Response::json(200, model_info());
    const LoadPages pages = load_pages_;
    if (path == "/metrics") {
      return Response::text(200, pages == LoadPages::kVllm ? vllm_metrics() : metrics());
    }
    if (path == "/v1/loads" && pages == LoadPages::kLoads) {
      ++tally_.load_reads;
      return Response::json(200, loads_document());
    }
    if (path == "/get_load" && pages <= LoadPages::kGetLoad) {
      ++tally_.load_reads;
      return Response::json(200, load_document());
    }
  }
  return Response::json(404, openai_error(404, fmt::format("no such path: {}", path), "NotFoundError"));
}

Response SimWorker::Impl::models(std::string_view path) const {
  const Json entry = {{"id", options_.model},
                      {"object", "model"},
                      {"created", 1},
                      {"owned_by", "sglang"},
                      {"root", options_.model},
                      {"parent", nullptr},
                      {"max_model_len", options_.engine.context_length}};
  if (path != "/v1/models") return Response::json(200, entry.dump());
  const Json list = {{"object", "list"}, {"data", Json::array({entry})}};
  return Response::json(200, list.dump());
}

std::string SimWorker::Impl::model_info() const {
  const Json info = {{"model_path", options_.model},
                     {"tokenizer_path", options_.model},
                     {"is_generation", true},
                     {"preferred_sampling_params", nullptr},
                     {"weight_version", "default"},
                     {"has_image_understanding", false},
                     {"has_audio_understanding", false},
                     {"model_type", "sim"},
                     {"architectures", Json::array({"SimForCausalLM"})}};
  return info.dump();
}

Response SimWorker::Impl::flush() {
  bool flushed = true;
  for (const auto& rank : ranks()) {
    const std::lock_guard lock(rank->mu);
    flushed = flushed && !rank->has_work();
  }
  for (const auto& rank : ranks()) {
    const std::lock_guard lock(rank->mu);
    if (flushed) flushed = rank->flush();
  }
  if (options_.canned) flushed = tally_.active == 0;
  if (!flushed) return Response::text(400, "Flush cache failed: requests are running or waiting.\n");
  ++tally_.flushes;
  return Response::text(200, "Cache flushed.\n");
}

Response SimWorker::Impl::abort(const std::string& body) {
  const auto json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Response::json(400, openai_error(400, "the body must be a JSON object"));
  const auto rid = json.find("rid");
  const auto all = json.find("abort_all");
  const bool abort_all = all != json.end() && all->is_boolean() && all->get<bool>();
  abort_requests(rid != json.end() && rid->is_string() ? rid->get<std::string>() : std::string(), abort_all);
  return Response::text(200, "");
}

void SimWorker::Impl::abort_requests(std::string_view rid, bool all) {
  for (const auto& rank : ranks()) {
    const std::lock_guard lock(rank->mu);
    for (auto it = rank->targets.begin(); it != rank->targets.end();) {
      if (!all && (rid.empty() || it->second.rid != rid)) {
        ++it;
        continue;
      }
      rank->abort(it->first);
      ++tally_.aborted;  // before its answer
      it->second.wait->loop.post([wait = it->second.wait, sequence = it->second.sequence] {
        wait->push({.sequence = sequence, .aborted = true});
      });
      it = rank->targets.erase(it);
    }
  }
}

SimLoad SimWorker::Impl::load_of(SimRank& rank) const {
  const std::lock_guard lock(rank.mu);
  SimLoad load = rank.load();
  if (options_.canned) load.running = tally_.active;
  return load;
}

std::string SimWorker::Impl::load_document() const {
  Json list = Json::array();
  int64_t rank_number = 0;
  const double now = seconds(real_clock().now().time_since_epoch());
  for (const auto& rank : ranks()) {
    const SimLoad load = load_of(*rank);
    list.push_back({{"rid", nullptr},
                    {"http_worker_ipc", nullptr},
                    {"dp_rank", options_.dp_size > 1 ? Json(rank_number) : Json(nullptr)},
                    {"num_reqs", load.running + load.waiting},
                    {"num_waiting_reqs", load.waiting},
                    {"num_tokens", load.used_tokens + load.waiting_tokens},
                    {"ts_tic", now}});
    ++rank_number;
  }
  return list.dump();
}

std::string SimWorker::Impl::loads_document() const {
  Json loads = Json::array();
  int64_t rank_number = 0;
  int64_t running = 0;
  int64_t waiting = 0;
  double usage = 0;
  double throughput = 0;
  double utilization = 0;
  const auto all = ranks();
  for (const auto& rank : all) {
    const SimLoad load = load_of(*rank);
    const double rank_utilization =
        static_cast<double>(load.running) / static_cast<double>(options_.engine.max_running);
    loads.push_back({{"dp_rank", rank_number++},
                     {"num_running_reqs", load.running},
                     {"num_waiting_reqs", load.waiting},
                     {"num_waiting_uncached_tokens", load.waiting_tokens},
                     {"num_total_reqs", load.running + load.waiting},
                     {"num_used_tokens", load.used_tokens},
                     {"max_total_num_tokens", load.max_tokens},
                     {"token_usage", load.token_usage},
                     {"gen_throughput", load.generated_per_s},
                     {"cache_hit_rate", load.last_hit_rate},
                     {"utilization", rank_utilization},
                     {"max_running_requests", options_.engine.max_running}});
    running += load.running;
    waiting += load.waiting;
    usage += load.token_usage;
    throughput += load.generated_per_s;
    utilization += rank_utilization;
  }
  const auto n = static_cast<double>(all.size());
  const Json document = {{"timestamp", utc_now()},
                         {"version", "sim"},
                         {"dp_rank_count", all.size()},
                         {"loads", loads},
                         {"aggregate",
                          {{"total_running_reqs", running},
                           {"total_waiting_reqs", waiting},
                           {"total_reqs", running + waiting},
                           {"avg_token_usage", usage / n},
                           {"avg_throughput", throughput / n},
                           {"avg_utilization", utilization / n}}}};
  return document.dump();
}

std::string SimWorker::Impl::server_info() const {
  Json states = Json::array();
  for (const auto& rank : ranks()) {
    const SimLoad load = load_of(*rank);
    states.push_back({{"last_gen_throughput", load.generated_per_s},
                      {"memory_usage", {{"token_capacity", load.max_tokens}}},
                      {"effective_max_running_requests_per_dp", options_.engine.max_running}});
  }
  const int64_t max_tokens = options_.engine.kv_tokens / options_.engine.block_size * options_.engine.block_size;
  const Json info = {{"model_path", options_.model},
                     {"served_model_name", options_.model},
                     {"tokenizer_path", options_.model},
                     {"host", options_.host},
                     {"port", port_.load()},
                     {"tp_size", 1},
                     {"dp_size", options_.dp_size},
                     {"page_size", options_.engine.block_size},
                     {"disaggregation_mode", "null"},
                     {"max_running_requests", options_.engine.max_running},
                     {"context_length", options_.engine.context_length},
                     {"max_total_num_tokens", max_tokens},
                     {"max_req_input_len", options_.engine.context_length - 1},
                     {"status", "ready"},
                     {"version", "sim"},
                     {"internal_states", states}};
  return info.dump();
}

std::string SimWorker::Impl::metrics() const {
  struct Row {
    std::string_view name, type, help;
    double (*value)(const SimLoad&);
  };
  static constexpr Row kRows[] = {
      {"num_running_reqs", "gauge", "Requests running.",
       [](const SimLoad& l) { return static_cast<double>(l.running); }},
      {"num_queue_reqs", "gauge", "Requests waiting.", [](const SimLoad& l) { return static_cast<double>(l.waiting); }},
      {"num_used_tokens", "gauge", "KV tokens in use.",
       [](const SimLoad& l) { return static_cast<double>(l.used_tokens); }},
      {"max_total_num_tokens", "gauge", "KV tokens in all.",
       [](const SimLoad& l) { return static_cast<double>(l.max_tokens); }},
      {"token_usage", "gauge", "Share of the KV pool in use.", [](const SimLoad& l) { return l.token_usage; }},
      {"gen_throughput", "gauge", "Tokens generated per second.", [](const SimLoad& l) { return l.generated_per_s; }},
      {"cache_hit_rate", "gauge", "Share of the last prompt that was cached.",
       [](const SimLoad& l) { return l.last_hit_rate; }},
      {"prompt_tokens_total", "counter", "Prompt tokens admitted.",
       [](const SimLoad& l) { return static_cast<double>(l.total_prompt_tokens); }},
      {"generation_tokens_total", "counter", "Tokens generated.",
       [](const SimLoad& l) { return static_cast<double>(l.total_generated_tokens); }},
      {"cached_tokens_total", "counter", "Prompt tokens that were cached.",
       [](const SimLoad& l) { return static_cast<double>(l.total_cached_tokens); }},
      {"num_requests_total", "counter", "Requests submitted.",
       [](const SimLoad& l) { return static_cast<double>(l.total_requests); }},
      {"num_aborted_requests_total", "counter", "Requests aborted.",
       [](const SimLoad& l) { return static_cast<double>(l.total_aborted); }},
  };
  std::vector<SimLoad> loads;
  for (const auto& rank : ranks()) {
    loads.push_back(load_of(*rank));
    if (options_.canned) loads.back().total_requests = tally_.generations;
  }
  std::string out;
  for (const auto& row : kRows) {
    out += fmt::format("# HELP sglang:{} {}\n# TYPE sglang:{} {}\n", row.name, row.help, row.name, row.type);
    for (size_t i = 0; i < loads.size(); ++i) {
      const std::string rank = loads.size() > 1 ? fmt::format(",dp_rank=\"{}\"", i) : "";
      out += fmt::format("sglang:{}{{model_name={}{}}} {}\n", row.name, json_quoted(options_.model), rank,
                         row.value(loads[i]));
    }
  }
  return out;
}

// The families that a gateway reads of vLLM; counters are not among them.
std::string SimWorker::Impl::vllm_metrics() const {
  const auto all = ranks();
  std::string out;
  const auto add = [&](std::string_view name, std::string_view more, const std::function<double(const SimLoad&)>& of) {
    out += fmt::format("# HELP vllm:{0} Of the simulated engine.\n# TYPE vllm:{0} gauge\n", name);
    for (size_t i = 0; i < all.size(); ++i) {
      out += fmt::format("vllm:{}{{engine=\"{}\",{}model_name={}}} {}\n", name, i, more, json_quoted(options_.model),
                         of(load_of(*all[i])));
    }
  };
  add("num_requests_running", "", [](const SimLoad& l) { return static_cast<double>(l.running); });
  add("num_requests_waiting", "", [](const SimLoad& l) { return static_cast<double>(l.waiting); });
  add("kv_cache_usage_perc", "", [](const SimLoad& l) { return l.token_usage; });
  const int64_t block = options_.engine.block_size;
  add("cache_config_info",
      fmt::format("block_size=\"{}\",num_gpu_blocks=\"{}\",", block, options_.engine.kv_tokens / block),
      [](const SimLoad&) { return 1.0; });
  return out;
}

// POST /sim/fault  {"kind":"status","status":503,"retry_after":1,"times":3,...}: the fields of SimFault.
// POST /sim/health {"status":503,"delay_ms":100}
// POST /sim/down   {"ms":2000}: refuses connections for that long, then comes back with empty caches.
// POST /sim/loads  {"pages":"loads"}: what it says of its load: loads (/v1/loads and what follows), get_load (/get_load
// and
//                  what follows), metrics (the page of SGLang), vllm (that of vLLM).
// GET  /sim/counters
Result<Response> SimWorker::Impl::control(std::string_view path, const std::string& body) {
  if (path == "/sim/counters") {
    const Json json = {{"requests", tally_.requests.load()},
                       {"generations", tally_.generations.load()},
                       {"completed", tally_.completed.load()},
                       {"client_gone", tally_.client_gone.load()},
                       {"aborted", tally_.aborted.load()},
                       {"faults", tally_.faults.load()},
                       {"health_checks", tally_.health_checks.load()},
                       {"load_reads", tally_.load_reads.load()},
                       {"flushes", tally_.flushes.load()},
                       {"active", tally_.active.load()}};
    return Response::json(200, json.dump());
  }
  const auto json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Error{ErrorCode::kInvalidArgument, "the body must be a JSON object"};
  const auto integer = [&](const char* key, int64_t fallback) {
    const auto it = json.find(key);
    return it != json.end() && it->is_number_integer() ? it->get<int64_t>() : fallback;
  };
  const auto text = [&](const char* key) {
    const auto it = json.find(key);
    return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  if (path == "/sim/down") {
    pause_for(std::chrono::milliseconds(integer("ms", 1000)));
    return Response::json(200, "{}");
  }
  if (path == "/sim/health") {
    set_health({static_cast<int>(integer("status", 200)), std::chrono::milliseconds(integer("delay_ms", 0))});
    return Response::json(200, "{}");
  }
  if (path == "/sim/loads") {
    static constexpr std::string_view kPages[] = {"loads", "get_load", "metrics", "vllm"};  // of LoadPages
    const auto at = std::ranges::find(kPages, text("pages"));
    if (at == std::end(kPages))
      return Error{ErrorCode::kInvalidArgument, "pages must be loads, get_load, metrics or vllm"};
    load_pages_ = static_cast<LoadPages>(at - std::begin(kPages));
    return Response::json(200, "{}");
  }
  if (path != "/sim/fault")
    return Error{ErrorCode::kNotFound, "the paths are /sim/fault, health, loads, down and counters"};
  const auto kind = fault_kind(text("kind"));
  if (!kind) {
    return Error{ErrorCode::kInvalidArgument,
                 "kind must be none, reset, stall, status, slow_head, die, half_event or mute"};
  }
  SimFault fault{.kind = *kind,
                 .status = static_cast<int>(integer("status", 503)),
                 .body = text("body"),
                 .chunks = integer("chunks", 0),
                 .delay = std::chrono::milliseconds(integer("delay_ms", 0)),
                 .times = integer("times", -1)};
  if (fault.status < 200 || fault.status > 599)
    return Error{ErrorCode::kInvalidArgument, "status must be in [200, 599]"};
  if (text("scope") == "everything") fault.scope = SimFault::Scope::kEverything;
  if (json.contains("retry_after")) fault.retry_after = integer("retry_after", 1);
  set_fault(std::move(fault));
  return Response::json(200, "{}");
}

}  // namespace sluice::testing
