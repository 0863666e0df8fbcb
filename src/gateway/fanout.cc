#include "gateway/fanout.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "base/check.h"
#include "gateway/ask.h"
#include "gateway/client_json.h"
#include "gateway/control.h"
#include "gateway/engine_metrics.h"
#include "gateway/error_shape.h"
#include "gateway/forward.h"
#include "gateway/gather.h"
#include "gateway/outcome.h"
#include "obs/exposition.h"
#include "protocol/json.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;
using net::Response;
using net::Task;
using Answer = std::optional<Result<Response>>;

constexpr Duration kOrdinary = std::chrono::seconds(45);
constexpr Duration kProfile = std::chrono::seconds(630);  // it may be told to run for a number of steps
constexpr Duration kMetrics = std::chrono::seconds(5);
constexpr Duration kKeeper = std::chrono::seconds(3);  // all together: a request waits for it, and holds its slot
constexpr size_t kQuoted = 200;                        // bytes of a worker's complaint

// Verbs after which the engine's cache is empty: what it was believed to hold is gone.
bool drops_cache(std::string_view path) {
  return path == "/flush_cache" || path == "/release_memory_occupation" || path.starts_with("/update_weights_from_");
}

Duration bound_of(std::string_view path, const GatewayOptions& options) {
  if (path == "/start_profile" || path == "/stop_profile") return kProfile;
  if (path == "/flush_cache" || path == "/abort_request") return kOrdinary;
  return std::chrono::seconds(options.rl_control_timeout_secs);
}

// One of each address: the ranks of an engine share theirs.
WorkerList by_address(const WorkerList& workers) {
  WorkerList distinct;
  std::set<std::string> seen;
  for (const WorkerPtr& worker : workers) {
    if (seen.insert(worker->address.to_string()).second) distinct.push_back(worker);
  }
  return distinct;
}

// The prefixes of all workers at those addresses are gone.
void forget_prefixes(AdminCall& call, const std::set<std::string>& addresses) {
  for (const WorkerPtr& worker : call.loop.fleet(call.context.fleet)) {
    if (addresses.contains(worker->address.to_string())) call.context.forget_prefixes(*worker);
  }
}

// `question_for` makes what each is asked.
Task<std::vector<Answer>> ask_all(AdminCall& call, const WorkerList& workers,
                                  std::function<Question(const Worker&)> question_for, Duration bound) {
  net::Client& client = call.loop.client;
  net::EventLoop& loop = call.loop.loop;
  const std::function<Task<Answer>(WorkerPtr)> ask =
      [&client, &loop, question_for, bound, interruption = call.interruption](WorkerPtr worker) -> Task<Answer> {
    Question question = question_for(*worker);
    co_return co_await ask_worker(loop, client, std::move(worker), std::move(question), bound, interruption);
  };
  WorkerList asked = workers;
  const auto at_once = static_cast<size_t>(call.context.options.rl_fanout_concurrency);
  auto answers = co_await gather_from<Answer, WorkerPtr>(loop, std::move(asked), ask, at_once);
  co_return answers;
}

std::string complaint(const Result<Response>& answer) {
  if (!answer.ok()) return answer.error().message;
  std::string text = fmt::format("status {}", answer->status);
  if (!answer->body.empty()) text += ": " + answer->body.substr(0, kQuoted);
  return text;
}

// What a worker says is wrong, in its own words.
std::string words_of(const Response& answer) {
  const auto document = parse_client_json(answer.body);
  if (document.ok() && document->is_object()) {
    const auto error = document->find("error");
    const Json& of = error != document->end() && error->is_object() ? *error : *document;
    for (const char* name : {"message", "detail", "error", "error_msg"}) {
      const auto text = of.find(name);
      if (text != of.end() && text->is_string()) return text->get<std::string>().substr(0, kQuoted);
    }
  }
  return answer.body.substr(0, kQuoted);
}

