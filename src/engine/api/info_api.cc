#include "engine/api/info_api.h"

#include "engine/api/rank_metrics.h"
#include "protocol/errors.h"

namespace sluice::engine {
namespace {

using nlohmann::ordered_json;

constexpr double kGiB = 1024.0 * 1024 * 1024;

ordered_json or_null(int64_t value) { return value > 0 ? ordered_json(value) : ordered_json(); }

std::string_view status_name(const ApiContext& api) {
  switch (api.status.load()) {
    case ServerStatus::kStarting:
      return "Starting";
    case ServerStatus::kUp:
      return api.unhealthy ? "UnHealthy" : "Up";
    case ServerStatus::kDraining:
      return "ShuttingDown";
  }
  return "UnHealthy";
}

// What a rank of this server looks like: that of one that was ready, or zeros.
RankReady known_rank(const std::vector<RankState>& ranks) {
  for (const auto& rank : ranks) {
    if (rank.info.context_length > 0) return rank.info;
  }
  return {};
}

// The arguments, and in place of those that were left to be computed what they became.
ordered_json effective_args(ApiContext& api, const RankReady& rank) {
  auto out = api.settings.server_args;
  out["model_path"] = api.model_path();
  out["weight_version"] = api.weight_version();
  out["served_model_name"] = api.model.name;
  out["tokenizer_path"] = api.model.tokenizer_path;
  out["context_length"] = or_null(rank.context_length);
  out["max_running_requests"] = or_null(rank.max_running_requests);
  out["enable_cache_report"] = api.settings.report_cached;
  out["disaggregation_mode"] = "null";
  return out;
}

ordered_json internal_state(ApiContext& api, const RankState& rank) {
  auto out = effective_args(api, rank.info);
  out["last_gen_throughput"] = rank.load.gen_throughput;
  out["memory_usage"] = {{"weight", static_cast<double>(rank.info.weight_bytes) / kGiB},
                         {"kvcache", static_cast<double>(rank.info.kv_bytes) / kGiB},
                         {"token_capacity", rank.info.max_total_num_tokens},
                         {"graph", 0.0}};
  out["planned_bytes"] = rank.info.planned_bytes;
  out["kv_bytes_per_token"] = rank.info.kv_bytes_per_token;
  if (rank.load.group_steps_total > 0) {
    out["group_steps"] = rank.load.group_steps_total;
    out["wire_bytes"] = rank.load.wire_bytes_total;
    out["wire_bytes_per_step"] =
        static_cast<double>(rank.load.wire_bytes_total) / static_cast<double>(rank.load.group_steps_total);
    out["split_steps"] = rank.load.split_steps_total;
    out["fixed_shape_steps"] = rank.load.fixed_steps_total;
    out["wire_seconds"] = rank.load.wire_seconds;
    out["covered_seconds"] = rank.load.covered_seconds;
  }
  out["effective_max_running_requests_per_dp"] = rank.info.max_running_requests;
  out["ready"] = rank.ready;
  out["pid"] = rank.pid;
  out["restarts"] = rank.restarts;
  return out;
}

ordered_json model_entry(ApiContext& api) {
  const int64_t context = api.limits().context_length;
  ordered_json out = {{"id", api.model.name},
                      {"object", "model"},
                      {"created", api.started_at},
                      {"owned_by", "sglang"},  // by which gateways know what kind of worker this is
                      {"root", api.model.name}};
  out["parent"] = nullptr;
  out["max_model_len"] = or_null(context > 0 ? context : api.model.config.max_position);
  return out;
}

}  // namespace

net::Task<> model_info(ApiCall& call) {
  const auto& model = call.api.model;
  ordered_json out = {{"model_path", call.api.model_path()},
                      {"tokenizer_path", model.tokenizer_path},
                      {"is_generation", !call.api.settings.embedding && model.config.labels.empty()}};
  out["preferred_sampling_params"] = nullptr;
  out["weight_version"] = call.api.weight_version();
  out["has_image_understanding"] = false;
  out["has_audio_understanding"] = false;
  out["model_type"] = model.config.model_type;
  out["architectures"] = model.config.architectures;
  co_await answer(call, json_response(out));
}

net::Task<> server_info(ApiCall& call) {
  const auto ranks = call.api.backend.ranks();
  const RankReady rank = known_rank(ranks);
  auto out = effective_args(call.api, rank);
  out["max_total_num_tokens"] = rank.max_total_num_tokens;
  out["max_req_input_len"] = rank.max_req_input_len;
  out["status"] = status_name(call.api);
  out["version"] = SLUICE_VERSION;
  auto states = ordered_json::array();
  for (const auto& state : ranks) states.push_back(internal_state(call.api, state));
  out["internal_states"] = std::move(states);
  co_await answer(call, json_response(out));
}

net::Task<> list_models(ApiCall& call) {
  auto data = ordered_json::array();
  data.push_back(model_entry(call.api));
  ordered_json out = {{"object", "list"}};
  out["data"] = std::move(data);
  co_await answer(call, json_response(out));
}

net::Task<> find_model(ApiCall& call) {
  constexpr std::string_view kPrefix = "/v1/models/";
  const auto id = net::percent_decode(call.exchange.request().path().substr(kPrefix.size()));
  if (id == call.api.model.name) {
    co_await answer(call, json_response(model_entry(call.api)));
  } else {
    co_await answer(call, net::Response::json(404, protocol::model_not_found_body(id)));
  }
}

net::Task<> get_load(ApiCall& call) {
  const auto ranks = call.api.backend.ranks();
  auto out = ordered_json::array();
  for (size_t i = 0; i < ranks.size(); ++i) {
    const auto& load = ranks[i].load;
    ordered_json entry = {{"rid", nullptr}, {"http_worker_ipc", nullptr}};
    entry["dp_rank"] = ranks.size() > 1 ? ordered_json(i) : ordered_json();
    entry["num_reqs"] = load.num_running_reqs + load.num_waiting_reqs;
    entry["num_waiting_reqs"] = load.num_waiting_reqs;
    entry["num_tokens"] = load.num_used_tokens + load.num_waiting_tokens;
    entry["ts_tic"] = static_cast<double>(load.unix_nanos) / 1e9;
    out.push_back(std::move(entry));
  }
  co_await answer(call, json_response(out));
}

}  // namespace sluice::engine
