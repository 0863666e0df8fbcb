#include "engine/rank_loop.h"

#include <xxhash.h>
#include <zmq.h>

#include <cerrno>
#include <deque>

#include "base/check.h"
#include "base/log.h"
#include "base/pulse.h"
#include "engine/codec.h"
#include "engine/cooperation_meter.h"
#include "engine/step_breakdown.h"
#include "engine/step_trace.h"

namespace sluice::engine {
namespace {

using parallel::StepMember;

constexpr std::string_view kComponent = "engine/rank";
// The front takes a rank that steps alone and has requests for hung if it shows no sign of life for longer.
constexpr Duration kSignOfLife = std::chrono::seconds(1);
constexpr int kLingerMillis = 1000;
// Work is on its way to another rank of the instance: it steps as soon as it is there.
constexpr Duration kShortWait = std::chrono::milliseconds(1);
// Between two looks at the messages while a step is computed.
constexpr Duration kLookUpEvery = std::chrono::milliseconds(5);

Result<std::string> said(Result<void> result) {
  if (result.ok()) return std::string();
  return std::move(result).error();
}

ControlReply reply(uint64_t id, const Result<std::string>& done) {
  return {.id = id, .ok = done.ok(), .message = done.ok() ? *done : done.error().message};
}

// For the next message, of a rank of several. Absent: without a limit. The front sends one when there is something to
// do.
std::optional<Duration> wait_before(StepMember::Next next) {
  switch (next) {
    case StepMember::Next::kSleep:
      return std::nullopt;
    case StepMember::Next::kAgain:
      return kShortWait;
    case StepMember::Next::kPost:
    case StepMember::Next::kGather:
    case StepMember::Next::kEnd:
      break;
  }
  return Duration{0};
}

Result<void> start_breakdown(StepBreakdown& breakdown, const std::string& text) {
  SLUICE_TRY(const auto options, step_trace_options_from_json(text));
  return breakdown.start(options);
}

// While it lives, what happens between two steps may take as long as it takes: nobody takes this rank for hung.
class Meanwhile {
 public:
  explicit Meanwhile(const GroupRunner* group) : alive_(group != nullptr ? group->stay_alive() : nullptr) {}

 private:
  const OutsideSteps outside_;
  const std::unique_ptr<parallel::StayAlive> alive_;
};

// Control messages of a rank of several, which `member` says the time of.
class HeldControls {
 public:
  void add(StepMember& member, ControlRequest request) {
    const std::string bytes = encode(ToRank(request));
    member.hold(XXH64(bytes.data(), bytes.size(), 0), concerns_followers(request.kind));
    held_.push_back(std::move(request));
  }
  // The next one whose time has come.
  std::optional<ControlRequest> take(StepMember& member) {
    if (!member.take_control()) return std::nullopt;
    ControlRequest request = std::move(held_.front());
    held_.pop_front();
    return request;
  }

