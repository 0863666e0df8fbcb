// For tests: a publisher of KV events over real sockets, with a buffer to ask and a hand that loses, doubles and swaps
// messages.
#pragma once

#include <zmq.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

#include "base/check.h"
#include "gateway/kv_events/kv_publisher_fixture.h"

namespace sluice::gateway {

class ZmqPublisher {
 public:
  using Message = PublishingCache::Message;

  explicit ZmqPublisher(std::string topic = "") : topic_(std::move(topic)), context_(zmq_ctx_new()) { open(); }
  ~ZmqPublisher() {
    close();
    zmq_ctx_term(context_);
  }

  const std::string& events() const { return events_at_; }
  const std::string& replay() const { return replay_at_; }
  int port() const { return std::stoi(events_at_.substr(events_at_.rfind(':') + 1)); }
  int replay_port() const { return std::stoi(replay_at_.substr(replay_at_.rfind(':') + 1)); }

  // Into the buffer, and out.
  void publish(const Message& message) {
    buffer(message);
    send(message);
  }
  // Into the buffer only: lost on the way.
  void lose(const Message& message) { buffer(message); }
  // Out only: once more, or late.
  void send(const Message& message) {
    const std::lock_guard lock(mutex_);
    zmq_send(events_, topic_.data(), topic_.size(), ZMQ_SNDMORE);
    const std::string number = frame_of(message.sequence);
    zmq_send(events_, number.data(), number.size(), ZMQ_SNDMORE);
    zmq_send(events_, message.payload.data(), message.payload.size(), 0);
  }
  void buffer(const Message& message) {
    const std::lock_guard lock(mutex_);
    buffer_.push_back(message);
  }
  void forget_before(uint64_t sequence) {
    const std::lock_guard lock(mutex_);
    std::erase_if(buffer_, [&](const Message& message) { return message.sequence < sequence; });
  }
  int64_t questions() const { return questions_; }

  // As if the process had ended; on the same ports again after open().
  void close() {
    if (!thread_.joinable()) return;
    stop_ = true;
    thread_.join();
    zmq_close(events_);
    zmq_close(replay_);
    buffer_.clear();
  }
  void open() {
    stop_ = false;
    events_ = zmq_socket(context_, ZMQ_PUB);
    replay_ = zmq_socket(context_, ZMQ_ROUTER);
    for (void* socket : {events_, replay_}) {
      const int no_linger = 0;
      zmq_setsockopt(socket, ZMQ_LINGER, &no_linger, sizeof(no_linger));
    }
    events_at_ = bind(events_, events_at_);
    replay_at_ = bind(replay_, replay_at_);
    thread_ = std::thread([this] { answer(); });
  }

 private:
  static std::string frame_of(uint64_t sequence) {
    std::string frame(8, '\0');
    for (size_t i = 0; i < 8; ++i) frame[i] = static_cast<char>(sequence >> (56 - 8 * i));
    return frame;
  }
  static std::string bind(void* socket, const std::string& at) {
    // A port that was just given up may be refused for a moment.
    int rc = -1;
    for (int i = 0; i < 200 && rc != 0; ++i) {
      rc = zmq_bind(socket, at.empty() ? "tcp://127.0.0.1:*" : at.c_str());
      if (rc != 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    SLUICE_CHECK(rc == 0, "cannot bind {}: {}", at, zmq_strerror(zmq_errno()));
    char bound[256];
    size_t size = sizeof(bound);
    zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &size);
    return bound;
  }
  void answer() {
    while (!stop_) {
      zmq_pollitem_t item{replay_, 0, ZMQ_POLLIN, 0};
      if (zmq_poll(&item, 1, 20) <= 0) continue;
      std::string frames[3];
      for (std::string& frame : frames) {
        char bytes[256];
        const int size = zmq_recv(replay_, bytes, sizeof(bytes), 0);
        frame.assign(bytes, static_cast<size_t>(std::max(size, 0)));
      }
      ++questions_;
      uint64_t from = 0;
      for (const char byte : frames[2]) from = from << 8 | static_cast<unsigned char>(byte);
      const std::lock_guard lock(mutex_);
      const auto reply = [&](uint64_t sequence, const std::string& payload) {
        zmq_send(replay_, frames[0].data(), frames[0].size(), ZMQ_SNDMORE);
        zmq_send(replay_, "", 0, ZMQ_SNDMORE);
        const std::string number = frame_of(sequence);
        zmq_send(replay_, number.data(), number.size(), ZMQ_SNDMORE);
        zmq_send(replay_, payload.data(), payload.size(), 0);
      };
      for (const Message& message : buffer_) {
        if (message.sequence >= from) reply(message.sequence, message.payload);
      }
      reply(~uint64_t{0}, "");
    }
  }

  const std::string topic_;
  void* context_;
  void* events_ = nullptr;
  void* replay_ = nullptr;
  std::string events_at_, replay_at_;
  std::mutex mutex_;  // guards the sockets' use and the buffer
  std::deque<Message> buffer_;
  std::atomic<int64_t> questions_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace sluice::gateway
