#include "gateway/kv_events/subscriber.h"

#include <zmq.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"

namespace sluice::gateway {
namespace {

constexpr int kMostSockets = 1 << 16;
constexpr int kMostMessages = 256;   // of one socket before the others are looked at again
constexpr int kMostWaiting = 10000;  // messages of one publisher; what is more is lost, and asked for
constexpr int kReconnect = 100, kReconnectMost = 2000;  // milliseconds

struct CloseSocket {
  void operator()(void* socket) const { zmq_close(socket); }
};
using Socket = std::unique_ptr<void, CloseSocket>;

Socket open_socket(void* context, int type) {
  Socket socket(zmq_socket(context, type));
  if (socket == nullptr) return nullptr;
  const int no_linger = 0, most = kMostWaiting, ipv6 = 1, first = kReconnect, last = kReconnectMost;
  const int64_t largest = protocol::kMostKvPayload;
  zmq_setsockopt(socket.get(), ZMQ_LINGER, &no_linger, sizeof(no_linger));
  zmq_setsockopt(socket.get(), ZMQ_RCVHWM, &most, sizeof(most));
  zmq_setsockopt(socket.get(), ZMQ_IPV6, &ipv6, sizeof(ipv6));
  zmq_setsockopt(socket.get(), ZMQ_RECONNECT_IVL, &first, sizeof(first));
  zmq_setsockopt(socket.get(), ZMQ_RECONNECT_IVL_MAX, &last, sizeof(last));
  zmq_setsockopt(socket.get(), ZMQ_MAXMSGSIZE, &largest, sizeof(largest));
  return socket;
}

// The frames of a message that waits; empty if none does. Of more than four the rest is left out.
std::vector<std::string> receive(void* socket) {
  constexpr size_t kMostFrames = 4;
  std::vector<std::string> frames;
  for (bool more = true; more;) {
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    if (zmq_msg_recv(&frame, socket, ZMQ_DONTWAIT) < 0) {
      zmq_msg_close(&frame);
      return {};
    }
    if (frames.size() < kMostFrames) {
      frames.emplace_back(static_cast<const char*>(zmq_msg_data(&frame)), zmq_msg_size(&frame));
    }
    more = zmq_msg_more(&frame) != 0;
    zmq_msg_close(&frame);
  }
  return frames;
}

constexpr uint64_t kEndOfReplay = ~uint64_t{0};

std::optional<uint64_t> sequence_in(std::string_view frame) {
  if (frame.size() != 8) return std::nullopt;
  uint64_t number = 0;
  for (const char byte : frame) number = number << 8 | static_cast<unsigned char>(byte);
  return number;
}

std::string frame_of(uint64_t sequence) {
  std::string frame(8, '\0');
  for (size_t i = 0; i < 8; ++i) frame[i] = static_cast<char>(sequence >> (56 - 8 * i));
  return frame;
}

}  // namespace

class KvSubscriber::Impl {
 public:
  Impl(KvView& view, const Clock& clock) : view_(view), clock_(clock) {}

  ~Impl() {
    if (!thread_.joinable()) return;
    stop_ = true;
    wake();
    thread_.join();
    commands_ = nullptr;
    zmq_ctx_term(context_);
  }

  void subscribe(KvEndpoint endpoint) {
    const std::lock_guard lock(mutex_);
    const uint32_t worker = endpoint.publisher.worker;
    wanted_[worker] = std::move(endpoint);
    status_[worker] = {.why = "it is being connected"};
    if (!thread_.joinable()) start();
    wake();
  }

  void unsubscribe(uint32_t worker) {
    const std::lock_guard lock(mutex_);
    if (!thread_.joinable()) return;
    wanted_[worker] = std::nullopt;
    status_.erase(worker);
    wake();
  }

  std::optional<KvStreamStatus> status(uint32_t worker) const {
    const std::lock_guard lock(mutex_);
    const auto at = status_.find(worker);
    if (at == status_.end()) return std::nullopt;
    return at->second;
  }

 private:
  // One publisher. The monitor tells when its connection comes and goes.
  struct Source {
    Source(KvEndpoint of, routing::BlockIndex& index) : endpoint(std::move(of)), stream(endpoint.publisher, index) {}
    KvEndpoint endpoint;
    KvStream stream;
    Socket events, monitor, replay;
    std::string failure;  // it cannot be listened to at all
  };

