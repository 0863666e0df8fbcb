#include "net/client.h"

#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <cerrno>
#include <cstring>
#include <list>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/check.h"
#include "net/stream.h"
#include "net/tls.h"
#include "net/wire.h"

namespace sluice::net {
namespace {

constexpr size_t kReadAhead = 256 * 1024;

using Tcp = asio::ip::tcp;
using Endpoint = Tcp::endpoint;

iovec part(std::string_view bytes) { return {const_cast<char*>(bytes.data()), bytes.size()}; }

std::string in_seconds(Duration d) { return fmt::format("{:g} s", seconds(d)); }

class Connection;

// The connections to one authority.
struct Host {
  // After each change of `idle`.
  void publish() { num_idle.store(idle.size(), std::memory_order_relaxed); }
  void use(int more) { busy.store(busy.load(std::memory_order_relaxed) + more, std::memory_order_relaxed); }

  std::string authority;
  bool tls = false;
  std::vector<std::shared_ptr<Connection>> idle;  // the latest used is last
  // For other threads; written on the loop's only.
  std::atomic<int64_t> busy{0};
  std::atomic<size_t> num_idle{0};
};

// What a client's connections and exchanges share; they may outlive the Client. Loop thread only, but for find().
struct Pool : public std::enable_shared_from_this<Pool> {
  Pool(EventLoop& l, ClientOptions o)
      : loop(l),
        options(std::move(o)),
        names(loop, options.lookup, options.addresses_fresh),
        sweep_timer(loop.executor()) {}

  Host& host(const Url& url);
  const Host* find(const Url& url) const;
  void keep(Host& host, std::shared_ptr<Connection> connection);
  std::shared_ptr<Connection> take(Host& host);
  void forget(Host& host);
  void arm_sweep(TimePoint at);
  void sweep();

  // Constant after construction.
  EventLoop& loop;
  const ClientOptions options;

  NameCache names;
  bool closed = false;  // the Client is gone: nothing is kept any more
  // Hosts are never removed: connections point at them. Keyed by key_of(); one entry per worker address ever used.
  std::unordered_map<std::string, std::unique_ptr<Host>> hosts;
  mutable std::mutex mutex;        // held while `hosts` changes, and by readers on other threads
  std::list<Connection*> resting;  // all that are kept, in the order in which they became idle
  Timer sweep_timer;
  bool sweep_armed = false;
};

class Connection final : public Stream {
 public:
  Connection(std::shared_ptr<Pool> pool, Host& host, int fd)
      : Stream(pool->loop, fd, std::max(kReadAhead, pool->options.max_head_bytes)),
        parser(MessageParser::Kind::kResponse, pool->options.max_head_bytes),
        pool_(std::move(pool)),
        host_(host) {}

  MessageParser parser;
  bool used = false;  // has served a request

  void begin_rest() {
    used = idle_ = true;
    idle_since_ = std::chrono::steady_clock::now();
    place_ = pool_->resting.insert(pool_->resting.end(), this);
  }
  void end_rest() {
    if (std::exchange(idle_, false)) pool_->resting.erase(place_);
  }
  TimePoint idle_since() const { return idle_since_; }
  // Of one that is not needed any more.
  void retire() {
    end_rest();
    close_notify();
    close();
  }
  void leave_pool() {
    if (!idle_) return;
    const auto self = shared_from_this();
    std::erase_if(host_.idle, [&](const auto& c) { return c.get() == this; });
    host_.publish();
    retire();
  }

 private:
  void on_ended() override { leave_pool(); }
  void on_unread() override { leave_pool(); }  // bytes that nobody asked for

