#include "gateway/worker_json.h"

#include <cmath>
#include <iterator>
#include <string_view>

#include "gateway/error_shape.h"

namespace sluice::gateway {
namespace {

// A JSON string; most have nothing to escape.
void append_quoted(std::string& out, std::string_view text) {
  const auto is_plain = [](unsigned char c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; };
  if (!std::ranges::all_of(text, is_plain)) {
    out += quoted(text);
    return;
  }
  out += '"';
  out += text;
  out += '"';
}

void append_number(std::string& out, double value) {
  if (!std::isfinite(value)) value = 0;  // JSON has no word for it
  fmt::format_to(std::back_inserter(out), "{}", value);
}

template <class... Args>
void append(std::string& out, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(out), format, std::forward<Args>(args)...);
}

void append_labels(std::string& out, const std::map<std::string, std::string>& labels) {
  out += '{';
  for (bool first = true; const auto& [name, value] : labels) {
    if (!std::exchange(first, false)) out += ',';
    append_quoted(out, name);
    out += ':';
    append_quoted(out, value);
  }
  out += '}';
}

// What the prefix index believes of it, and whether anything it said bears that out.
void append_belief(std::string& out, const routing::CacheBelief& belief) {
  append(out, R"({{"source":"{}","share":)", belief.confirmed() ? "reported" : "predicted");
  append_number(out, belief.share());
  if (belief.limit_bytes() == routing::CacheBelief::kNoLimit) {
    out += R"(,"limit_bytes":null})";
  } else {
    append(out, R"(,"limit_bytes":{}}})", belief.limit_bytes());
  }
}

// Null of one that is not suspect.
void append_suspicion(std::string& out, const Worker& worker) {
  const auto suspicion = worker.suspicion();
  if (!suspicion) {
    out += "null";
    return;
  }
  append(out, R"({{"since":{:.6f},"why":)", static_cast<double>(suspicion->since_unix_nanos) / 1e9);
  append_quoted(out, suspicion->why);
  out += '}';
}

// The groups, as a registration has them.
void append_rules(std::string& out, const WorkerRules& rules) {
  std::string_view group;
  for (const WorkerRule& rule : worker_rules()) {
    if (rule.group != group) append(out, R"({}"{}":{{)", group.empty() ? "," : "},", rule.group);
    if (rule.group == group) out += ',';
    group = rule.group;
    append(out, R"("{}":)", rule.name);
    if (std::holds_alternative<bool WorkerRules::*>(rule.field)) {
      out += rule.of(rules) != 0 ? "true" : "false";
    } else {
      append_number(out, rule.of(rules));
    }
  }
  out += '}';
}

}  // namespace

void append_worker_json(std::string& out, const Worker& worker, std::string_view kv_events, bool with_rules) {
  append(out, R"({{"id":"{}","url":)", worker.id);
  append_quoted(out, worker.url);
  worker.read_info([&](const Worker::Info& info) {
    out += R"(,"model_id":)";
    append_quoted(out, info.model_id);
    append(out, R"(,"priority":{},"cost":)", info.priority);
    append_number(out, info.cost);
    out += R"(,"metadata":)";
    append_labels(out, info.labels);
    out += R"(,"labels":)";
    append_labels(out, info.labels);
    append(out, R"(,"disable_health_check":{})", info.rules.disable_health_check);
    if (with_rules) append_rules(out, info.rules);
  });
  append(out, R"(,"worker_type":"regular","is_healthy":{},"status":"{}","load":{},"load_tokens":{},"most_requests":)",
         worker.healthy.load() && !worker.draining.load(), worker.status(), worker.load->requests.load(),
         worker.load->tokens.load());
  const int64_t most_requests = worker.load->most_requests.load();
  out += most_requests == WorkerLoad::kNoLimit ? "null" : std::to_string(most_requests);
  append(out, R"(,"breaker":"{}")", to_string(worker.breaker.state()));
  out += R"(,"suspect":)";
  append_suspicion(out, worker);
  append(out, R"(,"connection_mode":"http","runtime_type":"sglang","generation":{},"cache_belief":)",
         worker.generation.load());
  append_belief(out, worker.load->belief);
  out += R"(,"kv_events":)";
  out += kv_events;
  if (worker.dp.rank >= 0) {
    out += R"(,"dp_base_url":)";
    append_quoted(out, worker.address.to_string());
    append(out, R"(,"dp_rank":{},"dp_size":{})", worker.dp.rank, worker.dp.size);
  }
  if (!worker.proven) {
    out += R"(,"job_status":{"job_type":"AddWorker","worker_url":)";
    append_quoted(out, worker.url);
    append(out, R"(,"status":"{}","message":"{}"}})", worker.failed ? "failed" : "processing",
           worker.failed ? "it did not answer its health check in time" : "waiting for its health check");
  }
  out += '}';
}

}  // namespace sluice::gateway
