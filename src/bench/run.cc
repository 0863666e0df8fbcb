#include "bench/run.h"

#include <sys/resource.h>

#include <cmath>
#include <future>
#include <nlohmann/json.hpp>

#include "base/process.h"
#include "bench/arrivals.h"
#include "bench/dataset.h"
#include "bench/text_source.h"
#include "net/client.h"

namespace sluice::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr net::ClientTimeouts kAskTimeouts{
    .connect = std::chrono::seconds(10), .head = std::chrono::seconds(60), .silence = std::chrono::seconds(60)};
constexpr std::chrono::milliseconds kInterruptionPeriod{100};
constexpr int64_t kWarmupTokens = 32;
// Keeps the times of arrival apart from the prompts: another data set does not move them.
constexpr uint64_t kArrivalSeed = 0x6172726976616c73;

Result<net::Url> target_of(const BenchOptions& options, const Backend& backend) {
  if (!options.base_url) {
    const bool bare_ipv6 = options.host.find(':') != std::string::npos && !options.host.starts_with('[');
    const int64_t port = options.port.value_or(backend.default_port);
    return net::parse_url(
        fmt::format("http://{}{}{}:{}", bare_ipv6 ? "[" : "", options.host, bare_ipv6 ? "]" : "", port));
  }
  auto url = net::parse_url(*options.base_url);
  if (!url.ok()) return Error{ErrorCode::kBadOption, fmt::format("--base-url: {}", url.error().message)};
  return url;
}

Result<net::Headers> headers_of(const RunInput& input) {
  net::Headers headers;
  if (!input.authorization.empty()) headers.set("Authorization", input.authorization);
  for (const auto& text : input.options.header) {
    const auto at = text.find('=');
    if (at == std::string::npos || at == 0) {
      return Error{ErrorCode::kBadOption, fmt::format("--header takes KEY=VALUE, not '{}'", text)};
    }
    headers.set(text.substr(0, at), text.substr(at + 1));
  }
  return headers;
}

bool is_interrupted(const RunInput& input) { return input.interrupted && input.interrupted(); }

// Asks the server something beside the run. kCancelled soon after an interruption: a server may hang.
Result<net::Response> ask(const RunInput& input, const net::Url& url, std::string method, std::string target,
                          const net::Headers& headers) {
  net::RequestHead head;
  head.method = std::move(method);
  head.target = std::move(target);
  head.headers = headers;
  net::EventLoop loop("ask");
  net::ClientExchange* under_way = nullptr;                                      // loop thread
  const auto promise = std::make_shared<std::promise<Result<net::Response>>>();  // may be within set_value() at the end
  auto answer = promise->get_future();
  const auto fetch = [&](net::Client& client) -> net::Task<Result<net::Response>> {
    auto sent = co_await client.send(url, head, "", kAskTimeouts, [&](net::ClientExchange& it) { under_way = &it; });
    if (!sent.ok()) co_return std::move(sent).error();
    auto received = co_await (*sent)->read_head();
    if (!received.ok()) co_return std::move(received).error();
    auto body = co_await (*sent)->read_all();
    under_way = nullptr;
    if (!body.ok()) co_return std::move(body).error();
    net::Response response;
    response.status = received->status;
    response.body = std::move(*body);
    co_return response;
  };
  loop.start();
  loop.spawn([&, promise]() -> net::Task<> {
    net::Client client(loop);
    auto response = co_await fetch(client);
    under_way = nullptr;
    promise->set_value(std::move(response));
  });
  while (answer.wait_for(kInterruptionPeriod) != std::future_status::ready) {
    if (!is_interrupted(input)) continue;
    loop.post([&] {
      if (under_way != nullptr) under_way->close();
    });
    answer.wait();
  }
  return answer.get();
}

// The name in requests. /generate needs none, so a server is not asked for it.
Result<std::string> model_of(const RunInput& input, const Backend& backend, const net::Url& url,
                             const net::Headers& headers) {
  const BenchOptions& options = input.options;
  if (options.served_model_name) return *options.served_model_name;
  if (options.model) return *options.model;
  if (backend.api == Api::kGenerate) return std::string();
  const auto answer = ask(input, url, "GET", "/v1/models", headers);
  if (!answer.ok()) {
    return Error{answer.error().code,
                 fmt::format("cannot ask {} for its model: {}", url.to_string(), answer.error().message)};
  }
  const Json models = Json::parse(answer->body, nullptr, /*allow_exceptions=*/false);
  if (answer->status == 200 && models.is_object() && models.contains("data") && models["data"].is_array() &&
      !models["data"].empty() && models["data"][0].is_object() && models["data"][0].contains("id") &&
      models["data"][0]["id"].is_string()) {
    return models["data"][0]["id"].get<std::string>();
  }
  return Error{ErrorCode::kProtocol,
               fmt::format("{}/v1/models names no model (status {}); give --model", url.to_string(), answer->status)};
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto of = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return of(usage.ru_utime) + of(usage.ru_stime);
}

Result<void> warm_up(const RunInput& input, const DriverOptions& driver, const Item& first) {
  const BenchOptions& options = input.options;
  if (options.warmup_requests == 0) return {};
  Item item = first;
  item.turns.resize(std::min<size_t>(item.turns.size(), 1));
  item.output_len = std::min(item.output_len, kWarmupTokens);
  const auto count = static_cast<size_t>(options.warmup_requests);
  const auto result = drive(driver, std::vector<Item>(count, item), std::vector<Duration>(count, Duration::zero()),
                            [&](const Progress&) { return !is_interrupted(input); });
  if (result.interrupted) return Error{ErrorCode::kCancelled, "interrupted in the warm-up"};
  for (const auto& outcome : result.outcomes) {
    if (outcome.ok()) return {};
  }
  return Error{ErrorCode::kUnavailable, fmt::format("the warm-up failed: {}", result.outcomes[0].error)};
}