 private:
  std::deque<ControlRequest> held_;
};

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
    const int unlimited = 0, ipv6 = 1;
    if (socket && zmq_setsockopt(socket, ZMQ_IPV6, &ipv6, sizeof(ipv6)) == 0 &&
        zmq_setsockopt(socket, ZMQ_RCVHWM, &unlimited, sizeof(unlimited)) == 0 &&
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

std::optional<ToRank> RankLink::receive(std::optional<Duration> wait, int other_fd) {
  if (!wait || *wait > Duration{0}) {
    const long millis = wait ? std::chrono::ceil<std::chrono::milliseconds>(*wait).count() : -1;
    zmq_pollitem_t items[] = {{.socket = sockets_->input, .fd = 0, .events = ZMQ_POLLIN, .revents = 0},
                              {.socket = nullptr, .fd = other_fd, .events = ZMQ_POLLIN, .revents = 0}};
    if (zmq_poll(items, other_fd < 0 ? 1 : 2, millis) <= 0) return std::nullopt;
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
  Loop(const RankLoopOptions& options, RankLink& link, Scheduler& scheduler, LoadBoard* board, KvPublisher* events)
      : options_(options),
        link_(link),
        scheduler_(scheduler),
        board_(board),
        events_(events),
        grammars_(options.grammars),
        delayer_(options.prefill_delayer) {
    if (options.group != nullptr) breakdown_.emplace(options.group->phase_clock(), options.process);
    if (options.ends_early) options.ends_early->ask_between_layers([this] { return look_up(); });
  }
  ~Loop() {
    if (options_.ends_early) options_.ends_early->ask_between_layers({});
  }
  Loop(const Loop&) = delete;

  Result<void> run() {
    publish();
    while (!stop_) {
      // A step that is computed meanwhile says itself where it is.
      if (scheduler_.in_flight() == 0) {
        Pulse::own().set({.phase = Pulse::Phase::kBetweenSteps, .step = Pulse::own().where().step});
      }
      beat(kLoopBeats);
      // Busy, it takes what is there between two steps; idle, it sleeps until something comes.
      auto message = next_message(wait());
      while (message) {
        if (options_.group != nullptr) options_.group->member().heard();
        std::visit([&](auto& m) { take(m); }, *message);
        message = next_message(Duration{0});
      }
      if (failure_) return *failure_;
      if (grammars_) take_ready();
      scheduler_.expire();
      if (!stop_ && !parked()) SLUICE_TRY_VOID(step());
      obey_held();
      if (failure_) return *failure_;
      if (trace_ && (trace_->full() || (breakdown_ && breakdown_->full()))) {
        SLUICE_TRY_VOID(scheduler_.settle());
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
  // A rank of several takes no part in anything then until something comes.
  bool parked() const {
    return options_.group != nullptr && options_.group->member().next() == StepMember::Next::kSleep;
  }
  // Without work nothing but a message ends it, or what the scheduler has to do by its clock.
  std::optional<Duration> wait() const {
    if (options_.group != nullptr && !parked()) return wait_before(options_.group->member().next());
    if (options_.group == nullptr && scheduler_.has_work()) return Duration{0};
    const TimePoint now = real_clock().now();
    std::optional<Duration> left;
    // In a pause, or for their grammar.
    const bool requests_wait = !scheduler_.idle() || (grammars_ && grammars_->waiting().requests > 0);
    if (options_.group == nullptr && requests_wait) left = kSignOfLife;
    if (const auto due = scheduler_.next_due()) {
      left = std::min(left.value_or(Duration::max()), std::max(Duration{0}, *due - now));
    }
    return left;
  }
  std::optional<ToRank> next_message(std::optional<Duration> wait) {
    if (early_.empty()) return link_.receive(wait, grammars_ ? grammars_->fd() : -1);
    std::optional<ToRank> message = std::move(early_.front());
    early_.pop_front();
    return message;
  }

  // Within a step: whether to go on with it. Requests that are aborted end at once, and in the messages' order once
  // more, for those that are still to come.
  bool look_up() {
    const TimePoint now = real_clock().now();
    if (now < look_up_at_) return true;
    look_up_at_ = now + kLookUpEvery;
    bool aborted = false;
    while (auto message = link_.receive(Duration{0})) {
      if (auto* abort = std::get_if<AbortRequest>(&*message)) {
        scheduler_.abort(*abort);
        aborted = true;
      }
      early_.push_back(std::move(*message));
    }
    return !aborted || scheduler_.step_is_wanted();
  }

  Result<void> step() { return options_.group == nullptr ? scheduler_.step() : step_with(*options_.group); }

  Result<void> step_with(GroupRunner& group) {
    const OtherGroups others = group.others();
    scheduler_.others(others);
    StepPlan plan = scheduler_.has_work() ? scheduler_.plan() : StepPlan{};
    const bool can_prefill = plan.has_prompt() || plan.prompts_wait_at;
    // What is partly computed holds KV, and goes on.
    const bool held_back = plan.has_prompt() && !plan.continues_prompt() && options_.prefill_delayer.enabled &&
                           delayer_.holds_back(group.last_plan(), real_clock().now());
    if (held_back) plan = scheduler_.plan_without_prompts(plan);
    const bool idle = plan.kind == StepPlan::Kind::kIdle;
    SLUICE_CHECK(!idle || !scheduler_.has_work() || held_back || others.decoding > 0,
                 "requests are known and none can go on");
    // The others must not go to sleep while something waits here for its grammar or for a turn.
    const bool more_to_come = scheduler_.has_work() || (grammars_ && grammars_->waiting().requests > 0);
    group.announce({.step = scheduler_.outlook(plan),
                    .more_to_come = more_to_come,
                    .can_prefill = can_prefill,
                    .force_prefill = delayer_.forces(can_prefill, scheduler_.token_usage())});
    const TimePoint begun = real_clock().now();
    if (idle) {
      SLUICE_TRY(const bool stepped, group.join());
      if (!stepped) return {};
    } else {
      SLUICE_TRY_VOID(scheduler_.run(std::move(plan)));
    }
    scheduler_.step_took(group.last_shape(), real_clock().now() - begun);
    return {};
  }

  void take(WakeRequest& wake) {
    if (options_.group != nullptr) options_.group->member().heard_of(wake.work);
  }
  void take(GenerateRequest& request) {
    if (grammars_ && request.sampling.grammar_kind != GrammarKind::kNone) {
      last_held_seq_ = std::max(last_held_seq_, request.dispatch_seq);
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
    // Nobody waits for a rank that is told to end.
    if (options_.group == nullptr || request.kind == ControlKind::kShutdown) return answer(request);
    held_.add(options_.group->member(), std::move(request));
  }
  void obey_held() {
    if (options_.group == nullptr) return;
    while (const auto request = held_.take(options_.group->member())) answer(*request);
  }
  void answer(const ControlRequest& request) {
    // What is asked for happens between steps.
    if (auto settled = scheduler_.settle(); !settled.ok()) {
      failure_ = settled.error();
      return;
    }
    const auto done = request.kind == ControlKind::kRecordExperts ? record_experts(request.text)
                      : request.kind == ControlKind::kReadWeight  ? read_weight(request.text)
                                                                  : said(obey(request));
    // Answers that precede it in time precede it on the wire.
    if (auto outputs = scheduler_.take_outputs(); !outputs.empty()) link_.send(OutputBatch{std::move(outputs)});
    link_.send(reply(request.id, done));
  }

  Result<std::string> record_experts(const std::string& command) {
    if (options_.record_experts) {
      const Meanwhile meanwhile(options_.group);
      return options_.record_experts(command);
    }
    return Error{ErrorCode::kUnimplemented, "this rank cannot record its experts"};
  }

  Result<std::string> read_weight(const std::string& query) {
    if (!options_.read_weight) return Error{ErrorCode::kUnimplemented, "this rank cannot read its weights"};
    const Meanwhile meanwhile(options_.group);
    return options_.read_weight(query);
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
      case ControlKind::kRecordExperts:  // have answers of their own
      case ControlKind::kReadWeight:
        break;
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
    if (breakdown_) SLUICE_TRY_VOID(breakdown_->start(options));
    trace_.emplace(std::move(options), options_.dp_rank, real_clock());
    scheduler_.observe([this](const StepReport& step) { trace_->add(step); });
    return {};
  }

  Result<void> stop_profile() {
    if (!trace_) return Error{ErrorCode::kNotFound, "no profile is being taken"};
    scheduler_.observe({});
    const Meanwhile meanwhile(options_.group);
    const auto written = trace_->write();
    if (written.ok()) SLUICE_LOG(info, kComponent, "rank {}: the profile is in {}", options_.dp_rank, trace_->path());
    trace_.reset();
    const auto broken_down = breakdown_ ? breakdown_->stop() : Result<void>();
    return written.ok() ? broken_down : written;
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
      const GrammarDesk::Waiting held = grammars_->waiting();
      load.num_grammar_reqs = held.requests;
      load.num_waiting_reqs += held.requests;
      load.num_waiting_tokens += held.tokens;
      load.last_dispatch_seq = std::max(load.last_dispatch_seq, last_held_seq_);
      load.grammars = grammars_->counts();
    }
    if (options_.group != nullptr) {
      load.group_steps_total = options_.group->steps();
      load.wire_bytes_total = options_.group->wire_bytes();
      load.prefill_delays = delayer_.delays();
      cooperation_.attribute(options_.group->prefilling(), load);
      load.split_steps_total = options_.group->split_steps();
      load.fixed_steps_total = options_.group->fixed_steps();
      const auto [away, covered] = options_.group->overlapped();
      load.wire_seconds = seconds(away);
      load.covered_seconds = seconds(covered);
      load.rebalance = options_.group->rebalance_counts();
      if (auto tokens = options_.group->take_rank_tokens(); !tokens.empty()) link_.send(std::move(tokens));
    }
    if (board_ != nullptr) {
      board_->publish(options_.dp_rank, load);
    } else {
      link_.send(LoadReport{load});
    }
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
  LoadBoard* const board_;
  KvPublisher* const events_;
  GrammarDesk* const grammars_;
  uint64_t last_held_seq_ = 0;  // newest dispatch_seq of a request that waited for its grammar
  std::optional<StepTrace> trace_;
  std::optional<StepBreakdown> breakdown_;  // of a rank of several
  std::optional<Error> failure_;            // this rank cannot go on
  uint64_t next_log_ = 0;
  PrefillDelayer delayer_;
  CooperationMeter cooperation_;
  HeldControls held_;         // of a rank of several
  std::deque<ToRank> early_;  // came while a step was computed
  TimePoint look_up_at_{};
  bool stop_ = false;
};

}  // namespace

Result<void> run_rank_loop(const RankLoopOptions& options, RankLink& link, Scheduler& scheduler, LoadBoard* board,
                           KvPublisher* events) {
  return Loop(options, link, scheduler, board, events).run();
}

Result<void> run_follower_loop(RankLink& link, GroupRunner& group, int64_t process,
                               const std::function<Result<void>(const std::string& model_path)>& load_weights,
                               const RecordExperts& record_experts) {
  StepMember& member = group.member();
  HeldControls held;
  StepBreakdown breakdown(group.phase_clock(), process);
  const auto write_breakdown = [&] {
    const Meanwhile meanwhile(&group);
    return breakdown.stop();
  };
  for (;;) {
    auto message = link.receive(wait_before(member.next()));
    for (; message; message = link.receive(Duration{0})) {
      member.heard();
      if (const auto* wake = std::get_if<WakeRequest>(&*message)) member.heard_of(wake->work);
      auto* const control = std::get_if<ControlRequest>(&*message);
      if (control == nullptr) continue;
      if (control->kind == ControlKind::kShutdown) return {};
      held.add(member, std::move(*control));
    }
    if (member.next() == StepMember::Next::kSleep) continue;
    SLUICE_TRY_VOID(group.join());
    if (breakdown.full()) {
      if (auto written = write_breakdown(); !written.ok()) {
        SLUICE_LOG(error, kComponent, "rank {}: {}", process, written.error().message);
      }
    }
    while (const auto control = held.take(member)) {
      Result<std::string> done = std::string();
      if (control->kind == ControlKind::kLoadWeights) done = said(load_weights(control->text));
      if (control->kind == ControlKind::kRecordExperts) {
        const Meanwhile meanwhile(&group);
        done = record_experts(control->text);
      }
      if (control->kind == ControlKind::kStartProfile) done = said(start_breakdown(breakdown, control->text));
      if (control->kind == ControlKind::kStopProfile) done = said(write_breakdown());
      link.send(reply(control->id, done));
      if (!done.ok() && done.error().code == ErrorCode::kInternal) return done.error();
    }
  }
}

}  // namespace sluice::engine
