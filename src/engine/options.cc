#include "engine/options.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/grammar/grammar.h"
#include "engine/kv_publisher.h"
#include "engine/load_balance/method.h"
#include "engine/nodes/link.h"
#include "engine/schedule_policy.h"
#include "obs/trace_exporter.h"
#include "parallel/topology.h"
#include "parsers/reasoning.h"
#include "parsers/tool_calls.h"
#include "protocol/generate_body.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kModel = "Model";
constexpr std::string_view kHttp = "HTTP";
constexpr std::string_view kParallel = "Parallelism";
constexpr std::string_view kMemory = "Memory";
constexpr std::string_view kScheduling = "Scheduling";

std::vector<RejectedFlag> rejected_flags() {
  constexpr std::string_view kGraph = "there are no CUDA graphs on this device; leave it out.";
  constexpr std::string_view kPd = "prefill/decode disaggregation is outside the scope of this engine.";
  constexpr std::string_view kLora = "LoRA adapters are outside the scope of this engine; merge the adapter.";
  constexpr std::string_view kSpeculative = "speculative decoding is outside the scope of this engine.";
  constexpr std::string_view kMedia = "images, video and audio are outside the scope of this engine.";
  constexpr std::string_view kMetrics = "not built; --enable-metrics exports the metrics of every rank.";
  constexpr std::string_view kLogging = "request logging is not built; use --log-level debug.";
  constexpr std::string_view kGpuPlace = "there is no GPU backend in this build; leave it out.";
  std::vector<RejectedFlag> flags = {
      {"attn-cp-size", "context parallelism is not built; leave it out."},
      {"attention-context-parallel-size", "context parallelism is not built; leave it out."},
      {"moe-dp-size", "data parallelism of experts alone is not built; use --enable-dp-attention."},
      {"moe-data-parallel-size", "data parallelism of experts alone is not built; use --enable-dp-attention."},
      {"base-gpu-id", kGpuPlace},
      {"gpu-id-step", kGpuPlace},
      {"elastic-ep-backend", "fault-tolerant expert backends are outside the scope of this engine.", {"none"}},
      {"prefill-round-robin-balance", "it has no effect in the runtime that it comes from; leave it out."},
      {"num-continuous-decode-steps", "every step is scheduled by itself; leave it out."},
      {"enable-deterministic-inference",
       "results still depend on how many rows are multiplied at once; see --deterministic for what is fixed."},
      {"soft-watchdog-timeout", "a rank that hangs is always restarted; see --watchdog-timeout."},
      {"cuda-graph-max-bs", kGraph},
      {"cuda-graph-bs", kGraph},
      {"disable-cuda-graph", kGraph},
      {"disable-cuda-graph-padding", kGraph},
      {"deepep-config", "it tunes kernels of a library that is not used here; leave it out."},
      {"enable-expert-distribution-metrics", "sglang:eplb_balancedness is exported with --enable-eplb; leave it out."},
      {"disable-shared-experts-fusion", "shared experts are never fused with the others; leave it out."},
      {"enable-metrics-for-all-schedulers", kMetrics},
      {"extra-metric-labels", kMetrics},
      {"bucket-time-to-first-token", kMetrics},
      {"bucket-inter-token-latency", kMetrics},
      {"bucket-e2e-request-latency", kMetrics},
      {"collect-tokens-histogram", kMetrics},
      {"tokenizer-worker-num", "text is tokenized on the HTTP threads; leave it out."},
      {"skip-tokenizer-init", "the front process always loads the tokenizer; /generate takes input_ids all the same."},
      {"log-requests", kLogging},
      {"enable-ssl-refresh", "certificates are always read again when their files change; leave it out."},
      {"log-requests-level", kLogging},
      {"attention-backend", "the attention kernel follows --device; leave it out."},
      {"sampling-backend", "the sampler is our own; leave it out."},
      {"quantization", "weights are read as they are stored; leave it out."},
      {"trust-remote-code", "no code that comes with a model is ever run; leave it out."},
      {"disaggregation-mode", kPd, {"null"}},
  };
  const auto add = [&](std::string_view instead, std::initializer_list<std::string_view> names) {
    for (const std::string_view name : names) flags.push_back({name, instead});
  };
  add(kPd, {"disaggregation-transfer-backend", "disaggregation-bootstrap-port", "disaggregation-decode-tp",
            "disaggregation-decode-dp", "disaggregation-prefill-pp", "disaggregation-ib-device",
            "disaggregation-decode-enable-offload-kvcache", "disaggregation-decode-polling-interval",
            "disaggregation-decode-enable-fake-auto", "disaggregation-decode-enable-radix-cache",
            "disaggregation-decode-extra-slots", "disaggregation-decode-retraction-backup"});
  add(kLora, {"enable-lora", "enable-lora-overlap-loading", "lora-paths", "lora-backend", "lora-target-modules",
              "lora-eviction-policy", "lora-drain-wait-threshold", "lora-strict-loading", "lora-use-virtual-experts",
              "max-lora-rank", "max-loras-per-batch", "max-loaded-loras", "max-lora-chunk-size"});
  add(kMedia, {"enable-multimodal", "mm-attention-backend", "mm-max-concurrent-calls", "mm-per-request-timeout",
               "mm-enable-dp-encoder", "mm-process-config"});
  add(kSpeculative, {"speculative-algorithm",
                     "speculative-draft-model-path",
                     "speculative-draft-model",
                     "speculative-draft-model-revision",
                     "speculative-draft-model-quantization",
                     "speculative-draft-load-format",
                     "speculative-draft-attention-backend",
                     "speculative-draft-kv-cache-dtype",
                     "speculative-draft-window-size",
                     "speculative-num-steps",
                     "speculative-num-draft-tokens",
                     "speculative-eagle-topk",
                     "speculative-accept-threshold-single",
                     "speculative-accept-threshold-acc",
                     "speculative-token-map",
                     "speculative-attention-mode",
                     "speculative-moe-runner-backend",
                     "speculative-moe-a2a-backend",
                     "speculative-skip-dp-mlp-sync",
                     "speculative-use-rejection-sampling",
                     "speculative-adaptive",
                     "speculative-adaptive-config",
                     "speculative-ngram-min-match-window-size",
                     "speculative-ngram-max-match-window-size",
                     "speculative-ngram-min-bfs-breadth",
                     "speculative-ngram-max-bfs-breadth",
                     "speculative-ngram-match-type",
                     "speculative-ngram-branch-length",
                     "speculative-ngram-max-trie-depth",
                     "speculative-ngram-capacity",
                     "speculative-ngram-external-corpus-path",
                     "speculative-ngram-external-corpus-max-tokens",
                     "speculative-ngram-external-sam-budget",
                     "speculative-dflash-block-size",
                     "speculative-dflash-draft-window-size",
                     "speculative-dspark-block-size",
                     "speculative-dspark-align-verify-tokens-to-graph-tier",
                     "speculative-dspark-confidence-sts-path",
                     "speculative-dspark-sps-table-path"});
  return flags;
}

