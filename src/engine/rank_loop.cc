#include "engine/rank_loop.h"

#include <zmq.h>

#include <cerrno>

#include "base/log.h"
#include "engine/codec.h"

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

std::optional<ToRank> RankLink::receive(Duration wait) {
  if (wait > Duration{0}) {
    zmq_pollitem_t item{.socket = sockets_->input, .fd = 0, .events = ZMQ_POLLIN, .revents = 0};
    if (zmq_poll(&item, 1, std::chrono::ceil<std::chrono::milliseconds>(wait).count()) <= 0) return std::nullopt;
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
      : options_(options), link_(link), scheduler_(scheduler), board_(board), events_(events) {}

  Result<void> run() {
    publish();
    while (!stop_) {
      // Busy, it takes what is there between two steps; idle, it sleeps until something comes.
      const bool rests = options_.group != nullptr || scheduler_.idle();
      auto message = link_.receive(rests ? wait_ : Duration{0});
      const bool news = message.has_value();
      while (message) {
        std::visit([&](auto& m) { take(m); }, *message);
        message = link_.receive(Duration{0});
      }
      // A rank of several that is parked takes no part in anything until something comes.
      const bool parked = options_.group != nullptr && wait_ == kIdleWait && !news;
      if (!stop_ && !parked) SLUICE_TRY_VOID(step());
      if (auto outputs = scheduler_.take_outputs(); !outputs.empty()) link_.send(OutputBatch{std::move(outputs)});
      if (events_) publish_events();
      publish();
    }
    return {};
  }

 private:
  Result<void> step() {
    if (options_.group == nullptr) return scheduler_.step();
    const StepPlan plan = scheduler_.plan();
    if (plan.kind == StepPlan::Kind::kIdle) {
      SLUICE_TRY(const auto joined, options_.group->join());
      wait_ = wait_after(joined);
      return {};
    }
    wait_ = Duration{0};
    SLUICE_TRY(const auto logits, scheduler_.launch(plan));
    scheduler_.commit(plan, logits);
    return {};
  }

  void take(WakeRequest& wake) {
    if (options_.group != nullptr) options_.group->saw_work(wake.work);
  }
  void take(GenerateRequest& request) { scheduler_.add(std::move(request)); }
  void take(AbortRequest& request) { scheduler_.abort(request); }
  void take(ControlRequest& request) {
    // Answers that precede it in time precede it on the wire.
    if (auto outputs = scheduler_.take_outputs(); !outputs.empty()) link_.send(OutputBatch{std::move(outputs)});
    ControlReply reply{.id = request.id, .ok = true};
    switch (request.kind) {
      case ControlKind::kFlushCache:
        if (auto flushed = scheduler_.flush_cache(); !flushed.ok()) {
          reply = {.id = request.id, .ok = false, .message = flushed.error().message};
        }
        break;
      case ControlKind::kShutdown:
        stop_ = true;
        break;
    }
    link_.send(std::move(reply));
  }

  void publish_events() {
    if (auto events = scheduler_.take_kv_events(); !events.empty()) events_->publish(std::move(events));
  }

  void publish() {
    const LoadSnapshot load = scheduler_.snapshot();
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
  uint64_t next_log_ = 0;
  Duration wait_ = kIdleWait;  // before the next step of a rank of several; while there is nothing to do, of another
  bool stop_ = false;
};

}  // namespace

Result<void> run_rank_loop(const RankLoopOptions& options, RankLink& link, Scheduler& scheduler, LoadBoard& board,
                           KvPublisher* events) {
  return Loop(options, link, scheduler, board, events).run();
}

Result<void> run_follower_loop(RankLink& link, GroupRunner& group) {
  for (Duration wait = kIdleWait;;) {
    auto message = link.receive(wait);
    if (!message && wait == kIdleWait) continue;  // parked
    for (; message; message = link.receive(Duration{0})) {
      if (const auto* wake = std::get_if<WakeRequest>(&*message)) group.saw_work(wake->work);
      const auto* control = std::get_if<ControlRequest>(&*message);
      if (control != nullptr && control->kind == ControlKind::kShutdown) return {};
    }
    SLUICE_TRY(const auto joined, group.join());
    wait = wait_after(joined);
  }
}

}  // namespace sluice::engine
