#include "engine/rank_loop.h"

#include <zmq.h>

#include <cerrno>

#include "base/log.h"
#include "engine/codec.h"
#include "engine/step_trace.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kComponent = "engine/rank";
constexpr Duration kIdleWait = std::chrono::seconds(1);
constexpr int kLingerMillis = 1000;
// Work is on its way to another rank of the instance: it steps as soon as it is there.
constexpr Duration kShortWait = std::chrono::milliseconds(1);

Duration wait_after(GroupRunner::Joined joined) {
  switch (joined) {
    case GroupRunner::Joined::kStepped:
      return Duration{0};
    case GroupRunner::Joined::kWaiting:
      return kShortWait;
    case GroupRunner::Joined::kParked:
      break;
  }
  return kIdleWait;
}

}  // namespace

struct RankLink::Sockets {
  void* context = nullptr;
  void* input = nullptr;
  void* output = nullptr;
  int64_t process = 0;
  uint64_t incarnation = 0;

  ~Sockets() {
    if (input) zmq_close(input);
    if (output) zmq_close(output);
    if (context) zmq_ctx_term(context);
  }
};

RankLink::RankLink(std::unique_ptr<Sockets> sockets) : sockets_(std::move(sockets)) {}
RankLink::RankLink(RankLink&&) noexcept = default;
RankLink::~RankLink() = default;

Result<RankLink> RankLink::connect(const std::string& input_endpoint, const std::string& output_endpoint,
                                   int64_t process, uint64_t incarnation) {
  auto s = std::make_unique<Sockets>();
  s->process = process;
  s->incarnation = incarnation;
  s->context = zmq_ctx_new();
  const auto open = [&](int type, const std::string& endpoint, int linger) -> void* {
    void* socket = zmq_socket(s->context, type);
    const int unlimited = 0;
    if (socket && zmq_setsockopt(socket, ZMQ_RCVHWM, &unlimited, sizeof(unlimited)) == 0 &&
        zmq_setsockopt(socket, ZMQ_SNDHWM, &unlimited, sizeof(unlimited)) == 0 &&
        zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof(linger)) == 0 &&
        zmq_connect(socket, endpoint.c_str()) == 0) {
      return socket;
    }
    if (socket) zmq_close(socket);
    return nullptr;
  };
  const auto failed = [](const std::string& endpoint) {
    return Error{ErrorCode::kUnavailable, fmt::format("connecting to {}: {}", endpoint, zmq_strerror(zmq_errno()))};
  };
  if (!(s->input = open(ZMQ_PULL, input_endpoint, 0))) return failed(input_endpoint);
  if (!(s->output = open(ZMQ_PUSH, output_endpoint, kLingerMillis))) return failed(output_endpoint);
  return RankLink(std::move(s));
}

void RankLink::send(FromRank message) {
  const std::string frame = encode(RankFrame{sockets_->process, sockets_->incarnation, std::move(message)});
  // Without a high-water mark this fails only if the socket is broken.
  if (zmq_send(sockets_->output, frame.data(), frame.size(), ZMQ_DONTWAIT) < 0) {
    SLUICE_LOG_EVERY(5, error, kComponent, "a message to the front is lost: {}", zmq_strerror(zmq_errno()));
  }
}

std::optional<ToRank> RankLink::receive(Duration wait, int other_fd) {
  if (wait > Duration{0}) {
    zmq_pollitem_t items[] = {{.socket = sockets_->input, .fd = 0, .events = ZMQ_POLLIN, .revents = 0},
                              {.socket = nullptr, .fd = other_fd, .events = ZMQ_POLLIN, .revents = 0}};
    if (zmq_poll(items, other_fd < 0 ? 1 : 2, std::chrono::ceil<std::chrono::milliseconds>(wait).count()) <= 0)
      return std::nullopt;
  }
  for (;;) {
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    if (zmq_msg_recv(&frame, sockets_->input, ZMQ_DONTWAIT) < 0) {
      zmq_msg_close(&frame);
      return std::nullopt;
    }
    auto message = decode_to_rank({static_cast<const char*>(zmq_msg_data(&frame)), zmq_msg_size(&frame)});
    zmq_msg_close(&frame);
    if (message.ok()) return std::move(*message);
    SLUICE_LOG_EVERY(5, error, kComponent, "a message from the front is dropped: {}", message.error().message);
  }
}

namespace {

class Loop {
 public:
  Loop(const RankLoopOptions& options, RankLink& link, Scheduler& scheduler, LoadBoard& board, KvPublisher* events)
      : options_(options),
        link_(link),
        scheduler_(scheduler),
        board_(board),
        events_(events),
        grammars_(options.grammars) {}

