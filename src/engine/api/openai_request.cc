#include "engine/api/openai_request.h"

#include <algorithm>
#include <iterator>

#include "engine/api/plan.h"

namespace sluice::engine {
namespace {

OpenAiRequest begin(ApiContext& api, const protocol::Routing& routing, const std::string& model,
                    const protocol::StreamOptions& stream) {
  OpenAiRequest out;
  out.format = {.id = routing.rid.empty() ? api.new_rid() : routing.rid,
                .model = model,
                .created = api.unix_seconds(),
                .weight_version = api.weight_version(),
                .report_cached = api.settings.report_cached};
  out.stream = stream;
  return out;
}

void route(PromptPlan& prompt, const net::Headers& headers, const protocol::Routing& routing) {
  prompt.request.extra_key = routing.extra_key;
  prompt.request.priority = routing.priority;
  prompt.request.routing_key = routing_key(headers, routing.routing_key);
}

void want_logprobs(PromptPlan& prompt, int64_t alternatives, bool of_prompt) {
  prompt.request.return_logprob = true;
  prompt.request.top_logprobs_num = alternatives;
  prompt.request.logprob_start_len = of_prompt ? 0 : -1;
  prompt.format.texts_in_scores = true;
}

void show_insides(const ApiContext& api, const protocol::Insides& insides, protocol::OpenAiFormat& format) {
  if (insides.hidden_states) format.hidden_size = api.model.config.hidden_size;
  format.routed_experts = insides.routed_experts;
}

// How families mark the text before a gap, what comes after it, and the gap itself.
struct GapMarks {
  std::string_view before, after, gap;
  bool gap_last = true;  // else it stands where the gap is
};
constexpr GapMarks kGapMarks[] = {
    {.before = "<|fim_prefix|>", .after = "<|fim_suffix|>", .gap = "<|fim_middle|>"},
    {.before = "<fim_prefix>", .after = "<fim_suffix>", .gap = "<fim_middle>"},
    {.before = "<｜fim▁begin｜>", .after = "<｜fim▁end｜>", .gap = "<｜fim▁hole｜>", .gap_last = false},
};

// The prompt that asks for what is missing between it and `suffix`.
Result<void> fill_in_the_middle(const tokenizer::Tokenizer& tokenizer, const std::string& suffix,
                                protocol::Prompt& prompt) {
  const auto known = [&](const GapMarks& marks) {
    return tokenizer.id_of(marks.before) && tokenizer.id_of(marks.after) && tokenizer.id_of(marks.gap);
  };
  const auto* marks = std::ranges::find_if(kGapMarks, known);
  if (marks == std::end(kGapMarks)) {
    return Error{ErrorCode::kInvalidArgument,
                 "suffix is not supported by this model: its vocabulary has no tokens that mark a gap to fill in, such "
                 "as <|fim_prefix|>, <|fim_suffix|> and <|fim_middle|>"};
  }
  if (prompt.ids) {
    return Error{ErrorCode::kInvalidArgument, "suffix needs a prompt that is text, not token ids"};
  }
  prompt.text = marks->gap_last
                    ? fmt::format("{}{}{}{}{}", marks->before, prompt.text, marks->after, suffix, marks->gap)
                    : fmt::format("{}{}{}{}{}", marks->before, prompt.text, marks->gap, suffix, marks->after);
  return {};
}

// A grammar holds the answer, not the thoughts before it; where their end is no token, there are none.
void begin_after_reasoning(const ApiContext& api, ChatParsing& parsing, PromptPlan& prompt) {
  if (parsing.reasoning == nullptr) return;
  const auto end = parsing.inside ? api.model.tokenizer->id_of(parsing.reasoning->close) : std::nullopt;
  if (end) {
    prompt.request.sampling.grammar_after = *end;
  } else {
    parsing.reasoning = nullptr;
  }
}

}  // namespace

Result<std::string> render_chat(const ApiContext& api, const nlohmann::ordered_json& context) {
  if (!api.model.chat_template) {
    return Error{ErrorCode::kInvalidArgument,
                 "this model has no chat template: start the server with --chat-template FILE, or use /v1/completions"};
  }
  auto full = context;
  for (const auto& [name, text] : api.model.tokenizer->special_tokens()) {
    if (!full.contains(name)) full[name] = text;
  }
  return api.model.chat_template->render(full);
}

Result<OpenAiRequest> prepare_completion(ApiContext& api, const net::Headers& headers, std::string_view text) {
  SLUICE_TRY(auto body, protocol::parse_completion_body(text, {}));
  SLUICE_TRY_VOID(check_sample_count(body.prompts.size(), body.best_of));
  OpenAiRequest out = begin(api, body.routing, body.model, body.stream);
  out.format.cached_details = body.cached_details;
  out.format.logprobs = body.logprobs.has_value();
  out.format.token_ids = body.token_ids;
  show_insides(api, body.insides, out.format);
  out.plan.per_prompt = static_cast<size_t>(body.best_of);
  out.shown = static_cast<size_t>(body.sampling.n);
  SLUICE_TRY(out.plan.dp_rank, wanted_rank(headers, body.routing.dp_rank));
  SLUICE_TRY(out.plan.labels, wanted_labels(api, headers, body.routing.labels));
  out.plan.background = body.routing.background;
  const bool numbered = body.prompts.size() > 1 || out.plan.per_prompt > 1;
  const auto limits = api.limits();
  for (auto& prompt : body.prompts) {
    if (body.echo) {
      out.echo.push_back(prompt.ids ? api.model.tokenizer->decode(*prompt.ids, /*skip_special=*/true) : prompt.text);
    }
    if (!body.suffix.empty()) SLUICE_TRY_VOID(fill_in_the_middle(*api.model.tokenizer, body.suffix, prompt));
    SLUICE_TRY(auto planned, plan_prompt(api, limits, prompt_ids(api, std::move(prompt)), body.sampling, std::nullopt,
                                         body.stream.stream));
    if (body.token_ids) out.prompt_ids.push_back(planned.request.input_ids);
    route(planned, headers, body.routing);
    SLUICE_TRY_VOID(want_insides(api, body.insides, body.prompts.size() * out.plan.per_prompt, planned));
    if (body.logprobs) {
      want_logprobs(planned, *body.logprobs, body.echo);
    } else if (out.plan.per_prompt > out.shown) {
      planned.request.return_logprob = true;  // to choose by
    }
    SLUICE_TRY_VOID(add_samples(out.plan, std::move(planned), out.plan.per_prompt, out.format.id, numbered));
  }
  return out;
}

Result<OpenAiRequest> prepare_chat(ApiContext& api, const net::Headers& headers, std::string_view text) {
  return prepare_chat(api, headers, text, /*goes_on=*/false);
}

Result<OpenAiRequest> prepare_chat(ApiContext& api, const net::Headers& headers, std::string_view text, bool goes_on) {
  SLUICE_TRY(auto body, protocol::parse_chat_body(text, api.chat_defaults, api.model.template_habits));
  OpenAiRequest out = begin(api, body.routing, body.model, body.stream);
  out.chat = true;
  out.format.cached_details = body.cached_details;
  out.format.logprobs = body.logprobs;
  out.format.token_ids = body.token_ids;
  show_insides(api, body.insides, out.format);
  out.plan.per_prompt = out.shown = static_cast<size_t>(body.sampling.n);
  SLUICE_TRY(out.plan.dp_rank, wanted_rank(headers, body.routing.dp_rank));
  SLUICE_TRY(out.plan.labels, wanted_labels(api, headers, body.routing.labels));
  out.plan.background = body.routing.background;
  std::vector<int32_t> ids;
  if (body.input_ids) {
    ids = std::move(*body.input_ids);
  } else {
    SLUICE_TRY(const auto rendered, render_chat(api, *body.template_context));
    // The template writes the special tokens itself.
    ids = api.prompts.encode(rendered + body.prefix, /*add_special=*/false);
  }
  out.parsing = chat_parsing(api, body, ids);
  const auto limits = api.limits();
  const bool known = limits.context_length > 0;  // else no rank is ready, which is what the client is told
  if (goes_on && known && api.settings.allow_auto_truncate && std::ssize(ids) > limits.max_input) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("previous_response_id: the conversation has {} tokens with this input, and {} are the most: "
                    "what goes on from a response is not truncated",
                    ids.size(), limits.max_input)};
  }
  SLUICE_TRY(auto planned, plan_prompt(api, limits, std::move(ids), body.sampling, std::nullopt, body.stream.stream));
  if (planned.request.sampling.grammar_kind != GrammarKind::kNone) begin_after_reasoning(api, out.parsing, planned);
  if (body.token_ids) out.format.chat_prompt_ids = planned.request.input_ids;
  if (out.parsing.needs_special_tokens) planned.format.text.skip_special = false;
  route(planned, headers, body.routing);
  SLUICE_TRY_VOID(want_insides(api, body.insides, out.plan.per_prompt, planned));
  if (body.logprobs) want_logprobs(planned, body.top_logprobs, /*of_prompt=*/false);
  SLUICE_TRY_VOID(
      add_samples(out.plan, std::move(planned), out.plan.per_prompt, out.format.id, out.plan.per_prompt > 1));
  return out;
}

}  // namespace sluice::engine
