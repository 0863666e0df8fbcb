// Generation requests of the simulated worker: faults, canned answers, and answers in the time of a simulated engine.
#include <ctime>

#include "net/sse.h"
#include "testing/sim_worker_impl.h"

namespace sluice::testing {
namespace {

using net::Response;
using net::ResponseHead;
using net::ServerExchange;
using net::Task;

constexpr std::string_view kDone = "[DONE]";

ResponseHead event_stream() {
  return {.status = 200, .headers = {{"Content-Type", "text/event-stream"}, {"Cache-Control", "no-cache"}}};
}

// The event with the time now as its first member.
std::string stamped(std::string_view event) {
  const Duration now = std::chrono::steady_clock::now().time_since_epoch();
  return fmt::format(R"({{"sent_at_ns":{},{})", now.count(), event.substr(1));
}

std::string default_body(int status) {
  if (status == 503) return openai_error(503, "The request queue is full.", "503");
  if (status == 429) return openai_error(429, "Too many requests.", "rate_limit_error");
  return openai_error(status, "simulated failure", status >= 500 ? "InternalServerError" : "BadRequestError");
}

// The fault lets a request in and breaks its answer.
bool breaks_answer(const SimFault& fault) {
  return fault.kind == SimFault::Kind::kDie || fault.kind == SimFault::Kind::kHalfEvent ||
         fault.kind == SimFault::Kind::kMute;
}

Response refusal(SimApi api, const Error& error) {
  if (error.code == ErrorCode::kQueueFull) return Response::json(503, openai_error(503, error.message, "503"));
  return Response::json(400,
                        api == SimApi::kGenerate ? generate_error(error.message) : openai_error(400, error.message));
}

}  // namespace

SimCanned make_canned(const SimWorkerOptions& options, SimApi api) {
  SimSequence sequence;
  sequence.prompt_tokens = options.canned_prompt_tokens;
  sequence.cached_tokens = options.canned_cached_tokens;
  sequence.output = sim_output({1, 2, 3}, 0, options.canned_chunks);
  SimSequence whole = sequence;
  whole.advance(options.canned_chunks);
  SimReplyHead head{.api = api, .id = "canned", .model = options.model, .created = 1};
  SimCanned canned;
  canned.whole = whole_reply(head, {whole}, 0);
  if (api == SimApi::kChat) canned.events.push_back(first_event(head, sequence));
  for (int64_t i = 1; i <= options.canned_chunks; ++i) {
    const std::string delta = sequence.advance(i);
    canned.events.push_back(token_event(head, sequence, delta, 0));
  }
  if (api == SimApi::kChat) canned.events.push_back(last_event(head, sequence));
  for (const auto& event : canned.events) net::append_sse(canned.stream, event);
  canned.stream_with_usage = canned.stream;
  if (api != SimApi::kGenerate) {
    canned.events.push_back(usage_event(head, {sequence}));
    net::append_sse(canned.stream_with_usage, canned.events.back());
  }
  net::append_sse(canned.stream, kDone);
  net::append_sse(canned.stream_with_usage, kDone);
  return canned;
}

std::optional<SimFault::Kind> fault_kind(std::string_view name) {
  using Kind = SimFault::Kind;
  constexpr std::pair<std::string_view, Kind> kKinds[] = {{"none", Kind::kNone},
                                                          {"reset", Kind::kReset},
                                                          {"stall", Kind::kStall},
                                                          {"status", Kind::kStatus},
                                                          {"slow_head", Kind::kSlowHead},
                                                          {"die", Kind::kDie},
                                                          {"half_event", Kind::kHalfEvent},
                                                          {"mute", Kind::kMute}};
  for (const auto& [known, kind] : kKinds) {
    if (known == name) return kind;
  }
  return std::nullopt;
}

Task<> SimWorker::Impl::generation(ServerExchange& exchange, SimApi api) {
  SimEntry entry(tally_);
  auto body = co_await exchange.read_body(options_.max_body_bytes);
  if (!body.ok()) {
    const int status = body.error().code == ErrorCode::kTooLarge ? 413 : 400;
    auto refused = Response::json(status, openai_error(status, body.error().message));
    entry.close();
    co_await exchange.respond(std::move(refused));
    co_return;
  }
  ++tally_.generations;
  record(exchange, *body);
  const auto wait = std::make_shared<SimWait>(exchange.loop());
  exchange.on_client_gone([wait, &entry] {
    entry.leave();
    wait->leave();
  });
  struct Unsubscribe {  // before the entry goes
    ServerExchange& exchange;
    ~Unsubscribe() { exchange.on_client_gone({}); }
  } const unsubscribe{exchange};
  Generation generation{exchange, entry, api, *body, take_fault(/*generation=*/true), wait};
  if (generation.fault.kind == SimFault::Kind::kStatus) entry.close();
  const bool goes_on = co_await suffer(exchange, generation.fault, wait);
  if (!goes_on) co_return;
  if (options_.canned) {
    co_await canned(generation);
  } else {
    co_await simulated(generation);
  }
}

Task<bool> SimWorker::Impl::suffer(ServerExchange& exchange, const SimFault& fault, std::shared_ptr<SimWait> wait) {
  switch (fault.kind) {
    case SimFault::Kind::kReset:
      exchange.abort();
      co_return false;
    case SimFault::Kind::kStall:
      co_await wait->wait_gone();
      co_return false;
    case SimFault::Kind::kStatus: {
      auto response = Response::json(fault.status, fault.body.empty() ? default_body(fault.status) : fault.body);
      if (fault.retry_after) response.headers.add("Retry-After", std::to_string(*fault.retry_after));
      co_await exchange.respond(std::move(response));
      co_return false;
    }
    case SimFault::Kind::kSlowHead: {
      const bool stayed = co_await wait->sleep(fault.delay);
      co_return stayed;
    }
    default:
      co_return true;
  }
}

Task<> SimWorker::Impl::refuse(Generation& generation, Response response) {
  generation.entry.close();
  co_await generation.exchange.respond(std::move(response));
}

Task<> SimWorker::Impl::answer_whole(Generation& generation, std::string body) {
  if (breaks_answer(generation.fault)) {
    if (generation.fault.kind == SimFault::Kind::kDie) {
      generation.exchange.abort();
    } else {
      co_await generation.wait->wait_gone();
    }
    co_return;
  }
  auto response = Response::json(200, std::move(body));
  generation.entry.complete();
  const auto sent = co_await generation.exchange.respond(std::move(response));
  if (!sent.ok()) generation.entry.cut();
}

// One event of a stream, or what the fault makes of it; false: the stream is over.
Task<bool> SimWorker::Impl::send_event(Generation& generation, std::string_view event) {
  const SimFault& fault = generation.fault;
  if (generation.sent >= fault.chunks && breaks_answer(fault)) {
    if (fault.kind == SimFault::Kind::kDie) {
      generation.exchange.abort();
      co_return false;
    }
    if (fault.kind == SimFault::Kind::kHalfEvent) {
      co_await generation.exchange.write("data: {\"text\":\"w1 \xe4\xbd");
    }
    co_await generation.wait->wait_gone();
    co_return false;
  }
  ++generation.sent;
  std::string frame;
  net::append_sse(frame, event);
  const auto written = co_await generation.exchange.write(frame);
  co_return written.ok() && !generation.wait->gone;
}

// The end mark, at which a reader of the stream may stop reading, and the end of the body.
Task<> SimWorker::Impl::end_stream(Generation& generation) {
  const bool breaks = breaks_answer(generation.fault) && generation.sent >= generation.fault.chunks;
  if (!breaks) generation.entry.complete();
  const bool went = co_await send_event(generation, kDone);
  if (!went) {
    generation.entry.cut();
    co_return;
  }
  const auto finished = co_await generation.exchange.finish();
  if (!finished.ok()) generation.entry.cut();
}

Task<> SimWorker::Impl::canned(Generation& generation) {
  const SimCanned& reply = canned_[static_cast<size_t>(generation.api)];
  const StreamWish wish = stream_wish(generation.body);
  if (options_.canned_delay > Duration::zero()) {
    const bool stayed = co_await generation.wait->sleep(options_.canned_delay);
    if (!stayed) co_return;
  }
  if (!wish.stream) {
    std::string whole = reply.whole;
    co_await answer_whole(generation, std::move(whole));
    co_return;
  }
  auto head = event_stream();
  co_await generation.exchange.start(std::move(head));
  if (!breaks_answer(generation.fault) && !options_.canned_stamp && options_.canned_interval == Duration::zero()) {
    generation.entry.complete();
    const auto written =
        co_await generation.exchange.write(wish.include_usage ? reply.stream_with_usage : reply.stream);
    Result<void> finished;
    if (written.ok()) finished = co_await generation.exchange.finish();
    if (!written.ok() || !finished.ok()) generation.entry.cut();
    co_return;
  }
  const bool without_usage = generation.api != SimApi::kGenerate && !wish.include_usage;
  const size_t count = reply.events.size() - (without_usage ? 1 : 0);
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) {
      const bool stayed = co_await generation.wait->sleep(options_.canned_interval);
      if (!stayed) co_return;
    }
    const std::string event = options_.canned_stamp ? stamped(reply.events[i]) : reply.events[i];
    const bool went = co_await send_event(generation, event);
    if (!went) co_return;
  }
  const bool stayed = co_await generation.wait->sleep(options_.canned_interval);
  if (stayed) co_await end_stream(generation);
}

