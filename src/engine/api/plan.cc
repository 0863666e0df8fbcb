#include "engine/api/plan.h"

#include <algorithm>
#include <charconv>

namespace sluice::engine {
namespace {

constexpr int64_t kMostHiddenValues = int64_t{16} << 20;  // of the hidden states of one answer
constexpr size_t kMostCopiedTokens = size_t{16} << 20;    // of prompts, in one request
constexpr int64_t kWholeInterval = 50;  // tokens between two words of a rank on a request that is answered as a whole

GrammarKind to_engine(protocol::Grammar::Kind kind) {
  switch (kind) {
    case protocol::Grammar::Kind::kJsonSchema:
      return GrammarKind::kJsonSchema;
    case protocol::Grammar::Kind::kRegex:
      return GrammarKind::kRegex;
    case protocol::Grammar::Kind::kEbnf:
      return GrammarKind::kEbnf;
    case protocol::Grammar::Kind::kStructuralTag:
      return GrammarKind::kStructuralTag;
  }
  return GrammarKind::kNone;
}

SamplingParams to_engine(const protocol::Sampling& from, int64_t max_new_tokens) {
  SamplingParams out;
  out.max_new_tokens = max_new_tokens;
  out.min_new_tokens = std::min(from.min_new_tokens, max_new_tokens);
  out.temperature = from.temperature;
  out.top_p = from.top_p;
  out.top_k = from.top_k;
  out.min_p = from.min_p;
  out.frequency_penalty = from.frequency_penalty;
  out.presence_penalty = from.presence_penalty;
  out.repetition_penalty = from.repetition_penalty;
  out.stop = from.stop;
  out.stop_regex = from.stop_regex;
  out.stop_token_ids = from.stop_token_ids;
  out.ignore_eos = from.ignore_eos;
  out.seed = from.seed;
  out.logit_bias = from.logit_bias;
  if (from.grammar) {
    out.grammar_kind = to_engine(from.grammar->kind);
    out.grammar = from.grammar->text;
    out.grammar_field = from.grammar->field;
  }
  return out;
}

}  // namespace

Result<std::optional<int64_t>> wanted_rank(const net::Headers& headers, std::optional<int64_t> in_body) {
  const auto header = headers.get("x-data-parallel-rank");
  if (!header) return in_body;
  int64_t rank = 0;
  const auto [end, problem] = std::from_chars(header->data(), header->data() + header->size(), rank);
  if (problem != std::errc() || end != header->data() + header->size()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("header X-Data-Parallel-Rank must be an integer, got '{}'", header->substr(0, 60))};
  }
  return std::optional(rank);
}

std::string routing_key(const net::Headers& headers, const std::string& in_body) {
  return in_body.empty() ? std::string(headers.get("x-smg-routing-key").value_or("")) : in_body;
}

Result<std::vector<std::string>> wanted_labels(const ApiContext& api, const net::Headers& headers,
                                               const protocol::Labels& in_body) {
  const auto& names = api.request_metrics.names();
  for (const auto& [name, value] : in_body) {
    if (std::ranges::find(names, name) != names.end()) continue;
    return Error{ErrorCode::kInvalidArgument,
                 names.empty()
                     ? "custom_labels needs a server with --tokenizer-metrics-allowed-custom-labels"
                     : fmt::format("custom_labels has '{}', and this server allows {}", name, fmt::join(names, ", "))};
  }
  if (names.empty()) return std::vector<std::string>();
  protocol::Labels all;
  if (const auto header = headers.get(api.settings.labels_header)) {
    const std::string what = fmt::format("header {}", api.settings.labels_header);
    const auto json = protocol::parse_object(*header);
    if (!json.ok()) return Error{ErrorCode::kInvalidArgument, fmt::format("{}: {}", what, json.error().message)};
    SLUICE_TRY(all, protocol::read_labels(*json, what));
  }
  for (const auto& [name, value] : in_body) all[name] = value;
  std::vector<std::string> values;
  bool any = false;
  for (const std::string& name : names) {
    const auto given = all.find(name);
    any = any || given != all.end();
    values.push_back(given == all.end() ? std::string() : given->second);
  }
  if (!any) values.clear();
  return values;
}

std::vector<int32_t> prompt_ids(ApiContext& api, protocol::Prompt prompt) {
  if (prompt.ids) return std::move(*prompt.ids);
  return api.prompts.encode(prompt.text, /*add_special=*/true);
}

