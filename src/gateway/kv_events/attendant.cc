#include "gateway/kv_events/attendant.h"

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "gateway/ask.h"
#include "gateway/client_json.h"
#include "gateway/control.h"
#include "gateway/kv_events/parity.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;

constexpr Duration kAnswer = std::chrono::seconds(5);      // to a question for the server's information
constexpr Duration kFirstPause = std::chrono::seconds(1);  // between two tries; doubled each time
constexpr Duration kLastPause = std::chrono::seconds(60);
constexpr Duration kLook = std::chrono::milliseconds(200);  // how often the stream is looked at
// What its answers report is clearly less than its events had promised: something is wrong with one of them.
constexpr double kDoubt = 0.5;

net::Task<KvSource> find_source(Context& context, net::EventLoop& loop, net::Client& client, WorkerPtr worker) {
  KvSource source;
  const std::string named = "kv_events_endpoint";
  const auto info = worker->info();
  if (info.labels.contains(named)) co_return kv_source_in(*worker, 0, "", context.options.block_size);
  for (const char* path : {"/server_info", "/get_server_info"}) {
    Question question{"GET", path, key_headers(*worker), nullptr};
    const auto answer = co_await ask_worker(loop, client, worker, std::move(question), kAnswer);
    if (!answer.ok()) {
      source.why = "its server information could not be read: " + answer.error().message;
      co_return source;
    }
    if (answer->status == 404) continue;
    co_return kv_source_in(*worker, answer->status, answer->body, context.options.block_size);
  }
  source.why = "it has no /server_info that would tell where it publishes KV events (the label kv_events_endpoint may)";
  source.is_final = true;
  co_return source;
}

std::optional<int64_t> number_in(const std::map<std::string, std::string>& labels, const std::string& name) {
  const auto label = labels.find(name);
  if (label == labels.end()) return std::nullopt;
  const Json number = Json::parse(label->second, nullptr, false);
  if (!number.is_number_integer() || number.get<int64_t>() <= 0) return std::nullopt;
  return number.get<int64_t>();
}

std::string text_in(const Json& object, const char* name) {
  return object.contains(name) && object[name].is_string() ? object[name].get<std::string>() : "";
}

}  // namespace

Result<std::string> kv_endpoint_of(const std::string& configured, const std::string& host, int64_t rank) {
  const auto wrong = [&](const char* why) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("its KV events go to {}: {}", configured, why)};
  };
  if (configured.starts_with("ipc://")) return configured;
  const size_t colon = configured.rfind(':');
  if (!configured.starts_with("tcp://") || colon < 6) return wrong("only tcp:// and ipc:// can be heard from here");
  const Json port = Json::parse(configured.substr(colon + 1), nullptr, false);
  if (!port.is_number_unsigned() || port.get<uint64_t>() > 65535) return wrong("that is no port");
  const std::string at = configured.substr(6, colon - 6);
  if (at != "*" && at != "0.0.0.0" && at.find("::") == std::string::npos) {
    return wrong("its publisher calls there instead of listening; give it tcp://*:PORT");
  }
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return fmt::format("tcp://{}{}{}:{}", is_ipv6 ? "[" : "", host, is_ipv6 ? "]" : "",
                     port.get<int64_t>() + std::max<int64_t>(rank, 0));
}

