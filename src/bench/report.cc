#include "bench/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace sluice::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kWidth = 50;
constexpr size_t kErrorsShown = 5;

std::string line(std::string_view label, std::string_view value) {
  return fmt::format("{:<40} {:<10}\n", label, value);
}
std::string line(std::string_view label, int64_t value) { return fmt::format("{:<40} {:<10}\n", label, value); }
std::string line(std::string_view label, std::optional<int64_t> value) {
  return value ? line(label, *value) : line(label, "n/a");
}
std::string line(std::string_view label, std::optional<double> value) {
  return value ? fmt::format("{:<40} {:<10.2f}\n", label, *value) : line(label, "n/a");
}

std::string title(std::string_view text, char fill) {
  const size_t left = (kWidth - text.size()) / 2;  // an odd rest goes to the right, as in Python's "^"
  return std::string(left, fill) + std::string(text) + std::string(kWidth - text.size() - left, fill) + "\n";
}

// As Python prints a float: "inf", "4.0", "0.5".
std::string python_float(double value) {
  if (!std::isfinite(value)) return "inf";
  const std::string text = fmt::format("{}", value);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

struct Row {
  std::string_view name;  // "Mean"
  double Spread::*value;
};
constexpr Row kMean{"Mean", &Spread::mean}, kMedian{"Median", &Spread::median}, kP90{"P90", &Spread::p90},
    kP95{"P95", &Spread::p95}, kP99{"P99", &Spread::p99}, kMax{"Max", &Spread::max};

std::string section(std::string_view heading, std::string_view metric, const std::optional<Spread>& spread,
                    std::initializer_list<Row> rows) {
  std::string out = title(heading, '-');
  for (const auto& row : rows) {
    const auto value = spread ? std::optional<double>((*spread).*row.value) : std::nullopt;
    out += line(fmt::format("{} {} (ms):", row.name, metric), value);
  }
  return out;
}

std::string cache_section(const Summary& s) {
  std::string out = title("Cache Hit Details", '-');
  out += line("Total prompt tokens:", s.total_input);
  out += line("Total cached tokens:", s.total_cached);
  if (s.total_cached && s.total_input > 0) {
    out += fmt::format("{:<40} {:.1f}%\n", "Cache hit rate:",
                       100.0 * static_cast<double>(*s.total_cached) / static_cast<double>(s.total_input));
  } else {
    out += line("Cache hit rate:", "n/a");
  }
  return out;
}

// What a reader must know to read the figures right.
std::string notes(const Summary& s) {
  std::string out;
  const auto note = [&](size_t count, std::string_view what) {
    if (count > 0) out += fmt::format("Note: {} of {} answers {}\n", count, s.completed, what);
  };
  note(s.output_not_reported,
       "did not say how many tokens they have; they are not in the generated tokens and in TPOT.");
  note(s.input_not_reported, "did not say how many tokens their prompt has; the generator's own count is used.");
  if (s.failed > 0) {
    out += fmt::format("{} of {} requests failed:\n", s.failed, s.failed + s.completed);
    for (size_t i = 0; i < s.errors.size() && i < kErrorsShown; ++i) {
      out += fmt::format("  {} x {}\n", s.errors[i].second, s.errors[i].first);
    }
    if (s.errors.size() > kErrorsShown) out += fmt::format("  ... {} other errors\n", s.errors.size() - kErrorsShown);
  }
  return out;
}

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

void add_spread(Json& out, std::string_view metric, const std::optional<Spread>& spread,
                std::initializer_list<std::pair<std::string_view, double Spread::*>> rows) {
  for (const auto& [name, member] : rows) {
    out[fmt::format("{}_{}_ms", name, metric)] = spread ? Json((*spread).*member) : Json(nullptr);
  }
}

}  // namespace

std::string table_of(const Report& report) {
  const auto& o = report.options;
  const auto& s = report.summary;
  std::string out = title(" Serving Benchmark Result ", '=');
  out += line("Backend:", o.backend);
  out += line("Traffic request rate:", python_float(o.request_rate));
  out += o.max_concurrency ? line("Max request concurrency:", *o.max_concurrency)
                           : line("Max request concurrency:", "not set");
  out += line("Successful requests:", static_cast<int64_t>(s.completed));
  out += line("Failed requests:", static_cast<int64_t>(s.failed));
  out += line("Benchmark duration (s):", std::optional<double>(s.duration));
  out += line("Total input tokens:", s.total_input);
  out += line("Total input text tokens:", s.total_input);
  out += line("Total generated tokens:", s.total_output);
  out += line("Total generated tokens (retokenized):", s.total_output_retokenized);
  out += line("Request throughput (req/s):", s.request_throughput);
  out += line("Input token throughput (tok/s):", s.input_throughput);
  out += line("Output token throughput (tok/s):", s.output_throughput);
  out += line("Peak output token throughput (tok/s):", s.max_output_tokens_per_s);
  out += line("Peak concurrent requests:", s.max_concurrent_requests);
  out += line("Total token throughput (tok/s):", s.total_throughput);
  out += line("Concurrency:", s.concurrency);
  if (report.accept_length) out += line("Accept length:", report.accept_length);
  out += section("End-to-End Latency", "E2E Latency", s.e2e, {kMean, kMedian, kP90, kP99});
  out += section("Time to First Token", "TTFT", s.ttft, {kMean, kMedian, kP99});
  out += section("Time per Output Token (excl. 1st token)", "TPOT", s.tpot, {kMean, kMedian, kP99});
  out += section("Inter-Token Latency", "ITL", s.itl, {kMean, kMedian, kP95, kP99, kMax});
  if (s.chunk_delay) {
    out += section("Delay of Stamped Chunks", "Chunk Delay", s.chunk_delay, {kMean, kMedian, kP90, kP99, kMax});
  }
  if (o.cache_report) out += cache_section(s);
  out += title("", '=');
  return out + notes(s);
}

