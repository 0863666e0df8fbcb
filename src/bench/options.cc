#include "bench/options.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "bench/api.h"

namespace sluice::bench {
namespace {

constexpr double kMany = 1e12;

std::vector<RejectedFlag> rejected_flags() {
  constexpr std::string_view kProfile = "profile the server with its own tools, or with perf record -p";
  constexpr std::string_view kImages = "models here read text; use another --dataset-name";
  constexpr std::string_view kTraces = "use --request-rate, or --dataset-name custom for the prompts of a trace";
  constexpr std::string_view kAdapters = "servers here load no adapters; name the model with --served-model-name";
  return {
      {"profile", kProfile},
      {"profile-activities", kProfile},
      {"profile-start-step", kProfile},
      {"profile-steps", kProfile},
      {"profile-num-steps", kProfile},
      {"profile-by-stage", kProfile},
      {"profile-stages", kProfile},
      {"profile-output-dir", kProfile},
      {"profile-prefix", kProfile},
      {"pd-separated", kProfile},
      {"use-trace-timestamps", kTraces},
      {"mooncake-slowdown-factor", kTraces},
      {"mooncake-num-rounds", kTraces},
      {"mooncake-workload", kTraces},
      {"image-count", kImages},
      {"image-resolution", kImages},
      {"image-format", kImages},
      {"image-content", kImages},
      {"random-image-count", kImages},
      {"lora-name", kAdapters},
      {"lora-request-distribution", kAdapters},
      {"lora-zipf-alpha", kAdapters},
      {"prompt-suffix", "write the prompts as they shall be sent and use --dataset-name custom"},
      {"return-routed-experts", "put \"return_routed_experts\": true into --extra-request-body"},
      {"top-logprobs-num", "put \"top_logprobs_num\" into --extra-request-body"},
      {"token-ids-logprob", "put \"token_ids_logprob\" into --extra-request-body"},
      {"logprob-start-len", "put \"logprob_start_len\" into --extra-request-body"},
      {"temperature", "put \"temperature\" into --extra-request-body (for --backend sglang into its sampling_params)"},
      {"top-p", "put \"top_p\" into --extra-request-body (for --backend sglang into its sampling_params)"},
      {"plot-throughput", "plot the itls and ttfts that --output-file with --output-details writes"},
      {"print-requests", "use --output-details, which writes every request to the --output-file"},
      {"ready-check-timeout-sec", "wait for the server's /health first"},
      {"gsp-group-distribution", "groups are of equal size; start several runs to mix sizes"},
      {"gsp-zipf-alpha", "groups are of equal size; start several runs to mix sizes"},
  };
}

}  // namespace

const OptionTable<BenchOptions>& bench_option_table() {
  using O = BenchOptions;
  static const OptionTable<O> table(
      {
          {.name = "backend",
           .field = &O::backend,
           .value = std::string("sglang"),
           .choices = {"sglang", "sglang-native", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat", "lmdeploy",
                       "lmdeploy-chat"},
           .read_by = "bench/run",
           .group = "Target",
           .help = "Endpoint to load: sglang and sglang-native send /generate, names with -chat "
                   "/v1/chat/completions, the others /v1/completions."},
          {.name = "base-url",
           .field = &O::base_url,
           .value = std::optional<std::string>(),
           .metavar = "URL",
           .read_by = "bench/run",
           .group = "Target",
           .help = "Where the server is, instead of --host and --port."},
          {.name = "host",
           .field = &O::host,
           .value = std::string("0.0.0.0"),
           .read_by = "bench/run",
           .group = "Target",
           .help = "Host of the server; 0.0.0.0 is this machine."},
          {.name = "port",
           .field = &O::port,
           .value = std::optional<int64_t>(),
           .range = {1, 65535},
           .read_by = "bench/run",
           .group = "Target",
           .help = "Port of the server; if not given, 30000 for sglang, 8000 for vllm, 23333 for lmdeploy."},
          {.name = "model",
           .field = &O::model,
           .value = std::optional<std::string>(),
           .read_by = "bench/run",
           .group = "Target",
           .help = "Name of the model in requests; if not given, the first one of /v1/models."},
          {.name = "served-model-name",
           .field = &O::served_model_name,
           .value = std::optional<std::string>(),
           .read_by = "bench/run",
           .group = "Target",
           .help = "Name of the model in requests where it differs from --model."},
          {.name = "header",
           .field = &O::header,
           .value = StringList{},
           .metavar = "KEY=VALUE",
           .read_by = "bench/run",
           .group = "Target",
           .help = "Headers of every request. The key of the server is taken from the environment: OPENAI_API_KEY is "
                   "sent as a bearer token, API_KEY as it is."},
          {.name = "tokenizer",
           .field = &O::tokenizer,
           .value = std::optional<std::string>(),
           .metavar = "PATH",
           .read_by = "cli/bench",
           .group = "Prompts",
           .help = "Folder with tokenizer.json, or a .gguf file: prompts then have the wanted number of tokens and "
                   "answers are counted again. If not given, prompts are made of common English words, about one token "
                   "each."},
          {.name = "dataset-name",
           .field = &O::dataset_name,
           .value = std::string("sharegpt"),
           .choices = {"sharegpt", "custom", "random", "random-ids", "generated-shared-prefix", "fixed"},
           .read_by = "bench/dataset",
           .group = "Prompts",
           .help = "What is sent: conversations of --dataset-path (sharegpt: a JSON list; custom: JSON lines), random "
                   "texts, random token ids, groups with a common system prompt, or one fixed prompt."},
          {.name = "dataset-path",
           .field = &O::dataset_path,
           .value = std::string(),
           .metavar = "FILE",
           .read_by = "bench/dataset",
           .group = "Prompts",
           .help = "File of the conversations. With random, their texts are cut or repeated to length; if not given, "
                   "random draws tokens."},
          {.name = "num-prompts",
           .field = &O::num_prompts,
           .value = int64_t{1000},
           .range = {1, 1e8},
           .read_by = "bench/dataset",
           .group = "Prompts",
           .help = "Number of requests; generated-shared-prefix has groups times prompts per group instead."},
          {.name = "seed",
           .field = &O::seed,
           .value = int64_t{1},
           .range = {0, 9e15},
           .read_by = "bench/run",
           .group = "Prompts",
           .help = "Same seed, same prompts and same times of arrival."},
          {.name = "apply-chat-template",
           .field = &O::apply_chat_template,
           .value = false,
           .read_by = "bench/dataset",
           .group = "Prompts",
           .help = "Wrap the conversations of sharegpt and custom in the chat template of --tokenizer."},
          {.name = "tokenize-prompt",
           .field = &O::tokenize_prompt,
           .value = false,
           .read_by = "bench/dataset",
           .group = "Prompts",
           .help = "Send token ids instead of text; for random and random-ids, with --tokenizer."},
          {.name = "random-input-len",
           .field = &O::random_input_len,
           .value = int64_t{1024},
           .range = {1, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of random and random-ids",
           .help = "Tokens of a prompt at most."},
          {.name = "random-output-len",
           .field = &O::random_output_len,
           .value = int64_t{1024},
           .range = {1, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of random and random-ids",
           .help = "Tokens of an answer at most."},
          {.name = "random-range-ratio",
           .field = &O::random_range_ratio,
           .value = 0.0,
           .range = {0.0, 1.0},
           .read_by = "bench/dataset",
           .group = "Prompts of random and random-ids",
           .help = "Lengths are uniform between this share of the maximum and the maximum; 1 = all at the maximum."},
          {.name = "sharegpt-output-len",
           .field = &O::sharegpt_output_len,
           .value = std::optional<int64_t>(),
           .range = {4, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of sharegpt and custom",
           .help = "Tokens of every answer; if not given, as many as the conversation's answer has."},
          {.name = "sharegpt-context-len",
           .field = &O::sharegpt_context_len,
           .value = std::optional<int64_t>(),
           .range = {1, 1e9},
           .read_by = "bench/dataset",
           .group = "Prompts of sharegpt and custom",
           .help = "Conversations with more tokens than this are left out."},
          {.name = "gsp-num-groups",
           .field = &O::gsp_num_groups,
           .value = int64_t{64},
           .range = {1, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Number of system prompts."},
          {.name = "gsp-prompts-per-group",
           .field = &O::gsp_prompts_per_group,
           .value = int64_t{16},
           .range = {1, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Requests that share a system prompt."},
          {.name = "gsp-system-prompt-len",
           .field = &O::gsp_system_prompt_len,
           .value = int64_t{2048},
           .range = {1, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Tokens of a system prompt."},
          {.name = "gsp-question-len",
           .field = &O::gsp_question_len,
           .value = int64_t{128},
           .range = {1, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Tokens of the question after it."},
          {.name = "gsp-output-len",
           .field = &O::gsp_output_len,
           .value = int64_t{256},
           .range = {1, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Tokens of an answer."},
          {.name = "gsp-range-ratio",
           .field = &O::gsp_range_ratio,
           .value = 1.0,
           .range = {0.0, 1.0},
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Lengths are uniform between this share of the given ones and the given ones."},
          {.name = "gsp-num-turns",
           .field = &O::gsp_num_turns,
           .value = int64_t{1},
           .range = {1, 1000},
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Questions of a conversation, each sent with the answers to the ones before; more than 1 needs a "
                   "chat backend."},
          {.name = "gsp-ordered",
           .field = &O::gsp_ordered,
           .value = false,
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Send group after group instead of a random order."},
          {.name = "gsp-send-routing-key",
           .field = &O::gsp_send_routing_key,
           .value = false,
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Send the group in the header x-smg-routing-key."},
          {.name = "gsp-fast-prepare",
           .field = &O::gsp_fast_prepare,
           .value = false,
           .read_by = "bench/dataset",
           .group = "Prompts of generated-shared-prefix",
           .help = "Do not count the tokens of the prompts; the server's counts are used."},
          {.name = "fixed-prompt",
           .field = &O::fixed_prompt,
           .value = std::string("Tell a long story about a river."),
           .read_by = "bench/dataset",
           .group = "Prompts of fixed",
           .help = "The prompt of every request."},
          {.name = "fixed-output-len",
           .field = &O::fixed_output_len,
           .value = int64_t{128},
           .range = {1, 1e7},
           .read_by = "bench/dataset",
           .group = "Prompts of fixed",
           .help = "Tokens of every answer."},
          {.name = "request-rate",
           .field = &O::request_rate,
           .value = std::numeric_limits<double>::infinity(),
           .range = {1e-6, std::numeric_limits<double>::infinity()},
           .read_by = "bench/run",
           .group = "Load",
           .help = "Requests per second, at random intervals (Poisson); inf = all at once. Latencies then count from "
                   "the moment at which a request was due, not from the one at which it could be sent."},
          {.name = "max-concurrency",
           .field = &O::max_concurrency,
           .value = std::optional<int64_t>(),
           .range = {1, 1e7},
           .read_by = "bench/run",
           .group = "Load",
           .help = "Requests under way at most; the next one waits until another has ended."},
          {.name = "warmup-requests",
           .field = &O::warmup_requests,
           .value = int64_t{1},
           .range = {0, 1e6},
           .read_by = "bench/run",
           .group = "Load",
           .help = "Requests before the measured ones, each the first prompt with 32 tokens at most; if all fail, the "
                   "run ends."},
          {.name = "flush-cache",
           .field = &O::flush_cache,
           .value = false,
           .read_by = "bench/run",
           .group = "Load",
           .help = "Empty the prefix cache of the server after the warm-up."},
          {.name = "disable-stream",
           .field = &O::disable_stream,
           .value = false,
           .read_by = "bench/run",
           .group = "Load",
           .help = "Ask for whole answers."},
          {.name = "disable-ignore-eos",
           .field = &O::disable_ignore_eos,
           .value = false,
           .read_by = "bench/run",
           .group = "Load",
           .help = "Let answers end where the model ends them."},
          {.name = "return-logprob",
           .field = &O::return_logprob,
           .value = false,
           .read_by = "bench/run",
           .group = "Load",
           .help = "Ask for log-probabilities; --backend sglang only."},
          {.name = "extra-request-body",
           .field = &O::extra_request_body,
           .value = std::optional<std::string>(),
           .metavar = "JSON",
           .read_by = "bench/run",
           .group = "Load",
           .help = "A JSON object whose members are put into every request, over those that are there."},
          {.name = "silence-timeout-secs",
           .field = &O::silence_timeout_secs,
           .value = int64_t{1800},
           .range = {1, 1e6},
           .read_by = "bench/run",
           .group = "Load",
           .help = "Seconds without a byte from the server after which a request has failed."},
          {.name = "disable-keep-alive",
           .field = &O::disable_keep_alive,
           .value = false,
           .read_by = "bench/run",
           .group = "Load",
           .help = "Open a connection for every request instead of using those of finished requests again."},
          {.name = "threads",
           .field = &O::threads,
           .value = int64_t{1},
           .range = {1, 1024},
           .read_by = "bench/run",
           .group = "Load",
           .help = "Event loops that send and read. One is enough unless the client's CPU, which the record of a run "
                   "holds, comes near a whole core."},
          {.name = "output-file",
           .field = &O::output_file,
           .value = std::optional<std::string>(),
           .metavar = "FILE",
           .read_by = "cli/bench",
           .group = "Results",
           .help = "Append the results as one line of JSON."},
          {.name = "output-details",
           .field = &O::output_details,
           .value = false,
           .read_by = "bench/run",
           .group = "Results",
           .help = "Put every request's lengths, times, text and error into that line as well."},
          {.name = "cache-report",
           .field = &O::cache_report,
           .value = false,
           .read_by = "bench/report",
           .group = "Results",
           .help = "Show how many prompt tokens the server had in its prefix cache."},
          {.name = "tag",
           .field = &O::tag,
           .value = std::optional<std::string>(),
           .read_by = "bench/report",
           .group = "Results",
           .help = "A word of yours for the line in the --output-file."},
          {.name = "disable-tqdm",
           .field = &O::disable_tqdm,
           .value = false,
           .read_by = "cli/bench",
           .group = "Results",
           .help = "No progress bar; without a terminal there is none anyway."},
      },
      rejected_flags());
  return table;
}

Result<void> validate(const BenchOptions& options) {
  const auto bad = [](std::string message) { return Error{ErrorCode::kBadOption, std::move(message)}; };
  SLUICE_TRY(const Backend backend, backend_named(options.backend));
  const bool from_file = options.dataset_name == "sharegpt" || options.dataset_name == "custom";
  const bool random = options.dataset_name == "random" || options.dataset_name == "random-ids";
  if (from_file && options.dataset_path.empty()) {
    return bad(
        fmt::format("--dataset-name {} needs --dataset-path; without a file, --dataset-name random makes prompts",
                    options.dataset_name));
  }
  if (options.apply_chat_template && (!from_file || !options.tokenizer)) {
    return bad("--apply-chat-template is for --dataset-name sharegpt and custom, and needs --tokenizer");
  }
  if (options.apply_chat_template && backend.api == Api::kChat) {
    return bad(fmt::format("--apply-chat-template with --backend {}: a chat endpoint applies the template itself",
                           options.backend));
  }
  if (options.tokenize_prompt && (!random || !options.tokenizer)) {
    return bad("--tokenize-prompt is for --dataset-name random and random-ids, and needs --tokenizer");
  }
  if (options.tokenize_prompt && backend.api == Api::kChat) {
    return bad(fmt::format("--tokenize-prompt with --backend {}: a chat endpoint takes text", options.backend));
  }
  if (options.gsp_num_turns > 1 && options.dataset_name == "generated-shared-prefix" && backend.api != Api::kChat) {
    return bad("--gsp-num-turns above 1 needs a chat backend: sglang-oai-chat, vllm-chat or lmdeploy-chat");
  }
  if (options.return_logprob && backend.api != Api::kGenerate) {
    return bad("--return-logprob is for --backend sglang; elsewhere put \"logprobs\" into --extra-request-body");
  }
  if (static_cast<double>(options.gsp_num_groups) * static_cast<double>(options.gsp_prompts_per_group) > kMany) {
    return bad("--gsp-num-groups times --gsp-prompts-per-group is too many requests");
  }
  return {};
}

nlohmann::ordered_json to_json(const BenchOptions& options) {
  nlohmann::ordered_json out;
  const auto& table = bench_option_table();
  for (size_t i = 0; i < table.size(); ++i) {
    // JSON has no number for "inf".
    const auto value = table.get(options, i);
    const auto* number = std::get_if<double>(&value);
    const std::string name(table.specs()[i].name);
    if (number && !std::isfinite(*number)) {
      out[name] = "inf";
    } else {
      out[name] = internal::option_value_to_json(value);
    }
  }
  // A key given as a header is nobody's business in a file of results.
  for (auto& header : out["header"]) {
    const auto text = header.get<std::string>();
    header = text.substr(0, text.find('=')) + "=...";
  }
  return out;
}

}  // namespace sluice::bench
