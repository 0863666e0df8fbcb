#include "engine/kv_publisher.h"

#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <charconv>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/log.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kComponent = "engine/kv_events";
constexpr int kLingerMillis = 200;
constexpr uint64_t kEndOfReplay = ~uint64_t{0};

std::string frame_of(uint64_t sequence) {
  std::string frame(8, '\0');
  for (size_t i = 0; i < 8; ++i) frame[i] = static_cast<char>(sequence >> (56 - 8 * i));
  return frame;
}

Error bad(std::string_view what) { return {ErrorCode::kBadOption, fmt::format("--kv-events-config: {}", what)}; }

}  // namespace

// ---- configuration

Result<KvEventsConfig> parse_kv_events_config(std::string_view text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    return bad("must be a JSON object such as {\"publisher\":\"zmq\",\"endpoint\":\"tcp://*:5557\"}");
  KvEventsConfig out;
  for (const auto& [name, value] : json.items()) {
    const auto text_into = [&](std::string& field) -> Result<void> {
      if (!value.is_string()) return bad(fmt::format("{} must be a string, not {}", name, value.dump()));
      field = value.get<std::string>();
      return {};
    };
    const auto count_into = [&](int64_t& field) -> Result<void> {
      constexpr int64_t kMost = 10'000'000;
      if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > kMost) {
        return bad(fmt::format("{} must be an integer of 1 to {}, not {}", name, kMost, value.dump()));
      }
      field = value.get<int64_t>();
      return {};
    };
    if (name == "publisher") {
      if (!value.is_null() && value != "null" && value != "zmq") {
        return bad(fmt::format("publisher must be \"null\" or \"zmq\", not {}", value.dump()));
      }
      out.enabled = value == "zmq";
    } else if (name == "endpoint") {
      SLUICE_TRY_VOID(text_into(out.endpoint));
    } else if (name == "replay_endpoint") {
      if (!value.is_null()) SLUICE_TRY_VOID(text_into(out.replay_endpoint));
    } else if (name == "topic") {
      SLUICE_TRY_VOID(text_into(out.topic));
    } else if (name == "buffer_steps") {
      SLUICE_TRY_VOID(count_into(out.buffer_steps));
    } else if (name == "hwm") {
      SLUICE_TRY_VOID(count_into(out.hwm));
    } else if (name == "max_queue_size") {
      SLUICE_TRY_VOID(count_into(out.max_queue_size));
    } else {
      return bad(fmt::format(
          "{} is no member; there are publisher, endpoint, replay_endpoint, topic, buffer_steps, hwm, max_queue_size",
          name));
    }
  }
  for (const auto& endpoint : {out.endpoint, out.replay_endpoint}) {
    // Ranks are processes: inproc would reach nobody.
    if (!endpoint.empty() && !endpoint.starts_with("tcp://") && !endpoint.starts_with("ipc://")) {
      return bad(fmt::format("an endpoint must begin with tcp:// or ipc://, not '{}'", endpoint));
    }
    SLUICE_TRY_VOID(kv_endpoint_of_rank(endpoint, 1));
  }
  return out;
}

Result<std::string> kv_endpoint_of_rank(const std::string& endpoint, int64_t rank) {
  if (endpoint.empty() || rank == 0) return endpoint;
  if (!endpoint.starts_with("tcp://")) return fmt::format("{}_dp{}", endpoint, rank);
  const size_t colon = endpoint.rfind(':');
  int64_t port = 0;
  const auto [end, problem] = std::from_chars(endpoint.data() + colon + 1, endpoint.data() + endpoint.size(), port);
  if (problem != std::errc() || end != endpoint.data() + endpoint.size() || port < 1 || port + rank > 65535) {
    return bad(fmt::format("'{}' must end in a port, to which each rank adds its number", endpoint));
  }
  return endpoint.substr(0, colon + 1) + std::to_string(port + rank);
}

Result<std::string> kv_events_config_after(std::string_view text, int64_t ranks) {
  SLUICE_TRY(const auto config, parse_kv_events_config(text));
  auto json = nlohmann::ordered_json::parse(text);
  SLUICE_TRY(json["endpoint"], kv_endpoint_of_rank(config.endpoint, ranks));
  if (!config.replay_endpoint.empty()) {
    SLUICE_TRY(json["replay_endpoint"], kv_endpoint_of_rank(config.replay_endpoint, ranks));
  }
  return json.dump();
}