  Result<void> run() {
    publish();
    while (!stop_) {
      Pulse::own().set({.phase = Pulse::Phase::kBetweenSteps, .step = Pulse::own().where().step});
      beat(0);
      // Busy, it takes what is there between two steps; idle, it sleeps until something comes.
      const bool rests = options_.group != nullptr || !scheduler_.has_work();
      auto message = link_.receive(rests ? wait_ : Duration{0}, grammars_ ? grammars_->fd() : -1);
      const bool news = message.has_value();
      while (message) {
        std::visit([&](auto& m) { take(m); }, *message);
        message = link_.receive(Duration{0});
      }
      if (failure_) return *failure_;
      if (grammars_) take_ready();
      // A rank of several that is parked takes no part in anything until something comes.
      const bool parked = options_.group != nullptr && wait_ == kIdleWait && !news;
      scheduler_.expire();
      if (!stop_ && !parked) SLUICE_TRY_VOID(step());
      if (trace_ && trace_->full()) {
        if (auto written = stop_profile(); !written.ok()) {
          SLUICE_LOG(error, kComponent, "rank {}: {}", options_.dp_rank, written.error().message);
        }
      }
      if (auto outputs = scheduler_.take_outputs(); !outputs.empty()) link_.send(OutputBatch{std::move(outputs)});
      if (events_) publish_events();
      publish();
    }
    return {};
  }

 private:
  Result<void> step() {
    if (options_.group == nullptr) return scheduler_.step();
    const StepPlan plan = scheduler_.has_work() ? scheduler_.plan() : StepPlan{};
    if (plan.kind == StepPlan::Kind::kIdle) {
      SLUICE_TRY(const auto joined, options_.group->join());
      wait_ = wait_after(joined);
      return {};
    }
    wait_ = Duration{0};
    return scheduler_.run(plan);
  }

  void take(WakeRequest& wake) {
    if (options_.group == nullptr) return;
    // The others must not go to sleep while a request waits here for its grammar.
    work_ = wake.work;
    if (grammars_ == nullptr || grammars_->waiting() == 0) options_.group->saw_work(work_);
  }
  void take(GenerateRequest& request) {
    if (grammars_ && request.sampling.grammar_kind != GrammarKind::kNone) {
      grammars_->add(std::move(request));
    } else {
      scheduler_.add(std::move(request));
    }
  }
  void take(AbortRequest& request) {
    scheduler_.abort(request);
    if (!grammars_) return;
    for (const auto& held : grammars_->remove(request)) end(held, {.kind = FinishKind::kAbort, .message = "Aborted"});
  }

  void take_ready() {
    for (auto& [request, grammar] : grammars_->take()) {
      if (grammar.ok()) {
        scheduler_.add(std::move(request), std::move(*grammar));
      } else {
        const int status = grammar.error().code == ErrorCode::kUnavailable ? 503 : 400;
        end(request, {.kind = FinishKind::kAbort, .message = grammar.error().message, .status_code = status});
      }
    }
    if (options_.group != nullptr && grammars_->waiting() == 0) options_.group->saw_work(work_);
  }

  // Of a request that the scheduler never had.
  void end(const GenerateRequest& request, FinishReason finish) {
    OutputBatch batch;
    batch.outputs.push_back({.rid = request.rid,
                             .finish = std::move(finish),
                             .prompt_tokens = static_cast<int64_t>(request.input_ids.size())});
    link_.send(std::move(batch));
  }

  void take(ControlRequest& request) {
    const auto done = obey(request);
    // Answers that precede it in time precede it on the wire.
    if (auto outputs = scheduler_.take_outputs(); !outputs.empty()) link_.send(OutputBatch{std::move(outputs)});
    link_.send(
        ControlReply{.id = request.id, .ok = done.ok(), .message = done.ok() ? std::string() : done.error().message});
  }

  Result<void> obey(const ControlRequest& request) {
    switch (request.kind) {
      case ControlKind::kFlushCache:
        return scheduler_.flush_cache();
      case ControlKind::kPauseAbort:
        return pause(Scheduler::Pause::kAbort);
      case ControlKind::kPauseRetract:
        return pause(Scheduler::Pause::kRetract);
      case ControlKind::kPauseInPlace:
        return pause(Scheduler::Pause::kInPlace);
      case ControlKind::kContinue:
        scheduler_.go_on();
        return {};
      case ControlKind::kStartProfile:
        return start_profile(request.text);
      case ControlKind::kStopProfile:
        return stop_profile();
      case ControlKind::kLoadWeights:
        return load_weights(request.text);
      case ControlKind::kShutdown:
        stop_ = true;
        return {};
    }
    return Error{ErrorCode::kInternal, "unknown control message"};
  }

