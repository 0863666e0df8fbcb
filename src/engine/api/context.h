// What every endpoint of one HttpApi shares.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/api/background.h"
#include "engine/api/labelled_metrics.h"
#include "engine/api/request_trace.h"
#include "engine/api/response_store.h"
#include "engine/api/work_pool.h"
#include "engine/backend.h"
#include "engine/http_api.h"
#include "engine/served_model.h"
#include "net/server.h"
#include "parallel/topology.h"
#include "parsers/reasoning.h"
#include "parsers/tool_calls.h"
#include "protocol/sampling.h"
#include "tokenizer/prompt_encoder.h"

namespace sluice::engine {

struct ApiSettings {
  std::string weight_version;
  std::optional<std::string> api_key, admin_api_key;
  int64_t dp_size = 1;
  parallel::Layout layout;  // of an instance
  int64_t stream_interval = 1;
  bool allow_auto_truncate = false;
  bool stream_output = false;
  bool report_cached = true;
  bool metrics = false;
  std::vector<std::string> labels;                             // --tokenizer-metrics-allowed-custom-labels
  std::string labels_header;                                   // --tokenizer-metrics-custom-labels-header
  bool embedding = false;                                      // --is-embedding
  bool hidden_states = false;                                  // --enable-return-hidden-states
  bool routed_experts = false;                                 // --enable-return-routed-experts
  std::string why_no_grammar;                                  // empty: grammars are served
  std::optional<uint64_t> seed;                                // of requests that bring none; absent: one for each
  bool health_generates = true;                                // SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION
  Duration health_timeout = std::chrono::seconds(20);          // SGLANG_HEALTH_CHECK_TIMEOUT
  std::optional<std::string> own_dp_rank;                      // SGLANG_DP_RANK
  const parsers::ReasoningFormat* reasoning_format = nullptr;  // null: reasoning stays in the text
  const parsers::ToolCallFormat* tool_call_format = nullptr;   // null: calls stay in the text
  std::shared_ptr<obs::TraceExporter> traces;                  // --enable-trace; null: none are sent
  int64_t trace_level = Tracer::kSamples;                      // SGLANG_TRACE_LEVEL
  ResponseStore::Limits stored_responses;                      // --max-stored-responses, --max-stored-response-mb
  nlohmann::ordered_json server_args;                          // for /server_info, without secrets
};

// How long a sequence may be, as the ranks said. Zeros before any rank was ready.
struct LengthLimits {
  int64_t context_length = 0;
  int64_t max_input = 0;  // longest prompt that a rank takes
};

// Of what is measured of its ranks.
RankLabels rank_labels(const ApiSettings& settings, const ServedModel& model);

class ApiContext {
 public:
  ApiContext(ApiSettings settings, ServedModel model, Backend& backend, obs::Metrics& metrics);

  // Any thread.
  LengthLimits limits();
  // 32 hexadecimal digits.
  std::string new_rid();
  // Of the weights that are served now. `version` empty: it stays.
  std::string model_path();
  std::string weight_version();
  void set_weights(std::string path, std::string version);
  void set_weight_version(std::string version);
  int64_t unix_seconds() const { return clock.unix_nanos() / 1'000'000'000; }

  // Constant after construction.
  const ApiSettings settings;
  const ServedModel model;
  const protocol::SamplingDefaults chat_defaults;  // of the model's generation config
  const Clock& clock;
  const int64_t started_at;  // seconds since 1970
  // Any thread.
  Backend& backend;
  obs::Metrics& metrics;
  LabelledMetrics request_metrics;
  Tracer tracer;
  WorkPool pool;
  tokenizer::PromptEncoder prompts;  // remembers what it has tokenized
  std::atomic<ServerStatus> status{ServerStatus::kStarting};
  std::atomic<bool> unhealthy{false};  // what the last health check found
  std::atomic<bool> paused{false};     // /pause_generation
  std::atomic<bool> updating{false};   // /update_weights_from_disk is at work
  ResponseStore responses;
  Background background;  // what it has runs on the loops, with everything above

 private:
  std::mutex mu_;
  Rng rng_;                                  // guarded by mu_
  LengthLimits limits_;                      // guarded by mu_; those of a rank that was ready once
  std::string model_path_, weight_version_;  // guarded by mu_
};

// One call of an endpoint. `exchange` is answered by the endpoint, exactly once.
struct ApiCall {
  ApiContext& api;
  net::ServerExchange& exchange;
  std::shared_ptr<RequestTrace> trace = nullptr;  // null: it is not recorded
  int status = 0;                                 // of what answer() has sent
};

inline constexpr size_t kMaxBodyBytes = size_t{64} << 20;

// The whole body, or nothing where the exchange was answered: the body was too long, or the client left.
net::Task<std::optional<std::string>> read_body(ApiCall& call);
net::Task<> answer(ApiCall& call, net::Response response);
// An answer that was made elsewhere.
net::Task<> answer_made(ApiCall& call, Result<net::Response> made);
// An error in OpenAI's form.
net::Task<> answer_error(ApiCall& call, const Error& error);
net::Response error_response(int status, std::string_view message, std::string_view reason = {});
net::Response json_response(const nlohmann::ordered_json& document);
// An endpoint whose answer is made of the body alone, without any rank.
net::Task<> answer_from_body(ApiCall& call, Result<nlohmann::ordered_json> (*make)(ApiContext&, std::string_view body));

// Runs `work`, which returns a Result (caught()), here if `bytes` of input are few, else on the pool. A few kilobytes
// of text are read, rendered and tokenized in less time than a change of threads is worth to the connections that share
// the loop.
inline constexpr size_t kInlineBytes = 8 * 1024;
template <class Work>
net::Task<std::invoke_result_t<Work>> run_off_loop(ApiCall& call, size_t bytes, Work work) {
  if (bytes <= kInlineBytes) co_return caught(work);
  co_return co_await call.api.pool.run(call.exchange.loop(), std::move(work));
}

}  // namespace sluice::engine