// The rank that the request names, else the one with the fewest requests.
Result<size_t> SimWorker::Impl::choose_rank(const SimRequest& request) const {
  if (request.dp_rank) {
    if (*request.dp_rank < 0 || *request.dp_rank >= options_.dp_size) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("routed_dp_rank {} is not in [0, {})", *request.dp_rank, options_.dp_size)};
    }
    return static_cast<size_t>(*request.dp_rank);
  }
  const auto all_ranks = ranks();
  size_t chosen = 0;
  size_t least = SIZE_MAX;
  for (size_t i = 0; i < all_ranks.size(); ++i) {
    const std::lock_guard lock(all_ranks[i]->mu);
    if (all_ranks[i]->targets.size() < least) {
      least = all_ranks[i]->targets.size();
      chosen = i;
    }
  }
  return chosen;
}

Result<void> SimWorker::Impl::submit(Generation& generation, Submitted& submitted, SimSubmission& submission) {
  const std::shared_ptr<SimRank>& rank = submitted.rank;
  const SimRequest& request = submitted.request;
  bool start_driving = false;
  {
    const std::lock_guard lock(rank->mu);
    for (const auto& prompt : request.prompts) {
      for (int64_t sample = 0; sample < request.n; ++sample) {
        SimSequence sequence;
        sequence.index = static_cast<int64_t>(submitted.sequences.size());
        sequence.prompt_tokens = static_cast<int64_t>(prompt.size());
        sequence.output = sim_output(prompt, sample, request.max_tokens);
        std::vector<uint64_t> output;
        output.reserve(sequence.output.size());
        for (const int64_t id : sequence.output) output.push_back(sim_token(id));
        SLUICE_TRY(const auto id, rank->submit(prompt, std::move(output)));
        rank->targets[id] = {generation.wait, submitted.sequences.size(), submitted.head.id};
        submission.add(id);
        submitted.sequences.push_back(std::move(sequence));
      }
    }
    start_driving = (options_.cache || !options_.manual) && !std::exchange(rank->driven, true);
  }
  if (start_driving) {  // with the lock released: spawn() may run the coroutine's beginning at once
    net::EventLoop& loop = loops_[submitted.rank_number % loops_.size()];
    loop.spawn([&loop, rank, scale = options_.time_scale] {
      return rank->cache ? drive_cache(loop, rank) : drive(loop, rank, scale);
    });
  }
  return {};
}

