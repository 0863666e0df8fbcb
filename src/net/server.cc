#include "net/server.h"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "net/listen.h"
#include "net/server_connection.h"

namespace sluice::net {

class Server::Impl {
 public:
  Impl(LoopGroup& loops, ServerOptions options, Handler handler)
      : state(std::make_shared<ServerState>(loops, std::move(options), std::move(handler))) {}

  Result<uint16_t> start(Result<Listening> listening);
  std::vector<Socket> listening_sockets();
  void stop_accepting(bool take_those_waiting);
  void close_connections();
  // Runs `function(i)` on each loop and waits until all have; on this thread for a loop that has ended.
  void on_each_loop(const std::function<void(size_t)>& function);

  class Acceptor;

  const std::shared_ptr<ServerState> state;
  std::mutex acceptors_mutex;
  std::vector<std::vector<std::shared_ptr<Acceptor>>> acceptors;  // by loop
};

namespace {

// What the kernel takes of an answer beyond what is under way to its client. Otherwise it takes megabytes for each slow
// reader, and whoever writes the answer is held back so much later.
constexpr int kUnsent = 128 * 1024;

Task<> run_connection(std::shared_ptr<ServerConnection> connection) { co_await connection->run(); }

}  // namespace

// One listening socket on one loop. Loop thread only.
class Server::Impl::Acceptor : public std::enable_shared_from_this<Acceptor>, private Poller::Watcher {
 public:
  Acceptor(std::shared_ptr<ServerState> state, size_t loop_index, int fd)
      : state_(std::move(state)), loop_index_(loop_index), socket_(fd), retry_(loop().executor()) {}

  void start() {
    watched_ = true;
    loop().poller().add(socket_.get(), *this, EPOLLIN);
  }

  void close(bool take_those_waiting) {
    if (socket_.get() < 0) return;
    while (take_those_waiting && accept_one()) {
    }  // with the last descriptor of the socket they would be reset
    retry_.cancel();
    // The kernel does not forget it by itself while a successor has another descriptor of the same socket.
    unwatch();
    Socket closing = std::move(socket_);
  }

  Socket copy() { return socket_.copy(); }

 private:
  EventLoop& loop() { return state_->loops[loop_index_]; }
  void on_events(uint32_t) override {
    const auto self = shared_from_this();
    accept_all();
  }
  void on_shutdown() override { watched_ = false; }
  void unwatch() {
    if (std::exchange(watched_, false)) loop().poller().remove(socket_.get(), *this);
  }

  // Until none waits: the next one is news then.
  void accept_all() {
    constexpr int kAtOnce = 64;
    for (int i = 0; i < kAtOnce; ++i) {
      if (socket_.get() < 0) return;
      if (accept_one()) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return;
      if (errno == ECONNABORTED || errno == EINTR || errno == EPROTO) continue;
      // No descriptors or no memory: those who wait are no news.
      const int error = errno;
      SLUICE_LOG_EVERY(5, error, "net/server", "cannot accept a connection: {}", std::strerror(error));
      go_on(std::chrono::milliseconds(100));
      return;
    }
    go_on(Duration::zero());  // others have their turn meanwhile
  }
  void go_on(Duration after) {
    retry_.expires_after(after);
    retry_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
      if (!error) self->accept_all();
    });
  }

  bool accept_one() {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    const int fd = ::accept4(socket_.get(), reinterpret_cast<sockaddr*>(&address), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return false;
    const int one = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    ::setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsent, sizeof kUnsent);
    auto connection = std::make_shared<ServerConnection>(state_, loop_index_, fd, address_of(address));
    asio::co_spawn(loop().executor(), run_connection(std::move(connection)), asio::detached);
    return true;
  }

  const std::shared_ptr<ServerState> state_;
  const size_t loop_index_;
  Socket socket_;  // none: closed
  bool watched_ = false;
  Timer retry_;
};

Result<uint16_t> Server::Impl::start(Result<Listening> listening) {
  if (!listening.ok()) return std::move(listening).error();
  auto& sockets = listening->sockets;
  {
    const std::lock_guard lock(acceptors_mutex);
    acceptors.resize(state->loops.size());
  }
  on_each_loop([&](size_t i) {
    for (auto& fd : sockets[i]) {
      auto acceptor = std::make_shared<Acceptor>(state, i, fd.release());
      acceptor->start();
      const std::lock_guard lock(acceptors_mutex);
      acceptors[i].push_back(std::move(acceptor));
    }
  });
  return listening->port;
}