  const std::shared_ptr<Pool> pool_;
  Host& host_;
  bool idle_ = false;
  TimePoint idle_since_;
  std::list<Connection*>::iterator place_;  // among those that rest
};

// One port may speak both: they share no connection.
std::string key_of(const Url& url) {
  std::string key = url.host;
  key.push_back(url.tls ? '/' : ':');
  fmt::format_int port(url.port);
  key.append(port.data(), port.size());
  return key;
}

Host& Pool::host(const Url& url) {
  std::string key = key_of(url);
  if (const auto found = hosts.find(key); found != hosts.end()) return *found->second;
  std::lock_guard lock(mutex);
  auto& slot = hosts[std::move(key)];
  slot = std::make_unique<Host>();
  slot->authority = url.authority();
  slot->tls = url.tls;
  return *slot;
}

const Host* Pool::find(const Url& url) const {
  std::lock_guard lock(mutex);
  const auto found = hosts.find(key_of(url));
  return found == hosts.end() ? nullptr : found->second.get();
}

void Pool::keep(Host& host, std::shared_ptr<Connection> connection) {
  if (closed || !connection->is_open() || connection->read_state() != Io::kOk || connection->unread_size() > 0 ||
      host.idle.size() >= options.max_idle_per_host) {
    connection->close();
    return;
  }
  connection->set_deadline(Duration::zero());
  connection->begin_rest();
  connection->watch();  // the other side's end is noticed here, and the next answer's first bytes too
  if (options.idle_timeout > Duration::zero()) arm_sweep(connection->idle_since() + options.idle_timeout);
  host.idle.push_back(std::move(connection));
  host.publish();
}

std::shared_ptr<Connection> Pool::take(Host& host) {
  while (!host.idle.empty()) {
    auto connection = std::move(host.idle.back());
    host.idle.pop_back();
    host.publish();
    connection->end_rest();
    const bool expired = options.idle_timeout > Duration::zero() &&
                         std::chrono::steady_clock::now() - connection->idle_since() >= options.idle_timeout;
    if (!expired && !connection->has_news()) return connection;
    connection->retire();
  }
  return nullptr;
}

void Pool::forget(Host& host) {
  for (const auto& connection : std::exchange(host.idle, {})) connection->retire();
  host.publish();
}

void Pool::arm_sweep(TimePoint at) {
  if (sweep_armed || closed) return;
  sweep_armed = true;
  sweep_timer.expires_at(at);
  sweep_timer.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    self->sweep_armed = false;
    if (!error) self->sweep();
  });
}

// Looks at those that go and at one more, however many hosts there are.
void Pool::sweep() {
  const TimePoint now = std::chrono::steady_clock::now();
  while (!resting.empty() && now - resting.front()->idle_since() >= options.idle_timeout) {
    resting.front()->leave_pool();
  }
  if (!resting.empty()) arm_sweep(resting.front()->idle_since() + options.idle_timeout);
}

class Exchange final : public ClientExchange {
 public:
  Exchange(std::shared_ptr<Pool> pool, const Url& url, ClientTimeouts timeouts)
      : pool_(std::move(pool)), host_(pool_->host(url)), timeouts_(timeouts) {
    host_.use(+1);
  }
  ~Exchange() override { release(connection_ != nullptr && connection_->parser.done() && head_read_); }

  Task<Result<void>> send(const Url& url, const RequestHead& head, std::string_view body);

  Task<Result<ResponseHead>> read_head() override;
  std::optional<Result<std::string_view>> read_now() override;
  Task<Result<std::string_view>> read_some() override;
  Task<bool> wait_some(Duration quiet) override;
  Task<Result<std::string>> read_all(size_t limit) override;
  const Headers& trailers() const override { return trailers_; }
  bool sent() const override { return !not_sent_; }
  bool answered() const override { return answered_; }
  bool reused() const override { return reused_; }
  void close() override {
    closed_ = true;
    if (question_ != nullptr) NameCache::cancel(*question_);
    if (connection_ != nullptr) connection_->close();
  }

