#include "engine/front_link.h"

#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <climits>
#include <deque>

#include "base/log.h"
#include "base/rng.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kComponent = "engine/front_link";

// A socket and what its peer could not take yet.
struct Input {
  void* socket = nullptr;
  std::deque<std::string> outbox;

  // False if the rest must wait.
  bool flush() {
    while (!outbox.empty()) {
      if (zmq_send(socket, outbox.front().data(), outbox.front().size(), ZMQ_DONTWAIT) < 0) return false;
      outbox.pop_front();
    }
    return true;
  }
};

std::string any_port_of(const std::string& address) {
  if (address.empty()) return {};
  const bool v6 = address.find(':') != std::string::npos;
  return fmt::format("tcp://{}{}{}:*", v6 ? "[" : "", address, v6 ? "]" : "");
}

}  // namespace

class FrontLink::Impl {
 public:
  Impl(int64_t ranks, const std::string& address)
      : context_(zmq_ctx_new()),
        // In the abstract namespace: no file is left behind however this process ends. The number keeps apart processes
        // that share a network but not a process namespace.
        base_(fmt::format("ipc://@sluice-{}-{:016x}", ::getpid(), random_seed())),
        tcp_(any_port_of(address)),
        output_endpoint_(base_ + "-out"),
        inputs_(static_cast<size_t>(ranks)) {}

  ~Impl() {
    for (auto& input : inputs_) close(input);
    if (output_) zmq_close(output_);
    zmq_ctx_term(context_);
  }

  Result<void> open_output() {
    SLUICE_TRY(output_, open(ZMQ_PULL));
    SLUICE_TRY_VOID(bind(output_, output_endpoint_));
    if (tcp_.empty()) return {};
    SLUICE_TRY(output_elsewhere_, bind(output_, tcp_));
    return {};
  }

  Result<std::string> open_input(int64_t rank, uint64_t incarnation, bool elsewhere) {
    Input& input = at(rank);
    close(input);
    SLUICE_TRY(input.socket, open(ZMQ_PUSH));
    return bind(input.socket, elsewhere ? tcp_ : fmt::format("{}-{}-{}", base_, rank, incarnation));
  }

  void close_input(int64_t rank) { close(at(rank)); }

  void send(int64_t rank, const ToRank& message) {
    Input& input = at(rank);
    SLUICE_CHECK(input.socket != nullptr, "the input of rank {} is closed", rank);
    input.outbox.push_back(encode(message));
    input.flush();
  }

  std::optional<RankFrame> receive() {
    for (;;) {
      zmq_msg_t frame;
      zmq_msg_init(&frame);
      if (zmq_msg_recv(&frame, output_, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&frame);
        return std::nullopt;
      }
      auto decoded = decode_from_rank({static_cast<const char*>(zmq_msg_data(&frame)), zmq_msg_size(&frame)});
      zmq_msg_close(&frame);
      if (decoded.ok() && decoded->process >= 0 && decoded->process < static_cast<int64_t>(inputs_.size())) {
        return std::move(*decoded);
      }
      SLUICE_LOG_EVERY(5, error, kComponent, "a message from a rank is dropped: {}",
                       decoded.ok() ? fmt::format("there is no rank {}", decoded->process) : decoded.error().message);
    }
  }

  void wait(std::span<Watched> watched, std::optional<Duration> bound) {
    items_.clear();
    items_.push_back({.socket = output_, .fd = 0, .events = ZMQ_POLLIN, .revents = 0});
    for (const Watched& one : watched) {
      items_.push_back({.socket = nullptr, .fd = one.fd, .events = ZMQ_POLLIN, .revents = 0});
    }
    for (const Input& input : inputs_) {
      if (!input.outbox.empty()) {
        items_.push_back({.socket = input.socket, .fd = 0, .events = ZMQ_POLLOUT, .revents = 0});
      }
    }
    // Rounded up, so that whoever waits for a time finds that it has come.
    const long millis =
        bound ? std::clamp<int64_t>(std::chrono::ceil<std::chrono::milliseconds>(*bound).count(), 0, INT_MAX) : -1;
    zmq_poll(items_.data(), static_cast<int>(items_.size()), millis);
    for (size_t i = 0; i < watched.size(); ++i) watched[i].readable = items_[i + 1].revents != 0;
    for (Input& input : inputs_) input.flush();
  }