// The events that the arrival of tokens makes; false: the stream is over.
Task<bool> SimWorker::Impl::send_tokens(Generation& generation, Submitted& submitted, SimWait::Event event) {
  SimSequence& sequence = submitted.sequences[event.sequence];
  const bool is_first = sequence.generated == 0;
  std::string delta;
  if (event.aborted) {
    sequence.aborted = true;
  } else {
    delta = sequence.advance(event.tokens);
    sequence.cached_tokens = event.cached_tokens;
  }
  if (!submitted.request.stream) co_return true;
  if (!generation.exchange.started()) {
    auto stream_head = event_stream();
    co_await generation.exchange.start(std::move(stream_head));
  }
  const bool chat = generation.api == SimApi::kChat;
  std::vector<std::string> events;
  if (chat && is_first) events.push_back(first_event(submitted.head, sequence));
  if (!chat || !event.aborted) {
    events.push_back(token_event(submitted.head, sequence, delta, seconds(real_clock().now() - submitted.began)));
  }
  if (chat && sequence.done()) events.push_back(last_event(submitted.head, sequence));
  for (const auto& json : events) {
    const bool went = co_await send_event(generation, json);
    if (!went) co_return false;
  }
  co_return true;
}

Task<> SimWorker::Impl::simulated(Generation& generation) {
  Submitted submitted;
  submitted.began = real_clock().now();
  auto request = parse_sim_request(generation.api, generation.body, options_.default_tokens, tokens());
  Result<size_t> rank = size_t{0};
  if (request.ok()) {
    submitted.request = std::move(request).value();
    rank = choose_rank(submitted.request);
  }
  if (!request.ok() || !rank.ok()) {
    auto response = refusal(generation.api, request.ok() ? rank.error() : request.error());
    co_await refuse(generation, std::move(response));
    co_return;
  }
  const SimRequest& wanted = submitted.request;
  submitted.head = {
      .api = generation.api,
      .id = wanted.rid.empty() ? fmt::format("sim-{}-{}", port_.load(), next_rid_.fetch_add(1)) : wanted.rid,
      .model = wanted.model.empty() ? options_.model : wanted.model,
      .created = static_cast<int64_t>(std::time(nullptr)),
      .dp_rank = options_.dp_size > 1 ? static_cast<int64_t>(*rank) : -1,
      .batch = wanted.batch || wanted.n > 1};
  submitted.rank_number = *rank;
  submitted.rank = ranks()[*rank];
  SimSubmission submission(submitted.rank);
  const auto taken = submit(generation, submitted, submission);
  if (!taken.ok()) {
    auto response = refusal(generation.api, taken.error());
    co_await refuse(generation, std::move(response));
    co_return;
  }
  const auto unfinished = [&submitted] {
    return std::any_of(submitted.sequences.begin(), submitted.sequences.end(), [](const auto& s) { return !s.done(); });
  };
  while (unfinished()) {
    const bool stayed = co_await generation.wait->wait_event();
    if (!stayed) co_return;
    const SimWait::Event event = generation.wait->events.front();
    generation.wait->events.pop_front();
    const bool went = co_await send_tokens(generation, submitted, event);
    if (!went) co_return;
  }
  if (!wanted.stream) {
    std::string whole = whole_reply(submitted.head, submitted.sequences, seconds(real_clock().now() - submitted.began));
    co_await answer_whole(generation, std::move(whole));
    co_return;
  }
  if (generation.api != SimApi::kGenerate && wanted.include_usage) {
    const std::string json = usage_event(submitted.head, submitted.sequences);
    const bool went = co_await send_event(generation, json);
    if (!went) co_return;
  }
  co_await end_stream(generation);
}

}  // namespace sluice::testing