 private:
  Task<Result<void>> connect(const Url& url);
  Task<Result<std::shared_ptr<Connection>>> connect_to(const Endpoint& endpoint, const Url& url, TimePoint deadline);
  Task<Result<void>> start_tls(Connection& connection, const Url& url, TimePoint deadline);
  // What has come of the body, as far as it is here: none, its end, or what is wrong with it.
  enum class Part { kNone, kBytes, kEnd, kError };
  Part take_part(std::string_view& body);
  Error broken() const {
    return {parser().error().code, fmt::format("{}: {}", host_.authority, parser().error().message)};
  }
  MessageParser& parser() const { return connection_->parser; }
  void finish();
  std::string request_bytes(const Url& url, const RequestHead& head, size_t body_size) const;
  Error failure(Io io, std::string_view phase, Duration bound) const;
  // Ends this exchange's hold on the connection.
  void release(bool keep);

  const std::shared_ptr<Pool> pool_;
  Host& host_;
  const ClientTimeouts timeouts_;
  std::shared_ptr<Connection> connection_;
  std::shared_ptr<NameCache::Question> question_;
  bool head_request_ = false;
  bool held_ = true;
  bool closed_ = false;
  bool reused_ = false;
  bool answered_ = false;
  bool head_read_ = false;
  bool keep_ = false;
  bool failed_ = false;
  std::optional<Error> not_sent_;  // why
  Headers trailers_;
  Duration waited_{};  // for the next bytes of the body, by wait_some()

  // What is left of the time that the other side may be silent; zero = no bound.
  Duration silence_left() const {
    if (timeouts_.silence <= Duration::zero()) return Duration::zero();
    return std::max<Duration>(timeouts_.silence - waited_, std::chrono::nanoseconds(1));
  }
};

void Exchange::release(bool keep) {
  if (!std::exchange(held_, false)) return;
  host_.use(-1);
  if (const auto connection = std::exchange(connection_, nullptr)) {
    if (keep && keep_ && !closed_ && !failed_) {
      connection->expect_any();
      pool_->keep(host_, connection);
    } else {
      connection->close();
    }
  }
}

Error Exchange::failure(Io io, std::string_view phase, Duration bound) const {
  switch (io) {
    case Io::kTimeout:
      return {ErrorCode::kTimeout,
              fmt::format("{}: {} took longer than {}", host_.authority, phase, in_seconds(bound))};
    case Io::kCancelled:
      return {ErrorCode::kCancelled, fmt::format("{}: cancelled during {}", host_.authority, phase)};
    case Io::kEnd:
      return {ErrorCode::kReset, fmt::format("{}: the connection was closed during {}", host_.authority, phase)};
    case Io::kReset:
      // With TLS 1.3 a server that does not like our certificate says so only now.
      if (connection_ != nullptr && connection_->tls() != nullptr && !connection_->tls()->error().empty()) {
        return {ErrorCode::kReset,
                fmt::format("{}: TLS failed during {}: {}", host_.authority, phase, connection_->tls()->error())};
      }
      return {ErrorCode::kReset, fmt::format("{}: the connection was reset during {}", host_.authority, phase)};
    case Io::kWouldBlock:
      return {ErrorCode::kTooLarge, fmt::format("{}: no room for more bytes during {}", host_.authority, phase)};
    default:
      return {ErrorCode::kReset, fmt::format("{}: the connection was reset during {}", host_.authority, phase)};
  }
}

Duration time_to(TimePoint deadline) {
  return std::max<Duration>(deadline - std::chrono::steady_clock::now(), std::chrono::nanoseconds(1));
}