// ---- publisher

class KvPublisher::Impl {
 public:
  Impl(const KvEventsConfig& config, int64_t dp_rank, const Clock& clock)
      : config_(config), dp_rank_(dp_rank), clock_(clock), context_(zmq_ctx_new()), wake_(eventfd(0, EFD_CLOEXEC)) {}

  ~Impl() {
    if (thread_.joinable()) {
      {
        const std::lock_guard lock(mutex_);
        stop_ = true;
      }
      wake();
      thread_.join();
    }
    if (events_) zmq_close(events_);
    if (replay_) zmq_close(replay_);
    zmq_ctx_term(context_);
    close(wake_);
  }

  Result<void> start() {
    SLUICE_TRY(const auto at, kv_endpoint_of_rank(config_.endpoint, dp_rank_));
    const bool binds = !at.starts_with("tcp://") || at.find('*') != std::string::npos ||
                       at.find("::") != std::string::npos || at.find("0.0.0.0") != std::string::npos;
    SLUICE_TRY(events_, open(ZMQ_PUB, at, binds, config_.hwm));
    if (!config_.replay_endpoint.empty()) {
      SLUICE_TRY(const auto replay_at, kv_endpoint_of_rank(config_.replay_endpoint, dp_rank_));
      // One whole answer fits.
      SLUICE_TRY(replay_, open(ZMQ_ROUTER, replay_at, /*binds=*/true, config_.buffer_steps + 1));
    }
    endpoint_ = last_endpoint(events_);
    replay_endpoint_ = last_endpoint(replay_);
    thread_ = std::thread([this] { run(); });
    return {};
  }

  void publish(std::vector<protocol::KvEvent> events) {
    {
      const std::lock_guard lock(mutex_);
      const uint64_t sequence = next_++;
      if (static_cast<int64_t>(queue_.size()) >= config_.max_queue_size) {
        SLUICE_LOG_EVERY(5, warn, kComponent, "rank {}: KV events {} are lost, {} wait to be sent", dp_rank_, sequence,
                         queue_.size());
        return;
      }
      queue_.push_back({sequence, static_cast<double>(clock_.unix_nanos()) * 1e-9, std::move(events)});
    }
    wake();
  }

  const std::string& endpoint() const { return endpoint_; }
  const std::string& replay_endpoint() const { return replay_endpoint_; }

 private:
  struct Batch {
    uint64_t sequence = 0;
    double timestamp = 0;
    std::vector<protocol::KvEvent> events;
  };

  Result<void*> open(int type, const std::string& endpoint, bool binds, int64_t hwm) {
    void* socket = zmq_socket(context_, type);
    const int most = static_cast<int>(hwm);
    zmq_setsockopt(socket, ZMQ_SNDHWM, &most, sizeof(most));
    zmq_setsockopt(socket, ZMQ_LINGER, &kLingerMillis, sizeof(kLingerMillis));
    const int with_ipv6 = endpoint.find("::") != std::string::npos;
    zmq_setsockopt(socket, ZMQ_IPV6, &with_ipv6, sizeof(with_ipv6));
    if ((binds ? zmq_bind(socket, endpoint.c_str()) : zmq_connect(socket, endpoint.c_str())) == 0) return socket;
    const Error error{ErrorCode::kUnavailable,
                      fmt::format("KV events cannot be published at {}: {}", endpoint, zmq_strerror(zmq_errno()))};
    zmq_close(socket);
    return error;
  }