  void start() {
    context_ = zmq_ctx_new();
    zmq_ctx_set(context_, ZMQ_MAX_SOCKETS, kMostSockets);
    commands_ = Socket(zmq_socket(context_, ZMQ_PAIR));
    woken_ = Socket(zmq_socket(context_, ZMQ_PAIR));
    SLUICE_CHECK(zmq_bind(woken_.get(), "inproc://wake") == 0 && zmq_connect(commands_.get(), "inproc://wake") == 0,
                 "ZeroMQ has no sockets: {}", zmq_strerror(zmq_errno()));
    thread_ = std::thread([this] { run(); });
  }

  // Under the lock, or when nobody else is left. A full pipe means that a call is on its way already.
  void wake() { zmq_send(commands_.get(), "", 0, ZMQ_DONTWAIT); }

  void run() {
    std::vector<zmq_pollitem_t> items;
    while (!stop_) {
      items.assign(1, {woken_.get(), 0, ZMQ_POLLIN, 0});
      std::optional<TimePoint> next;
      const TimePoint now = clock_.now();
      for (auto& [worker, source] : sources_) {
        for (const Socket* socket : {&source->monitor, &source->events, &source->replay}) {
          if (*socket != nullptr) items.push_back({socket->get(), 0, ZMQ_POLLIN, 0});
        }
        const auto due = source->stream.next_due(now);
        if (due && (!next || *due < *next)) next = due;
      }
      long wait = -1;
      if (next) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - now).count();
        wait = std::clamp<long>(left, 0, 60'000);
      }
      const int ready = zmq_poll(items.data(), static_cast<int>(items.size()), wait);
      SLUICE_CHECK(ready >= 0 || zmq_errno() == EINTR, "zmq_poll: {}", zmq_strerror(zmq_errno()));
      if ((items[0].revents & ZMQ_POLLIN) != 0) take_commands();
      for (auto& [worker, source] : sources_) serve(worker, *source);
    }
    sources_.clear();
    woken_ = nullptr;
  }

  void take_commands() {
    char nothing = 0;
    while (zmq_recv(woken_.get(), &nothing, 0, ZMQ_DONTWAIT) >= 0) {
    }
    std::map<uint32_t, std::optional<KvEndpoint>> wanted;
    {
      const std::lock_guard lock(mutex_);
      wanted.swap(wanted_);
    }
    for (auto& [worker, endpoint] : wanted) {
      sources_.erase(worker);
      view_.index.clear(worker);
      view_.set_known(worker, KvKnowledge::kNothing, 0, clock_.now());
      if (endpoint) sources_[worker] = connect(std::move(*endpoint));
    }
  }

  std::unique_ptr<Source> connect(KvEndpoint endpoint) {
    auto source = std::make_unique<Source>(std::move(endpoint), view_.index);
    const KvEndpoint& to = source->endpoint;
    const std::string monitor = fmt::format("inproc://monitor-{}", ++monitors_);
    source->events = open_socket(context_, ZMQ_SUB);
    source->monitor = open_socket(context_, ZMQ_PAIR);
    if (source->events == nullptr || source->monitor == nullptr) {
      source->failure = fmt::format("no socket for it: {}", zmq_strerror(zmq_errno()));
      return source;
    }
    void* events = source->events.get();
    zmq_setsockopt(events, ZMQ_SUBSCRIBE, to.topic.data(), to.topic.size());
    const bool is_connected =
        zmq_socket_monitor(events, monitor.c_str(), ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED) == 0 &&
        zmq_connect(source->monitor.get(), monitor.c_str()) == 0 && zmq_connect(events, to.events.c_str()) == 0;
    if (!is_connected) {
      source->failure = fmt::format("{} is no address to listen at: {}", to.events, zmq_strerror(zmq_errno()));
    }
    return source;
  }

  void serve(uint32_t worker, Source& source) {
    const TimePoint now = clock_.now();
    if (source.monitor != nullptr) read_monitor(source, now);
    if (source.events != nullptr) read_events(source, now);
    if (source.replay != nullptr) read_replay(source, now);
    const auto due = source.stream.due(now);
    if (due.ask_from) ask(source, *due.ask_from);
    report(worker, source, now);
  }

