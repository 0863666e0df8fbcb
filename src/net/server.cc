#include "net/server.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <unordered_set>

#include "base/check.h"
#include "base/log.h"
#include "net/stream.h"
#include "net/wire.h"

namespace sluice::net {
namespace {

// Unread bytes of a request that nobody wanted are read over, so that the connection can be kept; more than this and
// closing it is cheaper.
constexpr size_t kDiscardLimit = 256 * 1024;
// How long a connection that is closed for a reason lets the client read that reason.
constexpr Duration kLinger = std::chrono::seconds(2);
constexpr size_t kLingerLimit = 8 << 20;
constexpr size_t kReadAhead = 256 * 1024;
// What the kernel takes of an answer beyond what is under way to its client. Otherwise it takes megabytes for each slow
// reader, and whoever writes the answer is held back so much later.
constexpr int kUnsent = 128 * 1024;
// Memory that the announcement of a body alone gets, and room behind it for parsers that read over its end: without
// that they copy it.
constexpr size_t kTrusted = 4 << 20;
constexpr size_t kParserRoom = 64;

iovec part(std::string_view bytes) { return {const_cast<char*>(bytes.data()), bytes.size()}; }

Error io_error(Io io, std::string_view phase) {
  switch (io) {
    case Io::kTimeout:
      return {ErrorCode::kTimeout, fmt::format("timed out while {}", phase)};
    case Io::kCancelled:
      return {ErrorCode::kCancelled, fmt::format("the connection was closed while {}", phase)};
    default:
      return {ErrorCode::kReset, fmt::format("the client went away while {}", phase)};
  }
}

// The error bodies of OpenAI's API, for what never reaches a handler.
Response error_response(int status, std::string_view message) {
  std::string escaped;
  for (const char c : message) {
    if (c == '"' || c == '\\') escaped.push_back('\\');
    escaped.push_back(static_cast<unsigned char>(c) < ' ' ? ' ' : c);
  }
  return Response::json(status,
                        fmt::format(R"({{"error":{{"message":"{}","type":"{}","param":null,"code":{}}}}})", escaped,
                                    status >= 500 ? "internal_server_error" : "invalid_request_error", status));
}

class Connection;

// What the connections share. They keep it alive: they may outlive the Server when the loops were stopped first.
struct State {
  State(LoopGroup& l, ServerOptions o, Handler h) : loops(l), options(std::move(o)), handler(std::move(h)) {}

  // Constant after construction.
  LoopGroup& loops;
  const ServerOptions options;
  const Handler handler;

  std::atomic<bool> draining{false};
  std::atomic<size_t> active{0};
  std::atomic<size_t> open{0};
  // Guards nothing but the sleep of those who wait for the counts to fall.
  std::mutex mutex;
  std::condition_variable fell;

  // Belongs to loop i.
  struct PerLoop {
    std::unordered_set<Connection*> connections;
  };
  std::vector<PerLoop> per_loop{loops.size()};

  void lower(std::atomic<size_t>& count) {
    if (count.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const std::lock_guard lock(mutex);
    fell.notify_all();
  }
  // True if the count fell to zero in time.
  bool wait_for_none(const std::atomic<size_t>& count, Duration bound) {
    std::unique_lock lock(mutex);
    return fell.wait_for(lock, bound, [&] { return count.load(std::memory_order_acquire) == 0; });
  }
};

}  // namespace

class Server::Impl {
 public:
  Impl(LoopGroup& loops, ServerOptions options, Handler handler)
      : state(std::make_shared<State>(loops, std::move(options), std::move(handler))) {}

  Result<uint16_t> listen(const std::string& host, uint16_t port);
  void stop_accepting();
  void close_connections();
  // Runs `function(i)` on each loop and waits until all have; on this thread for a loop that has ended.
  void on_each_loop(const std::function<void(size_t)>& function);

  class Acceptor;

