// Bodies of the OpenAI endpoints, made ready to run. Any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/api/chat_output.h"
#include "engine/api/context.h"
#include "engine/api/generation.h"
#include "protocol/answers.h"
#include "protocol/openai_body.h"

namespace sluice::engine {

struct OpenAiRequest {
  GenerationPlan plan;
  protocol::OpenAiFormat format;
  protocol::StreamOptions stream;
  bool chat = false;
  size_t shown = 1;                              // of each prompt's samples, the likeliest
  ChatParsing parsing;                           // of chats
  std::vector<std::string> echo;                 // per prompt, what is shown before the completion; empty: nothing is
  std::vector<std::vector<int32_t>> prompt_ids;  // per prompt, of completions, where they are wanted
};

Result<OpenAiRequest> prepare_completion(ApiContext& api, const net::Headers& headers, std::string_view text);
Result<OpenAiRequest> prepare_chat(ApiContext& api, const net::Headers& headers, std::string_view text);
// `goes_on`: from what is stored. Then a chat that is too long is kInvalidArgument with --allow-auto-truncate too: what
// is cut is the end, its newest message, and the conversation would grow without a bound.
Result<OpenAiRequest> prepare_chat(ApiContext& api, const net::Headers& headers, std::string_view text, bool goes_on);

// The text that the model's chat template makes of `context`; kInvalidArgument when it fails or there is none.
Result<std::string> render_chat(const ApiContext& api, const nlohmann::ordered_json& context);

}  // namespace sluice::engine
