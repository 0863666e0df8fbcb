#include "engine/api/native_api.h"

#include <utility>

#include "engine/api/generation.h"
#include "engine/api/plan.h"
#include "engine/api/sse_writer.h"
#include "engine/kv_block_hash.h"
#include "protocol/errors.h"
#include "protocol/fields.h"

namespace sluice::engine {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kDefaultLength = 128;

struct NativeRequest {
  GenerationPlan plan;
  std::vector<protocol::NativeFormat> formats;  // per prompt
  bool list = false;                            // the answer is a list, the events of a stream are numbered
  bool stream = false;
};

constexpr size_t kMostEmbedValues = size_t{16} << 20;  // of a prompt, times the samples of the whole request

// Rows in place of embeddings. Requests with the same ones share a prefix, and with no others. Each of the request's
// `samples` has a copy on its way.
Result<void> take_embeds(const ApiContext& api, const protocol::GenerateItem& item, size_t samples,
                         PromptPlan& prompt) {
  const auto& rows = item.prompt.embeds;
  const auto refuse = [](std::string message) { return Error{ErrorCode::kInvalidArgument, std::move(message)}; };
  if (std::cmp_not_equal(rows.front().size(), api.model.config.hidden_size)) {
    return refuse(fmt::format("input_embeds must hold rows of {} numbers, this model's hidden size, got {}",
                              api.model.config.hidden_size, rows.front().size()));
  }
  if (item.return_logprob && item.logprob_start_len >= 0) {
    return refuse("logprob_start_len must be -1 with input_embeds: what comes in has no tokens");
  }
  std::vector<float>& values = prompt.request.input_embeds;
  const size_t count = prompt.request.input_ids.size();  // less than was sent, with --allow-auto-truncate
  if (count * rows.front().size() > kMostEmbedValues / samples) {
    return refuse(fmt::format("input_embeds holds {} numbers, {} at most for a request of {} samples",
                              count * rows.front().size(), kMostEmbedValues / samples, samples));
  }
  values.reserve(count * rows.front().size());
  for (size_t i = 0; i < count; ++i) values.insert(values.end(), rows[i].begin(), rows[i].end());
  const auto digest =
      kv_namespace_digest({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
  prompt.request.extra_key.append("input_embeds:").append(digest.begin(), digest.end());
  return {};
}

Result<NativeRequest> prepare(ApiContext& api, const net::Headers& headers, std::string_view text,
                              protocol::GenerateForm& form) {
  SLUICE_TRY(auto body, protocol::parse_generate_body(text, &form));
  NativeRequest out;
  const auto n = static_cast<size_t>(body.items.front().sampling.n);
  SLUICE_TRY_VOID(check_sample_count(body.items.size(), body.items.front().sampling.n));
  out.list = body.batch || n > 1;
  out.stream = body.stream;
  out.plan.per_prompt = n;
  out.plan.measured = body.log_metrics;
  out.plan.background = body.background;
  SLUICE_TRY(out.plan.dp_rank, wanted_rank(headers, body.dp_rank));
  SLUICE_TRY(out.plan.labels, wanted_labels(api, headers, body.labels));
  const auto limits = api.limits();
  const std::string shared_rid = body.rid.empty() ? api.new_rid() : body.rid;
  for (auto& item : body.items) {
    auto ids = item.prompt.embeds.empty() ? prompt_ids(api, std::move(item.prompt))
                                          : std::vector<int32_t>(item.prompt.embeds.size(), -1);
    SLUICE_TRY(auto prompt, plan_prompt(api, limits, std::move(ids), item.sampling, kDefaultLength, body.stream));
    prompt.request.extra_key = item.extra_key;
    if (!item.prompt.embeds.empty()) SLUICE_TRY_VOID(take_embeds(api, item, body.items.size() * n, prompt));
    SLUICE_TRY_VOID(want_insides(api, item.insides, body.items.size() * n, prompt));
    prompt.request.priority = body.priority;
    prompt.request.routing_key = routing_key(headers, body.routing_key);
    if (item.return_logprob) {
      prompt.request.return_logprob = true;
      prompt.request.logprob_start_len = item.logprob_start_len;
      prompt.request.top_logprobs_num = item.top_logprobs_num;
      prompt.request.token_ids_logprob = item.token_ids_logprob;
    }
    prompt.format.texts_in_scores = body.return_text_in_logprobs;
    out.formats.push_back({.weight_version = api.weight_version(),
                           .logprobs = item.return_logprob,
                           .top_logprobs = item.return_logprob && item.top_logprobs_num > 0,
                           .requested_logprobs = item.return_logprob && !item.token_ids_logprob.empty(),
                           .text_in_logprobs = body.return_text_in_logprobs,
                           .data_parallel = api.settings.dp_size > 1,
                           .hidden_size = item.insides.hidden_states ? api.model.config.hidden_size : 0,
                           .routed_experts = item.insides.routed_experts});
    const bool own = !item.rid.empty();
    SLUICE_TRY_VOID(add_samples(out.plan, std::move(prompt), n, own ? item.rid : shared_rid, own ? n > 1 : out.list));
  }
  return out;
}

// Before anything was sent. Values that are not valid have the endpoint's own form; everything else, also a body that
// is no JSON or has fields of the wrong type, has OpenAI's.
net::Task<> refuse(ApiCall& call, protocol::GenerateForm form, const Error& error) {
  const int status = protocol::http_status(error.code);
  const bool malformed = error.code == ErrorCode::kProtocol || !form.object;
  if (status != 400 || malformed) {
    co_await answer(call, error_response(status, error.message));
  } else if (form.stream) {
    SseWriter out(call.exchange);
    out.event(protocol::native_error_body(error.message));
    co_await out.finish();
  } else {
    co_await answer(call, net::Response::json(400, protocol::native_error_body(error.message)));
  }
}

ordered_json sample_json(const NativeRequest& request, const Generation& generation, size_t i, size_t first_id) {
  return protocol::native_answer(generation.sample(i), request.formats[i / generation.per_prompt()], first_id);
}

net::Task<> answer_whole(ApiCall& call, const NativeRequest& request, Generation& generation) {
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return;
    if (!step.failure) continue;
    const auto& [status, message, reason] = *step.failure;
    if (status == 400) {
      co_await answer(call, net::Response::json(400, protocol::native_error_body(message)));
    } else {
      co_await answer(call, error_response(status, message, reason));
    }
    co_return;
  }
  auto made = co_await run_off_loop(call, generation.bulk(), [&]() -> Result<net::Response> {
    if (!request.list) return json_response(sample_json(request, generation, 0, 0));
    auto list = ordered_json::array();
    for (size_t i = 0; i < generation.size(); ++i) list.push_back(sample_json(request, generation, i, 0));
    return json_response(list);
  });
  co_await answer_made(call, std::move(made));
}

net::Task<> answer_stream(ApiCall& call, const NativeRequest& request, Generation& generation) {
  struct Sent {
    size_t text = 0, ids = 0;
  };
  std::vector<Sent> sent(generation.size());
  SseWriter out(call.exchange);
  const auto add_event = [&](size_t i) {
    auto event = sample_json(request, generation, i, call.api.settings.stream_output ? sent[i].ids : 0);
    if (request.list) event["index"] = i;
    out.event(protocol::dump(event));
    sent[i] = {generation.sample(i).text.size(), generation.sample(i).output_ids.size()};
  };
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return;
    if (step.failure && step.failure->status != 400 && !call.exchange.started()) {
      co_await answer(call, error_response(step.failure->status, step.failure->message, step.failure->reason));
      co_return;
    }
    for (const size_t i : step.grown) {
      const auto& sample = generation.sample(i);
      const bool going_on = sample.finish.kind == protocol::Finish::Kind::kNone;
      if (going_on && generation.holds_back(i) && sample.text.size() == sent[i].text) continue;
      if (step.failure && i == step.failed) continue;
      add_event(i);
    }
    if (step.failure) {
      if (step.failure->status == 400) {
        out.event(protocol::native_error_body(step.failure->message));
      } else {
        add_event(step.failed);  // its finish_reason says what happened
      }
      break;
    }
    const bool there = co_await out.flush();
    if (!there) co_return;
  }
  co_await out.finish();
}

}  // namespace

net::Task<> generate(ApiCall& call) {
  const auto text = co_await read_body(call);
  if (!text) co_return;
  const auto& headers = call.exchange.request().headers;
  protocol::GenerateForm form;
  auto prepared = co_await run_off_loop(call, text->size(), [&] { return prepare(call.api, headers, *text, form); });
  if (!prepared.ok()) {
    co_await refuse(call, form, prepared.error());
    co_return;
  }
  const bool stream = prepared->stream;
  Generation generation(call, std::move(prepared->plan));
  if (const auto started = generation.start(); !started.ok()) {
    co_await refuse(call, form, started.error());
  } else if (stream) {
    co_await answer_stream(call, *prepared, generation);
  } else {
    co_await answer_whole(call, *prepared, generation);
  }
}

}  // namespace sluice::engine