  const std::shared_ptr<State> state;
  std::mutex acceptors_mutex;
  std::vector<std::vector<std::shared_ptr<Acceptor>>> acceptors;  // by loop
};

namespace {

class Connection final : public Stream, public ServerExchange {
 public:
  Connection(std::shared_ptr<State> state, size_t loop_index, int fd, std::string peer)
      : Stream(state->loops[loop_index], fd, std::max(kReadAhead, state->options.max_head_bytes)),
        state_(std::move(state)),
        loop_index_(loop_index),
        peer_(std::move(peer)),
        parser_(MessageParser::Kind::kRequest, state_->options.max_head_bytes) {
    Duration horizon = Duration::max();
    const auto& o = state_->options;
    for (const Duration d : {o.head_timeout, o.body_stall_timeout, o.idle_timeout, o.write_stall_timeout}) {
      if (d > Duration::zero()) horizon = std::min(horizon, d);
    }
    set_timer_horizon(horizon);
    state_->per_loop[loop_index_].connections.insert(this);
    state_->open.fetch_add(1, std::memory_order_relaxed);
  }
  ~Connection() override {
    state_->per_loop[loop_index_].connections.erase(this);
    if (active_) state_->lower(state_->active);
    state_->lower(state_->open);
  }

  Task<> run() {
    for (;;) {
      const bool more = co_await read_request();
      if (!more) break;
      co_await handle();
      if (!keep_) break;
      if (parser_.done()) continue;
      const bool clean = co_await discard_body();
      if (!clean) break;
    }
    co_await linger();
    close();
  }

  // Ends the connection, also under a running handler, which learns of it like of a client that went away.
  void cut() {
    gone_ = true;
    close();
    if (in_handler_) call_gone();
  }

  // ServerExchange
  const RequestHead& request() const override { return request_; }
  EventLoop& loop() override { return Stream::loop(); }
  std::string_view peer_address() const override { return peer_; }
  Task<Result<std::string>> read_body(size_t limit) override;
  Task<Result<void>> respond(Response response) override;
  Task<Result<void>> start(ResponseHead head) override;
  Task<Result<void>> write(std::string_view bytes) override;
  bool write_now(std::string_view bytes) override;
  Task<Result<void>> drain() override;
  Task<Result<void>> finish() override;
  void set_trailers(Headers trailers) override { trailers_ = std::move(trailers); }
  bool started() const override { return answer_ != Answer::kNone; }
  void abort() override;
  void on_client_gone(std::function<void()> callback) override;
  bool client_gone() const override { return gone_ || !is_open(); }

 private:
  enum class Answer { kNone, kStreaming, kDone };

  Task<bool> read_request();
  Task<> handle();
  Task<bool> discard_body();
  Task<> linger();
  Task<Result<void>> send(std::span<iovec> parts);
  void begin_head(int status, const std::optional<std::string>& reason);
  void end_head();
  void flush_head();

  // The client closed or reset the connection, or it was closed under the handler.
  void on_ended() override {
    gone_ = true;
    if (in_handler_) call_gone();
  }
  void call_gone() {
    if (const auto callback = std::exchange(gone_callback_, nullptr)) callback();
  }

  bool head_only() const { return request_.method == "HEAD"; }

  const std::shared_ptr<State> state_;
  const size_t loop_index_;
  const std::string peer_;

  MessageParser parser_;
  RequestHead request_;
  bool expects_continue_ = false;
  bool keep_ = false;
  bool ended_badly_ = false;  // there may be unread bytes: let the client read the answer before the reset
  bool in_handler_ = false;
  bool active_ = false;
  bool gone_ = false;
  std::function<void()> gone_callback_;

