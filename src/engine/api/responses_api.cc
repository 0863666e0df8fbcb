#include "engine/api/responses_api.h"

#include <utility>

#include "engine/api/chat_output.h"
#include "engine/api/openai_request.h"
#include "engine/api/sse_writer.h"
#include "protocol/errors.h"
#include "protocol/responses_body.h"

namespace sluice::engine {
namespace {

using protocol::ResponseState;
using protocol::ResponseStatus;

net::Task<> refuse(ApiCall& call, int status, std::string_view message, std::string_view reason = {},
                   std::string_view param = {}) {
  co_await answer(call, net::Response::json(status, protocol::responses_error_body(status, message, reason, param)));
}

net::Task<> refuse(ApiCall& call, const Error& error, std::string_view param = {}) {
  return refuse(call, protocol::http_status(error.code), error.message, {}, param);
}

// Not of the source that makes rids: who knows one response of somebody must not find out the ids of others.
std::string new_response_id() {
  const uint64_t high = random_seed();
  return fmt::format("{}{:016x}{:016x}", protocol::kResponsePrefix, high, random_seed());
}

// What becomes of one request.
struct Asked {
  ResponseState state;
  std::string messages;  // with those that came before, without instructions
};

// Takes over how the sample ended; its text has been read.
void take_end(ResponseState& state, const Generation& generation, ChatOutput& output) {
  state.status = protocol::ended_status(generation.sample(0).finish);
  state.usage = generation.usage();
  state.usage->reasoning_tokens = output.reasoning_tokens(generation.sample(0));
}

void keep(ApiContext& api, const Asked& asked) {
  if (!asked.state.stored) return;
  api.responses.keep({.state = asked.state,
                      .conversation = protocol::with_answer(asked.messages, asked.state.text),
                      .background = false});
}

net::Task<> answer_whole(ApiCall& call, Asked asked, ChatOutput& output, Generation& generation) {
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return;
    if (step.failure) {
      co_await refuse(call, step.failure->status, step.failure->message, step.failure->reason);
      co_return;
    }
  }
  asked.state.text = output.push(generation.sample(0)).content;
  take_end(asked.state, generation, output);
  keep(call.api, asked);
  co_await answer(call, json_response(protocol::response_object(asked.state)));
}

net::Task<> answer_stream(ApiCall& call, Asked asked, ChatOutput& output, Generation& generation) {
  ResponseState& state = asked.state;
  SseWriter out(call.exchange);
  protocol::ResponseEvents events(state);
  for (const auto& event : events.begin()) out.event(event);
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return;
    if (step.failure && !call.exchange.started()) {
      co_await refuse(call, step.failure->status, step.failure->message, step.failure->reason);
      co_return;
    }
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
  keep(call.api, asked);  // whoever reads the last event may go on from it
  for (const auto& event : events.end()) out.event(event);
  co_await out.finish();
}

// One in the background, from its start to its end.
struct BackgroundRun {
  BackgroundRun(ApiCall& call, Asked a, ChatParsing p, GenerationPlan plan)
      : asked(std::move(a)),
        parsing(std::move(p)),
        output(call.api, parsing),
        generation(call.api, call.exchange.loop(), std::move(plan), call.trace) {}

  Asked asked;
  const ChatParsing parsing;
  ChatOutput output;
  Generation generation;
};
using Run = std::shared_ptr<BackgroundRun>;

net::Task<> follow(ApiContext& api, Run run) {
  ResponseState& state = run->asked.state;
  Generation& generation = run->generation;
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (step.failure) {
      state.status = ResponseStatus::kFailed;
      state.failed_with = step.failure->status;
      state.failure = step.failure->message;
      break;
    }
    api.responses.progress(state.id);
  }
  if (state.status != ResponseStatus::kFailed) {
    state.text = run->output.push(generation.sample(0)).content;
    take_end(state, generation, run->output);
  }
  std::string conversation;
  if (can_be_gone_on_from(state.status)) conversation = protocol::with_answer(run->asked.messages, state.text);
  api.responses.finish(state, std::move(conversation));
}

// The answer says that it has begun; what comes of it is fetched.
net::Task<> begin_background(ApiCall& call, Asked asked, OpenAiRequest chat) {
  ApiContext& api = call.api;
  net::EventLoop& loop = call.exchange.loop();
  if (api.status == ServerStatus::kDraining) {
    co_await refuse(call, 503, "the server is about to end: nobody could fetch the answer");
    co_return;
  }
  asked.state.status = ResponseStatus::kQueued;
  const ResponseState begun = asked.state;
  auto run = std::make_shared<BackgroundRun>(call, std::move(asked), std::move(chat.parsing), std::move(chat.plan));
  // On its own loop, where nothing else touches it meanwhile; not its last owner unless it has ended.
  auto cancel = [&loop, weak = std::weak_ptr(run)] {
    loop.post([weak] {
      if (const Run there = weak.lock()) there->generation.abort();
    });
  };
  // What the run holds: its messages, and a second echo.
  const size_t held = run->asked.messages.size() + begun.echo.size();
  auto placed = api.responses.begin({.state = begun, .conversation = "", .background = true}, held, cancel);
  if (!placed.ok()) {
    co_await refuse(call, placed.error());
    co_return;
  }
  if (const auto started = run->generation.start(); !started.ok()) {
    (void)api.responses.remove(begun.id);
    co_await refuse(call, started.error());
    co_return;
  }
  // The loop keeps the function for longer than the coroutine runs: what runs must be gone with that.
  loop.spawn(
      [&api, held = std::make_shared<Run>(std::move(run))] { return follow(api, std::exchange(*held, nullptr)); });
  co_await answer(call, json_response(protocol::response_object(begun)));
}

