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
class Server::Impl::Acceptor : public std::enable_shared_from_this<Acceptor> {
 public:
  Acceptor(std::shared_ptr<ServerState> state, size_t loop_index, int fd)
      : state_(std::move(state)),
        loop_index_(loop_index),
        descriptor_(state_->loops[loop_index].executor(), fd),
        retry_(state_->loops[loop_index].executor()) {}

  void arm() {
    descriptor_.async_wait(asio::posix::descriptor_base::wait_read,
                           [self = shared_from_this()](const boost::system::error_code& error) {
                             if (!error && self->descriptor_.is_open()) self->accept_all();
                           });
  }

  void close(bool take_those_waiting) {
    if (!descriptor_.is_open()) return;
    while (take_those_waiting && accept_one()) {
    }  // with the last descriptor of the socket they would be reset
    retry_.cancel();
    // Asio's own close() counts on the kernel to forget the descriptor, which it does not while a successor has another
    // one of the same socket.
    Socket closing(descriptor_.release());
  }

  Socket copy() {
    Socket mine(descriptor_.native_handle());
    Socket other = mine.copy();
    mine.release();
    return other;
  }

 private:
  void accept_all() {
    for (int i = 0; i < 64; ++i) {
      if (accept_one()) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) break;
      if (errno == ECONNABORTED || errno == EINTR || errno == EPROTO) continue;
      // No descriptors or no memory: the queue stays readable, so waiting for it would spin.
      const int error = errno;
      SLUICE_LOG_EVERY(5, error, "net/server", "cannot accept a connection: {}", std::strerror(error));
      retry_.expires_after(std::chrono::milliseconds(100));
      retry_.async_wait([self = shared_from_this()](const boost::system::error_code& e) {
        if (!e && self->descriptor_.is_open()) self->arm();
      });
      return;
    }
    arm();
  }

  bool accept_one() {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    const int fd = ::accept4(descriptor_.native_handle(), reinterpret_cast<sockaddr*>(&address), &size,
                             SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return false;
    const int one = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    ::setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsent, sizeof kUnsent);
    auto connection = std::make_shared<ServerConnection>(state_, loop_index_, fd, address_of(address));
    asio::co_spawn(state_->loops[loop_index_].executor(), run_connection(std::move(connection)), asio::detached);
    return true;
  }

  const std::shared_ptr<ServerState> state_;
  const size_t loop_index_;
  asio::posix::basic_stream_descriptor<Executor> descriptor_;
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
      acceptor->arm();
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