// Tries the host's addresses in turn, within one bound for all of them.
Task<Result<void>> Exchange::connect(const Url& url) {
  const bool bounded = timeouts_.connect > Duration::zero();
  const TimePoint deadline =
      std::chrono::steady_clock::now() + (bounded ? std::min<Duration>(timeouts_.connect, std::chrono::hours(24 * 365))
                                                  : Duration(std::chrono::hours(24 * 365)));
  const auto found = co_await pool_->names.find(url.host, deadline, &question_);
  if (!found.ok()) {
    const std::string phase = fmt::format("resolving '{}'", url.host);
    if (found.error().code == ErrorCode::kTimeout) co_return failure(Io::kTimeout, phase, timeouts_.connect);
    if (found.error().code == ErrorCode::kCancelled) co_return failure(Io::kCancelled, phase, timeouts_.connect);
    co_return Error{ErrorCode::kNotFound, fmt::format("cannot resolve '{}': {}", url.host, found.error().message)};
  }
  Error last{ErrorCode::kRefused, fmt::format("cannot connect to {}", host_.authority)};
  for (size_t i = 0; i < found->size(); ++i) {
    if (closed_) break;
    // One that is silent leaves the others their share.
    const TimePoint end = deadline - time_to(deadline) / (found->size() - i) * (found->size() - i - 1);
    auto connected = co_await connect_to(Endpoint((*found)[i], url.port), url, end);
    if (connected.ok()) {
      connection_ = std::move(connected).value();
      co_return Result<void>();
    }
    // What only we lack is the verdict where every address lacks it: else one of them says how the host is.
    if (i == 0 || connected.error().code != ErrorCode::kExhausted) last = std::move(connected).error();
  }
  if (closed_) co_return failure(Io::kCancelled, "connecting", Duration::zero());
  co_return last;
}