  Result<void> pause(Scheduler::Pause how) {
    if (how == Scheduler::Pause::kAbort) {
      AbortRequest all{.all = true};
      take(all);
    }
    scheduler_.pause(how);
    return {};
  }

  Result<void> start_profile(const std::string& text) {
    if (trace_) return Error{ErrorCode::kAlreadyExists, "a profile is being taken already"};
    SLUICE_TRY(auto options, step_trace_options_from_json(text));
    trace_.emplace(std::move(options), options_.dp_rank, real_clock());
    scheduler_.observe([this](const StepReport& step) { trace_->add(step); });
    return {};
  }

  Result<void> stop_profile() {
    if (!trace_) return Error{ErrorCode::kNotFound, "no profile is being taken"};
    scheduler_.observe({});
    const OutsideSteps outside;
    const auto written = trace_->write();
    if (written.ok()) SLUICE_LOG(info, kComponent, "rank {}: the profile is in {}", options_.dp_rank, trace_->path());
    trace_.reset();
    return written;
  }

  // Between steps, so nobody computes with half of them; ranks that share weights are told to pause before.
  Result<void> load_weights(const std::string& model_path) {
    if (!options_.load_weights) return Error{ErrorCode::kUnimplemented, "this rank cannot load other weights"};
    if (!scheduler_.paused()) return Error{ErrorCode::kUnavailable, "weights are loaded in a pause only"};
    auto loaded = options_.load_weights(model_path);
    if (!loaded.ok() && loaded.error().code == ErrorCode::kInternal) failure_ = loaded.error();
    return loaded;
  }

  void publish_events() {
    if (auto events = scheduler_.take_kv_events(); !events.empty()) events_->publish(std::move(events));
  }

  void publish() {
    LoadSnapshot load = scheduler_.snapshot();
    if (grammars_) {
      load.num_grammar_reqs = static_cast<int64_t>(grammars_->waiting());
      load.num_waiting_reqs += load.num_grammar_reqs;
      load.grammars = grammars_->counts();
    }
    board_.publish(options_.dp_rank, load);
    if (load.steps_total < next_log_) return;
    next_log_ = load.steps_total + static_cast<uint64_t>(options_.decode_log_interval);
    if (load.steps_total == 0) return;
    SLUICE_LOG(info, kComponent,
               "rank {}: {} running, {} waiting, {}/{} tokens used, {} cached, {:.1f} tok/s, {} retracted",
               options_.dp_rank, load.num_running_reqs, load.num_waiting_reqs, load.num_used_tokens,
               load.max_total_num_tokens, load.num_cached_tokens, load.gen_throughput, load.retracted_total);
  }

  const RankLoopOptions options_;
  RankLink& link_;
  Scheduler& scheduler_;
  LoadBoard& board_;
  KvPublisher* const events_;
  GrammarDesk* const grammars_;
  std::optional<StepTrace> trace_;
  std::optional<Error> failure_;  // this rank cannot go on
  uint64_t next_log_ = 0;
  uint64_t work_ = 0;          // pieces of work that are known here
  Duration wait_ = kIdleWait;  // before the next step of a rank of several; while there is nothing to do, of another
  bool stop_ = false;
};

}  // namespace

Result<void> run_rank_loop(const RankLoopOptions& options, RankLink& link, Scheduler& scheduler, LoadBoard& board,
                           KvPublisher* events) {
  return Loop(options, link, scheduler, board, events).run();
}

Result<void> run_follower_loop(RankLink& link, GroupRunner& group,
                               const std::function<Result<void>(const std::string& model_path)>& load_weights) {
  for (Duration wait = kIdleWait;;) {
    auto message = link.receive(wait);
    if (!message && wait == kIdleWait) continue;  // parked
    for (; message; message = link.receive(Duration{0})) {
      if (const auto* wake = std::get_if<WakeRequest>(&*message)) group.saw_work(wake->work);
      const auto* control = std::get_if<ControlRequest>(&*message);
      if (control == nullptr) continue;
      if (control->kind == ControlKind::kShutdown) return {};
      Result<void> done;
      if (control->kind == ControlKind::kLoadWeights) done = load_weights(control->text);
      link.send(ControlReply{
          .id = control->id, .ok = done.ok(), .message = done.ok() ? std::string() : done.error().message});
      if (!done.ok() && done.error().code == ErrorCode::kInternal) return done;
    }
    SLUICE_TRY(const auto joined, group.join());
    wait = wait_after(joined);
  }
}

}  // namespace sluice::engine
