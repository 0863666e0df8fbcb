// A listening socket of 127.0.0.1 as rough as a test needs it: it has a port that was free, and accepts nothing by
// itself.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"

namespace sluice::testing {

class RawListener {
 public:
  // `backlog` as of listen(2).
  explicit RawListener(int backlog = 100) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    socklen_t size = sizeof address_;
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    auto* address = reinterpret_cast<sockaddr*>(&address_);
    const bool listens = ::bind(fd_, address, size) == 0 && ::listen(fd_, backlog) == 0;
    SLUICE_CHECK(listens && ::getsockname(fd_, address, &size) == 0, "no listening socket: errno {}", errno);
  }
  ~RawListener() { close(); }
  RawListener(const RawListener&) = delete;
  RawListener& operator=(const RawListener&) = delete;

  int fd() const { return fd_; }
  const sockaddr_in& address() const { return address_; }
  uint16_t port() const { return ntohs(address_.sin_port); }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port()); }
  // Whoever waits in accept() on another thread gets an error.
  void shutdown() { ::shutdown(fd_, SHUT_RDWR); }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_;
  sockaddr_in address_{};
};

// Accepts nothing, and its queue is full: the kernel answers no further connection.
class FullListener {
 public:
  FullListener() {
    for (int i = 0; i < 8; ++i) {
      fillers_.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      ::connect(fillers_.back(), reinterpret_cast<const sockaddr*>(&listener_.address()), sizeof(sockaddr_in));
    }
  }
  ~FullListener() {
    for (const int fd : fillers_) ::close(fd);
  }
  FullListener(const FullListener&) = delete;
  FullListener& operator=(const FullListener&) = delete;

  std::string url() const { return listener_.url(); }

 private:
  RawListener listener_{/*backlog=*/0};
  std::vector<int> fillers_;
};

}  // namespace sluice::testing
