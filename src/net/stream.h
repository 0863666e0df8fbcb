// One TCP connection on a loop, below HTTP: a read buffer, gathered writes, one deadline with one timer, and the news
// that the other side is gone while nobody reads; the same with TLS on it. Server connections and client connections
// are Streams.
#pragma once

#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "net/io.h"
#include "net/loop.h"
#include "net/poller.h"
#include "net/task.h"
#include "net/timer.h"

namespace sluice::net {

class TlsSession;

inline constexpr asio::use_awaitable_t<Executor> use_task{};

// One coroutine that sleeps until it is woken. Loop thread only.
class Waiter {
 public:
  bool waiting() const { return handler_.has_value(); }
  // Suspends the calling coroutine; one at a time.
  Task<Io> wait();
  // Resumes it before returning. Only from the loop itself: the coroutine may destroy anything.
  void wake_now(Io why);
  // Resumes it from the loop, later. From anywhere on the loop thread.
  void wake_later(Executor executor, Io why);
  // Destroys the coroutine: the loop is going away.
  void drop() { auto dropped = std::exchange(handler_, std::nullopt); }

 private:
  using Handler = typename asio::async_result<asio::use_awaitable_t<Executor>, void(Io)>::handler_type;
  std::optional<Handler> handler_;
};

// Loop thread only, the destructor too. Held by shared_ptr: from its first wait until close() the loop keeps it alive.
// There is at most one coroutine that reads and one that writes.
class Stream : public std::enable_shared_from_this<Stream>, private Poller::Watcher {
 public:
  // `fd` is a non-blocking stream socket, connected or connecting; the stream closes it. `read_ahead` bounds the bytes
  // that are taken from the kernel before somebody consumes them.
  Stream(EventLoop& loop, int fd, size_t read_ahead);
  virtual ~Stream();

  EventLoop& loop() { return loop_; }
  bool is_open() const { return open_; }
  int fd() const { return fd_; }

  // From here on the bytes are those inside of TLS. Before anything is read or written; then handshake().
  void start_tls(std::unique_ptr<TlsSession> session);
  // kOk, kTimeout after `bound` (0 = none), kCancelled, kReset: tls() knows why.
  Task<Io> handshake(Duration bound);
  // Null without TLS. Belongs to the stream.
  const TlsSession* tls() const { return tls_.get(); }
  // The other side does not speak TLS: back to plain bytes, to say so.
  void stop_tls();

  // Bytes that arrived and are not consumed. Valid until the next suspension, or until consume() if read by nobody
  // else.
  char* unread_data() { return buffer_.get() + begin_; }
  size_t unread_size() const { return end_ - begin_; }
  std::string_view unread() const { return {buffer_.get() + begin_, end_ - begin_}; }
  void consume(size_t n);

  // Where nothing is unread: the buffer goes, until bytes come, so that long waits cost no memory. With expect_little()
  // it does so only if little came last time, and the next one is small and grows with what comes.
  void drop_buffer();
  void expect_little();
  // What comes next is as large as any.
  void expect_any() {
    little_ = false;
    if (capacity_ <= kLittle) drop_buffer();
  }

  // Waits for more bytes: kOk, or kEnd, kReset (both stay), kTimeout, kCancelled; kWouldBlock if the buffer is full.
  Task<Io> read_more();
  // The same, straight to `to`, and `got` says how many bytes: for a message whose length is known. Nothing may be
  // unread. `is_rest`: what comes beyond belongs to the next message, and goes to the buffer.
  Task<Io> read_into(std::span<char> to, bool is_rest, size_t& got);
  // Asks the loop to watch the socket while nobody reads: bytes go to the buffer as far as there is room, and the end
  // of the stream is reported by on_ended().
  void watch();
  // The same; an end that the loop knows of, and that nothing stands in front of, is reported before this returns.
  void watch_from_now();
  // kOk while the stream may bring more; else how it ended. Does not look at the socket.
  Io read_state() const { return read_state_; }
  // Of one that is watched: true if the other side closed it or sent something, as far as the loop has been told of
  // that. Looks at the socket only where it may hold something.
  bool has_news();

  // True if bytes of the other side are there, or in the kernel, for a reader to find.
  bool has_answer();
  // The pending error of the socket (SO_ERROR), or 0.
  int socket_error();

  // Takes what the kernel accepts; kOk when all of it went out. `parts` is advanced past what was written.
  Io try_write(std::span<iovec>& parts);
  // Writes the rest; `stall` bounds each wait (0 = no bound).
  Task<Io> write_rest(std::span<iovec> parts, Duration stall);
  // Waits until a connecting socket is connected or has failed; socket_error() then says which.
  Task<Io> wait_writable();

  // The wait that is under way, or the next one, ends with kTimeout after `after`; 0 = no bound. One deadline at a
  // time.
  void set_deadline(Duration after);
  // Shortest deadline that will be set often: the timer is armed at most this far ahead, and then never needs to be
  // moved forward.
  void set_timer_horizon(Duration horizon) { timer_horizon_ = horizon; }

  // No more writing; the other side reads the end.
  void shutdown_write();
  // With TLS: says that what was sent is whole. Before close(), wherever that is so.
  void close_notify();
  // Waits end with kCancelled. Idempotent.
  void close();

 protected:
  // The other side closed or reset the connection. Called once, on the loop, before a reader is woken.
  virtual void on_ended() {}
  // It has, and nobody reads what it had sent, for which there is no room: on_ended() is called when that has been
  // read. Perhaps more than once.
  virtual void on_ended_unread() {}
  // Bytes arrived and nobody was reading.
  virtual void on_unread() {}

 private:
  void on_events(uint32_t events) override;
  void on_shutdown() override;

  // Takes bytes from the socket. kOk, kWouldBlock, kEnd, kReset; kWouldBlock as well if there is no room.
  Io receive();
  Io receive_straight();
  Io take(char* to, size_t room, size_t& n);
  Io take_tls(char* to, size_t room, size_t& n);
  Io received(ssize_t n, size_t room);
  void ended(Io how);
  bool make_room();
  void arm_read();
  void on_readable();
  // Until close().
  void stay_alive() {
    if (self_ == nullptr) self_ = shared_from_this();
  }
  static constexpr size_t kLittle = 2048;

  void arm_timer(TimePoint at);
  void on_timer();

  // Constant after construction.
  EventLoop& loop_;
  const size_t read_ahead_;

  const int fd_;
  bool open_ = true;
  std::shared_ptr<Stream> self_;
  std::unique_ptr<TlsSession> tls_;

  std::unique_ptr<char[]> buffer_;
  size_t capacity_ = 0;
  size_t begin_ = 0;
  size_t end_ = 0;
  size_t last_read_ = 0;  // bytes
  // Of a read_into() that is under way.
  std::span<char> target_;
  bool target_is_rest_ = false;
  size_t taken_ = 0;
  bool little_ = false;  // is expected: the next buffer is a small one
  bool last_read_was_full_ = false;
  bool readable_ = false;    // the socket may hold something: read before waiting
  bool at_end_ = false;      // the other side has closed, so that after what it holds comes an end
  bool read_armed_ = false;  // somebody reads, or watches
  Io read_state_ = Io::kOk;
  Waiter reader_;
  Waiter writer_;

  Timer timer_;
  Duration timer_horizon_ = Duration::max();
  bool timer_armed_ = false;
  TimePoint timer_at_;
  bool has_deadline_ = false;
  TimePoint deadline_;
};

}  // namespace sluice::net
