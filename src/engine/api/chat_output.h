// The text of a chat's sample, told apart into reasoning, answer and calls of functions as it grows.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string_view>

#include "engine/api/context.h"
#include "parsers/reasoning.h"
#include "parsers/tool_calls.h"
#include "protocol/answers.h"
#include "protocol/openai_body.h"

namespace sluice::engine {

// What is to be looked for; the same for all samples of a request.
struct ChatParsing {
  const parsers::ReasoningFormat* reasoning = nullptr;
  bool inside = false;  // the answer begins with reasoning
  bool split = true;    // reasoning is told apart from the answer; false: a grammar still begins after it
  bool stream_reasoning = true;
  const parsers::ToolCallFormat* calls = nullptr;
  std::shared_ptr<const nlohmann::ordered_json> tools;  // with `calls`
  bool one_call = false;                                // later ones are left out
  bool needs_special_tokens = false;                    // a mark is a special token of the vocabulary
};
// `prompt`: how it ends says whether the answer begins with reasoning. Any thread.
ChatParsing chat_parsing(const ApiContext& api, const protocol::ChatBody& body, std::span<const int32_t> prompt);

// One sample's. Used by one thread at a time.
class ChatOutput {
 public:
  ChatOutput(ApiContext& api, const ChatParsing& parsing);
  ChatOutput(const ChatOutput&) = delete;

  // What the sample says since the last time.
  protocol::ChatParts push(const protocol::Sample& sample);
  // Why it ended, in the words of a chat. After the last push().
  protocol::Finish finish(const protocol::Sample& sample) const;
  // Tokens of the sample so far that were reasoning or its marks.
  int64_t reasoning_tokens(const protocol::Sample& sample);

 private:
  void read_calls(std::string_view text, bool ended, protocol::ChatParts& out);

  ApiContext& api_;
  const ChatParsing& parsing_;
  std::optional<parsers::ReasoningSplitter> reasoning_;
  std::optional<parsers::OfferedTools> offered_;
  std::optional<parsers::ToolCallWriter> writer_;
  std::unique_ptr<parsers::ToolCallParser> calls_;
  size_t text_ = 0;  // bytes read
  bool ended_ = false;
  bool called_ = false;
  size_t counted_tokens_ = 0, counted_bytes_ = 0;
};

}  // namespace sluice::engine