  static std::string last_endpoint(void* socket) {
    char text[256] = "";
    size_t size = sizeof(text);
    if (socket) zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, text, &size);
    return text;
  }

  void wake() {
    const uint64_t one = 1;
    (void)!write(wake_, &one, sizeof(one));
  }

  void run() {
    for (;;) {
      zmq_pollitem_t items[] = {{.socket = nullptr, .fd = wake_, .events = ZMQ_POLLIN, .revents = 0},
                                {.socket = replay_, .fd = 0, .events = ZMQ_POLLIN, .revents = 0}};
      // Until there is something to do: the destructor wakes it too.
      if (zmq_poll(items, replay_ ? 2 : 1, -1) < 0) continue;
      if (items[0].revents != 0) {
        uint64_t count = 0;
        (void)!read(wake_, &count, sizeof(count));
      }
      if (!send_queued()) return;
      if (replay_ && items[1].revents != 0) answer();
    }
  }

  // False at the end.
  bool send_queued() {
    for (;;) {
      Batch batch;
      {
        const std::lock_guard lock(mutex_);
        if (queue_.empty()) return !stop_;
        batch = std::move(queue_.front());
        queue_.pop_front();
      }
      std::string payload = protocol::encode_kv_events(
          {.timestamp = batch.timestamp, .events = std::move(batch.events), .dp_rank = dp_rank_});
      const std::string number = frame_of(batch.sequence);
      zmq_send(events_, config_.topic.data(), config_.topic.size(), ZMQ_SNDMORE);
      zmq_send(events_, number.data(), number.size(), ZMQ_SNDMORE);
      zmq_send(events_, payload.data(), payload.size(), 0);
      if (!replay_) continue;
      buffer_.emplace_back(batch.sequence, std::move(payload));
      if (static_cast<int64_t>(buffer_.size()) > config_.buffer_steps) buffer_.pop_front();
    }
  }

  // [who asks, empty, first sequence wanted] gets [who asks, empty, sequence, payload] for each, then sequence -1.
  void answer() {
    std::vector<std::string> frames;
    for (int more = 1; more != 0;) {
      zmq_msg_t frame;
      zmq_msg_init(&frame);
      if (zmq_msg_recv(&frame, replay_, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&frame);
        return;
      }
      frames.emplace_back(static_cast<const char*>(zmq_msg_data(&frame)), zmq_msg_size(&frame));
      more = zmq_msg_more(&frame);
      zmq_msg_close(&frame);
    }
    if (frames.size() != 3 || frames[2].size() != 8) {
      SLUICE_LOG_EVERY(5, warn, kComponent, "rank {}: a replay request of {} frames is dropped", dp_rank_,
                       frames.size());
      return;
    }
    uint64_t from = 0;
    for (const char byte : frames[2]) from = from << 8 | static_cast<uint8_t>(byte);
    const auto reply = [&](uint64_t sequence, std::string_view payload) {
      const std::string number = frame_of(sequence);
      // A peer that has gone is not waited for.
      zmq_send(replay_, frames[0].data(), frames[0].size(), ZMQ_SNDMORE | ZMQ_DONTWAIT);
      zmq_send(replay_, "", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT);
      zmq_send(replay_, number.data(), number.size(), ZMQ_SNDMORE | ZMQ_DONTWAIT);
      zmq_send(replay_, payload.data(), payload.size(), ZMQ_DONTWAIT);
    };
    const auto first = std::ranges::lower_bound(buffer_, from, {}, &std::pair<uint64_t, std::string>::first);
    for (auto at = first; at != buffer_.end(); ++at) reply(at->first, at->second);
    reply(kEndOfReplay, "");
  }

  const KvEventsConfig config_;
  const int64_t dp_rank_;
  const Clock& clock_;
  void* const context_;
  const int wake_;
  std::string endpoint_, replay_endpoint_;
  // Made by start(), then the thread's.
  void* events_ = nullptr;
  void* replay_ = nullptr;
  std::deque<std::pair<uint64_t, std::string>> buffer_;
  std::thread thread_;

  std::mutex mutex_;  // guards what follows
  std::deque<Batch> queue_;
  uint64_t next_ = 0;
  bool stop_ = false;
};

KvPublisher::KvPublisher(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvPublisher::~KvPublisher() = default;

Result<std::unique_ptr<KvPublisher>> KvPublisher::open(const KvEventsConfig& config, int64_t dp_rank,
                                                       const Clock& clock) {
  auto impl = std::make_unique<Impl>(config, dp_rank, clock);
  SLUICE_TRY_VOID(impl->start());
  std::unique_ptr<KvPublisher> publisher(new KvPublisher(std::move(impl)));
  publisher->publish({{.kind = protocol::KvEvent::Kind::kCleared}});
  return publisher;
}

void KvPublisher::publish(std::vector<protocol::KvEvent> events) { impl_->publish(std::move(events)); }
std::string KvPublisher::endpoint() const { return impl_->endpoint(); }
std::string KvPublisher::replay_endpoint() const { return impl_->replay_endpoint(); }

}  // namespace sluice::engine
