#include "net/listen.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>

#include <cerrno>
#include <cstring>
#include <optional>

namespace sluice::net {
namespace {

Error bind_error(const std::string& where, int error) {
  ErrorCode code = ErrorCode::kInternal;
  if (error == EADDRINUSE) code = ErrorCode::kAlreadyExists;
  if (error == EACCES) code = ErrorCode::kPermissionDenied;
  if (error == EADDRNOTAVAIL) code = ErrorCode::kInvalidArgument;
  if (error == EMFILE || error == ENFILE) code = ErrorCode::kExhausted;
  return {code, fmt::format("cannot listen on {}: {}", where, std::strerror(error))};
}

Result<Socket> bind_socket(const sockaddr_storage& address, socklen_t size, bool only_v6, bool share,
                           const std::string& where) {
  Socket fd(::socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) return bind_error(where, errno);
  const int one = 1;
  const int v6 = only_v6 ? 1 : 0;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (share) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
  if (address.ss_family == AF_INET6) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &v6, sizeof v6);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0) return bind_error(where, errno);
  return fd;
}

uint16_t& port_of(sockaddr_storage& address) {
  return address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                       : reinterpret_cast<sockaddr_in&>(address).sin_port;
}

struct Address {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

Result<std::vector<Address>> resolve_local(std::string host) {
  if (host.size() > 1 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  // An empty host means every address. The service is only there because one of the two must be.
  const int error = ::getaddrinfo(host.empty() ? nullptr : host.c_str(), "0", &hints, &found);
  if (error != 0) {
    return Error{ErrorCode::kNotFound, fmt::format("cannot listen on '{}': {}", host, ::gai_strerror(error))};
  }
  std::vector<Address> addresses;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    if (a->ai_family != AF_INET && a->ai_family != AF_INET6) continue;
    Address address;
    std::memcpy(&address.storage, a->ai_addr, a->ai_addrlen);
    address.size = a->ai_addrlen;
    addresses.push_back(address);
  }
  ::freeaddrinfo(found);
  return addresses;
}

uint16_t bound_port(int fd) {
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size);
  return ntohs(port_of(bound));
}

}  // namespace

std::string address_of(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof text);
  } else if (address.ss_family == AF_INET6) {
    const auto& ip = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
    if (IN6_IS_ADDR_V4MAPPED(&ip)) {
      inet_ntop(AF_INET, ip.s6_addr + 12, text, sizeof text);
    } else {
      inet_ntop(AF_INET6, &ip, text, sizeof text);
    }
  }
  return text;
}

Socket Socket::copy() const { return Socket(::fcntl(fd_, F_DUPFD_CLOEXEC, 3)); }

Result<Listening> listen_sockets(const std::string& host, uint16_t port, size_t count, int backlog) {
  SLUICE_TRY(auto addresses, resolve_local(host));
  std::vector<std::vector<Socket>> sockets(count);
  std::optional<Error> refused;
  for (auto& address : addresses) {
    port_of(address.storage) = htons(port);
    const std::string where = fmt::format("{}:{}", address_of(address.storage), port);
    const bool only_v6 = addresses.size() > 1;
    if (port != 0) {
      // SO_REUSEPORT would let another server of this user share the port in silence: a socket without it finds out.
      const auto probe = bind_socket(address.storage, address.size, only_v6, false, where);
      if (!probe.ok()) {
        // A name may stand for an address that this machine lacks (::1 without IPv6).
        if (probe.error().code == ErrorCode::kAlreadyExists) return probe.error();
        refused = probe.error();
        continue;
      }
    }
    for (auto& of_loop : sockets) {
      auto fd = bind_socket(address.storage, address.size, only_v6, true, where);
      if (!fd.ok()) {
        if (fd.error().code == ErrorCode::kAlreadyExists) return fd.error();
        refused = fd.error();
        break;
      }
      if (::listen(fd->get(), backlog) != 0) return bind_error(where, errno);
      if (port == 0) {
        port = bound_port(fd->get());
        port_of(address.storage) = htons(port);
      }
      of_loop.push_back(std::move(*fd));
    }
  }
  if (sockets.front().empty()) {
    return refused.value_or(Error{ErrorCode::kNotFound, fmt::format("'{}' has no address to listen on", host)});
  }
  return Listening{std::move(sockets), port};
}

Result<Listening> adopt_sockets(std::vector<Socket> sockets, size_t count) {
  Listening listening;
  listening.sockets.resize(count);
  for (size_t i = 0; i < sockets.size(); ++i) {
    int listens = 0;
    socklen_t size = sizeof listens;
    if (::getsockopt(sockets[i].get(), SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("descriptor {} is no listening socket", sockets[i].get())};
    }
    ::fcntl(sockets[i].get(), F_SETFL, ::fcntl(sockets[i].get(), F_GETFL) | O_NONBLOCK);
    listening.port = bound_port(sockets[i].get());
  }
  if (sockets.empty()) return Error{ErrorCode::kInvalidArgument, "no sockets were passed on"};
  for (size_t loop = sockets.size(); loop < count; ++loop) {
    auto copy = sockets[loop % sockets.size()].copy();
    if (copy.get() < 0) return Error{ErrorCode::kExhausted, fmt::format("dup: {}", std::strerror(errno))};
    listening.sockets[loop].push_back(std::move(copy));
  }
  for (size_t i = 0; i < sockets.size(); ++i) listening.sockets[i % count].push_back(std::move(sockets[i]));
  return listening;
}

}  // namespace sluice::net
