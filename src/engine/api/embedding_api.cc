#include "engine/api/embedding_api.h"

#include <algorithm>
#include <cmath>

#include "engine/api/generation.h"
#include "engine/api/openai_request.h"
#include "engine/api/plan.h"
#include "protocol/embedding_body.h"

namespace sluice::engine {
namespace {

using nlohmann::ordered_json;

// Samples of prompts, without text, and what of the body makes the answer.
template <class Body>
struct Prepared {
  GenerationPlan plan;
  Body body;
};

template <class Body>
Result<GenerationPlan> plan_prompts(ApiContext& api, const net::Headers& headers, Body& body,
                                    const GenerateRequest& request) {
  GenerationPlan plan;
  SLUICE_TRY(plan.dp_rank, wanted_rank(headers, body.routing.dp_rank));
  SLUICE_TRY(plan.labels, wanted_labels(api, headers, body.routing.labels));
  plan.background = body.routing.background;
  SLUICE_TRY_VOID(check_sample_count(body.prompts.size(), 1));
  const auto limits = api.limits();
  const std::string rid = body.routing.rid.empty() ? api.new_rid() : body.routing.rid;
  const bool numbered = body.prompts.size() > 1;
  for (auto& prompt : body.prompts) {
    PromptPlan one{.request = request};
    one.request.input_ids = prompt_ids(api, std::move(prompt));
    one.request.extra_key = body.routing.extra_key;
    one.request.routing_key = routing_key(headers, body.routing.routing_key);
    one.request.priority = body.routing.priority;
    SLUICE_TRY(one.request.sampling.max_new_tokens,
               fit_context(api, limits, one.request.input_ids, request.sampling.max_new_tokens, std::nullopt));
    SLUICE_TRY_VOID(add_samples(plan, std::move(one), 1, rid, numbered));
  }
  return plan;
}

using ParseEmbedding = Result<protocol::EmbeddingBody> (*)(std::string_view);

// Of a model that embeds its last token's hidden state, of a classifier its labels' scores.
Result<Prepared<protocol::EmbeddingBody>> prepare_embedding(ApiContext& api, const net::Headers& headers,
                                                            std::string_view text, ParseEmbedding parse) {
  const bool classifies = !api.model.config.labels.empty();
  if (!api.settings.embedding && !classifies) {
    return Error{ErrorCode::kInvalidArgument,
                 "this server was started without --is-embedding, with which it serves embeddings"};
  }
  SLUICE_TRY(auto body, parse(text));
  if (body.dimensions && classifies) {
    return Error{ErrorCode::kInvalidArgument, "dimensions means nothing for a classifier's scores"};
  }
  if (body.dimensions && *body.dimensions > api.model.config.hidden_size) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("dimensions must be in [1, {}], got {}", api.model.config.hidden_size, *body.dimensions)};
  }
  GenerateRequest request{.embed = true};
  request.sampling.max_new_tokens = 0;
  SLUICE_TRY(auto plan, plan_prompts(api, headers, body, request));
  return Prepared<protocol::EmbeddingBody>{std::move(plan), std::move(body)};
}

Result<Prepared<protocol::EmbeddingBody>> prepare_classify(ApiContext& api, const net::Headers& headers,
                                                           std::string_view text, ParseEmbedding parse) {
  if (!api.model.config.labels.empty()) return prepare_embedding(api, headers, text, parse);
  return Error{
      ErrorCode::kInvalidArgument,
      fmt::format("classifying needs a checkpoint with labels (such as Qwen2ForSequenceClassification), and this "
                  "one is {}; /v1/score gives the probabilities of tokens after a text",
                  api.model.config.architectures[0])};
}

// The probabilities of these labels as the next token.
GenerateRequest ask_labels(std::vector<int32_t> labels) {
  // What may follow the prompt is known with the first token, which nobody looks at.
  GenerateRequest request{.return_logprob = true, .token_ids_logprob = std::move(labels)};
  request.sampling.max_new_tokens = 1;
  request.sampling.temperature = 0;
  return request;
}

Result<Prepared<protocol::ScoreBody>> prepare_score(ApiContext& api, const net::Headers& headers,
                                                    std::string_view text) {
  SLUICE_TRY_VOID(check_generates(api));
  SLUICE_TRY(auto body, protocol::parse_score_body(text));
  for (const int32_t id : body.label_token_ids) {
    if (id < api.model.config.vocab_size) continue;
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("label_token_ids holds {}, the vocabulary is [0, {})", id, api.model.config.vocab_size)};
  }
  SLUICE_TRY(auto plan, plan_prompts(api, headers, body, ask_labels(body.label_token_ids)));
  return Prepared<protocol::ScoreBody>{std::move(plan), std::move(body)};
}