// What to say when no worker did it: the status and the words that all of them gave, if it is the same status.
struct Verdict {
  int status = 502;
  std::string code = "no_worker_response", message;
};
Verdict verdict_of(const std::vector<Answer>& answers) {
  Verdict verdict;
  std::set<int> statuses;
  std::set<std::string> words;
  for (const Answer& answer : answers) {
    statuses.insert((*answer).ok() ? (*answer)->status : 0);
    if ((*answer).ok()) words.insert(words_of(**answer));
  }
  if (!words.empty()) verdict.code = "workers_failed";
  const bool agree = statuses.size() == 1 && *statuses.begin() >= 400;
  if (agree) verdict.status = *statuses.begin();
  verdict.message = fmt::format("none of {} workers did it", answers.size());
  if (agree && words.size() == 1 && !words.begin()->empty()) {
    verdict.message += ": " + *words.begin();
  } else {
    verdict.message += "; \"failed\" says why";
  }
  return verdict;
}

// Of an engine's metrics, when nobody gave any.
std::string why_no_metrics(const std::vector<Answer>& answers) {
  std::map<int, size_t> counts;  // by status, 0 = no answer
  for (const Answer& answer : answers) ++counts[(*answer).ok() ? (*answer)->status : 0];
  std::string text = "All backend requests failed";
  for (const char* separator = ": "; const auto& [status, count] : counts) {
    text += std::exchange(separator, ", ");
    text += status == 0 ? fmt::format("{} of {} workers gave no answer to GET /metrics", count, answers.size())
                        : fmt::format("{} of {} workers answered GET /metrics with {}", count, answers.size(), status);
  }
  if (counts.rbegin()->first != 0) text += "; engines have metrics when they are started with --enable-metrics";
  return text;
}

Response relayed(Response answer) {
  answer.headers = relayed_headers(answer.headers, {{"x-request-id", ""}});
  return answer;
}

Response wrong_method(const AdminCall& call, std::string_view methods) {
  auto response = error_response(405, "method_not_allowed", fmt::format("{} takes {}", call.path, methods));
  response.headers.add("Allow", std::string(methods));
  return response;
}

Response nobody_to_ask(std::string_view path) {
  // As the existing gateways do.
  return error_response(path.ends_with("_profile") ? 404 : 503, "no_workers", "no worker");
}

// How much an answer that is not 2xx says of what only one worker has: that this one does not have it, nothing, or what
// is wrong with it.
int weight_of(int status) {
  if (status == 404) return 0;
  return is_retryable(status) ? 1 : 2;
}

// The answers to one question of all workers, up to the first with 2xx: the questions under way end then.
struct Found {
  std::optional<Response> good;
  std::optional<Response> other;  // of the rest the one that says most, the last of several
  WorkerPtr who;                  // gave the good one
  WorkerList silent;              // gave no answer, or one that says nothing of what was asked
};
Task<std::shared_ptr<const Found>> ask_until_good(Context& context, LoopState& loop, const net::RequestHead& asked,
                                                  const WorkerList& workers, Duration bound,
                                                  std::shared_ptr<Interruption> interruption) {
  auto found = std::make_shared<Found>();
  net::Client& client = loop.client;
  net::EventLoop& event_loop = loop.loop;
  std::vector<std::function<Task<>()>> tasks;
  for (const WorkerPtr& worker : workers) {
    net::RequestHead head = upstream_head(asked, *worker, /*has_body=*/false, context.gatekeeper);
    Question question{asked.method, std::move(head.target), std::move(head.headers), nullptr};
    tasks.push_back([found, &client, &event_loop, worker, question, bound, interruption]() -> Task<> {
      Question own = question;
      auto answer = co_await ask_worker(event_loop, client, worker, std::move(own), bound, interruption);
      if (!answer.ok() || is_retryable(answer->status)) found->silent.push_back(worker);
      if (!answer.ok()) co_return;
      if (answer->status / 100 == 2) {
        if (found->good) co_return;
        found->good = std::move(answer).value();
        found->who = worker;
      } else if (!found->other || weight_of(answer->status) >= weight_of(found->other->status)) {
        found->other = std::move(answer).value();
      }
    });
  }
  GatherLimits limits;
  limits.at_once = static_cast<size_t>(context.options.rl_fanout_concurrency);
  limits.enough = [found] { return found->good.has_value(); };
  co_await gather(event_loop, std::move(tasks), std::move(limits));
  interruption->end();
  co_return found;
}

