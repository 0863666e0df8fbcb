// Bodies that answer generating requests: /generate, /v1/completions and /v1/chat/completions, whole and streamed.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::protocol {

struct Finish {
  enum class Kind { kNone, kStopToken, kStopString, kLength, kAbort };
  Kind kind = Kind::kNone;
  int32_t matched_token = -1;  // kStopToken; -1: none, the grammar has come to its end
  std::string matched_string;
  int64_t length = 0;   // kLength: tokens generated
  std::string message;  // kAbort
  int status = 0;       // kAbort: 400, 500 or 503; 0 = the client asked for it
  std::string reason;   // kAbort: of error_body(); empty: none
  bool calls = false;   // a chat that stopped after calls of functions
};

// A token with its log-probability. `text` is what it decodes to by itself, `bytes` what it adds to the output.
struct TokenScore {
  std::optional<float> logprob;  // absent for the first token of a prompt
  int32_t token_id = 0;
  std::string text;
  std::string bytes;
};
struct PositionScores {
  TokenScore chosen;
  std::vector<TokenScore> top;        // best alternatives, descending
  std::vector<TokenScore> requested;  // token_ids_logprob
};

// Of a finished sample; what did not happen is absent. Points in time are seconds since 1970.
struct SampleTimes {
  double request_received = 0, request_finished = 0;
  std::optional<double> queue;  // seconds until its first step
  std::optional<double> forward_entry;
  std::optional<double> inference;  // seconds from there to the end
  std::optional<double> prefill;    // seconds from there until its prompt was computed
  std::optional<double> prefill_finished;
  std::optional<double> decode_throughput;  // tokens per second after the first
};

// One sample of one prompt, so far or finished.
struct Sample {
  std::string rid;
  std::string text;
  std::vector<int32_t> output_ids;
  Finish finish;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t retractions = 0;
  std::optional<int64_t> dp_rank;
  std::optional<double> e2e_latency;  // seconds, once finished
  double answered = 0;                // when that was, in seconds since 1970
  std::optional<SampleTimes> times;   // likewise, where they are wanted
  std::vector<PositionScores> input_scores;
  std::vector<PositionScores> output_scores;
  std::vector<float> embedding;  // in place of text, where that was asked for
  // Once finished, where they are wanted: the final norm's output [positions, hidden size] of the prompt and of each
  // output token but the last, and what the routers chose for them, [positions, layers, top_k].
  std::vector<float> hidden_states;
  std::vector<int32_t> routed_experts;
};
// The int32 values as they lie in memory.
std::string routed_experts_text(const Sample& sample);

// --- /generate

struct NativeFormat {
  std::string weight_version;
  bool logprobs = false;
  bool top_logprobs = false;
  bool requested_logprobs = false;
  bool text_in_logprobs = false;
  bool data_parallel = false;  // names the rank in meta_info
  int64_t hidden_size = 0;     // of hidden states; 0: not wanted
  bool routed_experts = false;
};
// {"text", "output_ids", "meta_info"}. `first_id`: output_ids from there on, for streams that carry only what is new.
nlohmann::ordered_json native_answer(const Sample& sample, const NativeFormat& format, size_t first_id = 0);
// null, {"type":"stop","matched":...}, {"type":"length","length":n}, {"type":"abort",...}
nlohmann::ordered_json native_finish_reason(const Finish& finish);

// --- OpenAI

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t reasoning_tokens = 0;  // of the completion
};
struct OpenAiFormat {
  std::string id;
  std::string model;
  int64_t created = 0;  // seconds since 1970
  std::string weight_version;
  bool report_cached = true;
  bool cached_details = false;  // sglext
  bool logprobs = false;
  int64_t hidden_size = 0;      // of hidden states; 0: not wanted
  bool routed_experts = false;  // sglext
  bool has_extension() const { return cached_details || routed_experts; }
  // return_token_ids, as vLLM has it: "token_ids" in each choice, "prompt_token_ids" in a completion's choice and
  // beside a chat's choices; in a stream the latter in the first chunk, and of the former those that are new.
  bool token_ids = false;
  std::vector<int32_t> chat_prompt_ids{};  // where they are wanted
};
// Of the last token that has one; [] where that is the prompt's last, as in the runtime.
nlohmann::ordered_json last_hidden_state(const Sample& sample, int64_t hidden_size);
nlohmann::ordered_json usage_json(const Usage& usage, bool report_cached);
// "stop", "tool_calls", "length", "abort" or null.
nlohmann::ordered_json openai_finish_reason(const Finish& finish);

// Logprobs of some tokens in the form of completions. `offset`: characters before the first of them in the text.
nlohmann::ordered_json completion_logprobs(const std::vector<PositionScores>& scores, size_t first, int64_t& offset);
// {"content": [{token, bytes, logprob, top_logprobs}]}
nlohmann::ordered_json chat_logprobs(const std::vector<PositionScores>& scores, size_t first);

// `logprobs` is JSON null where none were asked for.
// `first`: the sample whose experts are shown.
std::string completion_answer(const OpenAiFormat& format, nlohmann::ordered_json choices, const Usage& usage,
                              const Sample& first);
nlohmann::ordered_json completion_choice(size_t index, std::string_view text, nlohmann::ordered_json logprobs,
                                         const Finish& finish);
std::string chat_answer(const OpenAiFormat& format, nlohmann::ordered_json choices, const Usage& usage,
                        const Sample& first);
// A call of a function, or more of one: then `id` and `name` are empty.
struct ToolCall {
  size_t index = 0;
  std::string id;
  std::string name;
  std::string arguments;
};
// What a chat's text consists of.
struct ChatParts {
  std::string content;
  std::string reasoning;
  std::vector<ToolCall> calls;
  bool empty() const { return content.empty() && reasoning.empty() && calls.empty(); }
};
nlohmann::ordered_json chat_choice(size_t index, const ChatParts& parts, nlohmann::ordered_json logprobs,
                                   const Finish& finish);

// Stream chunks, as JSON text for one SSE event each. `usage` may be null: the member is then null, as in the runtime.
std::string completion_chunk(const OpenAiFormat& format, nlohmann::ordered_json choice, const Usage* usage);
enum class ChatDelta { kRole, kParts, kFinish };
std::string chat_chunk(const OpenAiFormat& format, size_t index, ChatDelta kind, const ChatParts& parts,
                       nlohmann::ordered_json logprobs, const Finish& finish, const Usage* usage,
                       std::span<const int32_t> token_ids = {});
// The chunk with the hidden state of choice `index`.
std::string hidden_state_chunk(const OpenAiFormat& format, size_t index, bool chat, const Sample& sample);
// The chunk with sglext and without choices.
std::string extension_chunk(const OpenAiFormat& format, std::string_view object, const Usage& usage,
                            const Sample& first);
// The last chunk of a stream with include_usage: no choices.
std::string usage_chunk(const OpenAiFormat& format, std::string_view object, const Usage& usage);

}  // namespace sluice::protocol
