#include "net/stream.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "net/tls.h"

namespace sluice::net {
namespace {

constexpr size_t kFirstBuffer = 16 * 1024;

Io from_errno() { return errno == EAGAIN || errno == EWOULDBLOCK ? Io::kWouldBlock : Io::kReset; }

ssize_t receive_bytes(int fd, char* to, size_t room) {
  for (;;) {
    const ssize_t n = ::recv(fd, to, room, 0);
    if (n >= 0 || errno != EINTR) return n;
  }
}

// A few bytes are moved together: the kernel takes one piece with less ado than several.
ssize_t send_bytes(int fd, std::span<const iovec> parts) {
  constexpr size_t kTogether = 2048;
  size_t size = 0;
  for (const iovec& part : parts) size += part.iov_len;
  if (parts.size() > 1 && size > kTogether) {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts.data());
    message.msg_iovlen = parts.size();
    return ::sendmsg(fd, &message, MSG_NOSIGNAL);
  }
  if (parts.size() == 1) return ::send(fd, parts.front().iov_base, size, MSG_NOSIGNAL);
  char together[kTogether];
  size_t at = 0;
  for (const iovec& part : parts) {
    if (part.iov_len > 0) std::memcpy(together + at, part.iov_base, part.iov_len);
    at += part.iov_len;
  }
  return ::send(fd, together, size, MSG_NOSIGNAL);
}

ssize_t receive_bytes(int fd, iovec (&parts)[2]) {
  for (;;) {
    const ssize_t n = ::readv(fd, parts, 2);
    if (n >= 0 || errno != EINTR) return n;
  }
}

Task<Io> said(Io io) { co_return io; }

}  // namespace

Task<Io> Waiter::wait() {
  SLUICE_CHECK(!waiting(), "two coroutines wait for the same stream");
  return asio::async_initiate<const asio::use_awaitable_t<Executor>&, void(Io)>(
      [this](auto&& handler) { handler_.emplace(std::move(handler)); }, use_task);
}

void Waiter::wake_now(Io why) {
  if (!handler_) return;
  auto handler = std::move(*handler_);
  handler_.reset();
  handler(why);
}

void Waiter::wake_later(Executor executor, Io why) {
  if (!handler_) return;
  asio::post(executor, [handler = std::move(*handler_), why]() mutable { handler(why); });
  handler_.reset();
}

Stream::Stream(EventLoop& loop, int fd, size_t read_ahead)
    : loop_(loop), read_ahead_(read_ahead), fd_(fd), timer_(loop.executor()) {
  loop_.poller().add(fd_, *this, EPOLLIN | EPOLLRDHUP);
}

Stream::~Stream() {
  if (!open_) return;
  loop_.poller().remove(fd_, *this);
  ::close(fd_);
}

void Stream::start_tls(std::unique_ptr<TlsSession> session) { tls_ = std::move(session); }

void Stream::stop_tls() { tls_ = nullptr; }

Task<Io> Stream::handshake(Duration bound) {
  set_deadline(bound);
  for (;;) {
    if (!open_) co_return Io::kCancelled;
    Io io = tls_->handshake();
    if (io == Io::kWouldBlock) {
      if (tls_->wants_write()) {
        io = co_await wait_writable();
      } else {
        readable_ = false;
        arm_read();
        io = co_await reader_.wait();
      }
      if (io == Io::kOk) continue;
    }
    set_deadline(Duration::zero());
    readable_ = true;  // the last flight may have brought more
    co_return io;
  }
}

void Stream::consume(size_t n) {
  begin_ += n;
  if (begin_ == end_) begin_ = end_ = 0;
}

bool Stream::make_room() {
  if (buffer_ == nullptr) {
    capacity_ = std::min(little_ ? kLittle : kFirstBuffer, read_ahead_);
    buffer_.reset(new char[capacity_]);
  }
  if (end_ < capacity_ && (begin_ == 0 || capacity_ - end_ >= capacity_ / 4)) {
    if (!(last_read_was_full_ && begin_ == end_ && capacity_ < read_ahead_)) return true;
  }
  const size_t size = end_ - begin_;
  // Grows when a message needs it, or when the other side sends faster than one read takes.
  if (capacity_ < read_ahead_ && (size > capacity_ / 2 || last_read_was_full_)) {
    const size_t bigger = std::min(read_ahead_, capacity_ * 2);
    std::unique_ptr<char[]> grown(new char[bigger]);
    std::memcpy(grown.get(), buffer_.get() + begin_, size);
    buffer_ = std::move(grown);
    capacity_ = bigger;
  } else if (begin_ > 0) {
    std::memmove(buffer_.get(), buffer_.get() + begin_, size);
  }
  begin_ = 0;
  end_ = size;
  return end_ < capacity_;
}

void Stream::drop_buffer() {
  if (begin_ != end_) return;
  buffer_.reset();
  begin_ = end_ = capacity_ = 0;
}

