#include "engine/api/chat_output.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "parsers/forced_calls.h"

namespace sluice::engine {
namespace {

constexpr size_t kPromptEnd = 32;  // tokens at the end of a prompt in which a mark of reasoning is looked for

bool is_special(const tokenizer::Tokenizer& tokenizer, std::string_view mark) {
  const auto id = tokenizer.id_of(mark);
  return id && tokenizer.is_special(*id);
}

// Whether the answer begins with reasoning; the prompt ends in the prefix.
bool answers_inside(const parsers::ReasoningFormat& format, const tokenizer::Tokenizer& tokenizer,
                    std::string_view prefix, std::span<const int32_t> prompt) {
  const auto end = prompt.last(std::min(prompt.size(), kPromptEnd + prefix.size()));
  const std::string text = tokenizer.decode(end, /*skip_special=*/false);
  std::string_view before = text;
  if (before.ends_with(prefix)) before.remove_suffix(prefix.size());
  return parsers::begins_inside(format, before, prefix);
}

}  // namespace

ChatParsing chat_parsing(const ApiContext& api, const protocol::ChatBody& body, std::span<const int32_t> prompt) {
  const auto& tokenizer = *api.model.tokenizer;
  ChatParsing out;
  std::vector<std::string_view> marks;
  if (const auto* format = api.settings.reasoning_format; format != nullptr) {
    out.reasoning = format;
    out.split = body.separate_reasoning;
    out.inside = answers_inside(*format, tokenizer, body.prefix, prompt);
    out.stream_reasoning = body.stream_reasoning;
    marks = {format->open, format->close};
  }
  const auto* format = body.forced_calls ? &parsers::forced_calls_format() : api.settings.tool_call_format;
  if (format != nullptr && body.tools != nullptr) {
    out.calls = format;
    out.tools = body.tools;
    out.one_call = !body.parallel_tool_calls;
    marks.insert(marks.end(), format->marks.begin(), format->marks.end());
  }
  out.needs_special_tokens = std::ranges::any_of(marks, [&](auto mark) { return is_special(tokenizer, mark); });
  return out;
}

ChatOutput::ChatOutput(ApiContext& api, const ChatParsing& parsing) : api_(api), parsing_(parsing) {
  if (parsing.reasoning != nullptr && parsing.split) {
    reasoning_.emplace(*parsing.reasoning, parsing.inside, parsing.stream_reasoning,
                       parsing.calls == nullptr ? std::vector<std::string_view>() : parsing.calls->opens);
  }
  if (parsing.calls != nullptr) {
    offered_.emplace(*parsing.tools);
    writer_.emplace(*offered_);
    calls_ = parsing.calls->make();
  }
}

protocol::ChatParts ChatOutput::push(const protocol::Sample& sample) {
  protocol::ChatParts out;
  if (ended_) return out;
  ended_ = sample.finish.kind != protocol::Finish::Kind::kNone;
  const auto text = std::string_view(sample.text).substr(text_);
  text_ = sample.text.size();
  std::string answer;
  if (reasoning_) {
    reasoning_->push(text, out.reasoning, answer);
    if (ended_) reasoning_->finish(out.reasoning, answer);
  } else {
    answer = text;
  }
  if (calls_ != nullptr) {
    read_calls(answer, ended_, out);
  } else {
    out.content = std::move(answer);
  }
  return out;
}

void ChatOutput::read_calls(std::string_view text, bool ended, protocol::ChatParts& out) {
  calls_->push(text, *writer_);
  if (ended) calls_->finish(*writer_);
  auto news = writer_->take();
  out.content = std::move(news.text);
  for (auto& delta : news.calls) {
    if (parsing_.one_call && delta.index > 0) continue;
    called_ = true;
    if (!delta.name.empty() && delta.id.empty()) delta.id = "call_" + api_.new_rid().substr(0, 24);
    out.calls.push_back({delta.index, std::move(delta.id), std::move(delta.name), std::move(delta.arguments)});
  }
}

protocol::Finish ChatOutput::finish(const protocol::Sample& sample) const {
  auto out = sample.finish;
  out.calls = called_;
  return out;
}

int64_t ChatOutput::reasoning_tokens(const protocol::Sample& sample) {
  if (!reasoning_) return 0;
  const auto& ids = sample.output_ids;
  while (counted_bytes_ < reasoning_->reasoning_bytes() && counted_tokens_ < ids.size()) {
    const int32_t id = ids[counted_tokens_++];
    const bool shown = parsing_.needs_special_tokens || !api_.model.tokenizer->is_special(id);
    if (shown) counted_bytes_ += api_.model.tokenizer->token_bytes(id).size();
  }
  return static_cast<int64_t>(counted_tokens_);
}

}  // namespace sluice::engine