void Server::Impl::on_each_loop(const std::function<void(size_t)>& function) {
  for (size_t i = 0; i < state->loops.size(); ++i) {
    EventLoop& loop = state->loops[i];
    SLUICE_CHECK(!loop.on_loop_thread(), "a server is not stopped from the thread of one of its loops");
    if (loop.context().stopped()) {
      loop.join();
      function(i);
      continue;
    }
    // The loop may be stopped while this waits: look again now and then.
    auto done = std::make_shared<std::promise<void>>();
    auto future = done->get_future();
    loop.post([done, i, &function] {
      function(i);
      done->set_value();
    });
    while (future.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) {
      if (!loop.context().stopped()) continue;
      loop.join();
      if (future.wait_for(Duration::zero()) != std::future_status::ready) function(i);
      break;
    }
  }
}

std::vector<Socket> Server::Impl::listening_sockets() {
  const std::lock_guard lock(acceptors_mutex);
  std::vector<Socket> copies;
  for (const auto& of_loop : acceptors) {
    for (const auto& acceptor : of_loop) copies.push_back(acceptor->copy());
  }
  return copies;
}

void Server::Impl::stop_accepting(bool take_those_waiting) {
  std::vector<std::vector<std::shared_ptr<Acceptor>>> closing;
  {
    const std::lock_guard lock(acceptors_mutex);
    closing = std::exchange(acceptors, {});
  }
  if (closing.empty()) return;
  on_each_loop([&](size_t i) {
    for (auto& acceptor : closing[i]) acceptor->close(take_those_waiting);
    closing[i].clear();
  });
}

void Server::Impl::close_connections() {
  on_each_loop([&](size_t i) {
    // A copy: closing a connection may end it.
    std::vector<std::shared_ptr<Stream>> open;
    for (ServerConnection* connection : state->per_loop[i].connections) open.push_back(connection->shared_from_this());
    for (const auto& stream : open) static_cast<ServerConnection&>(*stream).cut();
  });
}

Server::Server(LoopGroup& loops, ServerOptions options, Handler handler)
    : impl_(std::make_unique<Impl>(loops, std::move(options), std::move(handler))) {}

Server::~Server() {
  impl_->stop_accepting(true);
  impl_->close_connections();
  const auto& state = *impl_->state;
  const auto all_stopped = [&] {
    for (size_t i = 0; i < state.loops.size(); ++i) {
      if (!state.loops[i].context().stopped()) return false;
    }
    return true;
  };
  constexpr int kSeconds = 60;
  for (int i = 0; i < kSeconds * 10 && !all_stopped(); ++i) {
    if (impl_->state->wait_for_none(state.open, std::chrono::milliseconds(100))) return;
  }
  SLUICE_CHECK(all_stopped(), "{} connections are still open {} s after they were cut off: a handler does not return",
               state.open.load(), kSeconds);
}

Result<uint16_t> Server::listen(const std::string& host, uint16_t port, std::vector<Socket> inherited) {
  const auto& state = *impl_->state;
  const size_t loops = state.loops.size();
  if (!inherited.empty()) return impl_->start(adopt_sockets(std::move(inherited), loops));
  return impl_->start(listen_sockets(host, port, loops, state.options.backlog));
}

std::vector<Socket> Server::listening_sockets() { return impl_->listening_sockets(); }

void Server::hand_over() {
  impl_->state->handed_over.store(true, std::memory_order_relaxed);
  impl_->state->draining.store(true, std::memory_order_relaxed);
  impl_->stop_accepting(false);
}

void Server::stop_accepting() { impl_->stop_accepting(true); }

size_t Server::drain(Duration deadline) {
  auto& state = *impl_->state;
  state.draining.store(true, std::memory_order_relaxed);
  impl_->stop_accepting(true);
  // Nobody hurries: a client that sends its next request while its connection is being closed would see that fail.
  state.wait_for_none(state.handed_over.load(std::memory_order_relaxed) ? state.open : state.active, deadline);
  const size_t cut_off = state.active.load(std::memory_order_acquire);
  impl_->close_connections();
  return cut_off;
}

size_t Server::active_requests() const { return impl_->state->active.load(std::memory_order_relaxed); }

size_t Server::open_connections() const { return impl_->state->open.load(std::memory_order_relaxed); }

}  // namespace sluice::net