KvSource kv_source_in(const Worker& worker, int status, const std::string& body, std::optional<int64_t> block_size) {
  KvSource source;
  KvEndpoint endpoint{.publisher = {.worker = worker.number, .block_size = block_size}};
  if (worker.dp.rank >= 0) endpoint.publisher.rank = worker.dp.rank;
  const auto labels = worker.info().labels;
  if (const auto own = number_in(labels, "kv_block_size")) endpoint.publisher.block_size = own;
  if (const auto named = labels.find("kv_events_endpoint"); named != labels.end()) {
    endpoint.events = named->second;
    if (const auto replay = labels.find("kv_replay_endpoint"); replay != labels.end()) endpoint.replay = replay->second;
    endpoint.publisher.can_replay = !endpoint.replay.empty();
    source.endpoint = std::move(endpoint);
    return source;
  }
  if (status != 200) {
    source.why = fmt::format("its server information, which tells where it publishes KV events, answers {}", status);
    if (status == 401 || status == 403) source.why += ": it wants another API key";
    return source;
  }
  source.is_final = true;
  // A worker's own text, as deep as it likes: copying a tree takes stack.
  const auto parsed = parse_client_json(body);
  if (!parsed.ok() || !parsed->is_object()) {
    source.why = parsed.ok() ? "its server information is no JSON object"
                             : "its server information cannot be read: " + parsed.error().message;
    return source;
  }
  const Json& document = *parsed;
  Json config = document.value("kv_events_config", Json());
  if (config.is_string()) {
    auto inner = parse_client_json(config.get<std::string>());
    config = inner.ok() ? std::move(inner).value() : Json();
  }
  if (!config.is_object() || text_in(config, "publisher") != "zmq") {
    source.why = "it publishes no KV events (--kv-events-config)";
    return source;
  }
  if (worker.dp.rank < 0 && document.contains("dp_size") && document["dp_size"].is_number_integer() &&
      document["dp_size"].get<int64_t>() > 1) {
    source.why = "its data-parallel ranks have a cache each: start the gateway with --dp-aware";
    return source;
  }
  if (document.contains("page_size") && document["page_size"].is_number_integer() &&
      document["page_size"].get<int64_t>() > 0) {
    endpoint.publisher.block_size = document["page_size"].get<int64_t>();
  }
  const std::string configured = config.contains("endpoint") ? text_in(config, "endpoint") : "tcp://*:5557";
  const auto events = kv_endpoint_of(configured, worker.address.host, worker.dp.rank);
  if (!events.ok()) {
    source.why = events.error().message;
    return source;
  }
  endpoint.events = *events;
  endpoint.topic = text_in(config, "topic");
  if (const std::string replay = text_in(config, "replay_endpoint"); !replay.empty()) {
    if (const auto at = kv_endpoint_of(replay, worker.address.host, worker.dp.rank); at.ok()) endpoint.replay = *at;
  }
  endpoint.publisher.can_replay = !endpoint.replay.empty();
  source.endpoint = std::move(endpoint);
  source.is_final = false;
  return source;
}

net::Task<> attend_kv_events(Context& context, net::EventLoop& loop, net::Client& client, WorkerPtr worker) {
  KvCaches& kv = *context.kv;
  const uint32_t number = worker->number;
  const uint32_t generation = worker->generation;
  const auto is_over = [&] { return worker->draining || worker->generation != generation; };
  const auto count = [&](const char* result) {
    context.metrics.counter("smg_kv_probes_total", {worker->url, result}).add();
  };
  if (is_over()) co_return;  // it was removed before this began
  kv.judge(number, {.why = "it is being asked where it publishes KV events"});
  for (Duration pause = kFirstPause;; pause = std::min(2 * pause, kLastPause)) {
    KvSource source = co_await find_source(context, loop, client, worker);
    if (is_over()) co_return;
    if (source.endpoint) {
      kv.subscriber.subscribe(std::move(*source.endpoint));
      break;
    }
    SLUICE_LOG(warn, "gateway/kv_events", "worker {}: {}; what it holds is only believed", worker->url, source.why);
    kv.judge(number, {.why = source.why});
    if (source.is_final) co_return;
    co_await loop.sleep(pause);
    if (is_over()) co_return;
  }
  bool is_proven = false;
  uint64_t joins = 0;  // when it was proven
  Duration pause = kFirstPause;
  while (!is_over()) {
    const auto status = kv.subscriber.status(number);
    const bool is_heard = status && status->knowledge != KvKnowledge::kNothing;
    if (is_heard && is_proven && status->counts.joins != joins) {
      is_proven = false;  // it may be another process
      kv.judge(number, {.why = "it is being probed again"});
    }
    if (!is_heard) {
      is_proven = false;
      kv.judge(number, {.why = status ? status->why : ""});
    } else if (!is_proven || worker->load->belief.share() < kDoubt) {
      KvVerdict verdict = co_await probe_parity(context, loop, client, worker);
      if (is_over()) co_return;
      is_proven = verdict.is_trusted;
      joins = status->counts.joins;
      count(is_proven ? "passed" : "failed");
      if (is_proven) {
        worker->load->belief.forget_reports();
        pause = kFirstPause;
      } else {
        SLUICE_LOG(warn, "gateway/kv_events", "worker {}: {}; what it holds is only believed", worker->url,
                   verdict.why);
      }
      kv.judge(number, std::move(verdict));
      if (!is_proven) {
        co_await loop.sleep(pause);
        pause = std::min(2 * pause, kLastPause);
        continue;
      }
    }
    co_await loop.sleep(kLook);
  }
}

}  // namespace sluice::gateway