  Answer answer_ = Answer::kNone;
  bool chunked_ = false;
  bool no_body_ = false;
  std::optional<uint64_t> promised_;  // bytes of Content-Length still to be written
  Headers trailers_;
  std::string out_;     // the head, until it was sent
  size_t flushed_ = 0;  // bytes of it that went out already
  // What write_now() leaves to drain().
  std::string unsent_;
  std::optional<Error> trouble_;
  uint64_t exchange_ = 0;
};

// Reads up to the end of a head. False when the connection is over.
Task<bool> Connection::read_request() {
  parser_.reset();
  bool started = false;
  set_deadline(state_->options.idle_timeout);
  for (;;) {
    if (unread_size() > 0) {
      if (!started) {
        started = true;
        set_deadline(state_->options.head_timeout);
      }
      size_t used = 0;
      const auto status = parser_.parse_head(unread(), used);
      if (status == MessageParser::Status::kDone) {
        consume(used);
        set_deadline(Duration::zero());
        co_return true;
      }
      if (status == MessageParser::Status::kError) {
        answer_ = Answer::kNone;
        keep_ = false;
        ended_badly_ = true;
        request_.method.clear();
        auto response = error_response(parser_.error_status(), parser_.error().message);
        co_await respond(std::move(response));
        co_return false;
      }
    }
    const Io io = co_await read_more();
    if (io == Io::kOk) continue;
    if (io == Io::kTimeout && started) {
      answer_ = Answer::kNone;
      keep_ = false;
      ended_badly_ = true;
      request_.method.clear();
      auto response = error_response(408, "the head of the request did not arrive in time");
      co_await respond(std::move(response));
    }
    co_return false;
  }
}

Task<> Connection::handle() {
  std::swap(request_, parser_.request());
  if (!request_.target.starts_with('/')) {
    // Absolute form (RFC 9112, 3.2.2): the authority is ours whatever it says.
    if (const auto mark = request_.target.find("://"); mark != std::string::npos) {
      const auto slash = request_.target.find('/', mark + 3);
      request_.target = slash == std::string::npos ? "/" : request_.target.substr(slash);
    }
  }
  ++exchange_;
  answer_ = Answer::kNone;
  chunked_ = no_body_ = false;
  promised_.reset();
  trailers_.clear();
  out_.clear();
  keep_ = parser_.keep_alive();
  expects_continue_ = false;
  if (!parser_.done() && request_.minor_version >= 1) {
    const auto expect = request_.headers.get("Expect");
    expects_continue_ = expect && iequals(*expect, "100-continue");
  }
  in_handler_ = active_ = true;
  state_->active.fetch_add(1, std::memory_order_acq_rel);
  watch();

  std::string problem = "the handler gave no answer";
  try {
    Task<> task = state_->handler(*this);
    co_await std::move(task);
  } catch (const std::exception& e) {
    problem = e.what();
    SLUICE_LOG_EVERY(1, error, "net/server", "{} {}: an exception left the handler: {}", request_.method,
                     request_.target, problem);
  }
  set_deadline(Duration::zero());
  gone_callback_ = nullptr;
  if (answer_ == Answer::kNone && is_open()) {
    keep_ = false;
    ended_badly_ = !parser_.done();
    auto response = error_response(500, "internal error: " + problem);
    co_await respond(std::move(response));
  } else if (answer_ == Answer::kStreaming) {
    abort();
  }
  in_handler_ = active_ = false;
  state_->lower(state_->active);
  if (gone_ || !is_open()) keep_ = false;
  // Without "100 Continue" the client may or may not send its body: the next bytes cannot be told apart.
  if (!parser_.done() && expects_continue_) keep_ = false;
  if (!parser_.done()) ended_badly_ = true;
}

Task<bool> Connection::discard_body() {
  size_t discarded = 0;
  for (;;) {
    if (unread_size() > 0) {
      size_t used = 0;
      std::string_view body;
      const auto status = parser_.parse_body(unread_data(), unread_size(), used, body);
      consume(used);
      discarded += used;
      if (status == MessageParser::Status::kDone) break;
      if (status == MessageParser::Status::kError || discarded > kDiscardLimit) co_return false;
    }
    set_deadline(state_->options.body_stall_timeout);
    const Io io = co_await read_more();
    if (io != Io::kOk) co_return false;
  }
  ended_badly_ = false;
  co_return true;
}

// Closing a socket with unread bytes sends a reset, which may destroy an answer that the client has not read yet. So
// the end of the answer is announced first and what still comes in is read over for a short while.
Task<> Connection::linger() {
  if (!ended_badly_ || gone_ || !is_open()) co_return;
  shutdown_write();
  size_t dropped = 0;
  set_deadline(kLinger);
  while (dropped < kLingerLimit) {
    dropped += unread_size();
    consume(unread_size());
    const Io io = co_await read_more();
    if (io != Io::kOk) co_return;
  }
}

Task<Result<std::string>> Connection::read_body(size_t limit) {
  const auto too_large = [&] {
    keep_ = false;
    return Error{ErrorCode::kTooLarge, fmt::format("the request's body is larger than {} bytes", limit)};
  };
  if (parser_.content_length().value_or(0) > limit) co_return too_large();
  std::string whole;
  const auto length = parser_.content_length();
  if (length) whole.reserve(std::min<uint64_t>(*length, kTrusted) + kParserRoom);
  while (!parser_.done()) {
    if (unread_size() > 0) {
      size_t used = 0;
      std::string_view body;
      const auto status = parser_.parse_body(unread_data(), unread_size(), used, body);
      // All of it at once, for one that has sent so much: growing step by step leaves holes of megabytes behind.
      if (length && whole.size() + body.size() > whole.capacity()) whole.reserve(*length + kParserRoom);
      whole.append(body);
      consume(used);
      expects_continue_ = false;  // it sends already
      if (status == MessageParser::Status::kError) {
        keep_ = false;
        co_return parser_.error();
      }
      if (whole.size() > limit) co_return too_large();
      if (status == MessageParser::Status::kDone) break;
    }
    if (std::exchange(expects_continue_, false)) {
      iovec head[] = {part("HTTP/1.1 100 Continue\r\n\r\n")};
      const auto sent = co_await send(head);
      if (!sent.ok()) co_return sent.error();
    }
    set_deadline(state_->options.body_stall_timeout);
    const Io io = co_await read_more();
    set_deadline(Duration::zero());
    if (io != Io::kOk) {
      keep_ = false;
      co_return io_error(io, "sending the request's body");
    }
  }
  watch();  // for the end of the connection, from here on
  co_return whole;
}

void Connection::begin_head(int status, const std::optional<std::string>& reason) {
  flushed_ = 0;
  out_.clear();
  out_.append("HTTP/1.1 ");
  fmt::format_int number(status);
  out_.append(number.data(), number.size()).push_back(' ');
  // Control characters become spaces: no phrase can end its line.
  for (const char c : reason ? std::string_view(*reason) : reason_phrase(status)) {
    out_.push_back(static_cast<unsigned char>(c) < ' ' ? ' ' : c);
  }
  out_.append("\r\n");
}

void Connection::end_head() {
  if (!parser_.done() && expects_continue_) keep_ = false;
  if (state_->draining.load(std::memory_order_relaxed)) keep_ = false;
  if (!keep_) {
    out_.append("Connection: close\r\n");
  } else if (request_.minor_version == 0) {
    out_.append("Connection: keep-alive\r\n");
  }
  out_.append("\r\n");
}

Task<Result<void>> Connection::send(std::span<iovec> parts) {
  Io io = try_write(parts);
  if (io == Io::kWouldBlock) io = co_await write_rest(parts, state_->options.write_stall_timeout);
  if (io == Io::kOk) co_return Result<void>();
  keep_ = false;
  co_return io_error(io, "the answer was written");
}

Task<Result<void>> Connection::respond(Response response) {
  if (answer_ != Answer::kNone) co_return Error{ErrorCode::kInternal, "the request was answered already"};
  answer_ = Answer::kDone;
  begin_head(response.status, response.reason);
  for (const auto& [name, value] : response.headers) {
    if (!is_framing_field(name)) append_field(out_, name, value);
  }
  const bool bodiless = response.status / 100 == 1 || response.status == 204 || response.status == 304;
  const bool has_trailers = !response.trailers.empty() && !bodiless && request_.minor_version >= 1;
  std::string chunk_size, end;
  if (has_trailers) {
    out_.append("Transfer-Encoding: chunked\r\n");
    if (!response.body.empty()) chunk_size = fmt::format("{:x}\r\n", response.body.size());
    end = (response.body.empty() ? "" : "\r\n") + last_chunk(response.trailers);
  } else if (!bodiless) {
    fmt::format_int length(response.body.size());
    out_.append("Content-Length: ").append(length.data(), length.size()).append("\r\n");
  }
  end_head();
  if (bodiless || head_only()) response.body = chunk_size = end = {};
  iovec parts[] = {part(out_), part(chunk_size), part(response.body), part(end)};
  co_return co_await send(parts);
}

Task<Result<void>> Connection::start(ResponseHead head) {
  if (answer_ != Answer::kNone) co_return Error{ErrorCode::kInternal, "the request was answered already"};
  answer_ = Answer::kStreaming;
  begin_head(head.status, head.reason);
  for (const auto& [name, value] : head.headers) {
    if (!is_framing_field(name)) append_field(out_, name, value);
  }
  no_body_ = head_only() || head.status / 100 == 1 || head.status == 204 || head.status == 304;
  if (const auto length = head.headers.get("Content-Length")) {
    uint64_t bytes = 0;
    for (const char c : *length) bytes = c >= '0' && c <= '9' ? bytes * 10 + static_cast<uint64_t>(c - '0') : bytes;
    promised_ = bytes;
    append_field(out_, "Content-Length", *length);
  } else if (!no_body_) {
    chunked_ = request_.minor_version >= 1;
    if (chunked_) {
      out_.append("Transfer-Encoding: chunked\r\n");
    } else {
      keep_ = false;
    }
  }
  end_head();
  // The head waits for the first bytes of the body, to go out with them, but only until the loop has nothing else to
  // do.
  auto self = std::static_pointer_cast<Connection>(shared_from_this());
  asio::post(loop().executor(), [self, exchange = exchange_] {
    if (self->exchange_ == exchange && self->answer_ == Answer::kStreaming) self->flush_head();
  });
  if (!is_open()) co_return io_error(Io::kCancelled, "the answer was written");
  co_return Result<void>();
}

// Sends what the kernel takes of a head that is still here; the rest goes with the next write.
void Connection::flush_head() {
  if (out_.size() == flushed_) return;
  iovec parts[] = {part(std::string_view(out_).substr(flushed_))};
  std::span<iovec> rest(parts);
  const Io io = try_write(rest);
  if (io == Io::kOk) {
    out_.clear();
    flushed_ = 0;
  } else if (!rest.empty()) {
    flushed_ = out_.size() - rest.front().iov_len;
  }
}

Task<Result<void>> Connection::write(std::string_view bytes) {
  if (write_now(bytes)) co_return Result<void>();
  co_return co_await drain();
}

bool Connection::write_now(std::string_view bytes) {
  const auto fail = [&](Error error) {
    trouble_ = std::move(error);
    return false;
  };
  if (answer_ != Answer::kStreaming) return fail({ErrorCode::kInternal, "write() needs start() before it"});
  if (!is_open()) return fail(io_error(Io::kCancelled, "the answer was written"));
  if (bytes.empty()) return true;
  if (promised_ && !no_body_) {
    if (bytes.size() > *promised_) {
      abort();
      return fail({ErrorCode::kInternal, "more bytes than the head's Content-Length were written"});
    }
    *promised_ -= bytes.size();
  }
  if (no_body_) bytes = {};
  char size[20];
  size_t digits = 0;
  if (chunked_ && !bytes.empty()) {
    char* const end = std::to_chars(size, std::end(size) - 2, bytes.size(), 16).ptr;
    end[0] = '\r';
    end[1] = '\n';
    digits = static_cast<size_t>(end + 2 - size);
  }
  iovec parts[] = {
      part(std::string_view(out_).substr(flushed_)), {size, digits}, part(bytes), part(digits > 0 ? "\r\n" : "")};
  std::span<iovec> rest(parts);
  const Io io = try_write(rest);
  for (const iovec& left : rest) unsent_.append(static_cast<const char*>(left.iov_base), left.iov_len);
  // The flush that start() posted finds nothing more to send.
  out_.clear();
  flushed_ = 0;
  if (io == Io::kOk) return true;
  if (io == Io::kWouldBlock) return false;
  keep_ = false;
  return fail(io_error(io, "the answer was written"));
}

Task<Result<void>> Connection::drain() {
  const std::string unsent = std::exchange(unsent_, {});
  if (trouble_) co_return *std::exchange(trouble_, std::nullopt);
  iovec parts[] = {part(unsent)};
  co_return co_await send(parts);
}

Task<Result<void>> Connection::finish() {
  if (answer_ != Answer::kStreaming) co_return Error{ErrorCode::kInternal, "finish() needs start() before it"};
  if (promised_.value_or(0) > 0 && !no_body_) {
    abort();
    co_return Error{ErrorCode::kInternal, "fewer bytes than the head's Content-Length were written"};
  }
  const std::string head = std::exchange(out_, {});
  const auto unsent = std::string_view(head).substr(std::exchange(flushed_, 0));
  answer_ = Answer::kDone;
  const std::string end = chunked_ ? last_chunk(trailers_) : std::string();
  iovec parts[] = {part(unsent), part(end)};
  co_return co_await send(parts);
}

void Connection::abort() {
  if (answer_ == Answer::kStreaming) {
    flush_head();
    answer_ = Answer::kDone;
  }
  keep_ = ended_badly_ = false;
  close();
}

void Connection::on_client_gone(std::function<void()> callback) {
  gone_callback_ = std::move(callback);
  if (client_gone()) call_gone();
}

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

Task<> run_connection(std::shared_ptr<Connection> connection) { co_await connection->run(); }

}  // namespace

// One listening socket on one loop. Loop thread only.
class Server::Impl::Acceptor : public std::enable_shared_from_this<Acceptor> {
 public:
  Acceptor(std::shared_ptr<State> state, size_t loop_index, int fd)
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