Result<Prepared<protocol::RerankBody>> prepare_rerank(ApiContext& api, const net::Headers& headers,
                                                      std::string_view text) {
  if (!api.model.reranks) {
    return Error{ErrorCode::kInvalidArgument,
                 "reranking needs a model such as Qwen3-Reranker, started with --chat-template FILE of a template that "
                 "asks of a query and a document whether they fit, \"yes\" or \"no\""};
  }
  SLUICE_TRY_VOID(check_generates(api));
  SLUICE_TRY(auto body, protocol::parse_rerank_body(text));
  std::vector<int32_t> labels;
  for (const char* label : {"yes", "no"}) {
    const auto ids = api.model.tokenizer->encode(label, /*add_special=*/false);
    if (ids.size() != 1) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("reranking needs a model whose vocabulary has '{}' as one token", label)};
    }
    labels.push_back(ids.front());
  }
  // The query stands in every prompt, so a body may amount to much more than its size.
  const auto limits = api.limits();
  size_t rendered = 0;
  for (size_t i = 0; i < body.documents.size(); ++i) {
    ordered_json context = {{"messages", protocol::rerank_messages(body.query, body.documents[i])}};
    if (body.instruct) context["instruct"] = *body.instruct;
    SLUICE_TRY(const auto prompt, render_chat(api, context));
    rendered += prompt.size();
    if (rendered > kMaxBodyBytes) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("the query and its documents make prompts of more than {} bytes; send fewer documents",
                               kMaxBodyBytes)};
    }
    auto ids = api.prompts.encode(prompt, /*add_special=*/false);
    // Cut, as --allow-auto-truncate has it, a prompt would lose its question.
    if (limits.context_length > 0 && std::ssize(ids) >= std::min(limits.context_length, limits.max_input + 1)) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("document {} and the query are {} tokens together, which is more than the model's "
                               "context allows ({} tokens)",
                               i, ids.size(), std::min(limits.context_length - 1, limits.max_input))};
    }
    body.prompts.push_back({.text = "", .ids = std::move(ids)});
  }
  SLUICE_TRY(auto plan, plan_prompts(api, headers, body, ask_labels(std::move(labels))));
  return Prepared<protocol::RerankBody>{std::move(plan), std::move(body)};
}

// Probabilities of the labels: among all tokens, or among themselves.
ordered_json scores_of(const protocol::Sample& sample, bool softmax) {
  auto out = ordered_json::array();
  if (sample.output_scores.empty()) return out;
  double sum = 0;
  for (const auto& label : sample.output_scores.front().requested) {
    const double p = std::exp(static_cast<double>(label.logprob.value_or(-INFINITY)));
    out.push_back(p);
    sum += p;
  }
  if (softmax && sum > 0) {
    for (auto& p : out) p = p.get<double>() / sum;
  }
  return out;
}

ordered_json prompt_usage(const Generation& generation) {
  const int64_t tokens = generation.usage().prompt_tokens;
  return {{"prompt_tokens", tokens},
          {"total_tokens", tokens},
          {"completion_tokens", 0},
          {"prompt_tokens_details", nullptr}};
}

// To the end of all samples; false: the exchange was answered, or the client has left.
net::Task<bool> run(ApiCall& call, Generation& generation) {
  if (const auto started = generation.start(); !started.ok()) {
    co_await answer_error(call, started.error());
    co_return false;
  }
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return false;
    if (step.failure) {
      co_await answer(call, error_response(step.failure->status, step.failure->message, step.failure->reason));
      co_return false;
    }
  }
  for (size_t i = 0; i < generation.size(); ++i) {
    if (generation.sample(i).finish.kind != protocol::Finish::Kind::kAbort) continue;
    co_await answer(call, error_response(503, "the request was aborted"));
    co_return false;
  }
  co_return true;
}

ordered_json meta_info(const protocol::Sample& sample) {
  ordered_json meta = {{"id", sample.rid}};
  meta["finish_reason"] = nullptr;
  meta["prompt_tokens"] = sample.prompt_tokens;
  meta["cached_tokens"] = sample.cached_tokens;
  meta["e2e_latency"] = sample.e2e_latency.value_or(0);
  return meta;
}

ordered_json native_embedding(const protocol::Sample& sample, std::optional<int64_t> dimensions) {
  ordered_json out = ordered_json::object();
  out["embedding"] = protocol::embedding_json(protocol::shortened(sample.embedding, dimensions), false);
  out["meta_info"] = meta_info(sample);
  return out;
}

// Prefills what `prepare` makes of the body, then answers with what `make` makes of that and of the result.
template <class Prepare, class Make>
net::Task<> prefill(ApiCall& call, Prepare prepare, Make make, bool always_off_loop = false) {
  const auto text = co_await read_body(call);
  if (!text) co_return;
  const auto& headers = call.exchange.request().headers;
  const size_t work = always_off_loop ? kMaxBodyBytes : text->size();
  auto prepared = co_await run_off_loop(call, work, [&] { return prepare(call.api, headers, *text); });
  if (!prepared.ok()) {
    co_await answer_error(call, prepared.error());
    co_return;
  }
  Generation generation(call, std::move(prepared->plan));
  const bool done = co_await run(call, generation);
  if (!done) co_return;
  auto made = co_await run_off_loop(call, generation.bulk(), [&]() -> Result<net::Response> {
    return json_response(make(call.api, prepared->body, generation));
  });
  co_await answer_made(call, std::move(made));
}

