#include "gateway/admin.h"

#include <nlohmann/json.hpp>
#include <set>

#include "gateway/client_json.h"
#include "gateway/console.h"
#include "gateway/control.h"
#include "gateway/debug.h"
#include "gateway/error_shape.h"
#include "gateway/fanout.h"
#include "gateway/forward.h"
#include "gateway/gather.h"
#include "gateway/health_port.h"
#include "gateway/kv_events/kv_caches.h"
#include "gateway/worker_json.h"
#include "gateway/worker_request.h"
#include "protocol/json.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;
using net::Response;
using net::Task;

constexpr Duration kInfo = std::chrono::seconds(45);  // a generation may be behind /health_generate
constexpr Duration kModels = std::chrono::seconds(5);

Response json_response(int status, const Json& document) { return Response::json(status, protocol::dump(document)); }

Response worker_error(int status, std::string_view code, std::string_view message) {
  auto response = json_response(status, Json{{"error", message}, {"code", code}});
  response.headers.set("X-SMG-Error-Code", std::string(code));
  return response;
}

// Whether what it holds is known from its KV events.
std::string kv_json(const Context& context, const Worker& worker) {
  if (context.kv != nullptr) return context.kv->describe(worker.number).dump();
  return R"({"mode":"belief","why":"KV events are not listened to without --tokenizer-path"})";
}

Task<Response> ok(AdminCall&) { co_return Response::text(200, "OK"); }

Task<Response> readiness(AdminCall& call) { co_return readiness_of(call.context); }

// The same GET, answered by the first healthy worker in the order of registration.
Task<Response> info(AdminCall& call) {
  for (const WorkerPtr& worker : call.loop.fleet(call.context.fleet)) {
    if (!worker->healthy || worker->draining) continue;
    const WorkerPtr kept = worker;
    net::RequestHead head = upstream_head(call.head, *kept, /*has_body=*/false, call.context.gatekeeper);
    Question question{"GET", std::move(head.target), std::move(head.headers), nullptr};
    auto answer =
        co_await ask_worker(call.loop.loop, call.loop.client, kept, std::move(question), kInfo, call.interruption);
    if (!answer.ok() && answer.error().code == ErrorCode::kTimeout) {
      co_return error_response(504, "call_upstream_timeout",
                               fmt::format("worker {} gave no answer within {:g} s", kept->id, seconds(kInfo)));
    }
    if (!answer.ok()) {
      co_return error_response(502, "call_upstream_connection_failed",
                               fmt::format("worker {} could not be asked", kept->id));
    }
    call.is_relayed = true;
    answer->headers = relayed_headers(answer->headers, {{"x-request-id", ""}});
    co_return std::move(answer).value();
  }
  co_return error_response(503, "no_workers", "no healthy worker");
}

WorkerList healthy_workers(const Context& context) {
  WorkerList workers = *context.fleet.snapshot();
  std::erase_if(workers, [](const WorkerPtr& worker) { return !worker->healthy || worker->draining; });
  return workers;
}

// What those workers say that they serve: their own entries, each id once.
Task<std::vector<Json>> read_models(AdminCall& call, WorkerList workers) {
  net::Client& client = call.loop.client;
  net::EventLoop& loop = call.loop.loop;
  // All at once: one that hangs makes nobody wait for longer than itself.
  const std::function<Task<std::string>(WorkerPtr)> ask =
      [&client, &loop, interruption = call.interruption](WorkerPtr worker) -> Task<std::string> {
    std::string known = worker->info().models;
    if (!known.empty()) co_return known;
    Question question{"GET", "/v1/models", key_headers(*worker), nullptr};
    auto answer = co_await ask_worker(loop, client, worker, std::move(question), kModels, interruption);
    co_return answer.ok() && answer->status == 200 ? std::move(answer->body) : std::string();
  };
  const auto texts = co_await gather_from<std::string, WorkerPtr>(loop, std::move(workers), ask);
  std::vector<Json> list;
  std::set<std::string> seen;
  for (const std::string& text : texts) {
    if (text.empty()) continue;
    const auto document = parse_client_json(text);
    if (!document.ok() || !document->is_object()) continue;
    const auto entries = document->find("data");
    if (entries == document->end() || !entries->is_array()) continue;
    for (const auto& entry : *entries) {
      if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_string()) continue;
      if (seen.insert(entry["id"].get<std::string>()).second) list.push_back(entry);
    }
  }
  co_return list;
}

