#include "parallel/rendezvous.h"

#include <fmt/format.h>
#include <zmq.h>

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/check.h"

namespace sluice::parallel {
namespace {

using nlohmann::json;

constexpr const char* kStop = "inproc://stop";

struct ZmqContext {
  void* const at = zmq_ctx_new();
  ~ZmqContext() { zmq_ctx_term(at); }
};

class Socket {
 public:
  Socket(const ZmqContext& context, int type) : at_(zmq_socket(context.at, type)) {
    const int zero = 0, one = 1;
    zmq_setsockopt(at_, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(at_, ZMQ_IPV6, &one, sizeof(one));
  }
  ~Socket() { zmq_close(at_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  void* at() const { return at_; }
  bool send(const std::string& text, int flags = 0) const {
    return zmq_send(at_, text.data(), text.size(), flags | ZMQ_DONTWAIT) >= 0;
  }
  std::string receive() const {
    zmq_msg_t message;
    zmq_msg_init(&message);
    std::string text;
    if (zmq_msg_recv(&message, at_, ZMQ_DONTWAIT) >= 0) {
      text.assign(static_cast<const char*>(zmq_msg_data(&message)), zmq_msg_size(&message));
    }
    zmq_msg_close(&message);
    return text;
  }

 private:
  void* const at_;
};

std::string pack(const json& message) {
  const auto bytes = json::to_msgpack(message);
  return {bytes.begin(), bytes.end()};
}

}  // namespace

struct RendezvousServer::State {
  State(int ranks) : size(ranks) {}

  void run() {
    zmq_pollitem_t items[] = {{socket.at(), 0, ZMQ_POLLIN, 0}, {stopped.at(), 0, ZMQ_POLLIN, 0}};
    while (zmq_poll(items, 2, -1) >= 0 && !(items[1].revents & ZMQ_POLLIN)) {
      const std::string peer = socket.receive();
      if (peer.empty()) continue;
      const json request = json::from_msgpack(socket.receive(), true, /*allow_exceptions=*/false);
      try {
        answer(peer, request);
      } catch (const json::exception& e) {
        reply(peer, {{"error", fmt::format("no request of this program: {}", e.what())}});
      }
    }
  }

  void answer(const std::string& peer, const json& request) {
    const auto op = request.at("op").get<std::string>();
    if (op == "join") {
      const std::string problem = join(request);
      reply(peer, problem.empty() ? json::object() : json{{"error", problem}});
    } else if (op == "set") {
      const auto key = request.at("key").get<std::string>();
      const json value = request.at("value");
      values[key] = value;
      reply(peer, json::object());
      const auto [first, last] = waiting.equal_range(key);
      for (auto at = first; at != last; ++at) reply(at->second, {{"value", value}});
      waiting.erase(first, last);
    } else {
      const auto key = request.at("key").get<std::string>();
      const auto at = values.find(key);
      if (at == values.end()) {
        waiting.emplace(key, peer);
      } else {
        reply(peer, {{"value", at->second}});
      }
    }
  }

  // What is wrong with it, or nothing.
  std::string join(const json& request) {
    const auto rank = request.at("rank").get<int>();
    const auto their_size = request.at("size").get<int>();
    const auto host = request.at("host").get<std::string>();
    const auto fingerprint = request.at("fingerprint").get<std::string>();
    if (their_size != size || rank < 0 || rank >= size) {
      return fmt::format("rank {} on {} counts {} ranks, the rendezvous {}", rank, host, their_size, size);
    }
    if (const auto at = joined.find(rank); at != joined.end()) {
      return fmt::format("rank {} on {}: {} has joined as rank {} before", rank, host, at->second.host, rank);
    }
    for (const auto& [other, identity] : joined) {
      if (identity.fingerprint == fingerprint) continue;
      return fmt::format("rank {} on {} is {}, but rank {} on {} is {}", rank, host, fingerprint, other, identity.host,
                         identity.fingerprint);
    }
    joined[rank] = {.rank = rank, .size = size, .host = host, .fingerprint = fingerprint};
    return {};
  }

  void reply(const std::string& peer, const json& message) {
    socket.send(peer, ZMQ_SNDMORE);
    socket.send(pack(message));
  }

  const int size;
  const ZmqContext context;
  Socket socket{context, ZMQ_ROUTER};
  Socket stop{context, ZMQ_PAIR};
  Socket stopped{context, ZMQ_PAIR};  // the thread's end; connected before it starts, so that nothing sent is lost
  std::thread thread;
  // The thread's alone.
  std::map<int, RankIdentity> joined;
  std::map<std::string, json> values;
  std::multimap<std::string, std::string> waiting;  // key to peer
};

RendezvousServer::RendezvousServer(std::unique_ptr<State> state, std::string endpoint)
    : state_(std::move(state)), endpoint_(std::move(endpoint)) {
  state_->thread = std::thread([this] { state_->run(); });
}

RendezvousServer::~RendezvousServer() {
  state_->stop.send("stop");
  state_->thread.join();
}

Result<std::unique_ptr<RendezvousServer>> RendezvousServer::serve(const std::string& endpoint, int size) {
  auto state = std::make_unique<State>(size);
  if (zmq_bind(state->socket.at(), fmt::format("tcp://{}", endpoint).c_str()) != 0 ||
      zmq_bind(state->stop.at(), kStop) != 0 || zmq_connect(state->stopped.at(), kStop) != 0) {
    return Error{zmq_errno() == EINVAL || zmq_errno() == ENODEV ? ErrorCode::kInvalidArgument : ErrorCode::kExhausted,
                 fmt::format("the rendezvous cannot listen at {}: {}", endpoint, zmq_strerror(zmq_errno()))};
  }
  char bound[256] = {};
  size_t length = sizeof(bound);
  zmq_getsockopt(state->socket.at(), ZMQ_LAST_ENDPOINT, bound, &length);
  // The host as it was asked for: with IPv6 on, the socket says ::ffff:127.0.0.1.
  const std::string_view at(bound);
  const std::string published = endpoint.substr(0, endpoint.rfind(':')) + std::string(at.substr(at.rfind(':')));
  return std::unique_ptr<RendezvousServer>(new RendezvousServer(std::move(state), published));
}

struct RendezvousClient::State {
  explicit State(const std::string& where, Duration wait) : endpoint(where), bound(wait) {}

  // The answer, or an error that says for what it waited.
  Result<json> ask(const json& request, std::string_view what) {
    if (!socket.send(pack(request))) {
      return Error{ErrorCode::kUnavailable, fmt::format("sending to the rendezvous at {}", endpoint)};
    }
    zmq_pollitem_t item{socket.at(), 0, ZMQ_POLLIN, 0};
    const auto millis = std::chrono::duration_cast<std::chrono::milliseconds>(bound).count();
    if (zmq_poll(&item, 1, millis) <= 0) {
      return Error{ErrorCode::kTimeout,
                   fmt::format("waited {:.1f} s for {} at the rendezvous {}", seconds(bound), what, endpoint)};
    }
    json answer = json::from_msgpack(socket.receive(), true, /*allow_exceptions=*/false);
    if (!answer.is_object()) {
      return Error{ErrorCode::kProtocol, fmt::format("{} is no rendezvous of this program", endpoint)};
    }
    if (answer.contains("error") && answer["error"].is_string()) {
      return Error{ErrorCode::kInvalidArgument, answer["error"].get<std::string>()};
    }
    return answer;
  }

  const std::string endpoint;
  const Duration bound;
  const ZmqContext context;
  Socket socket{context, ZMQ_DEALER};
};

RendezvousClient::RendezvousClient(std::unique_ptr<State> state) : state_(std::move(state)) {}
RendezvousClient::RendezvousClient(RendezvousClient&&) noexcept = default;
RendezvousClient::~RendezvousClient() = default;

Result<RendezvousClient> RendezvousClient::join(const std::string& endpoint, const RankIdentity& who, Duration bound) {
  auto state = std::make_unique<State>(endpoint, bound);
  if (zmq_connect(state->socket.at(), fmt::format("tcp://{}", endpoint).c_str()) != 0) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("'{}' is no address of a rendezvous, host:port: {}", endpoint, zmq_strerror(zmq_errno()))};
  }
  SLUICE_TRY_VOID(state->ask(
      {{"op", "join"}, {"rank", who.rank}, {"size", who.size}, {"host", who.host}, {"fingerprint", who.fingerprint}},
      fmt::format("an answer to rank {}", who.rank)));
  return RendezvousClient(std::move(state));
}

Result<void> RendezvousClient::set(const std::string& key, const std::vector<char>& value) {
  const json binary = json::binary({value.begin(), value.end()});
  SLUICE_TRY_VOID(state_->ask({{"op", "set"}, {"key", key}, {"value", binary}}, fmt::format("{} to be taken", key)));
  return {};
}

Result<std::vector<char>> RendezvousClient::get(const std::string& key) {
  SLUICE_TRY(const json answer, state_->ask({{"op", "get"}, {"key", key}}, key));
  const auto at = answer.find("value");
  if (at == answer.end() || !at->is_binary()) {
    return Error{ErrorCode::kProtocol, fmt::format("{} is no rendezvous of this program", state_->endpoint)};
  }
  const auto& bytes = at->get_binary();
  return std::vector<char>(bytes.begin(), bytes.end());
}

}  // namespace sluice::parallel