// Of the answers to a question about the response `id` the first with 2xx, as soon as it is there; else the one that
// says most. That nobody has it is known when all have said so.
Task<Response> first_good(AdminCall& call, std::string id) {
  const WorkerList workers = by_address(call.loop.fleet(call.context.fleet));
  if (workers.empty()) co_return error_response(503, "no_workers", "no worker");
  const auto found = co_await ask_until_good(call.context, call.loop, call.head, workers, kOrdinary, call.interruption);
  if (!found->good && !found->other) co_return error_response(502, "no_worker_response", "no worker gave an answer");
  if (!found->good && found->other->status == 404 && !found->silent.empty()) {
    auto response = error_response(503, "no_available_workers", nobody_keeps(id, found->silent));
    response.headers.set("Retry-After", std::to_string(call.context.seconds_until_back(found->silent)));
    co_return response;
  }
  call.is_relayed = true;
  co_return relayed(found->good ? *found->good : *found->other);
}

// Of an id that may stand in a path.
bool is_plain(std::string_view id) {
  constexpr size_t kMost = 256;
  const auto plain = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-'; };
  return id.size() <= kMost && std::ranges::all_of(id, plain);
}

}  // namespace

std::string nobody_keeps(std::string_view id, const WorkerList& silent) {
  SLUICE_CHECK(!silent.empty(), "everybody was asked for the response {}", id);
  std::string who = fmt::format("worker {}", silent.front()->id);
  if (silent.size() > 1) who += fmt::format(" and {} more", silent.size() - 1);
  return fmt::format("no worker says that it keeps the response {}, and {} could not be asked", id, who);
}

Task<Response> fan_out(AdminCall& call) {
  const auto body = std::make_shared<const std::string>(std::move(call.body));
  Question common{call.head.method, call.head.target, {}, body};
  if (!body->empty()) {
    common.headers.add("Content-Type", std::string(call.head.headers.get("content-type").value_or("application/json")));
  }
  std::function<Question(const Worker&)> question_for = [common](const Worker& worker) {
    Question question = common;
    for (const auto& [name, value] : key_headers(worker)) question.headers.add(name, value);
    return question;
  };
  const WorkerList workers = by_address(call.loop.fleet(call.context.fleet));
  // That no cache holds anything is true then, and the existing gateways say so.
  if (workers.empty() && call.path != "/flush_cache") co_return nobody_to_ask(call.path);
  const auto answers =
      co_await ask_all(call, workers, std::move(question_for), bound_of(call.path, call.context.options));

  Json done = Json::array(), failed = Json::array();
  std::set<std::string> emptied;
  for (size_t i = 0; i < workers.size(); ++i) {
    const Result<Response>& answer = *answers[i];
    if (!answer.ok() || answer->status / 100 != 2) {
      // It may have done what it was told even so.
      if (!answer.ok() && drops_cache(call.path)) emptied.insert(workers[i]->address.to_string());
      failed.push_back(Json{{"worker", workers[i]->url}, {"error", complaint(answer)}});
      continue;
    }
    done.push_back(workers[i]->url);
    if (drops_cache(call.path)) emptied.insert(workers[i]->address.to_string());
  }
  forget_prefixes(call, emptied);
  const bool all = failed.empty();
  const char* counted = call.path == "/flush_cache"       ? "workers_flushed"
                        : call.path.ends_with("_profile") ? "workers_profiled"
                                                          : "workers_done";
  const bool none = !all && done.empty();
  Json document{{"status", all    ? "success"
                           : none ? "failed"
                                  : "partial_success"},
                {"message", fmt::format("{} of {} workers did it", done.size(), workers.size())},
                {counted, done.size()},
                {"total_http_workers", workers.size()},
                {"total_workers", workers.size()},
                {"successful", done},
                {"failed", failed}};
  if (!none) co_return Response::json(all ? 200 : 206, protocol::dump(document));
  const Verdict verdict = verdict_of(answers);
  document["message"] = verdict.message;
  document["error"] = Json{{"type", net::reason_phrase(verdict.status)},
                           {"code", verdict.code},
                           {"message", verdict.message},
                           {"param", nullptr}};
  auto response = Response::json(verdict.status, protocol::dump(document));
  response.headers.set("X-SMG-Error-Code", verdict.code);
  co_return response;
}