Result<void> flush_cache(const RunInput& input, const Backend& backend, const net::Url& url,
                         const net::Headers& headers) {
  const std::string path = backend.is_sglang ? "/flush_cache" : "/reset_prefix_cache";
  const auto answer = ask(input, url, "POST", path, headers);
  if (answer.ok() && answer->status == 200) return {};
  return Error{ErrorCode::kUnavailable,
               fmt::format("--flush-cache: POST {} {}", path,
                           answer.ok() ? fmt::format("was answered with {}: {}", answer->status,
                                                     std::string_view(answer->body).substr(0, 200))
                                       : "failed: " + answer.error().message)};
}

// Body of /get_server_info, and what it says about speculative decoding. Nothing if it does not answer.
void ask_server_info(const RunInput& input, const net::Url& url, const net::Headers& headers, Report& report) {
  const auto answer = ask(input, url, "GET", "/get_server_info", headers);
  if (!answer.ok() || answer->status != 200) return;
  report.server_info = answer->body;
  const Json info = Json::parse(answer->body, nullptr, /*allow_exceptions=*/false);
  if (!info.is_object() || !info.contains("internal_states")) return;
  const Json& states = info["internal_states"];
  if (!states.is_array() || states.empty() || !states[0].is_object()) return;
  const auto found = states[0].find("avg_spec_accept_length");
  if (found != states[0].end() && found->is_number()) report.accept_length = found->get<double>();
}

}  // namespace

Result<RunResult> run_bench(const RunInput& input) {
  const BenchOptions& options = input.options;
  const auto say = [&](const std::string& line) {
    if (input.say) input.say(line);
  };
  SLUICE_TRY_VOID(validate(options));
  SLUICE_TRY(const Backend backend, backend_named(options.backend));
  SLUICE_TRY(const net::Url url, target_of(options, backend));
  SLUICE_TRY(const net::Headers headers, headers_of(input));

  const TextSource texts(input.tokenizer);
  Rng rng(static_cast<uint64_t>(options.seed));
  SLUICE_TRY(const auto items, make_dataset(options, texts, rng));
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
  for (const auto& item : items) {
    input_tokens += item.prompt_len;
    output_tokens += item.output_len * static_cast<int64_t>(std::max<size_t>(1, item.turns.size()));
  }
  say(fmt::format(
      "{} {}, {} {} in the prompts, {} tokens to generate", items.size(),
      options.gsp_num_turns > 1 && options.dataset_name == "generated-shared-prefix" ? "conversations" : "requests",
      input_tokens, texts.exact() ? "tokens" : "words", output_tokens));

  DriverOptions driver{.url = url,
                       .headers = headers,
                       .max_concurrency = options.max_concurrency.value_or(0),
                       .closed_loop = !std::isfinite(options.request_rate) && options.max_concurrency.has_value(),
                       .silence_timeout = std::chrono::seconds(options.silence_timeout_secs),
                       .keep_alive = !options.disable_keep_alive,
                       .threads = static_cast<int>(options.threads)};
  SLUICE_TRY(driver.form.model, model_of(input, backend, url, headers));
  driver.form.api = backend.api;
  driver.form.stream = !options.disable_stream;
  driver.form.ignore_eos = !options.disable_ignore_eos;
  driver.form.return_logprob = options.return_logprob;
  SLUICE_TRY_VOID(add_extra_body(driver.form, options.extra_request_body.value_or("")));
  const bool conversations = std::any_of(items.begin(), items.end(), [](const Item& i) { return i.turns.size() > 1; });
  driver.keep_text = options.output_details || input.tokenizer != nullptr || conversations;
  raise_descriptor_limit();

  say(fmt::format("Warming up {} ({} request{})", url.to_string(), options.warmup_requests,
                  options.warmup_requests == 1 ? "" : "s"));
  SLUICE_TRY_VOID(warm_up(input, driver, items[0]));
  if (options.flush_cache) SLUICE_TRY_VOID(flush_cache(input, backend, url, headers));

  Rng arrival_rng(static_cast<uint64_t>(options.seed) ^ kArrivalSeed);
  const auto arrivals = arrival_times(items.size(), options.request_rate, arrival_rng);
  say("Starting");
  const double cpu_before = cpu_seconds();
  DriverResult driven = drive(driver, items, arrivals, [&](const Progress& progress) {
    if (input.on_progress) input.on_progress(progress);
    return !is_interrupted(input);
  });
  const double cpu = cpu_seconds() - cpu_before;

  if (input.tokenizer) {
    for (auto& outcome : driven.outcomes) {
      if (outcome.ok()) outcome.retokenized = texts.count(outcome.text);
    }
  }
  RunResult result{.report = {.options = options}, .interrupted = driven.interrupted, .cut_off = driven.cut_off};
  result.report.summary = summarize(driven.outcomes, driven.duration, {.cpu_seconds = cpu});
  // Whoever interrupts a run may do so because the server hangs.
  if (backend.is_sglang && !result.interrupted) ask_server_info(input, url, headers, result.report);
  result.outcomes = std::move(driven.outcomes);
  return result;
}

}  // namespace sluice::bench