  static void read_monitor(Source& source, TimePoint now) {
    for (;;) {
      const auto frames = receive(source.monitor.get());
      if (frames.empty()) return;
      uint16_t event = 0;
      if (frames[0].size() < sizeof(event)) continue;
      std::memcpy(&event, frames[0].data(), sizeof(event));
      if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) source.stream.connected(now);
      if (event == ZMQ_EVENT_DISCONNECTED) source.stream.disconnected();
    }
  }

  static void read_events(Source& source, TimePoint now) {
    for (int i = 0; i < kMostMessages; ++i) {
      const auto frames = receive(source.events.get());
      if (frames.empty()) return;
      const auto sequence = frames.size() == 3 ? sequence_in(frames[1]) : std::nullopt;
      if (sequence) source.stream.received(*sequence, frames[2], now);
    }
  }

  static void read_replay(Source& source, TimePoint now) {
    for (int i = 0; i < kMostMessages; ++i) {
      const auto frames = receive(source.replay.get());
      if (frames.empty()) return;
      // With or without the empty frame of a REP envelope.
      if (frames.size() < 2) continue;
      const auto sequence = sequence_in(frames[frames.size() - 2]);
      if (!sequence) continue;
      if (*sequence == kEndOfReplay) {
        source.stream.replay_ended(now);
      } else {
        source.stream.replayed(*sequence, frames.back(), now);
      }
    }
  }

  // On a connection of its own, so that answers to the question before are not taken for this one's.
  void ask(Source& source, uint64_t from) {
    source.replay = open_socket(context_, ZMQ_DEALER);
    if (source.replay == nullptr || zmq_connect(source.replay.get(), source.endpoint.replay.c_str()) != 0) return;
    const std::string frame = frame_of(from);
    zmq_send(source.replay.get(), "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(source.replay.get(), frame.data(), frame.size(), ZMQ_DONTWAIT);
  }

  void report(uint32_t worker, const Source& source, TimePoint now) {
    const KvStream& stream = source.stream;
    const KvKnowledge knowledge = view_.set_known(worker, stream.knowledge(), stream.block_size(), now);
    std::string why(stream.why());
    if (knowledge != stream.knowledge()) why = "its blocks have a fifth size: four are looked up";
    if (stream.knowledge() == KvKnowledge::kNothing) why += fmt::format(" ({})", source.endpoint.events);
    if (!source.failure.empty()) why = source.failure;
    const std::lock_guard lock(mutex_);
    const auto at = status_.find(worker);
    if (at == status_.end()) return;  // it was unsubscribed meanwhile
    at->second = {.knowledge = knowledge,
                  .why = std::move(why),
                  .block_size = stream.block_size(),
                  .other_block_size = stream.other_block_size(),
                  .next_sequence = stream.next_sequence(),
                  .blocks = view_.index.blocks_of(worker),
                  .counts = stream.counts()};
  }

  KvView& view_;
  const Clock& clock_;
  void* context_ = nullptr;
  Socket commands_;  // under the lock
  Socket woken_;     // its other end; the thread's
  std::atomic<bool> stop_{false};
  std::thread thread_;

  mutable std::mutex mutex_;                              // guards what follows
  std::map<uint32_t, std::optional<KvEndpoint>> wanted_;  // none = no longer
  std::map<uint32_t, KvStreamStatus> status_;

  // The thread's.
  std::map<uint32_t, std::unique_ptr<Source>> sources_;
  uint64_t monitors_ = 0;
};

KvSubscriber::KvSubscriber(KvView& view, const Clock& clock) : impl_(std::make_unique<Impl>(view, clock)) {}
KvSubscriber::~KvSubscriber() = default;
void KvSubscriber::subscribe(KvEndpoint endpoint) { impl_->subscribe(std::move(endpoint)); }
void KvSubscriber::unsubscribe(uint32_t worker) { impl_->unsubscribe(worker); }
std::optional<KvStreamStatus> KvSubscriber::status(uint32_t worker) const { return impl_->status(worker); }

}  // namespace sluice::gateway