Result<int64_t> fit_context(const ApiContext& api, const LengthLimits& limits, std::vector<int32_t>& ids,
                            std::optional<int64_t> asked, std::optional<int64_t> otherwise) {
  const int64_t context = limits.context_length;
  const bool known = context > 0;  // else no rank is ready, which is what the client is told
  const bool truncate = api.settings.allow_auto_truncate;
  if (known && truncate && static_cast<int64_t>(ids.size()) > limits.max_input) {
    ids.resize(static_cast<size_t>(std::max<int64_t>(limits.max_input, 0)));
  }
  const auto input = static_cast<int64_t>(ids.size());
  if (known && input >= context) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("The input ({} tokens) is longer than the model's context length ({} tokens).", input, context)};
  }
  if (known && asked && input + *asked >= context) {
    if (truncate) return context - input - 1;
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("Requested token count exceeds the model's maximum context length of {} tokens. You "
                             "requested a total of {} tokens: {} tokens from the input messages and {} tokens for the "
                             "completion. Please reduce the number of tokens in the input messages or the completion "
                             "to fit within the limit.",
                             context, input + *asked, input, *asked)};
  }
  if (asked) return *asked;
  return otherwise.value_or(known ? context - input - 1 : INT32_MAX);
}

Result<void> check_generates(const ApiContext& api) {
  if (api.model.config.labels.empty()) return {};
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("this model classifies ({}) and generates no text: use /v1/classify, /classify or /encode",
                           api.model.config.architectures[0])};
}

Result<PromptPlan> plan_prompt(const ApiContext& api, const LengthLimits& limits, std::vector<int32_t> ids,
                               const protocol::Sampling& sampling, std::optional<int64_t> default_length, bool stream) {
  SLUICE_TRY_VOID(check_generates(api));
  SLUICE_TRY(const int64_t length, fit_context(api, limits, ids, sampling.max_new_tokens, default_length));
  if (sampling.grammar && !api.settings.why_no_grammar.empty()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} is not supported: {}", sampling.grammar->field, api.settings.why_no_grammar)};
  }
  PromptPlan out;
  out.request.input_ids = std::move(ids);
  out.request.sampling = to_engine(sampling, length);
  if (!sampling.seed) out.request.sampling.seed = api.settings.seed;
  out.request.stream_interval =
      stream ? sampling.stream_interval.value_or(api.settings.stream_interval) : kWholeInterval;
  out.format.length_is_ours = !sampling.max_new_tokens;
  out.format.text = {
      .skip_special = sampling.skip_special_tokens, .no_stop_trim = sampling.no_stop_trim, .stop = sampling.stop};
  return out;
}

Result<void> want_insides(const ApiContext& api, const protocol::Insides& insides, size_t samples, PromptPlan& prompt) {
  const auto refuse = [](std::string message) { return Error{ErrorCode::kInvalidArgument, std::move(message)}; };
  GenerateRequest& request = prompt.request;
  if (insides.hidden_states && !api.settings.hidden_states) {
    return refuse(
        "The server is not configured to return the hidden states. Please set "
        "`--enable-return-hidden-states` to enable this feature.");
  }
  if (insides.routed_experts && !api.settings.routed_experts) {
    return refuse(
        "The server is not configured to return routed experts. Please set "
        "`--enable-return-routed-experts` to enable this feature.");
  }
  if (insides.routed_experts && !api.model.config.moe) {
    return refuse("return_routed_experts is not supported by this model: it has no experts");
  }
  const auto input = static_cast<int64_t>(request.input_ids.size()), output = request.sampling.max_new_tokens;
  const int64_t most = kMostHiddenValues / api.model.config.hidden_size / static_cast<int64_t>(samples);
  if (insides.hidden_states && input + output > most) {
    return refuse(
        fmt::format("return_hidden_states: {} samples of {} tokens of input and {} of output are too many for "
                    "one answer; with this model's {} values for each, all tokens of a sample must be at most "
                    "{}",
                    samples, input, output, api.model.config.hidden_size, most));
  }
  request.return_hidden_states = insides.hidden_states;
  request.return_routed_experts = insides.routed_experts;
  return {};
}

Result<void> add_samples(GenerationPlan& plan, PromptPlan prompt, size_t n, const std::string& rid, bool numbered) {
  // The first of each prompt is bounded by what the body holds.
  plan.copied_tokens += (n - 1) * prompt.request.input_ids.size();
  if (plan.copied_tokens > kMostCopiedTokens) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("n is too large for such prompts: beyond the first sample of each, those of a request may "
                             "have {} prompt tokens together, got {} or more",
                             kMostCopiedTokens, plan.copied_tokens)};
  }
  for (size_t i = 0; i < n; ++i) {
    PlannedSample sample{prompt.request, prompt.format};
    sample.request.rid = numbered ? fmt::format("{}_{}", rid, plan.samples.size()) : rid;
    // Samples of one seed would all be the same.
    if (sample.request.sampling.seed) *sample.request.sampling.seed += i;
    plan.samples.push_back(std::move(sample));
  }
  return {};
}

Result<void> check_sample_count(size_t prompts, int64_t n) {
  if (prompts * static_cast<size_t>(n) <= protocol::kMaxBatch) return {};
  return Error{
      ErrorCode::kInvalidArgument,
      fmt::format("a request may ask for at most {} samples, got {} prompts of {}", protocol::kMaxBatch, prompts, n)};
}

}  // namespace sluice::engine
