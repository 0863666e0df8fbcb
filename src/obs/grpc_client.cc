#include "obs/grpc_client.h"

#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <vector>

#include "net/http.h"
#include "net/lookup.h"
#include "net/stream.h"
#include "net/tls.h"

namespace sluice::obs {
namespace {

namespace asio = net::asio;

constexpr size_t kMostAnswer = 1 << 20;
constexpr size_t kReadAhead = 16 * 1024;

// The message behind its head: not compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
std::string framed(std::string_view message) {
  std::string out(5, '\0');
  for (size_t i = 0; i < 4; ++i) out[1 + i] = static_cast<char>(message.size() >> (24 - 8 * i));
  out += message;
  return out;
}

}  // namespace

class GrpcClient::Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(net::EventLoop& loop, const std::string& host, uint16_t port, std::shared_ptr<net::TlsContext> tls)
      : authority_(host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                                       : fmt::format("[{}]:{}", host, port)),
        host_(host),
        port_(port),
        tls_(std::move(tls)),
        loop_(loop),
        names_(loop, {}, Duration::zero()),
        deadline_(loop.executor()) {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, &Connection::on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, &Connection::on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, &Connection::on_close);
    nghttp2_session_client_new(&session_, callbacks, this);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, nullptr, 0);
  }
  ~Connection() {
    close();
    nghttp2_session_del(session_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  bool used() const { return used_; }
  void close() {
    shut_ = true;
    if (question_ != nullptr) net::NameCache::cancel(*question_);
    if (link_ != nullptr) link_->close();
  }

  // What follows ends with kTimeout after that time.
  void arm(Duration after) {
    timed_out_ = false;
    deadline_.expires_after(after);
    deadline_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
      const auto self = weak.lock();
      if (error || self == nullptr || self->disarmed_) return;
      self->timed_out_ = true;
      self->close();
    });
    disarmed_ = false;
  }
  void disarm() {
    disarmed_ = true;
    deadline_.cancel();
  }

  net::Task<Result<void>> connect() {
    const auto found = co_await names_.find(host_, TimePoint::max(), &question_);  // arm() bounds it
    if (timed_out_) co_return Error{ErrorCode::kTimeout, fmt::format("resolving {} took too long", host_)};
    if (shut_) co_return Error{ErrorCode::kCancelled, "cancelled"};
    if (!found.ok()) co_return Error{found.error().code, fmt::format("resolving {}: {}", host_, found.error().message)};
    Result<void> connected = Error{ErrorCode::kNotFound, fmt::format("{} has no address", host_)};
    for (const asio::ip::address& address : *found) {
      connected = co_await connect_to({address, port_});
      if (connected.ok() || shut_) break;
    }
    if (!connected.ok()) co_return connected.error();
    if (tls_ == nullptr) co_return Result<void>();
    link_->start_tls(tls_->connect(link_->fd(), host_, net::Alpn::kHttp2));
    const net::Io io = co_await link_->handshake(Duration::zero());
    if (io != net::Io::kOk) co_return ended(io, "the TLS handshake with " + authority_);
    // RFC 9113, 3.2: without "h2" the other side takes these bytes for something else.
    if (link_->tls()->protocol() == "h2") co_return Result<void>();
    co_return Error{ErrorCode::kProtocol, fmt::format("{} does not speak gRPC over TLS: it did not agree on HTTP/2 "
                                                      "(ALPN \"h2\")",
                                                      authority_)};
  }

  net::Task<Result<GrpcAnswer>> exchange(const std::string& path, const std::string& message, Duration deadline) {
    answer_ = {};
    status_.clear();
    http_status_.clear();
    closed_ = reset_ = false;
    outgoing_ = framed(message);
    sent_ = 0;
    const std::string timeout =
        fmt::format("{}m", std::chrono::duration_cast<std::chrono::milliseconds>(deadline).count());
    submit(path, timeout);
    while (!closed_) {
      if (const auto flushed = co_await flush(); !flushed.ok()) co_return flushed.error();
      if (closed_) break;
      if (const auto read = co_await read_some(); !read.ok()) co_return read.error();
    }
    used_ = true;
    if (const auto flushed = co_await flush(); !flushed.ok()) co_return flushed.error();
    co_return verdict();
  }

 private:
  net::Task<Result<void>> connect_to(asio::ip::tcp::endpoint endpoint) {
    const auto failed = [this](int error) {
      return Error{error == ECONNREFUSED ? ErrorCode::kRefused : ErrorCode::kReset,
                   fmt::format("connecting to {}: {}", authority_, std::strerror(error))};
    };
    const int fd = ::socket(endpoint.data()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) co_return failed(errno);
    const int one = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int error = ::connect(fd, endpoint.data(), static_cast<socklen_t>(endpoint.size())) == 0 ? 0 : errno;
    link_ = std::make_shared<net::Stream>(loop_, fd, kReadAhead);
    if (error == EINPROGRESS) {
      const net::Io io = co_await link_->wait_writable();
      if (io != net::Io::kOk) co_return ended(io, "connecting to " + authority_);
      error = link_->socket_error();
    }
    if (error == 0) co_return Result<void>();
    link_->close();
    co_return failed(error);
  }

  static Connection& self(void* user) { return *static_cast<Connection*>(user); }

  static int on_header(nghttp2_session*, const nghttp2_frame*, const uint8_t* name, size_t name_size,
                       const uint8_t* value, size_t value_size, uint8_t, void* user) {
    const std::string_view key(reinterpret_cast<const char*>(name), name_size);
    const std::string_view text(reinterpret_cast<const char*>(value), value_size);
    if (key == ":status") self(user).http_status_ = text;
    if (key == "grpc-status") self(user).status_ = text;
    if (key == "grpc-message") self(user).answer_.message = net::percent_decode(text);
    return 0;
  }
  static int on_data(nghttp2_session*, uint8_t, int32_t, const uint8_t* data, size_t size, void* user) {
    std::string& body = self(user).answer_.body;
    if (body.size() + size > kMostAnswer) return NGHTTP2_ERR_CALLBACK_FAILURE;
    body.append(reinterpret_cast<const char*>(data), size);
    return 0;
  }
  static int on_close(nghttp2_session*, int32_t stream, uint32_t error, void* user) {
    if (stream != self(user).stream_) return 0;
    self(user).closed_ = true;
    self(user).reset_ = error != NGHTTP2_NO_ERROR;
    return 0;
  }
  static ssize_t read_outgoing(nghttp2_session*, int32_t, uint8_t* buffer, size_t size, uint32_t* flags,
                               nghttp2_data_source*, void* user) {
    Connection& here = self(user);
    const size_t part = std::min(size, here.outgoing_.size() - here.sent_);
    std::memcpy(buffer, here.outgoing_.data() + here.sent_, part);
    here.sent_ += part;
    if (here.sent_ == here.outgoing_.size()) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(part);
  }

  void submit(const std::string& path, const std::string& timeout) {
    const auto field = [](std::string_view name, std::string_view value) {
      const auto bytes = [](std::string_view text) {
        return const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(text.data()));  // it is only read
      };
      return nghttp2_nv{bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
    };
    const std::array<nghttp2_nv, 8> head{field(":method", "POST"),
                                         field(":scheme", tls_ == nullptr ? "http" : "https"),
                                         field(":path", path),
                                         field(":authority", authority_),
                                         field("te", "trailers"),
                                         field("grpc-timeout", timeout),
                                         field("content-type", "application/grpc"),
                                         field("user-agent", "sluice")};
    nghttp2_data_provider body{};
    body.read_callback = &Connection::read_outgoing;
    stream_ = nghttp2_submit_request(session_, nullptr, head.data(), head.size(), &body, nullptr);
  }

  net::Task<Result<void>> flush() {
    std::string bytes;
    for (;;) {
      const uint8_t* part = nullptr;
      const ssize_t size = nghttp2_session_mem_send(session_, &part);
      if (size < 0) co_return Error{ErrorCode::kProtocol, nghttp2_strerror(static_cast<int>(size))};
      if (size == 0) break;
      bytes.append(reinterpret_cast<const char*>(part), static_cast<size_t>(size));
    }
    iovec all{bytes.data(), bytes.size()};
    std::span<iovec> parts(&all, 1);
    net::Io io = link_->try_write(parts);
    if (io == net::Io::kWouldBlock) io = co_await link_->write_rest(parts, Duration::zero());
    if (io != net::Io::kOk) co_return ended(io, "writing to " + authority_);
    co_return Result<void>();
  }

  net::Task<Result<void>> read_some() {
    // A server that goes away says so, and closes the call's stream or not.
    if (nghttp2_session_want_read(session_) == 0) {
      co_return Error{ErrorCode::kReset, authority_ + " ended the connection"};
    }
    const net::Io io = co_await link_->read_more();
    if (io != net::Io::kOk) co_return ended(io, "reading from " + authority_);
    const std::string_view bytes = link_->unread();
    const ssize_t taken =
        nghttp2_session_mem_recv(session_, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    link_->consume(bytes.size());
    if (taken < 0) co_return Error{ErrorCode::kProtocol, nghttp2_strerror(static_cast<int>(taken))};
    co_return Result<void>();
  }

  Error ended(net::Io how, std::string_view doing) const {
    if (timed_out_) return {ErrorCode::kTimeout, fmt::format("{} took too long", doing)};
    // With TLS 1.3 a server that does not like our certificate says so after the handshake.
    const std::string_view why = link_->tls() == nullptr ? std::string_view() : link_->tls()->error();
    if (!why.empty()) return {ErrorCode::kReset, fmt::format("{}: TLS failed: {}", doing, why)};
    return {ErrorCode::kReset,
            fmt::format("{}: the connection was {}", doing, how == net::Io::kReset ? "reset" : "closed")};
  }

  Result<GrpcAnswer> verdict() {
    int status = 0;
    const auto [end, error] = std::from_chars(status_.data(), status_.data() + status_.size(), status);
    if (status_.empty() || error != std::errc()) {
      if (reset_) return Error{ErrorCode::kReset, authority_ + " reset the call"};
      return Error{ErrorCode::kProtocol, fmt::format("{} is no gRPC server: HTTP status {}", authority_, http_status_)};
    }
    answer_.status = status;
    answer_.body.erase(0, std::min<size_t>(5, answer_.body.size()));
    return std::move(answer_);
  }

  // Constant after construction.
  const std::string authority_;
  const std::string host_;
  const uint16_t port_;
  const std::shared_ptr<net::TlsContext> tls_;
  net::EventLoop& loop_;

  net::NameCache names_;
  std::shared_ptr<net::NameCache::Question> question_;
  std::shared_ptr<net::Stream> link_;  // null: not connected
  net::Timer deadline_;
  bool shut_ = false;
  bool timed_out_ = false;
  bool disarmed_ = true;
  nghttp2_session* session_ = nullptr;
  bool used_ = false;

  // The call that is under way.
  int32_t stream_ = 0;
  std::string outgoing_;
  size_t sent_ = 0;
  bool closed_ = false;
  bool reset_ = false;
  std::string http_status_, status_;
  GrpcAnswer answer_;
};