// What `body` goes on from; null where it begins a conversation.
Result<ResponseStore::Found> find_previous(ApiContext& api, const protocol::ResponsesBody& body) {
  if (body.previous.empty()) return ResponseStore::Found();
  SLUICE_TRY(const auto found, api.responses.find(body.previous));
  const auto status = found->state.status;
  if (!can_be_gone_on_from(status)) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("previous_response_id '{}' has status {}: it has no answer to "
                             "go on from",
                             body.previous, protocol::to_string(status))};
  }
  return found;
}

}  // namespace

net::Task<> responses(ApiCall& call) {
  const auto text = co_await read_body(call);
  if (!text) co_return;
  ApiContext& api = call.api;
  auto body = co_await run_off_loop(call, text->size(), [&] { return protocol::parse_responses_body(*text); });
  if (!body.ok()) {
    co_await refuse(call, body.error());
    co_return;
  }
  if (body->background && !api.responses.keeps()) {
    co_await refuse(call, 400, "background needs a server that stores responses: --max-stored-responses is 0");
    co_return;
  }
  const auto previous = find_previous(api, *body);
  if (!previous.ok()) {
    co_await refuse(call, previous.error(), "previous_response_id");
    co_return;
  }
  const bool stored = body->store && api.responses.keeps();
  const std::string_view before = *previous == nullptr ? std::string_view() : (*previous)->conversation;
  const auto& headers = call.exchange.request().headers;
  std::string messages;  // of what is stored
  auto chat = co_await run_off_loop(call, text->size() + before.size(), [&] {
    auto prepared = prepare_chat(api, headers, protocol::chat_of(*body, before), /*goes_on=*/*previous != nullptr);
    if (prepared.ok() && stored) messages = protocol::joined_messages(before, body->messages);
    return prepared;
  });
  if (!chat.ok()) {
    co_await refuse(call, chat.error());
    co_return;
  }
  Asked asked{.state = {.id = new_response_id(),
                        .created = chat->format.created,
                        .model = chat->format.model,
                        .echo = std::move(body->echo),
                        .stored = stored},
              .messages = std::move(messages)};
  if (body->background) {
    co_await begin_background(call, std::move(asked), std::move(*chat));
    co_return;
  }
  ChatOutput output(api, chat->parsing);
  Generation generation(call, std::move(chat->plan));
  if (const auto started = generation.start(); !started.ok()) {
    co_await refuse(call, started.error());
  } else if (body->stream) {
    co_await answer_stream(call, std::move(asked), output, generation);
  } else {
    co_await answer_whole(call, std::move(asked), output, generation);
  }
}

namespace {

net::Task<> wrong_method(ApiCall& call, std::string_view methods) {
  auto response =
      net::Response::json(405, protocol::responses_error_body(405, fmt::format("this path takes {}", methods)));
  response.headers.set("Allow", std::string(methods));
  co_await answer(call, std::move(response));
}

net::Task<> show(ApiCall& call, Result<ResponseStore::Found> found) {
  if (found.ok()) {
    co_await answer(call, json_response(protocol::response_object((*found)->state)));
  } else {
    co_await refuse(call, found.error(), "response_id");
  }
}

net::Response deleted(std::string_view id) {
  return json_response({{"id", id}, {"object", "response.deleted"}, {"deleted", true}});
}

net::Task<> remove(ApiCall& call, std::string_view id) {
  const auto removed = call.api.responses.remove(id);
  if (!removed.ok()) {
    co_await refuse(call, removed.error(), "response_id");
    co_return;
  }
  co_await answer(call, deleted(id));
}

}  // namespace

net::Task<> stored_response(ApiCall& call) {
  const std::string_view method = call.exchange.request().method;
  const bool streams = net::query_value(call.exchange.request().query(), "stream") == "true";
  std::string_view id = call.exchange.request().path();
  id.remove_prefix(std::string_view("/v1/responses/").size());
  constexpr std::string_view kCancel = "/cancel";
  const bool cancels = id.ends_with(kCancel);
  if (cancels) id.remove_suffix(kCancel.size());
  if (id.find('/') != std::string_view::npos) {
    co_await refuse(call, 404, fmt::format("there is nothing at {}", call.exchange.request().path().substr(0, 200)));
  } else if (cancels != (method == "POST")) {
    co_await wrong_method(call, cancels ? "POST" : "GET, DELETE");
  } else if (!id.starts_with(protocol::kResponsePrefix) || id.size() > protocol::kMaxResponseIdBytes) {
    co_await refuse(call, 400,
                    fmt::format("Invalid 'response_id': '{}'. Expected an ID that begins with 'resp'.",
                                id.substr(0, protocol::kMaxResponseIdBytes)),
                    {}, "response_id");
  } else if (cancels) {
    co_await show(call, call.api.responses.cancel(id));
  } else if (method == "DELETE") {
    co_await remove(call, id);
  } else if (streams) {
    co_await refuse(call, 400, "stream: a stored response is fetched as a whole", {}, "stream");
  } else {
    co_await show(call, call.api.responses.find(id));
  }
}

}  // namespace sluice::engine