  const std::string& output_endpoint(bool elsewhere) const { return elsewhere ? output_elsewhere_ : output_endpoint_; }

 private:
  Input& at(int64_t rank) { return inputs_[static_cast<size_t>(rank)]; }

  Result<void*> open(int type) {
    void* socket = zmq_socket(context_, type);
    const int none = 0, one = 1;
    const uid_t user = ::geteuid();
    // No high-water mark: requests are bounded by the ranks' own queues, and a dropped frame would lose one. No linger:
    // what a rank has not taken when its socket closes is not for anybody else.
    if (socket != nullptr && zmq_setsockopt(socket, ZMQ_SNDHWM, &none, sizeof none) == 0 &&
        zmq_setsockopt(socket, ZMQ_RCVHWM, &none, sizeof none) == 0 &&
        zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none) == 0 &&
        zmq_setsockopt(socket, ZMQ_IPC_FILTER_UID, &user, sizeof user) == 0 &&
        zmq_setsockopt(socket, ZMQ_IPV6, &one, sizeof one) == 0) {
      return socket;
    }
    const Error error{ErrorCode::kExhausted, fmt::format("a socket for ranks: {}", zmq_strerror(zmq_errno()))};
    if (socket != nullptr) zmq_close(socket);
    return error;
  }

  // Returns where it was bound: with the port, for one that ends in ":*".
  static Result<std::string> bind(void* socket, const std::string& endpoint) {
    if (zmq_bind(socket, endpoint.c_str()) != 0) {
      return Error{ErrorCode::kExhausted, fmt::format("binding {}: {}", endpoint, zmq_strerror(zmq_errno()))};
    }
    if (!endpoint.ends_with(":*")) return endpoint;
    char bound[256] = {};
    size_t length = sizeof bound;
    zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &length);
    // The address as it was asked for: with IPv6 on, the socket says ::ffff:127.0.0.1.
    const std::string_view at(bound);
    return endpoint.substr(0, endpoint.size() - 2) + std::string(at.substr(at.rfind(':')));
  }

  static void close(Input& input) {
    if (input.socket != nullptr) zmq_close(input.socket);
    input = {};
  }

  void* const context_;
  const std::string base_;
  const std::string tcp_;  // for ranks elsewhere, with a port to be found; empty: there are none
  const std::string output_endpoint_;
  std::string output_elsewhere_;
  void* output_ = nullptr;
  std::vector<Input> inputs_;  // [ranks]
  std::vector<zmq_pollitem_t> items_;
};

Result<std::unique_ptr<FrontLink>> FrontLink::create(int64_t ranks, const std::string& address) {
  std::unique_ptr<FrontLink> link(new FrontLink(std::make_unique<Impl>(ranks, address)));
  SLUICE_TRY_VOID(link->impl_->open_output());
  return link;
}

FrontLink::FrontLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FrontLink::~FrontLink() = default;
const std::string& FrontLink::output_endpoint(bool elsewhere) const { return impl_->output_endpoint(elsewhere); }
Result<std::string> FrontLink::open_input(int64_t rank, uint64_t incarnation, bool elsewhere) {
  return impl_->open_input(rank, incarnation, elsewhere);
}
void FrontLink::close_input(int64_t rank) { impl_->close_input(rank); }
void FrontLink::send(int64_t rank, const ToRank& message) { impl_->send(rank, message); }
std::optional<RankFrame> FrontLink::receive() { return impl_->receive(); }
void FrontLink::wait(std::span<Watched> watched, std::optional<Duration> bound) { impl_->wait(watched, bound); }

}  // namespace sluice::engine