  void close() {
    if (!descriptor_.is_open()) return;
    while (accept_one()) {
    }  // those who are in the queue already would be reset
    boost::system::error_code ignored;
    descriptor_.close(ignored);
    retry_.cancel();
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
    auto connection = std::make_shared<Connection>(state_, loop_index_, fd, address_of(address));
    asio::co_spawn(state_->loops[loop_index_].executor(), run_connection(std::move(connection)), asio::detached);
    return true;
  }

  const std::shared_ptr<State> state_;
  const size_t loop_index_;
  asio::posix::basic_stream_descriptor<Executor> descriptor_;
  Timer retry_;
};

namespace {

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

Error bind_error(const std::string& where, int error) {
  ErrorCode code = ErrorCode::kInternal;
  if (error == EADDRINUSE) code = ErrorCode::kAlreadyExists;
  if (error == EACCES) code = ErrorCode::kPermissionDenied;
  if (error == EADDRNOTAVAIL) code = ErrorCode::kInvalidArgument;
  if (error == EMFILE || error == ENFILE) code = ErrorCode::kExhausted;
  return {code, fmt::format("cannot listen on {}: {}", where, std::strerror(error))};
}

Result<Fd> bind_socket(const sockaddr_storage& address, socklen_t size, bool only_v6, bool share,
                       const std::string& where) {
  Fd fd(::socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
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

}  // namespace

Result<uint16_t> Server::Impl::listen(const std::string& host, uint16_t port) {
  SLUICE_TRY(auto addresses, resolve_local(host));
  std::vector<std::vector<Fd>> sockets(state->loops.size());
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
      if (::listen(fd->get(), state->options.backlog) != 0) return bind_error(where, errno);
      if (port == 0) {
        sockaddr_storage bound{};
        socklen_t size = sizeof bound;
        ::getsockname(fd->get(), reinterpret_cast<sockaddr*>(&bound), &size);
        port = ntohs(port_of(bound));
        port_of(address.storage) = htons(port);
      }
      of_loop.push_back(std::move(*fd));
    }
  }
  if (sockets.front().empty()) {
    return refused.value_or(Error{ErrorCode::kNotFound, fmt::format("'{}' has no address to listen on", host)});
  }
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
  return port;
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

void Server::Impl::stop_accepting() {
  std::vector<std::vector<std::shared_ptr<Acceptor>>> closing;
  {
    const std::lock_guard lock(acceptors_mutex);
    closing = std::exchange(acceptors, {});
  }
  if (closing.empty()) return;
  on_each_loop([&](size_t i) {
    for (auto& acceptor : closing[i]) acceptor->close();
    closing[i].clear();
  });
}

void Server::Impl::close_connections() {
  on_each_loop([&](size_t i) {
    // A copy: closing a connection may end it.
    std::vector<std::shared_ptr<Stream>> open;
    for (Connection* connection : state->per_loop[i].connections) open.push_back(connection->shared_from_this());
    for (const auto& stream : open) static_cast<Connection&>(*stream).cut();
  });
}

Server::Server(LoopGroup& loops, ServerOptions options, Handler handler)
    : impl_(std::make_unique<Impl>(loops, std::move(options), std::move(handler))) {}

Server::~Server() {
  impl_->stop_accepting();
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

Result<uint16_t> Server::listen(const std::string& host, uint16_t port) { return impl_->listen(host, port); }

void Server::stop_accepting() { impl_->stop_accepting(); }

size_t Server::drain(Duration deadline) {
  auto& state = *impl_->state;
  state.draining.store(true, std::memory_order_relaxed);
  impl_->stop_accepting();
  state.wait_for_none(state.active, deadline);
  const size_t cut_off = state.active.load(std::memory_order_acquire);
  impl_->close_connections();
  return cut_off;
}

size_t Server::active_requests() const { return impl_->state->active.load(std::memory_order_relaxed); }

size_t Server::open_connections() const { return impl_->state->open.load(std::memory_order_relaxed); }

}  // namespace sluice::net