GrpcClient::GrpcClient(net::EventLoop& loop, std::string host, uint16_t port, std::shared_ptr<net::TlsContext> tls)
    : loop_(loop), host_(std::move(host)), port_(port), tls_(std::move(tls)) {}
GrpcClient::~GrpcClient() = default;

void GrpcClient::close() {
  if (connection_ != nullptr) connection_->close();
}

net::Task<Result<GrpcAnswer>> GrpcClient::call(std::string path, std::string message, Duration deadline) {
  const bool was_used = connection_ != nullptr && connection_->used();
  auto answer = co_await call_once(path, message, deadline);
  if (!answer.ok() && was_used && answer.error().code == ErrorCode::kReset) {
    answer = co_await call_once(path, message, deadline);
  }
  co_return answer;
}

net::Task<Result<GrpcAnswer>> GrpcClient::call_once(const std::string& path, const std::string& message,
                                                    Duration deadline) {
  const bool fresh = connection_ == nullptr;
  if (fresh) connection_ = std::make_shared<Connection>(loop_, host_, port_, tls_);
  const auto connection = connection_;
  connection->arm(deadline);
  if (fresh) {
    if (const auto connected = co_await connection->connect(); !connected.ok()) {
      connection->disarm();
      connection_ = nullptr;
      co_return connected.error();
    }
  }
  auto answer = co_await connection->exchange(path, message, deadline);
  connection->disarm();
  if (!answer.ok()) connection_ = nullptr;
  co_return answer;
}

}  // namespace sluice::obs
