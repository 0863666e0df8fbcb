#include "engine/api/responses_api.h"

#include "engine/api/chat_output.h"
#include "engine/api/openai_request.h"
#include "engine/api/sse_writer.h"
#include "protocol/errors.h"
#include "protocol/responses_body.h"

namespace sluice::engine {
namespace {

net::Task<> refuse(ApiCall& call, int status, std::string_view message, std::string_view reason = {}) {
  co_await answer(call, net::Response::json(status, protocol::responses_error_body(status, message, reason)));
}

struct Prepared {
  protocol::ResponsesBody body;
  OpenAiRequest chat;
};

Result<Prepared> prepare(ApiContext& api, const net::Headers& headers, std::string_view text) {
  Prepared out;
  SLUICE_TRY(out.body, protocol::parse_responses_body(text));
  SLUICE_TRY(out.chat, prepare_chat(api, headers, out.body.chat));
  return out;
}

// Takes over how the sample ended; its text has been read.
void take_end(protocol::ResponseState& state, const Generation& generation, ChatOutput& output) {
  state.finish = generation.sample(0).finish;
  state.usage = generation.usage();
  state.usage.reasoning_tokens = output.reasoning_tokens(generation.sample(0));
}

net::Task<> answer_whole(ApiCall& call, protocol::ResponseState state, ChatOutput& output, Generation& generation) {
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return;
    if (step.failure) {
      co_await refuse(call, step.failure->status, step.failure->message, step.failure->reason);
      co_return;
    }
  }
  state.text = output.push(generation.sample(0)).content;
  take_end(state, generation, output);
  co_await answer(call, json_response(protocol::response_object(state)));
}

net::Task<> answer_stream(ApiCall& call, protocol::ResponseState state, ChatOutput& output, Generation& generation) {
  SseWriter out(call.exchange);
  protocol::ResponseEvents events(state);
  for (const auto& event : events.begin()) out.event(event);
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return;
    if (step.failure) {
      out.event(protocol::responses_error_body(step.failure->status, step.failure->message, step.failure->reason));
      co_await out.finish();
      co_return;
    }
    const auto text = output.push(generation.sample(0)).content;
    if (!text.empty()) out.event(events.delta(text));
    state.text += text;
    const bool there = co_await out.flush();
    if (!there) co_return;
  }
  take_end(state, generation, output);
  for (const auto& event : events.end()) out.event(event);
  co_await out.finish();
}

}  // namespace

net::Task<> responses(ApiCall& call) {
  const auto text = co_await read_body(call);
  if (!text) co_return;
  const auto& headers = call.exchange.request().headers;
  auto prepared = co_await run_off_loop(call, text->size(), [&] { return prepare(call.api, headers, *text); });
  if (!prepared.ok()) {
    co_await refuse(call, protocol::http_status(prepared.error().code), prepared.error().message);
    co_return;
  }
  const auto& format = prepared->chat.format;
  protocol::ResponseState state{
      .id = format.id, .created = format.created, .model = format.model, .echo = prepared->body.echo};
  ChatOutput output(call.api, prepared->chat.parsing);
  Generation generation(call, std::move(prepared->chat.plan));
  if (const auto started = generation.start(); !started.ok()) {
    co_await refuse(call, protocol::http_status(started.error().code), started.error().message);
  } else if (prepared->body.stream) {
    co_await answer_stream(call, std::move(state), output, generation);
  } else {
    co_await answer_whole(call, std::move(state), output, generation);
  }
}

net::Task<> stored_response(ApiCall& call) { return refuse(call, 404, "no such response: responses are not stored"); }

}  // namespace sluice::engine