void Stream::expect_little() {
  if (begin_ != end_ || last_read_ > kLittle) return;
  little_ = true;
  drop_buffer();
}

Io Stream::receive() {
  if (read_state_ != Io::kOk) return read_state_;
  if (!target_.empty()) return receive_straight();
  if (!make_room()) return Io::kWouldBlock;
  const size_t room = capacity_ - end_;
  size_t n = 0;
  const Io io = take(buffer_.get() + end_, room, n);
  end_ += n;
  last_read_was_full_ = n == room;
  if (io == Io::kOk || tls_ != nullptr) last_read_ = n;
  return io;
}

// To target_. Of the rest of a message a little more is asked for than there is room for: a read that is not full has
// found all that there was, and after a full one another would have to find nothing.
Io Stream::receive_straight() {
  last_read_was_full_ = false;  // the buffer has no need to grow
  if (tls_ != nullptr || !target_is_rest_ || !make_room()) return take(target_.data(), target_.size(), taken_);
  iovec parts[] = {{target_.data(), target_.size()}, {buffer_.get() + end_, capacity_ - end_}};
  const ssize_t n = receive_bytes(fd_, parts);
  const Io io = received(n, target_.size() + capacity_ - end_);
  if (io != Io::kOk) return io;
  taken_ = std::min(static_cast<size_t>(n), target_.size());
  end_ += static_cast<size_t>(n) - taken_;
  return io;
}

Io Stream::take(char* to, size_t room, size_t& n) {
  if (tls_ != nullptr) return take_tls(to, room, n);
  const ssize_t received_bytes = receive_bytes(fd_, to, room);
  const Io io = received(received_bytes, room);
  if (io == Io::kOk) n = static_cast<size_t>(received_bytes);
  return io;
}

// What recv() has said.
Io Stream::received(ssize_t n, size_t room) {
  // Less than there was room for is all: the next bytes, or the end, are news.
  readable_ = n == static_cast<ssize_t>(room) || (n > 0 && at_end_);
  if (n > 0) return Io::kOk;
  const Io result = n == 0 ? Io::kEnd : from_errno();
  if (result != Io::kWouldBlock) ended(result);
  return result;
}

Io Stream::take_tls(char* to, size_t room, size_t& n) {
  const Io io = tls_->read(to, room, n);
  // OpenSSL reads ahead: only when it wants more is there nothing left, in it or in the socket.
  readable_ = io == Io::kOk;
  if (io == Io::kWouldBlock && little_) drop_buffer();
  if (io == Io::kWouldBlock && tls_->wants_write()) {
    loop_.poller().change(fd_, *this, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
  }
  if (io == Io::kEnd || io == Io::kReset) ended(io);
  return io;
}

void Stream::ended(Io how) {
  read_state_ = how;
  on_ended();
}

void Stream::arm_read() {
  if (read_armed_ || !open_) return;
  read_armed_ = true;
  stay_alive();
  if (!readable_) return;
  // What is there already is no news for the poller.
  asio::post(loop_.executor(), [self = shared_from_this()] {
    if (self->open_ && self->readable_ && std::exchange(self->read_armed_, false)) self->on_readable();
  });
}

void Stream::watch() {
  if (read_state_ != Io::kOk) return;
  if (end_ - begin_ < read_ahead_) {
    arm_read();
  } else if (at_end_) {
    on_ended_unread();
  }
}

void Stream::watch_from_now() {
  watch();
  if (at_end_ && begin_ == end_ && readable_ && std::exchange(read_armed_, false)) on_readable();
}

// What is woken here may close the stream: close() keeps it until the loop's next turn.
void Stream::on_events(uint32_t events) {
  if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) at_end_ = true;
  if ((events & EPOLLIN) != 0 || at_end_) readable_ = true;
  if ((events & EPOLLOUT) != 0 && tls_ != nullptr && tls_->wants_write()) readable_ = true;  // to answer a key update
  if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0) writer_.wake_now(Io::kOk);
  if (open_ && readable_ && std::exchange(read_armed_, false)) {
    on_readable();
  } else if (open_ && at_end_ && end_ - begin_ >= read_ahead_ && !reader_.waiting()) {
    watch();
  }
}

// No coroutine of its own for what is about to wait: each part of a stream comes through here.
Task<Io> Stream::read_more() {
  if (!open_) return said(Io::kCancelled);
  if (read_state_ != Io::kOk) return said(read_state_);
  if (readable_) {
    const Io io = receive();
    if (io != Io::kWouldBlock) return said(io);
  }
  if (end_ - begin_ >= read_ahead_) return said(Io::kWouldBlock);
  arm_read();
  return reader_.wait();
}