Task<Response> models(AdminCall& call) {
  WorkerList workers = healthy_workers(call.context);
  if (workers.empty()) co_return error_response(503, "no_workers", "no healthy worker");
  const std::vector<Json> list = co_await read_models(call, std::move(workers));
  co_return json_response(200, Json{{"object", "list"}, {"data", list}});
}

// An id may have slashes, escaped or not.
Task<Response> one_model(AdminCall& call) {
  const std::string id = net::percent_decode(call.path.substr(std::string_view("/v1/models/").size()));
  WorkerList workers = healthy_workers(call.context);
  if (workers.empty()) co_return error_response(503, "no_workers", "no healthy worker");
  const std::vector<Json> list = co_await read_models(call, std::move(workers));
  for (const Json& entry : list) {
    if (entry["id"] == id) co_return json_response(200, entry);
  }
  co_return error_response(404, "model_not_found", fmt::format("no worker serves the model {}", id));
}

Task<Response> loads(AdminCall& call) {
  constexpr Duration kFresh = std::chrono::seconds(1);
  // A document of the last second will do: many scrapers do not make many polls.
  const TimePoint now = call.context.clock.now();
  auto& kept = call.loop.loads;
  if (kept.document.empty() || now - kept.at > kFresh) {
    net::Client& client = call.loop.client;
    net::EventLoop& loop = call.loop.loop;
    LoadSources& sources = call.context.control->load_sources();
    const std::function<Task<WorkerReport>(WorkerPtr)> ask =
        [&client, &loop, &sources, interruption = call.interruption](WorkerPtr worker) -> Task<WorkerReport> {
      auto report = co_await read_load(loop, client, sources, worker, interruption);
      co_return WorkerReport{worker->url, std::move(report)};
    };
    WorkerList workers = call.loop.fleet(call.context.fleet);
    const auto reports = co_await gather_from<WorkerReport, WorkerPtr>(call.loop.loop, std::move(workers), ask);
    // What nobody waited for is nobody's report.
    if (call.interruption->ended()) co_return error_response(503, "client_gone", "the client has left");
    kept = {loads_document(reports, call.context.clock.unix_nanos() / 1'000'000'000), call.context.clock.now()};
  }
  co_return Response::json(200, kept.document);
}

// None, or what is wrong with the details for this gateway.
Result<void> accept(const WorkerDetails& details) {
  const auto policy = details.labels.find("policy");
  if (policy != details.labels.end() && find_policy(policy->second) == nullptr)
    return Error{ErrorCode::kInvalidArgument, "labels.policy is no policy"};
  return {};
}

void apply(const WorkerDetails& details, Worker::Info& info) {
  if (details.priority) info.priority = *details.priority;
  if (details.cost) info.cost = *details.cost;
  for (const auto& [name, value] : details.labels) info.labels[name] = value;
  if (details.models.empty()) return;
  info.model_id = details.models.front();
  info.model_ids = details.models;
  info.models_are_given = true;
}

std::string worker_list(const Context& context, const WorkerList& workers) {
  std::string text = R"({"workers":[)";
  text.reserve(text.size() + workers.size() * 600);
  for (const WorkerPtr& worker : workers) {
    if (text.back() == '}') text += ',';
    append_worker_json(text, *worker, kv_json(context, *worker));
  }
  return text + fmt::format(R"(],"total":{0},"stats":{{"prefill_count":0,"decode_count":0,"regular_count":{0}}}}})",
                            workers.size());
}

// Of a change that the successor would not hear of.
Response comes_too_late() {
  auto refusal = worker_error(503, "UPGRADE_UNDER_WAY",
                              "another process is taking over, with the workers as they are: ask it in a moment");
  refusal.headers.set("Retry-After", "1");
  return refusal;
}

Task<Response> list_or_add(AdminCall& call) {
  if (call.head.method == "GET") {
    const auto model = net::query_value(call.head.query(), "model");
    if (model && model->empty()) co_return Response::json(200, worker_list(call.context, {}));
    const auto roster = call.context.fleet.roster(model.value_or(""), std::nullopt);
    co_return Response::json(200, worker_list(call.context, roster == nullptr ? WorkerList() : roster->workers()));
  }
  const auto request = read_worker_request(call.body);
  if (!request.ok()) co_return worker_error(400, "BAD_REQUEST", request.error().message);
  if (auto good = accept(request->details); !good.ok()) {
    co_return worker_error(400, "BAD_REQUEST", good.error().message);
  }
  auto worker = call.context.add_worker(request->url, request->details.api_key.value_or(""), "manual",
                                        /*is_bounded=*/true);
  if (!worker.ok() && worker.error().code == ErrorCode::kExhausted) {
    auto full = worker_error(503, "JOB_QUEUE_FULL", worker.error().message);
    full.headers.set("Retry-After", std::to_string(call.context.options.worker_startup_check_interval));
    co_return full;
  }
  if (!worker.ok()) co_return worker_error(400, "BAD_REQUEST", worker.error().message);
  for (const WorkerPtr& each : call.context.fleet.engine_of(**worker)) {
    each->change_info([&](Worker::Info& info) { apply(request->details, info); });
    call.context.change_rules(each, request->details.rules);
  }
  const Worker& added = **worker;
  const std::string location = "/workers/" + added.id;
  Json answer{{"status", "accepted"},
              {"worker_id", added.id},
              {"url", added.url},
              {"location", location},
              {"message", "Worker addition queued for background processing"}};
  // Other gateways know more of a worker: whoever counts on that has to hear that it is not so here.
  if (!request->ignored.empty()) answer["ignored"] = request->ignored;
  auto response = json_response(202, answer);
  response.headers.add("Location", location);
  co_return response;
}

bool is_uuid(std::string_view text) {
  return text.size() == 36 && text.find_first_not_of("0123456789abcdefABCDEF-") == std::string_view::npos;
}

Task<Response> one_worker(AdminCall& call) {
  const std::string id = net::percent_decode(call.path.substr(std::string_view("/workers/").size()));
  if (!is_uuid(id) && id.find("://") == std::string::npos) {
    co_return worker_error(400, "BAD_REQUEST", "not a worker id: expected a UUID or a worker's URL");
  }
  const WorkerPtr worker = call.context.fleet.find(id);
  if (worker == nullptr) co_return worker_error(404, "WORKER_NOT_FOUND", fmt::format("no worker {}", id));
  if (call.head.method == "GET") {
    std::string text;
    append_worker_json(text, *worker, kv_json(call.context, *worker), /*with_rules=*/true);
    co_return Response::json(200, std::move(text));
  }
  if (call.head.method == "DELETE") {
    for (const WorkerPtr& each : call.context.fleet.engine_of(*worker)) call.context.control->remove(each);
    co_return json_response(202, Json{{"status", "accepted"},
                                      {"worker_id", worker->id},
                                      {"message", "Worker removal queued for background processing"}});
  }
  const auto parsed = parse_client_json(call.body);
  const Json body = parsed.ok() ? *parsed : Json();
  if (!body.is_object()) co_return worker_error(400, "BAD_REQUEST", "the body must be a JSON object");
  for (const auto& [name, value] : body.items()) {
    if (name != "priority" && name != "cost" && name != "labels" && name != "api_key" && name != "health") {
      co_return worker_error(400, "BAD_REQUEST", "only priority, cost, labels, api_key and health can be changed");
    }
  }
  const auto details = read_worker_details(body);
  if (!details.ok()) co_return worker_error(400, "BAD_REQUEST", details.error().message);
  if (!details->ignored.empty()) {
    co_return worker_error(400, "BAD_REQUEST", fmt::format("{} cannot be changed", details->ignored.front()));
  }
  if (auto good = accept(*details); !good.ok()) co_return worker_error(400, "BAD_REQUEST", good.error().message);
  if (details->api_key) {
    const auto changed = call.context.change_key(*worker, *details->api_key);
    if (!changed.ok()) co_return worker_error(400, "BAD_REQUEST", changed.error().message);
  }
  worker->change_info([&](Worker::Info& info) { apply(*details, info); });
  call.context.change_rules(worker, details->rules);
  co_return json_response(202, Json{{"status", "accepted"}, {"worker_id", worker->id}});
}

Task<Response> legacy_list(AdminCall& call) {
  Json urls = Json::array();
  for (const WorkerPtr& worker : call.loop.fleet(call.context.fleet)) {
    if (!worker->draining) urls.push_back(worker->url);
  }
  co_return json_response(200, Json{{"urls", urls}});
}

Task<Response> legacy_add(AdminCall& call) {
  const auto url = net::query_value(call.head.query(), "url");
  if (!url) co_return Response::text(400, "url is missing");
  auto worker = call.context.add_worker(*url, net::query_value(call.head.query(), "api_key").value_or(""), "manual",
                                        /*is_bounded=*/true);
  if (!worker.ok()) {
    co_return Response::text(worker.error().code == ErrorCode::kExhausted ? 503 : 400, worker.error().message);
  }
  // This verb answers when the worker serves.
  const TimePoint until =
      call.context.clock.now() + std::chrono::seconds(call.context.options.worker_startup_timeout_secs);
  // Found anew each time: the ranks of an engine take its place.
  const std::string address = (*worker)->address.to_string();
  WorkerPtr added = *worker;
  while (added != nullptr && !added->healthy && call.context.clock.now() < until && !call.context.draining &&
         !call.interruption->ended()) {
    co_await call.loop.loop.sleep(std::chrono::milliseconds(50));
    added = call.context.fleet.find(address);
  }
  if (added == nullptr || !added->healthy) co_return Response::text(400, "the worker did not become healthy in time");
  co_return Response::text(200, "Successfully added worker: " + *url);
}

Task<Response> legacy_remove(AdminCall& call) {
  const auto url = net::query_value(call.head.query(), "url");
  if (!url) co_return Response::text(400, "url is missing");
  if (const WorkerPtr worker = call.context.fleet.find(*url)) {
    for (const WorkerPtr& each : call.context.fleet.engine_of(*worker)) call.context.control->remove(each);
  }
  co_return Response::text(200, "Successfully removed worker: " + *url);
}

Task<Response> not_implemented(AdminCall& call) {
  co_return error_response(501, "not_implemented", fmt::format("{} is not implemented here", call.path));
}

constexpr auto kPublic = Access::kPublic, kServing = Access::kServing, kControl = Access::kControl;
constexpr std::string_view kAnyMethod = "GET, POST, PUT, PATCH, DELETE";
constexpr bool kLargeBody = true, kChangesFleet = true;

constexpr AdminRoute kRoutes[] = {
    {"/health", "GET, HEAD", kPublic, ok},
    {"/liveness", "GET, HEAD", kPublic, ok},
    {"/readiness", "GET, HEAD", kPublic, readiness},
    {"/health_generate", "GET", kPublic, info},
    {"/v1/models", "GET", kPublic, models},
    {"/v1/models/", "GET", kPublic, one_model},
    {"/get_model_info", "GET", kPublic, info},
    {"/model_info", "GET", kPublic, info},
    {"/get_server_info", "GET", kPublic, info},
    {"/server_info", "GET", kPublic, info},
    {"/engine_metrics", "GET", kPublic, engine_metrics},
    {"/get_loads", "GET", kControl, loads},
    {"/v1/loads", "GET", kControl, loads},
    {"/workers", "GET, POST", kControl, list_or_add, !kLargeBody, kChangesFleet},
    {"/workers/", "GET, PUT, PATCH, DELETE", kControl, one_worker, !kLargeBody, kChangesFleet},
    {"/list_workers", "GET", kControl, legacy_list},
    {"/add_worker", "POST", kControl, legacy_add, !kLargeBody, kChangesFleet},
    {"/remove_worker", "POST", kControl, legacy_remove, !kLargeBody, kChangesFleet},
    {"/ui", "GET", kPublic, console},
    {"/debug/why/", "GET", kControl, debug_why},
    {"/debug/requests", "GET", kControl, debug_requests},
    {"/debug/index", "GET", kControl, debug_index},
    {"/debug/workers", "GET", kControl, debug_workers},
    {"/flush_cache", "POST", kControl, fan_out},
    {"/start_profile", "POST", kControl, fan_out},
    {"/stop_profile", "POST", kControl, fan_out},
    {"/abort_request", "POST", kControl, abort_request},
    {"/pause_generation", "POST", kControl, fan_out, kLargeBody},
    {"/continue_generation", "POST", kControl, fan_out, kLargeBody},
    {"/update_weights_from_disk", "POST", kControl, fan_out, kLargeBody},
    {"/update_weights_from_tensor", "POST", kControl, fan_out, kLargeBody},
    {"/update_weights_from_distributed", "POST", kControl, fan_out, kLargeBody},
    {"/update_weights_from_ipc", "POST", kControl, fan_out, kLargeBody},
    {"/init_weights_update_group", "POST", kControl, fan_out, kLargeBody},
    {"/destroy_weights_update_group", "POST", kControl, fan_out, kLargeBody},
    {"/update_weight_version", "POST", kControl, fan_out, kLargeBody},
    {"/release_memory_occupation", "POST", kControl, fan_out, kLargeBody},
    {"/resume_memory_occupation", "POST", kControl, fan_out, kLargeBody},
    {"/set_internal_state", "POST", kControl, fan_out, kLargeBody},
    {"/load_lora_adapter", "POST", kControl, fan_out, kLargeBody},
    {"/unload_lora_adapter", "POST", kControl, fan_out, kLargeBody},
    {"/v1/responses/", "GET, POST, DELETE", kServing, stored_response},
    {"/v1/conversations", kAnyMethod, kServing, not_implemented},
    {"/v1/conversations/", kAnyMethod, kServing, not_implemented},
    {"/v1/interactions", kAnyMethod, kServing, not_implemented},
    {"/v1/interactions/", kAnyMethod, kServing, not_implemented},
    {"/v1/audio/", kAnyMethod, kServing, not_implemented},
    {"/v1/realtime", kAnyMethod, kServing, not_implemented},
    {"/v1/realtime/", kAnyMethod, kServing, not_implemented},
    {"/v1/tokenizers", kAnyMethod, kControl, not_implemented},
    {"/v1/tokenizers/", kAnyMethod, kControl, not_implemented},
    {"/parse/", kAnyMethod, kControl, not_implemented},
    {"/wasm", kAnyMethod, kControl, not_implemented},
    {"/wasm/", kAnyMethod, kControl, not_implemented},
};

}  // namespace

const AdminRoute* find_admin_route(std::string_view path) {
  for (const AdminRoute& route : kRoutes) {
    const bool below = route.label.ends_with('/') && path.size() > route.label.size() && path.starts_with(route.label);
    if (route.label == path || below) return &route;
  }
  return nullptr;
}

net::Task<net::Response> answer_admin(AdminCall& call) {
  const AdminRoute& route = *find_admin_route(call.path);
  if (route.changes_fleet && call.head.method != "GET" && call.context.bequeathed) co_return comes_too_late();
  co_return co_await route.answer(call);
}

}  // namespace sluice::gateway
