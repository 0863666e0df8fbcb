#include "engine/api/text_api.h"

#include "engine/api/openai_request.h"
#include "protocol/openai_body.h"

namespace sluice::engine {
namespace {

using nlohmann::ordered_json;

Result<ordered_json> tokenized(ApiContext& api, std::string_view text) {
  SLUICE_TRY(const auto body, protocol::parse_tokenize_body(text, api.model.template_habits));
  auto tokens = ordered_json::array();
  auto counts = ordered_json::array();
  if (body.template_context) {
    SLUICE_TRY(const auto rendered, render_chat(api, *body.template_context));
    tokens.push_back(api.prompts.encode(rendered, /*add_special=*/false));
    counts.push_back(tokens.back().size());
  }
  for (const auto& prompt : body.prompts) {
    tokens.push_back(api.prompts.encode(prompt, body.add_special_tokens));
    counts.push_back(tokens.back().size());
  }
  const int64_t context = api.limits().context_length;
  ordered_json out = ordered_json::object();
  out["tokens"] = body.list ? std::move(tokens) : std::move(tokens[0]);
  out["count"] = body.list ? std::move(counts) : std::move(counts[0]);
  out["max_model_len"] = context > 0 ? context : api.model.config.max_position;
  return out;
}

Result<ordered_json> detokenized(ApiContext& api, std::string_view text) {
  SLUICE_TRY(const auto body, protocol::parse_detokenize_body(text));
  const auto& tokenizer = *api.model.tokenizer;
  auto texts = ordered_json::array();
  for (const auto& tokens : body.tokens) {
    for (const int32_t id : tokens) {
      if (id < tokenizer.vocab_size()) continue;
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("tokens holds {}, the vocabulary is [0, {})", id, tokenizer.vocab_size())};
    }
    texts.push_back(tokenizer.decode(tokens, body.skip_special_tokens));
  }
  ordered_json out = ordered_json::object();
  out["text"] = body.list ? std::move(texts) : std::move(texts[0]);
  return out;
}

}  // namespace

net::Task<> tokenize(ApiCall& call) { return answer_from_body(call, tokenized); }
net::Task<> detokenize(ApiCall& call) { return answer_from_body(call, detokenized); }

}  // namespace sluice::engine
