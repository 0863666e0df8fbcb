#include "engine/nodes/link.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

namespace sluice::engine {
namespace {

constexpr size_t kLongestMessage = 4 << 20;  // a rank's spec has a few KB

std::string address_at(int fd, int (*get)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (get(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "?";
  return net::address_of(address);
}

// Until the descriptor is ready for `events` or the time has come.
bool wait_for(int fd, short events, TimePoint end) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - real_clock().now()).count();
    pollfd entry{fd, events, 0};
    const int n = ::poll(&entry, 1, static_cast<int>(std::max<int64_t>(left, 0)));
    if (n > 0) return true;
    if (n == 0 || errno != EINTR) return false;
  }
}

Result<net::Socket> connect_to(const addrinfo& address, const std::string& where, TimePoint end) {
  net::Socket socket(::socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (socket.get() < 0) return Error{ErrorCode::kExhausted, fmt::format("socket: {}", std::strerror(errno))};
  int problem = ::connect(socket.get(), address.ai_addr, address.ai_addrlen) == 0 ? 0 : errno;
  if (problem == EINPROGRESS) {
    if (!wait_for(socket.get(), POLLOUT, end)) {
      return Error{ErrorCode::kTimeout, fmt::format("{} does not answer: its host is down, or a firewall drops what is "
                                                    "sent there",
                                                    where)};
    }
    socklen_t size = sizeof problem;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &problem, &size);
  }
  if (problem == 0) return socket;
  if (problem == ECONNREFUSED) {
    return Error{ErrorCode::kRefused, fmt::format("{} refuses: nobody listens there yet, or at another port", where)};
  }
  return Error{ErrorCode::kUnavailable, fmt::format("{}: {}", where, std::strerror(problem))};
}

}  // namespace

Result<Endpoint> parse_endpoint(std::string_view flag, const std::string& text) {
  const size_t colon = text.rfind(':');
  Endpoint endpoint{.host = text.substr(0, colon == std::string::npos ? 0 : colon)};
  const bool bracketed = endpoint.host.size() > 2 && endpoint.host.front() == '[' && endpoint.host.back() == ']';
  if (bracketed) endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  const std::string_view port =
      colon == std::string::npos ? std::string_view() : std::string_view(text).substr(colon + 1);
  const auto [end, problem] = std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
  const bool is_port = problem == std::errc() && end == port.data() + port.size() && endpoint.port > 0;
  if (endpoint.host.empty() || !is_port || (!bracketed && endpoint.host.find(':') != std::string::npos)) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("{} {} is not host:port or [IPv6 address]:port, with a port from 1 to 65535", flag, text)};
  }
  if (endpoint.host == "0.0.0.0" || endpoint.host == "::") {
    return Error{ErrorCode::kBadOption,
                 fmt::format("{} {}: every address is no address by which others reach node 0", flag, text)};
  }
  return endpoint;
}

std::string to_string(const Endpoint& endpoint) {
  const bool v6 = endpoint.host.find(':') != std::string::npos;
  return fmt::format("{}{}{}:{}", v6 ? "[" : "", endpoint.host, v6 ? "]" : "", endpoint.port);
}

Result<NodeLink> NodeLink::connect(const Endpoint& to, Duration bound) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int problem = ::getaddrinfo(to.host.c_str(), std::to_string(to.port).c_str(), &hints, &found);
  if (problem != 0) {
    return Error{ErrorCode::kNotFound,
                 fmt::format("the name '{}' has no address: {}", to.host, ::gai_strerror(problem))};
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, &::freeaddrinfo);
  const TimePoint end = real_clock().now() + bound;
  Error last{ErrorCode::kNotFound, fmt::format("the name '{}' has no address", to.host)};
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    sockaddr_storage storage{};
    std::memcpy(&storage, address->ai_addr, address->ai_addrlen);
    const std::string where = to_string(Endpoint{net::address_of(storage), to.port});
    // One that swallows everything leaves the others their part of the time.
    int64_t left = 0;
    for (const addrinfo* other = address; other != nullptr; other = other->ai_next) ++left;
    const TimePoint now = real_clock().now();
    auto socket = connect_to(*address, where, now + std::max<Duration>(end - now, Duration::zero()) / left);
    if (socket.ok()) return NodeLink(std::move(*socket));
    last = std::move(socket).error();
  }
  return last;
}

NodeLink::NodeLink(net::Socket socket)
    : socket_(std::move(socket)),
      local_(address_at(socket_.get(), &::getsockname)),
      peer_(address_at(socket_.get(), &::getpeername)) {
  const int one = 1;
  ::setsockopt(fd(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  ::fcntl(fd(), F_SETFL, ::fcntl(fd(), F_GETFL) | O_NONBLOCK);
}

Result<void> NodeLink::send(const nlohmann::json& message) {
  const std::string line = message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  const TimePoint end = real_clock().now() + kNodeSilenceLimit;
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t n = ::send(fd(), line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<size_t>(n);
    } else if (errno != EAGAIN && errno != EINTR) {
      return Error{ErrorCode::kReset, fmt::format("the connection to {} has ended: {}", peer_, std::strerror(errno))};
    } else if (!wait_for(fd(), POLLOUT, end)) {
      return Error{ErrorCode::kTimeout,
                   fmt::format("{} has taken nothing for {:.0f} s", peer_, seconds(kNodeSilenceLimit))};
    }
  }
  return {};
}

Result<std::optional<nlohmann::json>> NodeLink::receive() {
  for (;;) {
    if (const size_t end = unread_.find('\n'); end != std::string::npos) {
      auto message =
          nlohmann::json::parse(unread_.begin(), unread_.begin() + static_cast<ptrdiff_t>(end), nullptr, false);
      unread_.erase(0, end + 1);
      if (!message.is_object() || !message.contains("op") || !message["op"].is_string()) {
        return Error{ErrorCode::kProtocol, fmt::format("{} is no node of this program", peer_)};
      }
      return std::optional(std::move(message));
    }
    if (unread_.size() > kLongestMessage) {
      return Error{ErrorCode::kProtocol, fmt::format("{} is no node of this program", peer_)};
    }
    char bytes[16384];
    const ssize_t n = ::recv(fd(), bytes, sizeof bytes, 0);
    if (n > 0) {
      unread_.append(bytes, static_cast<size_t>(n));
    } else if (n < 0 && errno == EAGAIN) {
      return std::optional<nlohmann::json>();
    } else if (n == 0 || errno != EINTR) {
      return Error{ErrorCode::kReset, fmt::format("the connection to {} has ended{}", peer_,
                                                  n == 0 ? "" : fmt::format(": {}", std::strerror(errno)))};
    }
  }
}

Result<nlohmann::json> NodeLink::receive(Duration bound, std::string_view what) {
  const TimePoint end = real_clock().now() + bound;
  for (;;) {
    SLUICE_TRY(auto message, receive());
    if (message) return std::move(*message);
    if (!wait_for(fd(), POLLIN, end)) {
      return Error{ErrorCode::kTimeout, fmt::format("waited {:.0f} s for {} from {}", seconds(bound), what, peer_)};
    }
  }
}

}  // namespace sluice::engine