ordered_json openai_embeddings(const ApiContext&, const protocol::EmbeddingBody& body, const Generation& generation) {
  auto data = ordered_json::array();
  for (size_t i = 0; i < generation.size(); ++i) {
    const auto embedding = protocol::shortened(generation.sample(i).embedding, body.dimensions);
    ordered_json entry = ordered_json::object();
    entry["embedding"] = protocol::embedding_json(embedding, body.base64);
    entry["index"] = i;
    entry["object"] = "embedding";
    data.push_back(std::move(entry));
  }
  ordered_json out = {{"object", "list"}};
  out["data"] = std::move(data);
  out["model"] = body.model;
  out["usage"] = prompt_usage(generation);
  return out;
}

ordered_json native_embeddings(const ApiContext&, const protocol::EmbeddingBody& body, const Generation& generation) {
  auto out = ordered_json::array();
  for (size_t i = 0; i < generation.size(); ++i) out.push_back(native_embedding(generation.sample(i), body.dimensions));
  return body.list ? out : out[0];
}

ordered_json scores(const ApiContext&, const protocol::ScoreBody& body, const Generation& generation) {
  auto values = ordered_json::array();
  for (size_t i = 0; i < generation.size(); ++i) values.push_back(scores_of(generation.sample(i), body.apply_softmax));
  ordered_json out = ordered_json::object();
  out["scores"] = std::move(values);
  out["model"] = body.model;
  out["usage"] = prompt_usage(generation);
  out["object"] = "scoring";
  return out;
}

ordered_json classes(const ApiContext& api, const protocol::EmbeddingBody& body, const Generation& generation) {
  const auto& labels = api.model.config.labels;
  auto data = ordered_json::array();
  for (size_t i = 0; i < generation.size(); ++i) {
    const auto probabilities = protocol::softmax(generation.sample(i).embedding);
    const auto best = std::max_element(probabilities.begin(), probabilities.end()) - probabilities.begin();
    ordered_json entry = {{"index", i}};
    entry["label"] = labels.at(static_cast<size_t>(best));
    entry["probs"] = probabilities;
    entry["num_classes"] = probabilities.size();
    data.push_back(std::move(entry));
  }
  ordered_json out = {{"id", generation.sample(0).rid}, {"object", "list"}, {"created", api.unix_seconds()}};
  out["model"] = body.model;
  out["data"] = std::move(data);
  out["usage"] = prompt_usage(generation);
  return out;
}

// The best first: how much more probable "yes" is than "no".
ordered_json ranking(const ApiContext&, const protocol::RerankBody& body, const Generation& generation) {
  std::vector<ordered_json> results;
  for (size_t i = 0; i < generation.size(); ++i) {
    const auto answers = scores_of(generation.sample(i), /*softmax=*/true);
    ordered_json result = {{"score", answers.empty() ? 0.0 : answers[0].get<double>()}};
    result["document"] = body.return_documents ? ordered_json(body.documents[i]) : ordered_json();
    result["index"] = i;
    result["meta_info"] = meta_info(generation.sample(i));
    results.push_back(std::move(result));
  }
  std::stable_sort(results.begin(), results.end(), [](const ordered_json& a, const ordered_json& b) {
    return a["score"].get<double>() > b["score"].get<double>();
  });
  if (body.top_n && *body.top_n < std::ssize(results)) results.resize(static_cast<size_t>(*body.top_n));
  return results;
}

template <ParseEmbedding kParse, auto kPrepare = prepare_embedding>
Result<Prepared<protocol::EmbeddingBody>> prepare_as(ApiContext& api, const net::Headers& headers,
                                                     std::string_view text) {
  return kPrepare(api, headers, text, kParse);
}

}  // namespace

net::Task<> embeddings(ApiCall& call) {
  return prefill(call, prepare_as<protocol::parse_embeddings_body>, openai_embeddings);
}
net::Task<> encode(ApiCall& call) { return prefill(call, prepare_as<protocol::parse_encode_body>, native_embeddings); }
// Small bodies may be much work: the query is a part of every prompt.
net::Task<> score(ApiCall& call) { return prefill(call, prepare_score, scores, /*always_off_loop=*/true); }

net::Task<> classify(ApiCall& call) {
  return prefill(call, prepare_as<protocol::parse_classify_body, prepare_classify>, classes);
}
net::Task<> classify_native(ApiCall& call) {
  return prefill(call, prepare_as<protocol::parse_encode_body, prepare_classify>, native_embeddings);
}
net::Task<> rerank(ApiCall& call) { return prefill(call, prepare_rerank, ranking, /*always_off_loop=*/true); }

}  // namespace sluice::engine
