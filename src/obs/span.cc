#include "obs/span.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace sluice::obs {
namespace {

// What follows the phase: the last one that was reached is what failed.
std::string_view name_after(std::string_view phase) {
  if (phase == "admitted") return "read";
  if (phase == "read") return "choose";
  if (phase == "chosen") return "connect";
  if (phase == "sent") return "first byte";
  return "stream";
}

class Builder {
 public:
  explicit Builder(const RequestRecord& record) : record_(record) {
    Span& root = spans_.emplace_back();
    root.trace_id = record.trace->trace_id;
    root.id = record.trace->span_id;
    root.parent = record.parent_span;
    root.name = fmt::format("{} {}", record.method, record.route);
    root.kind = Span::Kind::kServer;
    root.begin_unix_nanos = record.started_unix_nanos;
    root.end_unix_nanos = record.started_unix_nanos + record.took.count();
  }

  Span& child(std::string_view name, Duration begin, Duration end) {
    Span& span = spans_.emplace_back();
    span.trace_id = record_.trace->trace_id;
    span.parent = record_.trace->span_id;
    // Different in each span of the request, and as random as the first one.
    uint64_t number = 0;
    for (const uint8_t byte : record_.trace->span_id) number = number << 8 | byte;
    span.id = span_id_of(number + 0x9e3779b97f4a7c15 * spans_.size());
    span.name = name;
    span.begin_unix_nanos = record_.started_unix_nanos + begin.count();
    span.end_unix_nanos = record_.started_unix_nanos + std::max(begin, end).count();
    return span;
  }
  static void fail(Span& span, std::string type, std::string message) {
    span.status = Span::Status::kError;
    span.message = std::move(message);
    span.attributes.push_back({"error.type", std::move(type)});
  }

  void describe_request() {
    Span& root = spans_.front();
    auto& list = root.attributes;
    const auto text = [&](std::string_view key, std::string_view value) {
      if (!value.empty()) list.push_back({key, std::string(value)});
    };
    const auto number = [&](std::string_view key, int64_t value) {
      if (value >= 0) list.push_back({key, value});
    };
    text("http.request.method", record_.method);
    text("http.route", record_.route);
    text("url.path", record_.route);
    text("url.scheme", record_.scheme);
    if (record_.status > 0) number("http.response.status_code", record_.status);
    number("http.response.body.size", static_cast<int64_t>(record_.answer_bytes));
    text("gen_ai.operation.name", operation_of(record_.route));
    text("gen_ai.request.model", record_.model);
    number("gen_ai.usage.input_tokens", record_.prompt_tokens);
    number("gen_ai.usage.output_tokens", record_.output_tokens);
    text("sluice.request_id", record_.id);
    text("sluice.outcome", record_.outcome);
    text("sluice.worker", record_.worker());
    number("sluice.attempts", record_.attempts);
    number("sluice.prompt_bytes", static_cast<int64_t>(record_.prompt_bytes));
    number("sluice.cached_tokens", record_.cached_tokens);
    // What a client did wrong is no error of the server (semantic conventions for HTTP spans).
    const bool broke = record_.error_code == "stream_error";
    if (record_.status >= 500 || broke) {
      fail(root, record_.error_code.empty() ? std::to_string(record_.status) : record_.error_code, record_.detail);
    } else if (record_.status == 0) {
      list.push_back({"error.type", std::string("client_gone")});
    }
  }

  void describe_choice(Span& span, const RequestRecord::Try& made) {
    span.attributes.push_back({"sluice.worker", made.worker});
    span.attributes.push_back({"sluice.policy", std::string(made.policy)});
    span.attributes.push_back({"sluice.reason", std::string(made.reason)});
    span.attributes.push_back({"sluice.matched_share", made.matched_share});
  }

  void add_phases() {
    Duration begin{};
    std::string_view doing = "queue";
    size_t tries = 0;  // that were chosen
    // The attempt before has failed in what it was doing.
    const auto end_try = [&](const RequestRecord::Try& failed) {
      Span& span = child(doing, begin, *failed.failed_at);
      span.attributes.push_back({"sluice.worker", failed.worker});
      if (failed.status > 0) span.attributes.push_back({"http.response.status_code", int64_t{failed.status}});
      fail(span, failed.status > 0 ? std::to_string(failed.status) : "connection", failed.error);
      begin = *failed.failed_at;
      doing = "choose";
    };
    const auto failed = [&](size_t index) {
      return index < record_.tries.size() && record_.tries[index].failed_at.has_value();
    };
    for (const auto& [phase, at] : record_.phases) {
      if (phase == "chosen" && tries > 0 && failed(tries - 1)) end_try(record_.tries[tries - 1]);
      Span& span = child(doing, begin, at);
      if (phase == "chosen" && tries < record_.tries.size()) describe_choice(span, record_.tries[tries++]);
      begin = at;
      doing = name_after(phase);
    }
    if (tries > 0 && failed(tries - 1)) {
      end_try(record_.tries[tries - 1]);
    } else if (record_.phases.empty() || record_.phases.back().name != "finished") {
      child(doing, begin, record_.took);
    }
  }

  std::vector<Span> finish() { return std::move(spans_); }

 private:
  const RequestRecord& record_;
  std::vector<Span> spans_;
};

}  // namespace

std::string_view operation_of(std::string_view route) {
  if (route == "/v1/chat/completions" || route == "/v1/messages" || route == "/v1/responses") return "chat";
  if (route == "/v1/completions" || route == "/generate") return "text_completion";
  if (route == "/v1/embeddings") return "embeddings";
  return "";
}

std::vector<Span> spans_of(const RequestRecord& record) {
  Builder builder(record);
  builder.describe_request();
  builder.add_phases();
  return builder.finish();
}

}  // namespace sluice::obs
