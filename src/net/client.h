// An HTTP/1.1 client with kept-alive connections, for one loop: not shared between threads. The gateway's relay, health
// probes, `sluice bench` and the tests use it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "net/http.h"
#include "net/lookup.h"
#include "net/loop.h"
#include "net/task.h"

namespace sluice::net {

class TlsContext;

struct ClientTimeouts {
  Duration connect = std::chrono::seconds(10);  // the name's look-up, all its addresses and the TLS handshake together
  Duration head = std::chrono::seconds(1800);   // from the request's last byte to the end of the response head
  Duration silence =
      std::chrono::seconds(1800);  // between two reads of the body, and for a stalled write of the request
};

// One request under way. Dropping it closes its connection unless the response was read to its end.
class ClientExchange {
 public:
  virtual ~ClientExchange() = default;

  // Once, after send(), whose failure to send all of the request it tells. Interim 1xx responses are skipped.
  virtual Task<Result<ResponseHead>> read_head() = 0;
  // The next decoded bytes of the body as they arrived; empty = end of the body. The view is valid until the next call.
  virtual Task<Result<std::string_view>> read_some() = 0;
  // The same where it is here already; nullopt = it has to be waited for.
  virtual std::optional<Result<std::string_view>> read_now() = 0;
  // Waits for something to read: false when `quiet` has passed without it, and nothing is lost. The silence between two
  // reads of the body goes on meanwhile.
  virtual Task<bool> wait_some(Duration quiet) = 0;
  // The rest of the body. kTooLarge over `limit`.
  virtual Task<Result<std::string>> read_all(size_t limit = 64 << 20) = 0;
  // What followed a chunked body; there once the end of the body was read.
  virtual const Headers& trailers() const = 0;

  // False where not all of the request could be sent.
  virtual bool sent() const = 0;
  // True once a byte of the answer arrived.
  virtual bool answered() const = 0;
  // True if the request went out on a kept-alive connection that had served another one.
  virtual bool reused() const = 0;
  // Ends the connection at once. A call that is waiting fails with kCancelled. Loop thread only; idempotent.
  virtual void close() = 0;
};

struct ClientOptions {
  Duration idle_timeout = std::chrono::seconds(3);  // engines close idle connections at 5 s; 0 = keep for ever
  size_t max_idle_per_host = 500;
  size_t max_head_bytes = 64 * 1024;
  std::shared_ptr<TlsContext> tls = {};  // for https; without it the system's authorities and no certificate
  Lookup lookup = {};                    // without it the system's resolver
  Duration addresses_fresh = std::chrono::seconds(1);  // so long a look-up serves further connections
};

class Client {
 public:
  Client(EventLoop& loop, ClientOptions options = {});
  ~Client();

  // Connects (or takes a kept-alive connection that is not known to be dead), sends head and body, and returns the
  // exchange; the answer is read from it. The target goes out after url.path. Host is added where absent;
  // Content-Length is always that of `body`, whatever the head says. An error means that there is no connection and
  // the server has nothing of the request, or of a kept-alive connection that it had closed not all: kRefused, kReset,
  // kTimeout, kNotFound (name resolution), kExhausted (no descriptor or port is left here), each naming host and phase;
  // a TLS handshake that fails is kReset and says why; or kCancelled, by close(). What breaks while the request is
  // sent, read_head() says. `on_exchange`, if set, gets it before the first byte is sent, for close() then.
  Task<Result<std::unique_ptr<ClientExchange>>> send(const Url& url, RequestHead head, std::string_view body,
                                                     ClientTimeouts timeouts = {},
                                                     std::function<void(ClientExchange&)> on_exchange = {});

  // send + read_head + read_all.
  Task<Result<Response>> fetch(const Url& url, std::string method, std::string target, Headers headers = {},
                               std::string body = {}, ClientTimeouts timeouts = {});

  // Idle connections to that authority now. `busy_connections` counts those with a request under way. Any thread.
  size_t idle_connections(const Url& url) const;
  size_t busy_connections(const Url& url) const;
  // Closes the idle connections to that authority (a worker went away or restarted).
  void forget(const Url& url);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// For threads without a loop (tests, start-up): runs one request on a loop of its own.
Result<Response> blocking_fetch(const Url& url, std::string method, std::string target, Headers headers = {},
                                std::string body = {}, ClientTimeouts timeouts = {}, ClientOptions options = {});

}  // namespace sluice::net
