#include "obs/grpc_client.h"

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <charconv>
#include <cstring>
#include <vector>

#include "net/http.h"
#include "net/stream.h"
#include "net/tls.h"

namespace sluice::obs {
namespace {

namespace asio = net::asio;
using Tcp = asio::ip::tcp;
using Socket = asio::basic_stream_socket<Tcp, net::Executor>;

constexpr size_t kMostAnswer = 1 << 20;
constexpr size_t kReadAhead = 16 * 1024;

Error error_of(const boost::system::error_code& code, std::string_view doing, bool timed_out) {
  if (timed_out) return {ErrorCode::kTimeout, fmt::format("{} took too long", doing)};
  const bool refused = code == asio::error::connection_refused;
  return {refused ? ErrorCode::kRefused : ErrorCode::kReset, fmt::format("{}: {}", doing, code.message())};
}

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
        socket_(loop.executor()),
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
    boost::system::error_code ignored;
    socket_.close(ignored);
    if (resolver_ != nullptr) resolver_->cancel();
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
    boost::system::error_code error;
    const auto literal = asio::ip::make_address(host_, error);
    if (!error) {
      co_await socket_.async_connect({literal, port_}, asio::redirect_error(net::use_task, error));
    } else {
      resolver_ = std::make_unique<Resolver>(socket_.get_executor());
      const auto found =
          co_await resolver_->async_resolve(host_, std::to_string(port_), asio::redirect_error(net::use_task, error));
      if (error) {
        if (timed_out_) co_return error_of(error, "resolving " + host_, true);
        co_return Error{ErrorCode::kNotFound, fmt::format("resolving {}: {}", host_, error.message())};
      }
      co_await asio::async_connect(socket_, found, asio::redirect_error(net::use_task, error));
    }
    if (error || timed_out_) co_return error_of(error, "connecting to " + authority_, timed_out_);
    socket_.set_option(Tcp::no_delay(true), error);
    socket_.native_non_blocking(true, error);
    const int fd = socket_.release(error);
    if (error) co_return error_of(error, "connecting to " + authority_, false);
    link_ = std::make_shared<net::Stream>(loop_, fd, kReadAhead);
    if (tls_ == nullptr) co_return Result<void>();
    link_->start_tls(tls_->connect(fd, host_, net::Alpn::kHttp2));
    const net::Io io = co_await link_->handshake(Duration::zero());
    if (io == net::Io::kOk) co_return Result<void>();
    const std::string& why = link_->tls()->error();
    if (why.empty()) co_return ended(io, "the TLS handshake with " + authority_);
    co_return Error{ErrorCode::kReset, fmt::format("the TLS handshake with {} failed: {}", authority_, why)};
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
  using Resolver = asio::ip::basic_resolver<Tcp, net::Executor>;

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

  Socket socket_;                      // until it is connected
  std::shared_ptr<net::Stream> link_;  // then
  net::Timer deadline_;
  bool timed_out_ = false;
  bool disarmed_ = true;
  std::unique_ptr<Resolver> resolver_;
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
