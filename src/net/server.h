// An HTTP/1.1 server: one acceptor per loop (SO_REUSEPORT), one coroutine per connection, one call of the handler per
// request. Keep-alive, pipelining (answers in order), chunked bodies both ways, Expect: 100-continue, limits and
// time-outs per phase are its business; meaning is the handler's.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "net/http.h"
#include "net/listen.h"
#include "net/loop.h"
#include "net/task.h"

namespace sluice::net {

class TlsContext;

// One request and its answer. Lives on the connection's loop; valid until the handler returns.
//
// The rule for handlers: answer exactly once, either with respond() or with start() ... write() ... finish(). A handler
// that returns without an answer gives the client a 500; one that returns between start() and finish() aborts the
// connection, so that a truncated body is never taken for a whole one.
class ServerExchange {
 public:
  virtual ~ServerExchange() = default;

  virtual const RequestHead& request() const = 0;
  virtual EventLoop& loop() = 0;
  // Without the port.
  virtual std::string_view peer_address() const = 0;

  // The whole body. Sends "100 Continue" first where the client asked for it. kTooLarge over `limit` (checked against
  // Content-Length before a byte is read); kTimeout, kReset, kProtocol.
  virtual Task<Result<std::string>> read_body(size_t limit) = 0;

  // A complete answer, in one write. Content-Length is set here; an answer with trailers is chunked instead.
  virtual Task<Result<void>> respond(Response response) = 0;

  // A streamed answer. The body is chunked, or until close for HTTP/1.0, unless the head carries Content-Length.
  virtual Task<Result<void>> start(ResponseHead head) = 0;
  // Sent at once; returns when the kernel took it (back-pressure: the caller stops reading its source meanwhile).
  virtual Task<Result<void>> write(std::string_view bytes) = 0;
  // The same where no wait is needed, which costs no coroutine. False: the rest is kept, or there was an error; drain()
  // then waits and tells, before anything else is written.
  virtual bool write_now(std::string_view bytes) = 0;
  virtual Task<Result<void>> drain() = 0;
  virtual Task<Result<void>> finish() = 0;
  // Before finish(): what goes after the body if that is chunked; else it is dropped.
  virtual void set_trailers(Headers trailers) = 0;
  virtual bool started() const = 0;

  // Drops the connection after what was written. For a stream that broke in the middle.
  virtual void abort() = 0;

  // `callback` runs once on the loop thread when the client closes or resets the connection while the handler is at
  // work, also while nothing is being read or written; at once if that has happened already. It may not destroy the
  // exchange. An empty function takes it back.
  virtual void on_client_gone(std::function<void()> callback) = 0;
  virtual bool client_gone() const = 0;
};

using Handler = std::function<Task<>(ServerExchange&)>;

struct ServerOptions {
  size_t max_head_bytes = 64 * 1024;
  Duration head_timeout = std::chrono::seconds(30);  // from a request's first byte to the end of its head; 0 = off
  Duration body_stall_timeout = std::chrono::seconds(300);   // silence inside a request body; 0 = off
  Duration idle_timeout = std::chrono::seconds(90);          // keep-alive connection without a request; 0 = off
  Duration write_stall_timeout = std::chrono::seconds(300);  // a client that reads nothing; 0 = off
  int backlog = 4096;
  Headers headers = {};                  // on every answer, besides its own
  std::shared_ptr<TlsContext> tls = {};  // without it plain HTTP. A handshake may take as long as a head
};

class Server {
 public:
  // `loops` outlives the server. The handler runs on any of the loops, several at once.
  Server(LoopGroup& loops, ServerOptions options, Handler handler);
  ~Server();  // stops, and waits for the connections to be gone

  // Binds and starts to accept on every loop. `host` is a name, an IPv4 or an IPv6 address with or without brackets;
  // port 0 takes a free one. Where there are `inherited` sockets, which listen already (a predecessor's, or those that
  // the service manager made), it accepts on these instead. Returns the bound port. Any thread but a loop's.
  // kAlreadyExists if the port is taken.
  Result<uint16_t> listen(const std::string& host, uint16_t port, std::vector<Socket> inherited = {});

  // Other descriptors of the sockets that it listens on, for a successor. Any thread.
  std::vector<Socket> listening_sockets();
  // A successor accepts on the same sockets: those who wait in their queues are left to it. drain() then waits for the
  // connections to end, kept-alive ones too: each is closed with its next answer, or when it has been idle for too
  // long. Any thread but a loop's.
  void hand_over();

  // Closes the listening sockets; requests in progress and kept-alive connections go on, the latter until idle.
  void stop_accepting();
  // Waits until no request is in progress, at most `deadline`; then closes every connection. Returns how many requests
  // were cut off. Any thread but a loop's.
  size_t drain(Duration deadline);

  // Requests whose handler is running; connections open.
  size_t active_requests() const;
  size_t open_connections() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::net