Task<Io> Stream::read_into(std::span<char> to, bool is_rest, size_t& got) {
  SLUICE_CHECK(begin_ == end_ && !to.empty(), "{} bytes are unread, and there is room for {}", end_ - begin_,
               to.size());
  got = 0;
  if (!open_) co_return Io::kCancelled;
  if (read_state_ != Io::kOk) co_return read_state_;
  target_ = to;
  target_is_rest_ = is_rest;
  taken_ = 0;
  Io io = readable_ ? receive() : Io::kWouldBlock;
  if (io == Io::kWouldBlock) {
    arm_read();
    io = co_await reader_.wait();
  }
  target_ = {};
  got = taken_;
  co_return io;
}

void Stream::on_readable() {
  if (tls_ != nullptr && !tls_->established()) {
    reader_.wake_now(Io::kOk);
    return;
  }
  const Io io = receive();
  if (!open_) return;  // on_ended() closed it, and that woke the reader
  if (reader_.waiting()) {
    // A wake-up without bytes is a late event of bytes that were taken already.
    if (io == Io::kWouldBlock) {
      arm_read();
    } else {
      reader_.wake_now(io);
    }
    return;
  }
  if (io == Io::kOk) on_unread();
  if (open_ && !reader_.waiting()) watch();
}

bool Stream::has_news() {
  if (read_state_ != Io::kOk || end_ != begin_ || !open_) return true;
  if (!readable_ && !at_end_) return false;
  return receive() != Io::kWouldBlock;  // session tickets of TLS are no news
}

bool Stream::has_answer() {
  if (end_ != begin_) return true;
  if (tls_ != nullptr) return open_ && receive() == Io::kOk;
  char byte;
  return open_ && read_state_ == Io::kOk && ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

int Stream::socket_error() {
  int error = 0;
  socklen_t size = sizeof error;
  return ::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

Io Stream::try_write(std::span<iovec>& parts) {
  if (!open_) return Io::kCancelled;
  if (tls_ != nullptr) return tls_->write(parts);
  for (;;) {
    skip(parts, 0);
    if (parts.empty()) return Io::kOk;
    const ssize_t n = send_bytes(fd_, parts);
    if (n < 0) {
      if (errno == EINTR) continue;
      return from_errno();
    }
    skip(parts, static_cast<size_t>(n));
  }
}

Task<Io> Stream::write_rest(std::span<iovec> parts, Duration stall) {
  for (;;) {
    set_deadline(stall);
    Io io = co_await wait_writable();
    set_deadline(Duration::zero());
    if (io != Io::kOk) co_return io;
    io = try_write(parts);
    if (io != Io::kWouldBlock) co_return io;
  }
}

Task<Io> Stream::wait_writable() {
  if (!open_) co_return Io::kCancelled;
  stay_alive();
  loop_.poller().change(fd_, *this, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
  co_return co_await writer_.wait();
}

// Breaks the cycle stream -> waiting coroutine -> stream.
void Stream::on_shutdown() {
  const auto self = std::move(self_);
  reader_.drop();
  writer_.drop();
}

void Stream::set_deadline(Duration after) {
  has_deadline_ = after > Duration::zero();
  if (!has_deadline_) return;
  const TimePoint now = std::chrono::steady_clock::now();
  // Far enough is for ever, and cannot overflow.
  deadline_ = now + std::min<Duration>(after, std::chrono::hours(24 * 365));
  // The timer is moved only forward. A later deadline is looked at when it fires.
  if (timer_armed_ && timer_at_ <= deadline_) return;
  arm_timer(timer_horizon_ < deadline_ - now ? now + timer_horizon_ : deadline_);
}

void Stream::arm_timer(TimePoint at) {
  if (!open_) return;
  timer_armed_ = true;
  timer_at_ = at;
  timer_.expires_at(at);
  timer_.async_wait([self = shared_from_this(), at](const boost::system::error_code& error) {
    if (!error && self->open_ && self->timer_armed_ && self->timer_at_ == at) self->on_timer();
  });
}

void Stream::on_timer() {
  timer_armed_ = false;
  if (!has_deadline_) return;
  const TimePoint now = std::chrono::steady_clock::now();
  if (now < deadline_) {
    arm_timer(timer_horizon_ < deadline_ - now ? now + timer_horizon_ : deadline_);
    return;
  }
  has_deadline_ = false;
  if (writer_.waiting()) {
    writer_.wake_now(Io::kTimeout);
  } else {
    reader_.wake_now(Io::kTimeout);
  }
}

void Stream::shutdown_write() {
  if (!open_) return;
  close_notify();
  ::shutdown(fd_, SHUT_WR);
}

void Stream::close_notify() {
  if (open_ && tls_ != nullptr) tls_->close_notify();
}

void Stream::close() {
  if (!open_) return;
  open_ = false;
  has_deadline_ = false;
  loop_.poller().remove(fd_, *this);
  ::close(fd_);
  // Whoever closes it may be running in it.
  if (self_ != nullptr) asio::post(loop_.executor(), [self = std::move(self_)] {});
  timer_.cancel();
  reader_.wake_later(loop_.executor(), Io::kCancelled);
  writer_.wake_later(loop_.executor(), Io::kCancelled);
}

}  // namespace sluice::net