// EADDRNOTAVAIL is either: all ports of ours are taken, or no address of ours leads there, which a socket that takes no
// port meets too.
bool lacks_a_way(const Endpoint& endpoint) {
  const int fd = ::socket(endpoint.data()->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool fails = ::connect(fd, endpoint.data(), static_cast<socklen_t>(endpoint.size())) != 0;
  ::close(fd);
  return fails;
}

// A host that lost its power, or whose connections a device on the way has forgotten, is noticed after a minute.
void keep_alive(int fd) {
  const int on = 1, idle = 30, interval = 10, count = 3;
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

Task<Result<std::shared_ptr<Connection>>> Exchange::connect_to(const Endpoint& endpoint, const Url& url,
                                                               TimePoint deadline) {
  const auto refused = [&](int error) {
    ErrorCode code = ErrorCode::kRefused;
    // We lack something, whatever the other side does: descriptors, memory, or ports of ours.
    const bool is_ours = error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM ||
                         (error == EADDRNOTAVAIL && !lacks_a_way(endpoint));
    if (is_ours) code = ErrorCode::kExhausted;
    if (error == ETIMEDOUT) code = ErrorCode::kTimeout;
    if (error == ECONNRESET) code = ErrorCode::kReset;
    return Error{code, fmt::format("cannot connect to {}: {}", host_.authority, std::strerror(error))};
  };
  const int fd = ::socket(endpoint.data()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) co_return refused(errno);
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  keep_alive(fd);
  int error = ::connect(fd, endpoint.data(), static_cast<socklen_t>(endpoint.size())) == 0 ? 0 : errno;
  auto connection = std::make_shared<Connection>(pool_, host_, fd);
  if (error == EINPROGRESS) {
    connection_ = connection;
    connection->set_deadline(time_to(deadline));
    const Io io = co_await connection->wait_writable();
    connection->set_deadline(Duration::zero());
    connection_ = nullptr;
    if (io != Io::kOk) {
      connection->close();
      co_return failure(io, "connecting", timeouts_.connect);
    }
    error = connection->socket_error();
  }
  if (error != 0) {
    connection->close();
    co_return refused(error);
  }
  if (host_.tls) {
    connection_ = connection;
    const auto agreed = co_await start_tls(*connection, url, deadline);
    connection_ = nullptr;
    if (!agreed.ok()) {
      connection->close();
      co_return agreed.error();
    }
  }
  co_return connection;
}

Task<Result<void>> Exchange::start_tls(Connection& connection, const Url& url, TimePoint deadline) {
  const auto context = pool_->options.tls != nullptr ? pool_->options.tls : TlsContext::of_system();
  connection.start_tls(context->connect(connection.fd(), url.host));
  const Io io = co_await connection.handshake(time_to(deadline));
  if (io == Io::kOk) co_return Result<void>();
  if (io != Io::kReset && io != Io::kEnd) co_return failure(io, "the TLS handshake", timeouts_.connect);
  const std::string& why = connection.tls()->error();
  co_return Error{ErrorCode::kReset, fmt::format("the TLS handshake with {} failed: {}", host_.authority,
                                                 why.empty() ? "the connection was closed" : why)};
}

std::string Exchange::request_bytes(const Url& url, const RequestHead& head, size_t body_size) const {
  std::string out;
  out.reserve(512);
  out.append(head.method).append(" ").append(url.path).append(head.target).append(" HTTP/1.1\r\n");
  bool has_host = false;
  for (const auto& [name, value] : head.headers) {
    if (iequals(name, "Transfer-Encoding")) continue;  // the body is at hand: it goes out with its length
    has_host = has_host || iequals(name, "Host");
    if (iequals(name, "Content-Length")) continue;
    append_field(out, name, value);
  }
  if (!has_host) append_field(out, "Host", host_.authority);
  const bool has_length = body_size > 0 || head.method == "POST" || head.method == "PUT" || head.method == "PATCH";
  if (has_length) {
    fmt::format_int length(body_size);
    out.append("Content-Length: ").append(length.data(), length.size()).append("\r\n");
  }
  out.append("\r\n");
  return out;
}

Task<Result<void>> Exchange::send(const Url& url, const RequestHead& head, std::string_view body) {
  head_request_ = head.method == "HEAD";
  const std::string bytes = request_bytes(url, head, body.size());
  for (;;) {
    if (closed_) co_return failure(Io::kCancelled, "sending the request", Duration::zero());
    connection_ = pool_->take(host_);
    reused_ = connection_ != nullptr;
    if (!reused_) {
      const auto connected = co_await connect(url);
      if (!connected.ok()) co_return connected.error();
    }
    connection_->parser.reset(head_request_);
    iovec parts[] = {part(bytes), part(body)};
    std::span<iovec> rest(parts);
    Io io = connection_->try_write(rest);
    if (io == Io::kWouldBlock) io = co_await connection_->write_rest(rest, timeouts_.silence);
    // A server that answers early and closes (413) is heard: read_head() finds its answer, or the reset.
    if (io == Io::kReset && connection_->has_answer()) io = Io::kOk;
    if (io == Io::kReset && reused_) {
      // The server had closed it, and has not got the request whole. What else is kept has been idle for longer.
      connection_->close();
      connection_ = nullptr;
      pool_->forget(host_);
      continue;
    }
    if (io != Io::kOk) {
      failed_ = true;
      Error error = failure(io, "sending the request", timeouts_.silence);
      if (io == Io::kCancelled) co_return error;  // nobody waits for an answer
      not_sent_ = std::move(error);
    }
    co_return Result<void>();
  }
}

Task<Result<ResponseHead>> Exchange::read_head() {
  SLUICE_CHECK(!head_read_, "read_head() is called once");
  if (not_sent_) co_return *not_sent_;
  if (connection_ == nullptr || closed_) {
    co_return failure(Io::kCancelled, "waiting for the response head", Duration::zero());
  }
  const auto connection = connection_;
  auto& parser = connection->parser;
  connection->set_deadline(timeouts_.head);
  for (;;) {
    if (connection->unread_size() > 0) {
      answered_ = true;
      size_t used = 0;
      const auto status = parser.parse_head(connection->unread(), used);
      if (status == MessageParser::Status::kError) {
        failed_ = true;
        co_return Error{parser.error().code, fmt::format("{}: {}", host_.authority, parser.error().message)};
      }
      if (status == MessageParser::Status::kDone) {
        connection->consume(used);
        const int code = parser.response().status;
        if (code / 100 == 1 && code != 101) {
          parser.reset(head_request_);
          continue;
        }
        break;
      }
    }
    const Io io = co_await connection->read_more();
    if (io != Io::kOk) {
      failed_ = true;
      co_return failure(closed_ ? Io::kCancelled : io, "waiting for the response head", timeouts_.head);
    }
  }
  connection->set_deadline(Duration::zero());
  head_read_ = true;
  keep_ = parser.keep_alive();
  co_return std::move(parser.response());
}

std::optional<Result<std::string_view>> Exchange::read_now() {
  // Ended before: an end stays an end.
  if (!held_ && !closed_) return std::string_view();
  if (!held_ || connection_ == nullptr || closed_ || failed_ || !head_read_) {
    return failure(Io::kCancelled, "reading the response body", Duration::zero());
  }
  std::string_view body;
  switch (take_part(body)) {
    case Part::kNone:
      return std::nullopt;
    case Part::kBytes:
      return body;
    case Part::kError:
      return broken();
    case Part::kEnd:
      break;
  }
  finish();
  return std::string_view();
}

Task<Result<std::string_view>> Exchange::read_some() {
  for (;;) {
    if (auto now = read_now()) co_return *std::move(now);
    const auto connection = connection_;
    if (!connection->parser.content_length()) connection->expect_little();  // events of a stream
    connection->set_deadline(silence_left());
    const Io io = co_await connection->read_more();
    connection->set_deadline(Duration::zero());
    waited_ = Duration::zero();
    if (io == Io::kOk) continue;
    if (io == Io::kEnd && !closed_ && connection->parser.end_of_stream()) {
      finish();
      co_return std::string_view();
    }
    failed_ = true;
    co_return failure(closed_ ? Io::kCancelled : io, "reading the response body", timeouts_.silence);
  }
}

Exchange::Part Exchange::take_part(std::string_view& body) {
  auto& parser = connection_->parser;
  if (parser.done()) return Part::kEnd;
  if (connection_->unread_size() == 0) return Part::kNone;
  size_t used = 0;
  const auto status = parser.parse_body(connection_->unread_data(), connection_->unread_size(), used, body);
  connection_->consume(used);
  if (!body.empty()) return Part::kBytes;
  if (status == MessageParser::Status::kError) {
    failed_ = true;
    return Part::kError;
  }
  return status == MessageParser::Status::kDone ? Part::kEnd : Part::kNone;
}

void Exchange::finish() {
  trailers_ = std::move(parser().trailers());
  release(true);
}

Task<bool> Exchange::wait_some(Duration quiet) {
  const auto connection = connection_;
  const bool waits = held_ && connection != nullptr && !closed_ && !failed_ && head_read_ &&
                     !connection->parser.done() && connection->unread_size() == 0;
  if (!waits) co_return true;
  const bool quiet_ends_first = timeouts_.silence <= Duration::zero() || quiet < silence_left();
  const Duration bound = quiet_ends_first ? quiet : silence_left();
  connection->expect_little();
  connection->set_deadline(bound);
  const Io io = co_await connection->read_more();
  connection->set_deadline(Duration::zero());
  waited_ = io == Io::kTimeout ? waited_ + bound : Duration::zero();
  co_return io != Io::kTimeout || !quiet_ends_first;
}

Task<Result<std::string>> Exchange::read_all(size_t limit) {
  const auto too_large = [&] {
    failed_ = true;
    return Error{ErrorCode::kTooLarge,
                 fmt::format("{}: the response body is larger than {} bytes", host_.authority, limit)};
  };
  std::string whole;
  if (connection_ != nullptr && head_read_) {
    whole.reserve(
        std::min<uint64_t>(connection_->parser.content_length().value_or(0), std::min<size_t>(limit, 4 << 20)));
  }
  const bool readable = held_ && connection_ != nullptr && !closed_ && !failed_ && head_read_;
  // What is here is taken without a wait.
  for (std::string_view body; readable;) {
    const Part part = take_part(body);
    if (part == Part::kError) co_return broken();
    if (part == Part::kEnd) {
      finish();
      co_return whole;
    }
    if (part == Part::kNone) break;
    if (whole.size() + body.size() > limit) co_return too_large();
    whole.append(body);
  }
  for (;;) {
    auto some = co_await read_some();
    if (!some.ok()) co_return std::move(some).error();
    if (some->empty()) co_return whole;
    if (whole.size() + some->size() > limit) co_return too_large();
    whole.append(*some);
  }
}

}  // namespace

class Client::Impl {
 public:
  Impl(EventLoop& loop, ClientOptions options) : pool(std::make_shared<Pool>(loop, std::move(options))) {}
  const std::shared_ptr<Pool> pool;
};

Client::Client(EventLoop& loop, ClientOptions options) : impl_(std::make_unique<Impl>(loop, std::move(options))) {}

Client::~Client() {
  Pool& pool = *impl_->pool;
  pool.closed = true;
  for (auto& [authority, host] : pool.hosts) pool.forget(*host);
  pool.sweep_timer.cancel();
}

Task<Result<std::unique_ptr<ClientExchange>>> Client::send(const Url& url, RequestHead head, std::string_view body,
                                                           ClientTimeouts timeouts,
                                                           std::function<void(ClientExchange&)> on_exchange) {
  auto exchange = std::make_unique<Exchange>(impl_->pool, url, timeouts);
  if (on_exchange) on_exchange(*exchange);
  const auto sent = co_await exchange->send(url, head, body);
  if (!sent.ok()) co_return sent.error();
  std::unique_ptr<ClientExchange> result = std::move(exchange);
  co_return std::move(result);
}

Task<Result<Response>> Client::fetch(const Url& url, std::string method, std::string target, Headers headers,
                                     std::string body, ClientTimeouts timeouts) {
  const bool repeatable = method == "GET" || method == "HEAD";
  RequestHead head;
  head.method = std::move(method);
  head.target = std::move(target);
  head.headers = std::move(headers);
  for (;;) {
    auto sent = co_await send(url, head, body, timeouts);
    if (!sent.ok()) co_return std::move(sent).error();
    const auto exchange = std::move(*sent);
    auto answer = co_await exchange->read_head();
    if (!answer.ok()) {
      // A kept-alive connection that the server closed while the request was on its way.
      const bool stale = exchange->reused() && !exchange->answered() && answer.error().code == ErrorCode::kReset;
      if (stale && repeatable) continue;
      co_return std::move(answer).error();
    }
    auto whole = co_await exchange->read_all();
    if (!whole.ok()) co_return std::move(whole).error();
    Response response;
    response.status = answer->status;
    response.headers = std::move(answer->headers);
    response.body = std::move(*whole);
    response.reason = std::move(answer->reason);
    response.trailers = exchange->trailers();
    co_return std::move(response);
  }
}

size_t Client::idle_connections(const Url& url) const {
  const Host* host = impl_->pool->find(url);
  return host == nullptr ? 0 : host->num_idle.load(std::memory_order_relaxed);
}

size_t Client::busy_connections(const Url& url) const {
  const Host* host = impl_->pool->find(url);
  return host == nullptr ? 0 : static_cast<size_t>(host->busy.load(std::memory_order_relaxed));
}

void Client::forget(const Url& url) { impl_->pool->forget(impl_->pool->host(url)); }

Result<Response> blocking_fetch(const Url& url, std::string method, std::string target, Headers headers,
                                std::string body, ClientTimeouts timeouts, ClientOptions options) {
  EventLoop loop("fetch");
  loop.start();
  std::function<Task<Result<Response>>()> once = [&]() -> Task<Result<Response>> {
    Client local(loop, options);
    auto response = co_await local.fetch(url, method, target, headers, body, timeouts);
    co_return std::move(response);
  };
  return loop.run(std::move(once));
}

}  // namespace sluice::net
