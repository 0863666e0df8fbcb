#include "gateway/access_log.h"

#include <fmt/chrono.h>

#include <algorithm>

#include "gateway/error_shape.h"

namespace sluice::gateway {
namespace {

constexpr size_t kMostOfAValue = 256;  // bytes of what a client wrote

// Clients choose paths and ids: a value stays one value.
bool is_plain(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c > ' ' && c < 0x7f && c != '"' && c != '\\' && c != '='; });
}

// key=value, or members of a JSON object.
class Line {
 public:
  explicit Line(AccessLog::Form form) : is_json_(form == AccessLog::Form::kJson) {
    if (is_json_) text_ += '{';
  }

  void add(std::string_view key, std::string_view value) {
    begin(key);
    value = value.substr(0, kMostOfAValue);
    const bool plain = !value.empty() && is_plain(value);
    if (plain && is_json_) text_ += '"';
    text_ += plain ? std::string(value) : quoted(value);
    if (plain && is_json_) text_ += '"';
  }
  void add(std::string_view key, int64_t value) {
    begin(key);
    fmt::format_to(std::back_inserter(text_), "{}", value);
  }
  void add(std::string_view key, Duration value) {
    begin(key);
    fmt::format_to(std::back_inserter(text_), "{:.6f}", seconds(value));
  }
  std::string finish() {
    if (is_json_) text_ += '}';
    return std::move(text_);
  }

 private:
  void begin(std::string_view key) {
    if (text_.size() > 1) text_ += is_json_ ? ',' : ' ';
    if (is_json_) text_ += '"';
    text_ += key;
    text_ += is_json_ ? "\":" : "=";
  }

  const bool is_json_;
  std::string text_;
};

std::string utc(int64_t unix_nanos) {
  const int64_t micros = unix_nanos / 1000;
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:06}Z", fmt::gmtime(static_cast<std::time_t>(micros / 1'000'000)),
                     micros % 1'000'000);
}

}  // namespace

Result<std::unique_ptr<AccessLog>> AccessLog::open(const GatewayOptions& options) {
  if (options.access_log == "off") return std::unique_ptr<AccessLog>();
  auto writer = obs::LineWriter::open(options.access_log_file);
  if (!writer.ok()) return Error{writer.error().code, "--access-log-file: " + writer.error().message};
  const Form form = options.access_log == "json" ? Form::kJson : Form::kText;
  return std::unique_ptr<AccessLog>(new AccessLog(form, std::move(writer).value()));
}

void AccessLog::add(const obs::RequestRecord& record, const net::RequestHead& head, std::string_view client) {
  writer_->add(line_of(form_, record, head, client));
}

std::string AccessLog::line_of(Form form, const obs::RequestRecord& record, const net::RequestHead& head,
                               std::string_view client) {
  Line line(form);
  line.add("time", utc(record.started_unix_nanos));
  line.add("client", client);
  line.add("method", head.method);
  line.add("path", head.path());
  line.add("status", record.status);
  line.add("outcome", record.outcome);
  if (!record.error_code.empty()) line.add("error", record.error_code);
  line.add("took", record.took);
  if (const auto first = record.phase_at("first_byte")) line.add("first_byte", *first);
  line.add("bytes", static_cast<int64_t>(record.answer_bytes));
  line.add("id", record.id);
  if (record.attempts > 0) {
    line.add("model", record.model);
    line.add("worker", record.worker());
    line.add("attempts", record.attempts);
    line.add("prompt_bytes", static_cast<int64_t>(record.prompt_bytes));
  }
  if (record.prompt_tokens >= 0) {
    line.add("prompt_tokens", record.prompt_tokens);
    line.add("cached_tokens", record.cached_tokens);
    line.add("output_tokens", record.output_tokens);
  }
  if (record.trace) line.add("trace", obs::to_hex(record.trace->trace_id));
  return line.finish();
}

}  // namespace sluice::gateway
