#include "net/server_connection.h"

#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <charconv>

#include "base/log.h"
#include "net/tls.h"

namespace sluice::net {
namespace {

// Unread bytes of a request that nobody wanted are read over, so that the connection can be kept; more than this and
// closing it is cheaper.
constexpr size_t kDiscardLimit = 256 * 1024;
// How long a connection that is closed for a reason lets the client read that reason.
constexpr Duration kLinger = std::chrono::seconds(2);
constexpr size_t kLingerLimit = 8 << 20;
constexpr size_t kReadAhead = 256 * 1024;
// Memory that the announcement of a body alone gets, and room behind it for parsers that read over its end: without
// that they copy it.
constexpr size_t kTrusted = 4 << 20;
constexpr size_t kParserRoom = 64;
// What is filled with zeros ahead of a body that has begun to come: this at least, three times what has come while that
// is little, then as much again.
constexpr size_t kLeastPart = 16 << 10;
constexpr size_t kLittle = 64 << 10;

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

// Behind the `come` bytes of a body of `length`, for more of them.
void extend(std::string& whole, size_t come, size_t length) {
  if (whole.size() > come) return;
  const size_t size = std::min(length, come + std::max(come < kLittle ? 3 * come : come, kLeastPart));
  // All of it at once, for one that has sent so much: growing step by step leaves holes of megabytes behind.
  if (size > whole.capacity()) whole.reserve(length + kParserRoom);
  whole.resize(size);
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

}  // namespace

ServerConnection::ServerConnection(std::shared_ptr<ServerState> state, size_t loop_index, int fd, std::string peer)
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

ServerConnection::~ServerConnection() {
  state_->per_loop[loop_index_].connections.erase(this);
  if (active_) state_->lower(state_->active);
  state_->lower(state_->open);
}

Task<> ServerConnection::run() {
  bool more = true;
  if (state_->options.tls != nullptr) more = co_await agree_on_tls();
  while (more) {
    more = co_await read_request();
    if (!more) break;
    co_await handle();
    if (!keep_) break;
    if (!parser_.done()) {
      more = co_await discard_body();
    } else if (unread_size() > 0) {
      // Whoever sends without waiting for answers takes turns with the others of the loop.
      co_await asio::post(loop().executor(), use_task);
      more = is_open();
    }
  }
  co_await linger();
  close_notify();
  close();
}

// False when the connection is over.
Task<bool> ServerConnection::agree_on_tls() {
  start_tls(state_->options.tls->accept(fd()));
  const Io io = co_await handshake(state_->options.head_timeout);
  if (io == Io::kOk) co_return true;
  if (tls()->got_plain_http()) {
    stop_tls();
    co_await refuse(400, "plain HTTP was sent to a port that speaks TLS: use https://");
  } else if (io == Io::kTimeout || !tls()->error().empty()) {
    SLUICE_LOG_EVERY(1, info, "net/server", "the TLS handshake with {} failed: {}", peer_,
                     io == Io::kTimeout ? "it took too long" : tls()->error());
  }
  co_return false;
}

// Answers what has no request that a handler could see.
Task<> ServerConnection::refuse(int status, std::string message) {
  answer_ = Answer::kNone;
  keep_ = false;
  ended_badly_ = true;
  request_.method.clear();
  auto response = error_response(status, message);
  co_await respond(std::move(response));
}

// Reads up to the end of a head. False when the connection is over.
Task<bool> ServerConnection::read_request() {
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
        co_await refuse(parser_.error_status(), parser_.error().message);
        co_return false;
      }
    }
    const Io io = co_await read_more();
    if (io == Io::kOk) continue;
    if (io == Io::kTimeout && started) co_await refuse(408, "the head of the request did not arrive in time");
    co_return false;
  }
}

