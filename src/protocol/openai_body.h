// Bodies of POST /v1/completions and /v1/chat/completions, and of the tokenizer endpoints.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "protocol/generate_body.h"
#include "protocol/sampling.h"
#include "protocol/template_habits.h"

namespace sluice::protocol {

struct StreamOptions {
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage_stats = false;
};

struct CompletionBody {
  std::string model = "default";
  std::vector<Prompt> prompts;
  Sampling sampling;
  StreamOptions stream;
  Routing routing;
  Insides insides;
  bool token_ids = false;  // of the prompt and what was chosen, in the answer
  int64_t best_of = 1;     // samples per prompt, of which the `sampling.n` likeliest are shown
  std::string suffix;      // what comes after the text that is asked for
  bool echo = false;
  bool cached_details = false;      // sglext: which cache had the cached tokens
  std::optional<int64_t> logprobs;  // alternatives per token; 0: the chosen token alone
};
// `defaults`: what the model's generation config says.
Result<CompletionBody> parse_completion_body(std::string_view text, const SamplingDefaults& defaults);

struct ChatBody {
  std::string model = "default";
  // What the chat template is rendered with: messages (content flattened to text), tools where given, the members of
  // chat_template_kwargs, and add_generation_prompt.
  std::shared_ptr<const nlohmann::ordered_json> template_context;
  // With continue_final_message: text of the last message, to be appended to the rendered prompt.
  std::string prefix;
  std::optional<std::vector<int32_t>> input_ids;  // in place of the messages
  Sampling sampling;
  StreamOptions stream;
  Routing routing;
  Insides insides;
  bool token_ids = false;       // of the prompt and what was chosen, in the answer
  bool cached_details = false;  // sglext: which cache had the cached tokens
  bool logprobs = false;
  int64_t top_logprobs = 0;
  // The functions that may be called; null where none are offered, or tool_choice is none.
  std::shared_ptr<const nlohmann::ordered_json> tools;
  bool parallel_tool_calls = true;  // false: one call at most
  bool forced_calls = false;        // tool_choice forces them: sampling.grammar says so
  bool separate_reasoning = true;   // false: reasoning stays in the text
  bool stream_reasoning = true;     // false: reasoning comes in one piece
};
Result<ChatBody> parse_chat_body(std::string_view text, const SamplingDefaults& defaults,
                                 const TemplateHabits& habits = {});

struct TokenizeBody {
  std::vector<std::string> prompts;
  bool list = false;
  bool add_special_tokens = true;
  std::shared_ptr<const nlohmann::ordered_json> template_context;  // messages in place of a prompt
};
Result<TokenizeBody> parse_tokenize_body(std::string_view text, const TemplateHabits& habits = {});

struct DetokenizeBody {
  std::vector<std::vector<int32_t>> tokens;
  bool list = false;
  bool skip_special_tokens = true;
};
Result<DetokenizeBody> parse_detokenize_body(std::string_view text);

}  // namespace sluice::protocol