Json json_of(const Report& report) {
  const auto& o = report.options;
  const auto& s = report.summary;
  Json out;
  out["tag"] = or_null(o.tag);
  out["backend"] = o.backend;
  out["dataset_name"] = o.dataset_name;
  // JSON has no number for infinity; this is what Python's reader takes for one in a string.
  out["request_rate"] = std::isfinite(o.request_rate) ? Json(o.request_rate) : Json("inf");
  out["max_concurrency"] = or_null(o.max_concurrency);
  out["sharegpt_output_len"] = or_null(o.sharegpt_output_len);
  out["random_input_len"] = o.random_input_len;
  out["random_output_len"] = o.random_output_len;
  out["random_range_ratio"] = o.random_range_ratio;
  const Json info = Json::parse(report.server_info, nullptr, /*allow_exceptions=*/false);
  out["server_info"] = info.is_discarded() ? Json(nullptr) : info;

  out["duration"] = s.duration;
  out["completed"] = s.completed;
  out["total_input_tokens"] = s.total_input;
  out["total_input_text_tokens"] = s.total_input;
  out["total_input_vision_tokens"] = 0;
  out["total_output_tokens"] = or_null(s.total_output);
  out["total_output_tokens_retokenized"] = or_null(s.total_output_retokenized);
  out["request_throughput"] = or_null(s.request_throughput);
  out["input_throughput"] = or_null(s.input_throughput);
  out["output_throughput"] = or_null(s.output_throughput);
  out["total_throughput"] = or_null(s.total_throughput);
  using S = Spread;
  for (const auto& [metric, spread] :
       {std::pair{"e2e_latency", &s.e2e}, {"ttft", &s.ttft}, {"tpot", &s.tpot}, {"itl", &s.itl}}) {
    add_spread(out, metric, *spread,
               {{"mean", &S::mean},
                {"median", &S::median},
                {"std", &S::std},
                {"p90", &S::p90},
                {"p95", &S::p95},
                {"p99", &S::p99}});
  }
  add_spread(out, "itl", s.itl, {{"max", &S::max}});
  out["concurrency"] = or_null(s.concurrency);
  out["accept_length"] = or_null(report.accept_length);
  out["max_output_tokens_per_s"] = or_null(s.max_output_tokens_per_s);
  out["max_concurrent_requests"] = or_null(s.max_concurrent_requests);

  // Ours.
  out["failed"] = s.failed;
  out["error_counts"] = Json::object();
  for (const auto& [text, count] : s.errors) out["error_counts"][text] = count;
  out["total_cached_tokens"] = or_null(s.total_cached);
  out["answers_without_usage"] = s.output_not_reported;
  add_spread(out, "send_delay", s.send_delay, {{"mean", &S::mean}, {"p99", &S::p99}, {"max", &S::max}});
  add_spread(out, "chunk_delay", s.chunk_delay,
             {{"mean", &S::mean}, {"median", &S::median}, {"p90", &S::p90}, {"p99", &S::p99}, {"max", &S::max}});
  out["stamped_chunks"] = s.chunk_delay ? s.chunk_delay->count : 0;
  out["client_cpu_seconds"] = s.client_cpu_seconds;
  out["options"] = to_json(o);
  return out;
}

void add_details(Json& out, const std::vector<Outcome>& outcomes) {
  Json input_lens = Json::array(), output_lens = Json::array(), ttfts = Json::array(), itls = Json::array(),
       texts = Json::array(), errors = Json::array(), cached = Json::array(), due = Json::array(), sent = Json::array(),
       latencies = Json::array();
  for (const auto& outcome : outcomes) {
    input_lens.push_back(outcome.prompt_len);
    output_lens.push_back(outcome.ok() ? or_null(outcome.output_len) : Json(0));
    ttfts.push_back(outcome.ttft ? Json(seconds(*outcome.ttft)) : Json(nullptr));
    itls.push_back(outcome.itl);
    texts.push_back(outcome.text);
    errors.push_back(outcome.error);
    cached.push_back(or_null(outcome.cached_tokens));
    due.push_back(seconds(outcome.due));
    sent.push_back(seconds(outcome.sent));
    latencies.push_back(outcome.ok() ? Json(seconds(outcome.latency)) : Json(nullptr));
  }
  out["input_lens"] = std::move(input_lens);
  out["output_lens"] = std::move(output_lens);
  out["ttfts"] = std::move(ttfts);
  out["itls"] = std::move(itls);
  out["generated_texts"] = std::move(texts);
  out["errors"] = std::move(errors);
  out["cached_tokens"] = std::move(cached);
  out["due_times"] = std::move(due);
  out["sent_times"] = std::move(sent);
  out["e2e_latencies"] = std::move(latencies);
}

}  // namespace sluice::bench
