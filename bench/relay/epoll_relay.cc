// The lower bound: one thread, one epoll, one upstream connection per client, nothing parsed but the framing.
// `epoll_relay backend <port>` is the backend that all relays stand in front of; `epoll_relay relay <port> <upstream>`.
// `epoll_relay stream <port> <upstream>...` does not even look at the framing: what one side has sent goes to the
// other; clients get the upstreams in turn.
#include <utility>
#include <vector>

#include "common.h"

namespace relay {
namespace {

struct Peer {
  int fd = -1;
  Peer* other = nullptr;  // null on the backend
  std::string in;
};

std::string answer() {
  const std::string body = "{\"id\":\"x\",\"choices\":[{\"text\":\"" + std::string(160, 'a') + "\"}]}";
  return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + body;
}

void watch(int epoll, Peer* peer) {
  epoll_event event{.events = EPOLLIN | EPOLLRDHUP, .data = {.ptr = peer}};
  epoll_ctl(epoll, EPOLL_CTL_ADD, peer->fd, &event);
}

// What answers in place of an upstream, and whether messages are kept apart.
struct Mode {
  std::string fixed_answer;
  bool framed = true;
};

// False when the connection is gone.
bool serve(Peer& peer, const Mode& mode) {
  char buffer[16384];
  const ssize_t n = recv(peer.fd, buffer, sizeof buffer, 0);
  if (n == 0 || (n < 0 && errno != EAGAIN)) return false;
  if (n < 0) return true;
  if (!mode.framed) return send(peer.other->fd, buffer, static_cast<size_t>(n), MSG_NOSIGNAL) == n;
  std::string_view data(buffer, static_cast<size_t>(n));
  if (!peer.in.empty() || whole_message(data) != data.size()) {
    peer.in.append(data);
    data = peer.in;
  }
  size_t done = 0;
  while (const size_t size = whole_message(data.substr(done))) {
    const auto message = peer.other != nullptr ? data.substr(done, size) : std::string_view(mode.fixed_answer);
    const int to = peer.other != nullptr ? peer.other->fd : peer.fd;
    if (send(to, message.data(), message.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(message.size())) return false;
    done += size;
  }
  if (!peer.in.empty()) peer.in.erase(0, done);
  return true;
}

int run(uint16_t port, const std::vector<uint16_t>& upstreams, bool framed) {
  const Mode mode{.fixed_answer = answer(), .framed = framed};
  size_t turn = 0;
  const int listener = listen_on(port);
  const int epoll = epoll_create1(0);
  Peer acceptor{.fd = listener};
  watch(epoll, &acceptor);
  for (;;) {
    epoll_event events[256];
    const int n = epoll_wait(epoll, events, 256, -1);
    for (int i = 0; i < n; ++i) {
      auto* peer = static_cast<Peer*>(events[i].data.ptr);
      if (peer == &acceptor) {
        const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
        if (fd < 0) continue;
        no_delay(fd);
        auto* client = new Peer{.fd = fd};
        watch(epoll, client);
        if (upstreams.empty()) continue;
        client->other = new Peer{.fd = connect_to(upstreams[turn++ % upstreams.size()]), .other = client};
        watch(epoll, client->other);
      } else if (peer->fd >= 0 && !serve(*peer, mode)) {
        // A benchmark's connection ends once; the few bytes of its Peer stay, as the other side may be in `events`.
        close(peer->fd);
        peer->fd = -1;
        if (peer->other != nullptr && peer->other->fd >= 0) close(std::exchange(peer->other->fd, -1));
      }
    }
  }
}

}  // namespace
}  // namespace relay

int main(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "";
  const auto port = [&](int i) { return static_cast<uint16_t>(std::atoi(argv[i])); };
  if (mode == "backend" && argc == 3) return relay::run(port(2), {}, true);
  if (mode == "relay" && argc == 4) return relay::run(port(2), {port(3)}, true);
  if (mode == "stream" && argc >= 4) {
    std::vector<uint16_t> upstreams;
    for (int i = 3; i < argc; ++i) upstreams.push_back(port(i));
    return relay::run(port(2), upstreams, false);
  }
  std::fprintf(stderr,
               "usage: epoll_relay backend <port> | epoll_relay relay <port> <upstream port> | "
               "epoll_relay stream <port> <upstream port>...\n");
  return 2;
}
