// A client as rough as a test of a server needs it: bytes out, bytes in, and it can leave at any moment. Waits are
// bounded. Used by one thread at a time.
#pragma once

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace sluice::testing {

class RawClient {
 public:
  explicit RawClient(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }
  void shutdown_write() { ::shutdown(fd_, SHUT_WR); }
  // The bytes and the end of the stream, in one segment where they fit into one.
  bool send_last(std::string_view bytes) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_MORE);
    close();
    return sent == static_cast<ssize_t>(bytes.size());
  }
  // False if the connection does not take all of it.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }

  // What has arrived and was not taken.
  const std::string& arrived() const { return in_; }
  std::string take() { return std::exchange(in_, {}); }
  // Reads until what has arrived contains `text`; false at the end of the stream, and when nothing comes for 20 s.
  bool wait_for(std::string_view text) {
    while (in_.find(text) == std::string::npos) {
      if (!receive()) return false;
    }
    return true;
  }
  void wait_for_end() {
    while (receive()) {
    }
  }
  // The same, and takes what has arrived.
  std::string read_until(std::string_view text) {
    wait_for(text);
    return take();
  }
  std::string read_to_end() {
    wait_for_end();
    return take();
  }
  bool at_end() const { return at_end_; }

 private:
  bool receive() {
    pollfd poll{fd_, POLLIN, 0};
    if (::poll(&poll, 1, 20'000) != 1) return false;
    char buffer[65536];
    const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
    at_end_ = n <= 0;
    if (n > 0) in_.append(buffer, static_cast<size_t>(n));
    return n > 0;
  }

  int fd_;
  bool connected_ = false;
  bool at_end_ = false;
  std::string in_;
};

}  // namespace sluice::testing