Task<> ServerConnection::handle() {
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
  if (answer_ == Answer::kNone && !client_gone()) {
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

Task<bool> ServerConnection::discard_body() {
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
Task<> ServerConnection::linger() {
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

Task<Result<std::string>> ServerConnection::read_body(size_t limit) {
  const auto too_large = [&] {
    keep_ = false;
    return Error{ErrorCode::kTooLarge, fmt::format("the request's body is larger than {} bytes", limit)};
  };
  if (parser_.content_length().value_or(0) > limit) co_return too_large();
  std::string whole;
  const auto length = parser_.content_length();
  if (length) whole.reserve(std::min<uint64_t>(*length, kTrusted) + kParserRoom);
  size_t come = 0;  // bytes of it
  while (!parser_.done()) {
    if (unread_size() > 0) {
      size_t used = 0;
      std::string_view body;
      const auto status = parser_.parse_body(unread_data(), unread_size(), used, body);
      whole.append(body);
      come = whole.size();
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
      if (unread_size() > 0) continue;  // it came while that waited to be sent
    }
    set_deadline(state_->options.body_stall_timeout);
    Io io = Io::kOk;
    // The first bytes come by the buffer: a head alone gets no memory for its body.
    if (length && come > 0) {
      extend(whole, come, *length);
      const std::span<char> room(whole.data() + come, whole.size() - come);
      size_t got = 0;
      io = co_await read_into(room, whole.size() == *length, got);
      size_t used = 0;
      std::string_view body;
      if (got > 0) parser_.parse_body(room.data(), got, used, body);
      come += got;
    } else {
      io = co_await read_more();
    }
    set_deadline(Duration::zero());
    if (io != Io::kOk) {
      keep_ = false;
      co_return io_error(io, "sending the request's body");
    }
  }
  watch_from_now();  // for the end of the connection
  co_return whole;
}

void ServerConnection::begin_head(int status, const std::optional<std::string>& reason) {
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
  for (const auto& [name, value] : state_->options.headers) append_field(out_, name, value);
}

void ServerConnection::end_head() {
  if (!parser_.done() && expects_continue_) keep_ = false;
  if (state_->draining.load(std::memory_order_relaxed)) keep_ = false;
  if (!keep_) {
    out_.append("Connection: close\r\n");
  } else if (request_.minor_version == 0) {
    out_.append("Connection: keep-alive\r\n");
  }
  out_.append("\r\n");
}

Task<Result<void>> ServerConnection::send(std::span<iovec> parts) {
  Io io = try_write(parts);
  if (io == Io::kWouldBlock) io = co_await write_rest(parts, state_->options.write_stall_timeout);
  co_return written(io);
}

Result<void> ServerConnection::written(Io io) {
  if (io == Io::kOk) return {};
  keep_ = false;
  return io_error(io, "the answer was written");
}

Task<Result<void>> ServerConnection::respond(Response response) {
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
  std::span<iovec> rest(parts);
  Io io = try_write(rest);
  if (io == Io::kWouldBlock) io = co_await write_rest(rest, state_->options.write_stall_timeout);
  co_return written(io);
}

Task<Result<void>> ServerConnection::start(ResponseHead head) {
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
  if (parser_.done()) drop_buffer();  // what the client may send meanwhile is its next request
  // The head waits for the first bytes of the body, to go out with them, but only until the loop has nothing else to
  // do.
  auto self = std::static_pointer_cast<ServerConnection>(shared_from_this());
  asio::post(loop().executor(), [self, exchange = exchange_] {
    if (self->exchange_ == exchange && self->answer_ == Answer::kStreaming) self->flush_head();
  });
  if (!is_open()) co_return io_error(Io::kCancelled, "the answer was written");
  co_return Result<void>();
}

// Sends what the kernel takes of a head that is still here; the rest goes with the next write.
void ServerConnection::flush_head() {
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

Task<Result<void>> ServerConnection::write(std::string_view bytes) {
  if (write_now(bytes)) co_return Result<void>();
  co_return co_await drain();
}

bool ServerConnection::write_now(std::string_view bytes) {
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

Task<Result<void>> ServerConnection::drain() {
  const std::string unsent = std::exchange(unsent_, {});
  if (trouble_) co_return *std::exchange(trouble_, std::nullopt);
  iovec parts[] = {part(unsent)};
  co_return co_await send(parts);
}

Task<Result<void>> ServerConnection::finish() {
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

void ServerConnection::abort() {
  const bool cut_would_look_whole = answer_ == Answer::kStreaming && !chunked_ && !promised_ && !no_body_;
  if (answer_ == Answer::kStreaming) {
    flush_head();
    answer_ = Answer::kDone;
  }
  keep_ = ended_badly_ = false;
  // Where the end of the connection is the end of the body, only a reset tells a cut answer from a whole one.
  if (cut_would_look_whole && is_open()) {
    const struct linger hard { 1, 0 };  // not the function
    ::setsockopt(fd(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  }
  close();
}

void ServerConnection::on_client_gone(std::function<void()> callback) {
  gone_callback_ = std::move(callback);
  if (client_gone()) call_gone();
}

}  // namespace sluice::net
