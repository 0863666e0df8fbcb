// Listening sockets: names to addresses, binding, and passing them on to another process.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace sluice::net {

// A descriptor that is closed with its owner.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  // Another descriptor of the same socket; -1 if there is none to be had.
  Socket copy() const;

 private:
  int fd_;
};

struct Listening {
  std::vector<std::vector<Socket>> sockets;  // by loop; each has one for each address of the host
  uint16_t port = 0;
};

// `host` is a name, an IPv4 or an IPv6 address with or without brackets, or empty for every address; port 0 takes a
// free one. The `count` sockets of an address share the port (SO_REUSEPORT). kAlreadyExists if the port is taken.
Result<Listening> listen_sockets(const std::string& host, uint16_t port, size_t count, int backlog);

// Sockets that listen already, spread over `count` loops: each socket is on one loop at least, and each loop has one.
// kInvalidArgument if one of them is no listening TCP socket.
Result<Listening> adopt_sockets(std::vector<Socket> sockets, size_t count);

// Without the port; an IPv4 address that came in over IPv6 is printed as IPv4.
std::string address_of(const sockaddr_storage& address);

}  // namespace sluice::net