Task<Response> abort_request(AdminCall& call) {
  const auto body = parse_client_json(call.body);
  if (!body.ok()) co_return error_response(400, "json_parse_error", body.error().message);
  const auto is_rid = [](const Json& value) {
    return value.is_string() && !value.get_ref<const std::string&>().empty();
  };
  bool named = false;
  if (body->is_object()) {
    const auto rid = body->find("rid");
    const auto all = body->find("abort_all");
    named = all != body->end() && all->is_boolean() && all->get<bool>();
    if (rid != body->end() && rid->is_array()) {
      named = named || (!rid->empty() && std::ranges::all_of(*rid, is_rid));
    } else if (rid != body->end()) {
      named = named || is_rid(*rid);
    }
  }
  if (!named) {
    co_return error_response(400, "invalid_request",
                             "rid must be the id of a request or a list of them, unless abort_all is true");
  }
  co_return co_await fan_out(call);
}

Task<Response> stored_response(AdminCall& call) {
  std::string_view rest = call.path;
  rest.remove_prefix(std::string_view("/v1/responses/").size());
  const size_t slash = rest.find('/');
  const std::string_view part = slash == std::string_view::npos ? std::string_view() : rest.substr(slash + 1);
  std::string id(rest.substr(0, slash));
  const std::string_view method = call.head.method;
  if (rest.empty() || slash == 0 || (slash != std::string_view::npos && part != "cancel" && part != "input_items")) {
    co_return error_response(404, "unknown_url", fmt::format("there is nothing at {}", call.path));
  }
  if (part == "cancel") {
    if (method != "POST") co_return wrong_method(call, "POST");
    co_return co_await first_good(call, std::move(id));
  }
  if (part == "input_items" ? method != "GET" : method == "POST") {
    co_return wrong_method(call, part == "input_items" ? "GET" : "GET, DELETE");
  }
  if (method == "GET" && part.empty()) co_return co_await first_good(call, std::move(id));
  co_return error_response(
      501, "not_implemented",
      fmt::format("{} {} is not passed on: ask the worker that keeps the response, at its own address", method,
                  call.path));
}

Task<Keeper> keeper_of_response(Context& context, LoopState& loop, WorkerList workers, const net::RequestHead& client,
                                std::string id, std::shared_ptr<Interruption> interruption) {
  Keeper keeper;
  workers = by_address(workers);
  if (workers.size() < 2 || !is_plain(id)) co_return keeper;
  net::RequestHead asked = client;
  asked.method = "GET";
  asked.target = "/v1/responses/" + id;
  net::Timer timer(loop.loop.executor(), kKeeper);
  timer.async_wait([interruption](const boost::system::error_code& error) {
    if (!error) interruption->end();
  });
  const auto found = co_await ask_until_good(context, loop, asked, workers, kKeeper, interruption);
  timer.cancel();
  keeper.who = found->who;
  if (keeper.who == nullptr) keeper.silent = found->silent;
  co_return keeper;
}

Task<Response> engine_metrics(AdminCall& call) {
  const WorkerList workers = by_address(call.loop.fleet(call.context.fleet));
  if (workers.empty()) co_return error_response(503, "no_workers", "no worker");
  std::function<Question(const Worker&)> question_for = [](const Worker& worker) {
    return Question{"GET", "/metrics", key_headers(worker), nullptr};
  };
  const auto answers = co_await ask_all(call, workers, std::move(question_for), kMetrics);
  EngineMetrics merged;
  bool any = false;
  for (size_t i = 0; i < workers.size(); ++i) {
    const Result<Response>& answer = *answers[i];
    if (!answer.ok() || answer->status != 200) continue;
    any = true;
    merged.add(workers[i]->address.to_string(), answer->body);
  }
  if (!any) co_return error_response(500, "no_worker_response", why_no_metrics(answers));
  auto response = Response::text(200, merged.text());
  response.headers.set("Content-Type", obs::kExpositionContentType);
  co_return response;
}

}  // namespace sluice::gateway