// As Prometheus has them; names that begin with two underscores are its own.
bool is_label(std::string_view name) {
  const auto letter = [](char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  const auto valid = [&](char c) { return letter(c) || std::isdigit(static_cast<unsigned char>(c)) != 0; };
  return !name.empty() && letter(name.front()) && !name.starts_with("__") && std::ranges::all_of(name, valid);
}

// Why these names cannot be labels of the metrics of requests; empty: they can.
std::string why_no_labels(const StringList& names) {
  if (names.size() > protocol::kMaxLabels) {
    return fmt::format("at most {} labels, got {}", protocol::kMaxLabels, names.size());
  }
  std::set<std::string_view> seen = {"model_name", "cache_source", "le"};
  for (const std::string& name : names) {
    if (!is_label(name)) return fmt::format("'{}' is not a name of letters, digits and underscores", name);
    if (!seen.insert(name).second) return fmt::format("'{}' is a label already", name);
  }
  return {};
}

}  // namespace

const OptionTable<EngineOptions>& engine_option_table() {
  using O = EngineOptions;
  using OptInt = std::optional<int64_t>;
  using OptFloat = std::optional<double>;
  using OptText = std::optional<std::string>;
  static const OptionTable<O> table(
      {
          {.name = "model-path",
           .aliases = {"model"},
           .field = &O::model_path,
           .value = std::string(),
           .metavar = "PATH",
           .read_by = "engine/front",
           .group = kModel,
           .help = "A folder with config.json, a .gguf file, or a hub name in the local Hugging Face cache. Required."},
          {.name = "tokenizer-path",
           .field = &O::tokenizer_path,
           .value = OptText(),
           .metavar = "PATH",
           .read_by = "engine/model_files",
           .group = kModel,
           .help = "Where the tokenizer is, if not with the model."},
          {.name = "chat-template",
           .field = &O::chat_template,
           .value = OptText(),
           .metavar = "FILE",
           .read_by = "engine/front",
           .group = kModel,
           .help = "A Jinja file to use instead of the model's template."},
          {.name = "reasoning-parser",
           .field = &O::reasoning_parser,
           .value = OptText(),
           .choices = parsers::reasoning_format_names(),
           .read_by = "engine/http_api",
           .group = kModel,
           .help = "How the model marks its reasoning: chats then have it as reasoning_content. Default: it is left in "
                   "the text."},
          {.name = "tool-call-parser",
           .field = &O::tool_call_parser,
           .value = OptText(),
           .choices = parsers::tool_call_format_names(),
           .read_by = "engine/http_api",
           .group = kModel,
           .help = "How the model writes calls of functions: chats that offer tools then have them as tool_calls. "
                   "Default: they are left in the text."},
          {.name = "served-model-name",
           .field = &O::served_model_name,
           .value = OptText(),
           .metavar = "NAME",
           .read_by = "engine/front",
           .group = kModel,
           .help = "The name in /v1/models and in answers; default: the model path."},
          {.name = "weight-version",
           .field = &O::weight_version,
           .value = std::string("default"),
           .read_by = "engine/http_api",
           .group = kModel,
           .help = "A label for the weights, shown in answers."},
          {.name = "device",
           .field = &O::device,
           .value = std::string("cpu"),
           .choices = {"cpu", "sim"},
           .read_by = "engine/rank",
           .group = kModel,
           .help = "Where the model runs. sim is a test device whose memory the host cannot touch."},
          {.name = "dtype",
           .field = &O::dtype,
           .value = std::string("auto"),
           .choices = {"auto", "bfloat16", "float32"},
           .read_by = "engine/rank",
           .group = kModel,
           .help = "Arithmetic of the matrix products; auto is bfloat16 where the machine has it, and takes quantised "
                   "weights as they are, with inputs in 8 bits where that is faster: for few rows, and for all without "
                   "AMX. bfloat16 widens them when they are "
                   "loaded, to two bytes each; float32 rounds nothing."},
          {.name = "kv-cache-dtype",
           .field = &O::kv_cache_dtype,
           .value = std::string("auto"),
           .choices = {"auto", "bf16", "bfloat16", "fp8_e4m3"},
           .read_by = "engine/rank",
           .group = kMemory,
           .help =
               "Type of the KV cache; auto is that of --dtype. fp8_e4m3 has a scale for each head's keys and values "
               "of a token, of latents for each 64, and holds nearly twice the tokens of bfloat16."},
          {.name = "context-length",
           .field = &O::context_length,
           .value = OptInt(),
           .range = {8, 1e9},
           .read_by = "engine/rank",
           .group = kModel,
           .help = "Longest sequence; default: the model's."},
          {.name = "load-format",
           .field = &O::load_format,
           .value = std::string("auto"),
           .choices = {"auto", "safetensors", "gguf", "dummy"},
           .read_by = "engine/rank",
           .group = kModel,
           .help =
               "auto, safetensors and gguf: what the files are. dummy: weights of the configured shapes that nobody "
               "trained, for measuring; the folder needs config.json and a tokenizer only."},
          {.name = "json-model-override-args",
           .field = &O::json_model_override_args,
           .value = OptText(),
           .metavar = "JSON",
           .read_by = "engine/front",
           .group = kModel,
           .help = "An object whose members take the place of config.json's, such as {\"num_hidden_layers\": 4}."},

          {.name = "host",
           .field = &O::host,
           .value = std::string("127.0.0.1"),
           .read_by = "engine/front",
           .group = kHttp,
           .help = "Address to listen on: a name, IPv4 or IPv6."},
          {.name = "port",
           .field = &O::port,
           .value = int64_t{30000},
           .range = {0, 65535},
           .read_by = "engine/front",
           .group = kHttp,
           .help = "Port to listen on; 0 takes a free one and prints it."},
          {.name = "api-key",
           .field = &O::api_key,
           .value = OptText(),
           .metavar = "KEY",
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Bearer key that normal endpoints ask for."},
          {.name = "admin-api-key",
           .field = &O::admin_api_key,
           .value = OptText(),
           .metavar = "KEY",
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Bearer key that admin endpoints ask for; default: the API key."},
          {.name = "ssl-certfile",
           .field = &O::ssl_certfile,
           .value = OptText(),
           .metavar = "FILE",
           .read_by = "engine/certificates",
           .group = kHttp,
           .help = "Serve HTTPS with this certificate and its chain, in PEM form; read again when the file changes."},
          {.name = "ssl-keyfile",
           .field = &O::ssl_keyfile,
           .value = OptText(),
           .metavar = "FILE",
           .read_by = "engine/certificates",
           .group = kHttp,
           .help = "Private key of --ssl-certfile, in PEM form."},
          {.name = "ssl-keyfile-password",
           .field = &O::ssl_keyfile_password,
           .value = OptText(),
           .metavar = "PASSWORD",
           .read_by = "engine/certificates",
           .group = kHttp,
           .help = "Of --ssl-keyfile, if it is encrypted."},
          {.name = "ssl-ca-certs",
           .field = &O::ssl_ca_certs,
           .value = OptText(),
           .metavar = "FILE",
           .read_by = "engine/certificates",
           .group = kHttp,
           .help = "Authorities in PEM form: a client must have a certificate of one of them."},
          {.name = "skip-server-warmup",
           .field = &O::skip_server_warmup,
           .value = false,
           .read_by = "engine/front",
           .group = kHttp,
           .help = "Report ready without generating one token on every rank first."},
          {.name = "allow-auto-truncate",
           .field = &O::allow_auto_truncate,
           .value = false,
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Cut a prompt that is longer than the context instead of refusing it."},
          {.name = "stream-output",
           .aliases = {"incremental-streaming-output"},
           .field = &O::stream_output,
           .value = false,
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Streamed /generate answers carry only the new output_ids."},
          {.name = "enable-cache-report",
           .field = &O::enable_cache_report,
           .value = false,
           .read_by = "engine/options",
           .group = kHttp,
           .help = "Report cached tokens in usage: the default here."},
          {.name = "disable-cache-report",
           .field = &O::disable_cache_report,
           .value = false,
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Leave cached tokens out of usage."},
          {.name = "is-embedding",
           .field = &O::is_embedding,
           .value = false,
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Serve /v1/embeddings and /encode: the last token's hidden state, of unit length."},
          {.name = "enable-return-hidden-states",
           .field = &O::enable_return_hidden_states,
           .value = false,
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Allow return_hidden_states in requests."},
          {.name = "enable-return-routed-experts",
           .field = &O::enable_return_routed_experts,
           .value = false,
           .read_by = "engine/rank",
           .group = kHttp,
           .help = "Allow return_routed_experts in requests: the routers' choices are kept beside the KV cache, in two "
                   "bytes for each token, layer and expert."},
          {.name = "max-stored-responses",
           .field = &O::max_stored_responses,
           .value = int64_t{1000},
           .range = {0, 1e6},
           .read_by = "engine/http_api",
           .group = kHttp,
           .help =
               "Answers of /v1/responses that are kept in memory to be fetched and gone on from, the latest used; as "
               "many may go on in the background. 0: none."},
          {.name = "max-stored-response-mb",
           .field = &O::max_stored_response_mb,
           .value = int64_t{64},
           .range = {1, 1e6},
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "MiB that they take at most, each with the conversation before it."},
          {.name = "enable-metrics",
           .field = &O::enable_metrics,
           .value = false,
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Serve /metrics."},
          {.name = "tokenizer-metrics-allowed-custom-labels",
           .field = &O::tokenizer_metrics_allowed_custom_labels,
           .value = StringList(),
           .metavar = "NAME",
           .read_by = "engine/http_api",
           .group = kHttp,
           .help =
               "Labels that clients may put on the metrics of their requests, in custom_labels or a header: at most "
               "16. Of their values 100 different sets are counted by themselves, all further ones as 'other'."},
          {.name = "tokenizer-metrics-custom-labels-header",
           .field = &O::tokenizer_metrics_custom_labels_header,
           .value = std::string("x-custom-labels"),
           .metavar = "NAME",
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Header with such labels, as a JSON object."},
          {.name = "enable-trace",
           .field = &O::enable_trace,
           .value = false,
           .read_by = "engine/http_api",
           .group = kHttp,
           .help =
               "Send a trace of each request that goes to a rank to an OpenTelemetry receiver; OTEL_SERVICE_NAME of "
               "the environment names the service."},
          {.name = "otlp-traces-endpoint",
           .aliases = {"oltp-traces-endpoint"},
           .field = &O::otlp_traces_endpoint,
           .value = std::string("localhost:4317"),
           .metavar = "ENDPOINT",
           .read_by = "engine/http_api",
           .group = kHttp,
           .help = "Where traces go: host:port for OTLP over gRPC, grpcs://host:port for the same over TLS, a URL for "
                   "OTLP over HTTP."},
          {.name = "log-level",
           .field = &O::log_level,
           .value = std::string("info"),
           .choices = {"debug", "info", "warning", "error"},
           .read_by = "engine/rank",
           .group = kHttp,
           .help = "Least severe lines that are logged."},
          {.name = "log-json",
           .field = &O::log_json,
           .value = false,
           .read_by = "engine/rank",
           .group = kHttp,
           .help = "Log lines as JSON objects."},

          {.name = "layout",
           .field = &O::layout,
           .value = std::string("given"),
           .choices = {"given", "auto"},
           .read_by = "engine/front",
           .group = kParallel,
           .help = "auto chooses --tp-size, --dp-size, --enable-dp-attention, --ep-size, --moe-a2a-backend and what "
                   "goes with "
                   "them by what "
                   "sluice explain predicts for this machine, and logs why; a --tp-size that is given stays."},
          {.name = "dp-size",
           .aliases = {"data-parallel-size", "dp"},
           .field = &O::dp_size,
           .value = int64_t{1},
           .range = {1, 1024},
           .read_by = "engine/front",
           .group = kParallel,
           .help =
               "Replicas of the model, each with its own KV cache; with --enable-dp-attention the attention groups of "
               "one instance."},
          {.name = "load-balance-method",
           .field = &O::load_balance_method,
           .value = std::string("auto"),
           .choices = load_balance_names(),
           .read_by = "engine/front",
           .group = kParallel,
           .help = "How a request finds its replica: in turn (auto is round_robin), where the fewest requests are, or "
                   "where the fewest tokens are. The last three are older names."},
          {.name = "threads",
           .field = &O::threads,
           .value = OptInt(),
           .range = {1, 4096},
           .read_by = "engine/rank",
           .group = kParallel,
           .help = "Threads of each rank; default: the cores divided among the ranks."},
          {.name = "tp-size",
           .aliases = {"tensor-parallel-size", "tp"},
           .field = &O::tp_size,
           .value = int64_t{1},
           .range = {1, 1024},
           .read_by = "engine/layout_options",
           .group = kParallel,
           .help = "Ranks that an instance of the model is divided among."},
          {.name = "pp-size",
           .aliases = {"pipeline-parallel-size"},
           .field = &O::pp_size,
           .value = int64_t{1},
           .range = {1, 1024},
           .read_by = "engine/options",
           .group = kParallel,
           .help = "Pipeline parallelism; only 1 is built."},
          {.name = "ep-size",
           .aliases = {"expert-parallel-size", "ep"},
           .field = &O::ep_size,
           .value = int64_t{1},
           .range = {1, 1024},
           .read_by = "engine/layout_options",
           .group = kParallel,
           .help = "Parts that the experts of a layer are divided into; divides --tp-size. deepep sets it to that."},
          {.name = "enable-dp-attention",
           .field = &O::enable_dp_attention,
           .value = false,
           .read_by = "engine/layout_options",
           .group = kParallel,
           .help = "Divide the ranks of an instance into --dp-size groups that compute attention for requests of their "
                   "own, with a KV cache of their own; FFNs and experts stay divided among all ranks."},
          {.name = "enable-dp-lm-head",
           .field = &O::enable_dp_lm_head,
           .value = false,
           .read_by = "engine/layout_options",
           .group = kParallel,
           .help = "With DP attention: the head is divided within an attention group only."},
          {.name = "dp-fixed-shape-max-bs",
           .field = &O::dp_fixed_shape_max_bs,
           .value = int64_t{0},
           .range = {0, 65536},
           .read_by = "engine/layout_options",
           .group = kParallel,
           .help = "With DP attention: steps in which nobody prefills and no group has more tokens than this have a "
                   "fixed shape, as devices that replay steps want it (MAX_LEN, for --cuda-graph-max-bs): every "
                   "group's rows are filled up to those of the group with most, rounded up to 1, 2, 4 or a multiple "
                   "of 8. It costs bytes and arithmetic, and gains nothing on this device. 0: exact lengths."},
          {.name = "moe-dense-tp-size",
           .field = &O::moe_dense_tp_size,
           .value = OptInt(),
           .range = {1, 1},
           .read_by = "engine/layout_options",
           .group = kParallel,
           .help = "1: dense FFNs are whole on every rank, which computes its own tokens; default: divided among all."},
          {.name = "moe-a2a-backend",
           .field = &O::moe_a2a_backend,
           .value = std::string("none"),
           .choices = {"none", "deepep"},
           .read_by = "engine/layout_options",
           .group = kParallel,
           .help =
               "How tokens reach their experts: none gathers all tokens on every rank, deepep sends each to the ranks "
               "of its experts."},
          {.name = "moe-runner-backend",
           .field = &O::moe_runner_backend,
           .value = std::string("auto"),
           .choices = {"auto", "deep_gemm", "triton", "triton_kernel", "flashinfer_trtllm", "flashinfer_cutlass",
                       "flashinfer_mxfp4", "flashinfer_cutedsl", "cutlass"},
           .read_by = "engine/front",
           .group = kParallel,
           .help = "Taken for compatibility and logged: experts are multiplied by this engine's own grouped products."},
          {.name = "deepep-mode",
           .field = &O::deepep_mode,
           .value = std::string("auto"),
           .choices = {"auto", "normal", "low_latency"},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help =
               "With deepep: normal sends a token once to each rank of its experts, low_latency once to each of its "
               "experts, into a slab of fixed size; auto is normal in steps in which a rank prefills or has more "
               "tokens than the slab takes, and low_latency in the others."},
          {.name = "deepep-num-max-dispatch-tokens-per-rank",
           .field = &O::deepep_num_max_dispatch_tokens_per_rank,
           .value = OptInt(),
           .range = {1, 1024},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help =
               "With --deepep-mode low_latency or auto: tokens that a rank may have in a step that goes through the "
               "slab; default: SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK of the first host, or 128, but with auto "
               "no more than a step that only decodes can have."},
          {.name = "deepep-dispatch-dtype",
           .field = &O::deepep_dispatch_dtype,
           .value = std::string("auto"),
           .choices = {"auto", "fp8_e4m3"},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help =
               "What deepep sends rows to their experts as: auto (that of --dtype), or fp8_e4m3 with a float32 scale "
               "for each 128 values, which SGLANG_DEEPEP_BF16_DISPATCH=0 means too. Results come back in float32."},
          {.name = "enable-single-batch-overlap",
           .field = &O::enable_single_batch_overlap,
           .value = false,
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "With deepep: the experts that every token passes are computed while rows are on their way to the "
                   "others and back. Instances on several hosts do so without the flag."},
          {.name = "enable-two-batch-overlap",
           .field = &O::enable_two_batch_overlap,
           .value = false,
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help =
               "With deepep: a step's batch is computed in two halves, one while rows of the other are on their way, "
               "where every rank can split its batch and all prefill or all decode."},
          {.name = "tbo-token-distribution-threshold",
           .field = &O::tbo_token_distribution_threshold,
           .value = OptFloat(),
           .range = {0, 0.5},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "With --enable-two-batch-overlap: sequences stay whole where the smaller half has this share of the "
                   "tokens at least (0.48); else one is cut, so that the halves are equal."},
          {.name = "ep-num-redundant-experts",
           .field = &O::ep_num_redundant_experts,
           .value = int64_t{0},
           .range = {0, 65536},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "Copies of experts in each layer, beyond one of each. Experts and copies together are divided by "
                   "--ep-size."},
          {.name = "init-expert-location",
           .field = &O::init_expert_location,
           .value = std::string("trivial"),
           .metavar = "FILE|JSON",
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "Where experts and their copies are: trivial (one after another, and again from the first on), or a "
                   ".json file or JSON with physical_to_logical_map, or with the logical_count of "
                   "/dump_expert_distribution_record, which are balanced then."},
          {.name = "ep-dispatch-algorithm",
           .field = &O::ep_dispatch_algorithm,
           .value = OptText(),
           .choices = {"static", "dynamic"},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "Which copy of an expert a token goes to: static its own rank's, else one that is shared out among "
                   "the ranks; dynamic any, at random. Default: static."},
          {.name = "enable-eplb",
           .field = &O::enable_eplb,
           .value = false,
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "Move experts from rank to rank while the server runs, so that all ranks get about as many tokens."},
          {.name = "eplb-rebalance-num-iterations",
           .field = &O::eplb_rebalance_num_iterations,
           .value = OptInt(),
           .range = {1, 1e9},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "With --enable-eplb: steps of the instance whose loads decide where experts go. Default: 1000."},
          {.name = "eplb-rebalance-layers-per-chunk",
           .field = &O::eplb_rebalance_layers_per_chunk,
           .value = OptInt(),
           .range = {1, 65536},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "With --enable-eplb: layers whose experts move between two steps. Default: all."},
          {.name = "eplb-min-rebalancing-utilization-threshold",
           .field = &O::eplb_min_rebalancing_utilization_threshold,
           .value = OptFloat(),
           .range = {0, 1},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help =
               "With --enable-eplb: nothing moves where the balancedness of the steps (the mean tokens of a rank, by "
               "the most) is above this already. Default: 1."},
          {.name = "eplb-algorithm",
           .field = &O::eplb_algorithm,
           .value = OptText(),
           .choices = {"auto", "deepseek", "deepseek_hierarchical"},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "How --enable-eplb balances loads, and --init-expert-location a logical_count: deepseek over all "
                   "ranks, deepseek_hierarchical groups of experts over nodes first. Default: auto, hierarchical where "
                   "the groups divide."},
          {.name = "expert-distribution-recorder-mode",
           .field = &O::expert_distribution_recorder_mode,
           .value = OptText(),
           .choices = {"stat", "stat_approx", "per_pass", "per_token"},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "What /start_expert_distribution_record records of the experts' loads: stat their sums (stat_approx "
                   "the same), per_pass each step, per_token the experts of each token."},
          {.name = "expert-distribution-recorder-buffer-size",
           .field = &O::expert_distribution_recorder_buffer_size,
           .value = OptInt(),
           .range = {-1, 1e9},
           .read_by = "engine/expert_options",
           .group = kParallel,
           .help = "Steps that a recording keeps, the latest; -1 all. Default: 1000."},
          {.name = "nnodes",
           .field = &O::nnodes,
           .value = int64_t{1},
           .range = {1, 1024},
           .read_by = "engine/layout_options",
           .group = kParallel,
           .help =
               "Hosts that the ranks of the instance are divided among; divides --tp-size. The same command runs on "
               "each of them, with its own --node-rank."},
          {.name = "node-rank",
           .field = &O::node_rank,
           .value = int64_t{0},
           .range = {0, 1023},
           .read_by = "cli/server",
           .group = kParallel,
           .help = "Which of the hosts this is. 0 has the front and answers requests; the others run its ranks."},
          {.name = "dist-init-addr",
           .aliases = {"nccl-init-addr"},
           .field = &O::dist_init_addr,
           .value = OptText(),
           .metavar = "HOST:PORT",
           .read_by = "engine/nodes/join_point",
           .group = kParallel,
           .help =
               "With --nnodes 2 or more: an address of node 0 at which the others reach it, and a port that is free "
               "there. Whoever reaches that network can join: keep it between the hosts."},
          {.name = "gloo-socket-ifname",
           .field = &O::gloo_socket_ifname,
           .value = OptText(),
           .metavar = "INTERFACE",
           .read_by = "engine/nodes/interface",
           .group = kParallel,
           .help = "With --nnodes 2 or more: the network interface of this host by which its ranks and those of other "
                   "hosts reach each other; default: GLOO_SOCKET_IFNAME, or the one that leads to node 0. Each host "
                   "has its own."},

          {.name = "mem-fraction-static",
           .field = &O::mem_fraction_static,
           .value = OptFloat(),
           .range = {0.01, 1.0},
           .read_by = "engine/memory_plan",
           .group = kMemory,
           .help = "Share of this rank's memory for weights and KV cache; default: 0.5 of the host's memory limit "
                   "divided among the ranks."},
          {.name = "max-total-tokens",
           .field = &O::max_total_tokens,
           .value = OptInt(),
           .range = {16, 1e12},
           .read_by = "engine/memory_plan",
           .group = kMemory,
           .help = "Tokens of KV cache per rank; can only lower what memory allows."},
          {.name = "page-size",
           .field = &O::page_size,
           .value = int64_t{1},
           .range = {1, 1024},
           .read_by = "engine/rank",
           .group = kMemory,
           .help = "Tokens per page of KV cache. Prefixes are shared, and KV events told, in whole pages."},
          {.name = "disable-radix-cache",
           .field = &O::disable_radix_cache,
           .value = false,
           .read_by = "engine/scheduler_setup",
           .group = kMemory,
           .help = "Share no prefixes between requests."},
          {.name = "radix-eviction-policy",
           .field = &O::radix_eviction_policy,
           .value = std::string("lru"),
           .choices = {"lru", "lfu"},
           .read_by = "engine/scheduler_setup",
           .group = kMemory,
           .help = "Which cached prefix goes first: lru the one used longest ago, lfu the one used by the fewest "
                   "requests."},
          {.name = "kv-events-config",
           .field = &O::kv_events_config,
           .value = OptText(),
           .metavar = "JSON",
           .read_by = "engine/rank",
           .group = kMemory,
           .help =
               "Publish what happens to the prefix cache over ZeroMQ, for gateways: publisher (zmq), endpoint, "
               "replay_endpoint, topic, buffer_steps, hwm, max_queue_size. Each rank adds its number to the ports."},

          {.name = "max-running-requests",
           .field = &O::max_running_requests,
           .value = OptInt(),
           .range = {1, 65536},
           .read_by = "engine/memory_plan",
           .group = kScheduling,
           .help = "Requests of a rank that run at once; default: half the tokens of the pool, at most 256."},
          {.name = "max-queued-requests",
           .field = &O::max_queued_requests,
           .value = OptInt(),
           .range = {1, 1e9},
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Requests of a rank that wait; beyond it a request gets 503. Default: no limit."},
          {.name = "chunked-prefill-size",
           .field = &O::chunked_prefill_size,
           .value = OptInt(),
           .range = {-1, 1e9},
           .read_by = "engine/memory_plan",
           .group = kScheduling,
           .help = "Prompt tokens of one step; longer prompts are cut. -1 cuts at --max-prefill-tokens only. Default: "
                   "512 on cpu."},
          {.name = "max-prefill-tokens",
           .field = &O::max_prefill_tokens,
           .value = int64_t{16384},
           .range = {1, 1e9},
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Prompt tokens of one prefill batch; its first request may exceed it."},
          {.name = "prefill-max-requests",
           .field = &O::prefill_max_requests,
           .value = OptInt(),
           .range = {1, 1e9},
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Requests of one prefill batch; default: no limit."},
          {.name = "grammar-backend",
           .field = &O::grammar_backend,
           .value = OptText(),
           .choices = {"xgrammar", "none"},
           .read_by = "engine/rank",
           .group = kScheduling,
           .help = "What holds answers to regex, json_schema, ebnf and response_format; none refuses them. Default: "
                   "xgrammar, where the build has it."},
          {.name = "schedule-policy",
           .field = &O::schedule_policy,
           .value = std::string("fcfs"),
           .choices = schedule_policy_names(),
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Order of waiting requests: fcfs by arrival; lpm longest cached prefix first; dfs-weight those with "
                   "a common prefix together; lof most output tokens first; random; priority is fcfs with "
                   "--enable-priority-scheduling; routing-key those first whose key runs already."},
          {.name = "schedule-conservativeness",
           .field = &O::schedule_conservativeness,
           .value = 1.0,
           .range = {0.0, 100.0},
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Larger values reserve more of the pool for output tokens, so that fewer requests are retracted."},
          {.name = "enable-priority-scheduling",
           .field = &O::enable_priority_scheduling,
           .value = false,
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Requests with a larger priority go first, and may take the place of running ones. With fcfs or "
                   "lof."},
          {.name = "abort-on-priority-when-disabled",
           .field = &O::abort_on_priority_when_disabled,
           .value = false,
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Without priority scheduling, answer a request that has a priority with 503."},
          {.name = "priority-scheduling-preemption-threshold",
           .field = &O::priority_scheduling_preemption_threshold,
           .value = int64_t{10},
           .range = {0, 1e9},
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "A request takes the place of a running one if its priority is larger by more than this."},
          {.name = "schedule-low-priority-values-first",
           .field = &O::schedule_low_priority_values_first,
           .value = false,
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Small priorities are the urgent ones."},
          {.name = "enable-mixed-chunk",
           .field = &O::enable_mixed_chunk,
           .value = false,
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "Running requests go on decoding in the steps that compute prompts."},
          {.name = "mixed-chunk-gap",
           .field = &O::mixed_chunk_gap,
           .value = 3.0,
           .range = {1.5, 1000.0},
           .read_by = "engine/scheduler_setup",
           .group = kScheduling,
           .help = "With --enable-mixed-chunk: times the length of a decode step that a step may take because of the "
                   "prompt tokens in it; with DP attention also where it is another group that decodes."},
          {.name = "disable-overlap-schedule",
           .field = &O::disable_overlap_schedule,
           .value = false,
           .read_by = "engine/rank",
           .group = kScheduling,
           .help = "A step is planned once the one before it is over, instead of while that is computed; always so on "
                   "--device cpu."},
          {.name = "enable-prefill-delayer",
           .field = &O::enable_prefill_delayer,
           .value = false,
           .read_by = "engine/rank",
           .group = kScheduling,
           .help = "With DP attention: while some group decodes, prompts wait until every group has one, so that they "
                   "hold up decoding once."},
          {.name = "prefill-delayer-max-delay-passes",
           .field = &O::prefill_delayer_max_delay_passes,
           .value = int64_t{30},
           .range = {1, 1e6},
           .read_by = "engine/rank",
           .group = kScheduling,
           .help = "A prompt waits for fewer steps than this."},
          {.name = "prefill-delayer-token-usage-low-watermark",
           .field = &O::prefill_delayer_token_usage_low_watermark,
           .value = std::optional<double>(),
           .range = {0, 1},
           .read_by = "engine/rank",
           .group = kScheduling,
           .help = "Prompts of all groups wait no longer once one waits in a group that uses a smaller share of its "
                   "KV pool."},
          {.name = "stream-interval",
           .field = &O::stream_interval,
           .value = int64_t{1},
           .range = {1, 1e6},
           .read_by = "engine/http_api",
           .group = kScheduling,
           .help = "Tokens between two events of a stream."},
          {.name = "random-seed",
           .field = &O::random_seed,
           .value = OptInt(),
           .range = {0, 9e15},
           .read_by = "engine/rank",
           .group = kScheduling,
           .help = "Seed of sampling for requests that bring none; default: from the machine's entropy."},
          {.name = "deterministic",
           .field = &O::deterministic,
           .value = false,
           .read_by = "engine/deterministic",
           .group = kScheduling,
           .help =
               "Greedy tokens are those of one rank, in every layout, up to near ties of float32, which --dtype auto "
               "is then; what depends on chance or on other requests is refused, and requests without a seed have "
               "that of --random-seed (42)."},
          {.name = "decode-log-interval",
           .field = &O::decode_log_interval,
           .value = int64_t{40},
           .range = {1, 1e9},
           .read_by = "engine/rank",
           .group = kScheduling,
           .help = "Decode steps between two log lines of a rank."},
          {.name = "watchdog-timeout",
           .field = &O::watchdog_timeout,
           .value = 4.0,
           .range = {2, 1e9},
           .read_by = "engine/front",
           .group = kScheduling,
           .help = "Seconds without progress after which a busy rank counts as hung, and is restarted; however long a "
                   "step takes, it makes progress with each piece of its work. Ranks that step together find each "
                   "other; one that is stopped while it loads is found by the front."},
      },
      rejected_flags());
  return table;
}

std::string grammar_backend(const EngineOptions& options) {
  return options.grammar_backend.value_or(std::string(grammar_backend_names().front()));
}

namespace {

Result<void> check_nodes(const EngineOptions& options) {
  const auto refuse = [](std::string message) { return Error{ErrorCode::kBadOption, std::move(message)}; };
  if (options.node_rank >= options.nnodes) {
    return refuse(fmt::format("--node-rank {} must be from 0 to {} with --nnodes {}", options.node_rank,
                              options.nnodes - 1, options.nnodes));
  }
  if (options.nnodes == 1) {
    for (const auto& [name, given] : {std::pair{"dist-init-addr", &options.dist_init_addr},
                                      std::pair{"gloo-socket-ifname", &options.gloo_socket_ifname}}) {
      if (*given) {
        return refuse(fmt::format("--{} {} is of --nnodes 2 or more; leave it out on one host", name, **given));
      }
    }
    return {};
  }
  if (options.dp_size > 1 && !options.enable_dp_attention) {
    return refuse(
        fmt::format("--dp-size {} with --nnodes {} needs --enable-dp-attention; for replicas on several hosts "
                    "run one server on each, and `sluice gateway --worker-urls` before them",
                    options.dp_size, options.nnodes));
  }
  if (options.tp_size % options.nnodes != 0) {
    return refuse(fmt::format("--nnodes {} does not divide --tp-size {}; the nearest values that do: {}",
                              options.nnodes, options.tp_size,
                              fmt::join(parallel::nearest_divisors(options.tp_size, options.nnodes), ", ")));
  }
  if (!options.dist_init_addr) {
    return refuse(fmt::format("--nnodes {} needs --dist-init-addr: host:port of node 0", options.nnodes));
  }
  SLUICE_TRY_VOID(parse_endpoint("--dist-init-addr", *options.dist_init_addr));
  return {};
}

// What only says how experts are moved must not be ignored where they are not.
Result<void> check_eplb(const EngineOptions& options) {
  if (options.enable_eplb) return {};
  const std::pair<std::string_view, bool> given[] = {
      {"rebalance-num-iterations", options.eplb_rebalance_num_iterations.has_value()},
      {"rebalance-layers-per-chunk", options.eplb_rebalance_layers_per_chunk.has_value()},
      {"min-rebalancing-utilization-threshold", options.eplb_min_rebalancing_utilization_threshold.has_value()}};
  for (const auto& [name, is_given] : given) {
    if (is_given) return Error{ErrorCode::kBadOption, fmt::format("--eplb-{} needs --enable-eplb", name)};
  }
  return {};
}

}  // namespace

Result<void> check_engine_options(const EngineOptions& options) {
  if (options.prefill_delayer_token_usage_low_watermark && !options.enable_prefill_delayer) {
    return Error{ErrorCode::kBadOption, "--prefill-delayer-token-usage-low-watermark needs --enable-prefill-delayer"};
  }
  const EngineOptions defaults = engine_option_table().defaults();
  if (options.prefill_delayer_max_delay_passes != defaults.prefill_delayer_max_delay_passes &&
      !options.enable_prefill_delayer) {
    return Error{ErrorCode::kBadOption, "--prefill-delayer-max-delay-passes needs --enable-prefill-delayer"};
  }
  if (options.mixed_chunk_gap != defaults.mixed_chunk_gap && !options.enable_mixed_chunk) {
    return Error{ErrorCode::kBadOption, "--mixed-chunk-gap needs --enable-mixed-chunk"};
  }
  if (options.ssl_certfile.has_value() != options.ssl_keyfile.has_value()) {
    return Error{ErrorCode::kBadOption, "--ssl-certfile and --ssl-keyfile need each other"};
  }
  if (!options.ssl_certfile && (options.ssl_keyfile_password || options.ssl_ca_certs)) {
    return Error{ErrorCode::kBadOption, "--ssl-keyfile-password and --ssl-ca-certs need --ssl-certfile"};
  }
  if (options.model_path.empty()) {
    return Error{ErrorCode::kBadOption, "--model-path is required: a folder, a .gguf file or a hub name"};
  }
  if (options.grammar_backend && find_grammar_backend(*options.grammar_backend) == nullptr) {
    return Error{ErrorCode::kBadOption, fmt::format("--grammar-backend {} is not in this build (SLUICE_GRAMMAR=OFF)",
                                                    *options.grammar_backend)};
  }
  if (options.pp_size != 1) {
    return Error{
        ErrorCode::kBadOption,
        fmt::format("--pp-size must be 1, not {}: pipeline parallelism is not built; use --dp-size for replicas",
                    options.pp_size)};
  }
  SLUICE_TRY_VOID(check_nodes(options));
  SLUICE_TRY_VOID(check_eplb(options));
  if (options.expert_distribution_recorder_buffer_size) {
    if (!options.expert_distribution_recorder_mode) {
      return Error{ErrorCode::kBadOption,
                   "--expert-distribution-recorder-buffer-size needs --expert-distribution-recorder-mode"};
    }
    if (*options.expert_distribution_recorder_buffer_size == 0) {
      return Error{ErrorCode::kBadOption,
                   "--expert-distribution-recorder-buffer-size must be positive, or -1 to keep all steps"};
    }
  }
  const bool is_gguf = options.model_path.ends_with(".gguf");
  if (options.load_format != "auto" && (options.load_format == "gguf") != is_gguf) {
    return Error{ErrorCode::kBadOption, fmt::format("--load-format {}: {} is {}", options.load_format,
                                                    options.model_path, is_gguf ? "a GGUF file" : "no GGUF file")};
  }
  if (options.chunked_prefill_size && *options.chunked_prefill_size == 0) {
    return Error{ErrorCode::kBadOption, "--chunked-prefill-size must be positive, or -1 to leave prompts whole"};
  }
  if (options.chunked_prefill_size.value_or(-1) > 0 && *options.chunked_prefill_size % options.page_size != 0) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--chunked-prefill-size ({}) must be a multiple of --page-size ({})",
                             *options.chunked_prefill_size, options.page_size)};
  }
  if (options.kv_events_config) {
    SLUICE_TRY(const auto events, parse_kv_events_config(*options.kv_events_config));
    if (events.enabled && options.disable_radix_cache) {
      return Error{ErrorCode::kBadOption,
                   "--kv-events-config tells of the prefix cache, which --disable-radix-cache "
                   "turns off"};
    }
    const int64_t last = options.dp_size - 1;
    for (const auto& endpoint : {events.endpoint, events.replay_endpoint}) {
      SLUICE_TRY_VOID(kv_endpoint_of_rank(endpoint, last));
    }
  }
  const SchedulePolicy* policy = find_schedule_policy(options.schedule_policy);
  if (options.enable_priority_scheduling && !(policy && policy->by_priority)) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--enable-priority-scheduling needs --schedule-policy fcfs or lof, not {}",
                             options.schedule_policy)};
  }
  if (options.enable_cache_report && options.disable_cache_report) {
    return Error{ErrorCode::kBadOption, "--enable-cache-report and --disable-cache-report exclude each other"};
  }
  if (const auto endpoint = obs::parse_trace_endpoint(options.otlp_traces_endpoint); !endpoint.ok()) {
    return Error{ErrorCode::kBadOption, fmt::format("--otlp-traces-endpoint: {}", endpoint.error().message)};
  }
  if (const auto why = why_no_labels(options.tokenizer_metrics_allowed_custom_labels); !why.empty()) {
    return Error{ErrorCode::kBadOption, fmt::format("--tokenizer-metrics-allowed-custom-labels: {}", why)};
  }
  if (options.served_model_name && options.served_model_name->find(':') != std::string::npos) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--served-model-name must not contain ':', which '{}' does", *options.served_model_name)};
  }
  return {};
}

namespace {

std::string json_name(std::string_view name) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

}  // namespace

nlohmann::json engine_options_to_json(const EngineOptions& options) {
  const auto& table = engine_option_table();
  nlohmann::json json = nlohmann::json::object();
  for (size_t i = 0; i < table.size(); ++i) {
    json[json_name(table.specs()[i].name)] = internal::option_value_to_json(table.get(options, i));
  }
  return json;
}

Result<EngineOptions> engine_options_from_json(const nlohmann::json& json) {
  if (!json.is_object()) return Error{ErrorCode::kInvalidArgument, "engine options must be a JSON object"};
  // As a command line, so that types and ranges are checked by the rows alone.
  std::vector<std::string> arguments;
  for (const auto& spec : engine_option_table().specs()) {
    const auto found = json.find(json_name(spec.name));
    if (found == json.end() || found->is_null()) continue;
    const nlohmann::json& value = *found;
    const bool is_flag = spec.value.index() == 0;
    if (value.is_array() && std::holds_alternative<StringList>(spec.value)) {
      for (const auto& word : value) {
        if (!word.is_string()) {
          return Error{ErrorCode::kInvalidArgument,
                       fmt::format("engine option {} must hold strings: {}", spec.name, value.dump())};
        }
        arguments.push_back(fmt::format("--{}={}", spec.name, word.get<std::string>()));
      }
      continue;
    }
    if (is_flag != value.is_boolean() || value.is_structured()) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("engine option {} has a wrong type: {}", spec.name, value.dump())};
    }
    if (is_flag) {
      if (value.get<bool>()) arguments.push_back(fmt::format("--{}", spec.name));
    } else {
      arguments.push_back(
          fmt::format("--{}={}", spec.name, value.is_string() ? value.get<std::string>() : value.dump()));
    }
  }
  return engine_option_table().parse(arguments, /*allow_prefixes=*/false);
}

}  // namespace sluice::engine
